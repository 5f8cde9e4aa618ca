"""Epochs that a coordinator left behind when it died: a canary is gone on with, what was prepared is given up. No IO.

Whatever was prepared and not committed is abandoned: who asked for it was told so, or asks again, and what serves goes
on. An epoch whose `serving` somebody saw is not among them: that is repaired by who saw it, for which there is time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from edge.formats.message import Abandon, Ready, encode_message
from edge.formats.plan import Deployment, parse_epoch
from edge.transport import Channel, Publication
from host.fleet.deploy_job import DeployJob
from host.fleet.jobs import Desk
from host.fleet.ledger import Ledger
from host.fleet.repair import ABSENT_SECONDS, MOST_WAIT_SECONDS

WAIT_SECONDS = ABSENT_SECONDS + MOST_WAIT_SECONDS + 1.0
"""After a connection, until everybody has repaired what the broker lost."""

_REMEMBERED = 64
_REASON = "its coordinator went away before it was committed"


class Strays:
    """Looks for epochs that nobody brings into service or ends."""

    def __init__(self, desk: Desk, ledger: Ledger) -> None:
        self._desk = desk
        self._ledger = ledger
        self._given_up = deque[str](maxlen=_REMEMBERED)

    def gave_up(self, epoch: str) -> None:
        """Note an epoch that this coordinator ended: what the broker still shows of it is not tried again."""
        self._given_up.append(epoch)

    def tick(self, now: float) -> Sequence[Publication]:
        """Take over what is there; call it while the lease is held."""
        if not self._settled(now):
            return ()
        for name in self._ledger.prepared():
            if self._desk.running(name):
                continue
            canary, desired = self._ledger.canary(name), self._ledger.desired(name)
            if canary is not None and canary.epoch not in self._given_up:
                self._desk.start(DeployJob.of_found(canary, self._desk, now=now), now)
            elif (value := canary or desired) is not None:
                job = DeployJob.of_found(value, self._desk, now=now)
                job.cancel(_REASON, now)
                self._desk.start(job, now)
        return ()

    def ready(self, device: str, event: Ready, now: float) -> Sequence[Publication]:
        """Tell a device that was away to drop an epoch which was given up meanwhile."""
        name, epoch = event.deployment, event.epoch
        serving, canary = self._ledger.serving(name), self._ledger.canary(name)
        wanted = [value.epoch for value in (serving, canary, self._ledger.desired(name)) if value is not None]
        wanted += [job.epoch for job in self._desk.running(name)]
        if not self._settled(now) or epoch in wanted or not self._newer(epoch, serving):
            return ()
        command = Abandon(deployment=name, epoch=epoch, reason=_REASON)
        topic = self._desk.caller.topics.command(device)
        return (Publication(channel=Channel.CONTROL, topic=topic, payload=encode_message(command), qos=1),)

    def _settled(self, now: float) -> bool:
        return self._desk.since_hello(now) >= WAIT_SECONDS

    @staticmethod
    def _newer(epoch: str, serving: Deployment | None) -> bool:
        # What is older than what serves drains, and ends by itself.
        return serving is None or parse_epoch(epoch) > parse_epoch(serving.epoch)
