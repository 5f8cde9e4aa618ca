"""What a fault has to work with: a fleet, its load, and marks of when it was done."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from edge.errors import ShardwireError
from host.bundle import OpenBundle
from host.chaos.answers import Answers
from host.chaos.load import LoadDriver
from host.chaos.oracle import Mark, Sample
from host.chaos.plan import Fault
from host.chaos.watcher import Watcher
from host.chaos.wire import Condition, Link
from host.errors import FleetError

RECOVERY_SECONDS = 90.0
"""How long a fault waits for the fleet before the row says that it never recovered."""


class FleetHands(Protocol):
    """What can be done to a fleet, wherever it runs."""

    watcher: Watcher

    @property
    def url(self) -> str:
        """Of its broker."""

    @property
    def name(self) -> str:
        """Of the fleet."""

    def kill(self, node: str) -> None:
        """Kill a node's process."""

    def start(self, node: str) -> None:
        """Start it again."""

    def pause(self, node: str) -> None:
        """Stop it where it stands."""

    def resume(self, node: str) -> None:
        """Let it go on."""

    def cut(self, node: str, link: Link = "both") -> None:
        """Cut a node off, silently."""

    def heal(self, node: str) -> None:
        """Make its link perfect again."""

    def slow(self, node: str, condition: Condition) -> None:
        """Make its link slow and lossy."""

    def kill_broker(self) -> None:
        """Kill the broker."""

    def start_broker(self) -> None:
        """Start it again."""

    def deploy(self, bundle: OpenBundle) -> str:
        """Put a bundle to work; return its epoch."""

    def settle(self, bundle: OpenBundle) -> None:
        """Let a bundle serve, as at the start of a row."""

    def restore(self) -> None:
        """Undo every fault."""


@dataclass(slots=True)
class _Notes:
    marks: list[Mark] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    allowed: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    note: str = ""
    recover_within: float = 0.0


class Scene:
    """One fault on one fleet."""

    def __init__(
        self,
        fleet: FleetHands,
        load: LoadDriver,
        fault: Fault,
        *,
        bundles: Sequence[OpenBundle],
        answers: Answers,
        random: random.Random,
        more: Mapping[str, OpenBundle] | None = None,
    ) -> None:
        self.fleet = fleet
        self.load = load
        self.fault = fault
        self.bundles = bundles
        self.answers = answers
        self.random = random
        self._more = dict(more or {})
        self._notes = _Notes()
        self._pause = threading.Event()

    def bundle(self, name: str) -> OpenBundle | None:
        """Return the `large` or `poison` bundle of the plan, None when it names none."""
        return self._more.get(name)

    @property
    def marks(self) -> Sequence[Mark]:
        """When the fault was done."""
        return tuple(self._notes.marks)

    @property
    def faults(self) -> Sequence[str]:
        """What went wrong beside the requests."""
        return tuple(self._notes.faults)

    @property
    def allowed(self) -> Sequence[str]:
        """Codes of errors that are a good outcome here."""
        return tuple(self._notes.allowed)

    @property
    def samples(self) -> Sequence[Sample]:
        """Requests beside those of the load."""
        return tuple(self._notes.samples)

    @property
    def note(self) -> str:
        """What was done or measured besides."""
        return self._notes.note

    @property
    def recover_within(self) -> float:
        """Seconds that recovery may take, 0 for any: as planned, or by what was measured."""
        return self._notes.recover_within or self.fault.recover_within

    def target(self) -> str:
        """Return the device that the fault is for: by its stage as it is served now, by its name, or drawn.

        Raises:
            FleetError: there is no such stage now.
        """
        serving = self.fleet.watcher.value("serving")
        stages = serving.plan.stages if serving is not None and serving.plan is not None else ()
        wanted = self.fault.target
        if wanted.startswith("stage "):
            index = int(wanted[6:])
            if index >= len(stages):
                raise FleetError(f"{wanted} is not served now: there are {len(stages)} stages")
            return stages[index].device
        if wanted != "seeded":
            return wanted
        if not stages:
            raise FleetError("nothing is served now")
        return self.random.choice(sorted({stage.device for stage in stages}))

    def steady(self, seconds: float) -> None:
        """Let the load go on for a while."""
        self._pause.wait(seconds)

    def until(self, moment: float) -> None:
        """Let the load go on until a moment of the monotonic clock."""
        self._pause.wait(max(0.0, moment - time.monotonic()))

    def mark(self) -> Mark:
        """Note that the fault is done now; recovery counts from here."""
        now = time.monotonic()
        self._notes.marks.append(Mark(at=now, since=now))
        return self._notes.marks[-1]

    def over(self) -> Mark:
        """Note that the last fault, during which nothing can answer, ends now; recovery counts from here."""
        last = self._notes.marks[-1]
        self._notes.marks[-1] = Mark(at=last.at, since=time.monotonic())
        return self._notes.marks[-1]

    def recovered(self) -> None:
        """Wait until the fleet has recovered from the last fault."""
        self.load.wait(self._notes.marks[-1], RECOVERY_SECONDS)

    def must_deploy(self, bundle: OpenBundle) -> None:
        """Put a bundle to work; what keeps that from succeeding breaks a promise."""
        try:
            self.fleet.deploy(bundle)
        except ShardwireError as error:
            self.complain(f"a deployment failed: {error}")

    def complain(self, line: str) -> None:
        """Note what went wrong beside the requests."""
        self._notes.faults.append(line)

    def add(self, sample: Sample) -> None:
        """Count a request beside those of the load."""
        self._notes.samples.append(sample)

    def say(self, note: str) -> None:
        """Note in one line what was done or measured."""
        self._notes.note = note

    def limit(self, recover_within: float) -> None:
        """Set the seconds that recovery may take."""
        self._notes.recover_within = recover_within

    def allow(self, *codes: str) -> None:
        """Note that requests may end with these errors here."""
        self._notes.allowed += codes
