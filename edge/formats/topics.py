"""The topic grammar: one function a topic, and one parser for what arrives.

Root is `shardwire/<fleet>`; names match `[a-z0-9][a-z0-9-]{0,62}` (no dots: RabbitMQ turns them into slashes).
"""

import re
from dataclasses import dataclass

from edge.errors import FormatError

ROOT = "shardwire"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


def check_name(name: str, *, what: str) -> str:
    """Return `name` when it may stand in a topic.

    Raises:
        FormatError: it may not; the text says what is allowed.
    """
    if not _NAME.fullmatch(name):
        raise FormatError(
            f"{what} {name[:80]!r} is not allowed: use 1 to 63 of a-z, 0-9 and '-', starting with a letter or digit"
        )
    return name


@dataclass(frozen=True, kw_only=True, slots=True)
class Topics:
    """The topics of one fleet."""

    fleet: str

    def __post_init__(self) -> None:
        check_name(self.fleet, what="fleet name")

    def _join(self, *levels: str | int) -> str:
        return "/".join((ROOT, self.fleet, *map(str, levels)))

    def state(self, node: str) -> str:
        """Retained `online`/`offline` with the session; last will."""
        return self._join("device", node, "state")

    def about(self, node: str) -> str:
        """Retained description of a device."""
        return self._join("device", node, "about")

    def speed(self, node: str) -> str:
        """Retained: what a device measured of itself."""
        return self._join("device", node, "speed")

    def echo(self, node: str) -> str:
        """Frames that a device sends to itself to time the way."""
        return self._join("device", node, "echo")

    def heartbeat(self, node: str) -> str:
        """Every second, made by the compute loop."""
        return self._join("device", node, "heartbeat")

    def command(self, node: str) -> str:
        """Control messages to a device."""
        return self._join("device", node, "command")

    def event(self, node: str) -> str:
        """Control messages from a device."""
        return self._join("device", node, "event")

    def metrics(self, node: str) -> str:
        """Counters and percentiles of a device."""
        return self._join("device", node, "metrics")

    def log(self, node: str) -> str:
        """Structured log lines of a device."""
        return self._join("device", node, "log")

    def hello(self) -> str:
        """'Who is here?': every node announces itself again."""
        return self._join("fleet", "hello")

    def lease(self) -> str:
        """Retained: who coordinates."""
        return self._join("coordinator", "lease")

    def coordinator_heartbeat(self) -> str:
        """Every second, on every broker of a list, by who holds the lease: names the broker to use."""
        return self._join("coordinator", "heartbeat")

    def desired(self, deployment: str) -> str:
        """Retained: the plan being prepared."""
        return self._join("deployment", deployment, "desired")

    def serving(self, deployment: str) -> str:
        """Retained: the plan that answers requests; publishing it is the commit."""
        return self._join("deployment", deployment, "serving")

    def canary(self, deployment: str) -> str:
        """Retained: a plan that is tried on a part of the requests; empty when there is none."""
        return self._join("deployment", deployment, "canary")

    def history(self) -> str:
        """What happened in the fleet, as it happens."""
        return self._join("fleet", "history")

    def fetch(self, holder: str) -> str:
        """Requests for blocks, to one holder."""
        return self._join("fetch", holder)

    def blocks(self, node: str) -> str:
        """Blocks that `node` asked for."""
        return self._join("blocks", node)

    def run(self, device: str, deployment: str, epoch: str, stage: int) -> str:
        """Tensor frames for one stage on one device."""
        return self._join("run", device, deployment, epoch, stage)

    def ack(self, node: str) -> str:
        """`taken` and `done`."""
        return self._join("ack", node)

    def result(self, client: str) -> str:
        """Results and errors for one client."""
        return self._join("result", client)

    def any_device(self, kind: str) -> str:
        """Filter for one kind (`state`, `about`, `heartbeat`, `event`) of every device."""
        return self._join("device", "+", kind)

    def any_deployment(self, kind: str) -> str:
        """Filter for `desired`, `serving` or `canary` of every deployment."""
        return self._join("deployment", "+", kind)

    def any_run(self, device: str) -> str:
        """Filter for all tensor frames of a device."""
        return self._join("run", device, "#")

    def parse(self, topic: str) -> tuple[str, ...] | None:
        """Return the levels below the root of this fleet, or None for a topic of someone else."""
        levels = topic.split("/")
        if levels[:2] != [ROOT, self.fleet] or len(levels) < 4 or len(topic) > 512:
            return None
        return tuple(levels[2:])
