"""Requests that may be what devices die of; no IO, no clock.

An agent knows which request it died of, and answers it with `Poison` when it is back. A client that sends on to other
devices meanwhile must not lose those too: what was in flight through two devices that died, on the same shards, is a
*suspect*. It waits a while for one of them to come back and say; then it is sent alone. After a third death it goes to
none but those, and ends with `Poison` when its time is up. A device that comes back in the same boot did not die, only
its link was cut; one that takes the request in another life did not die of it.
"""

from edge.errors import Poison, RequestError
from edge.formats.message import Session
from edge.protocol.pending import Death, Pending
from edge.protocol.runners import Runners

SUSPECT_DEATHS = 2
POISON_DEATHS = 3
HOLD_SECONDS = 5.0
"""How long a suspect waits for a device that died to come back and say whether it was this request."""

_MAX_DEATHS = 16


def note_death(pending: Pending, device: str, session: Session | None, now: float) -> None:
    """Note that a device went away while a request may have been on it."""
    plan = pending.route.deployment.plan if pending.route is not None else None
    if plan is None or session is None:
        return
    boot = session.boot
    places = [stage for stage in plan.stages if device in stage.devices]
    known = {(death.device, death.boot) for death in pending.deaths}
    if not places or (device, boot) in known:
        return
    died = tuple(
        Death(device=device, boot=boot, first_shard=stage.first_shard, stop_shard=stage.stop_shard) for stage in places
    )
    pending.deaths = (*pending.deaths, *died)[-_MAX_DEATHS:]
    pending.died_at = now


def acquit(pending: Pending, device: str, *, since_boot: int = 0, until_boot: int) -> None:
    """Note that a device did not die of a request in these of its lives."""
    if pending.deaths:
        pending.deaths = tuple(
            death for death in pending.deaths if death.device != device or not since_boot <= death.boot <= until_boot
        )


def died_on_same_shards(pending: Pending) -> int:
    """Return how many devices' lives ended with a request in flight on some one shard."""
    return max(
        (
            len(
                {
                    (other.device, other.boot)
                    for other in pending.deaths
                    if other.first_shard <= death.first_shard < other.stop_shard
                }
            )
            for death in pending.deaths
        ),
        default=0,
    )


def verdict(pending: Pending) -> RequestError:
    """Return what a request ends with when its time is up."""
    if died_on_same_shards(pending) < POISON_DEATHS:
        return pending.too_late()
    died = ", ".join(dict.fromkeys(death.device for death in pending.deaths))
    return Poison(f"{died} died while they may have run this request, and none came back to say so")


class Trials:
    """Lets suspects go one at a time."""

    def __init__(self, runners: Runners) -> None:
        """Start with nobody on trial.

        Args:
            runners: who knows the states of devices.
        """
        self._runners = runners
        self._tried: dict[str, Pending] = {}

    def must_wait(self, pending: Pending, now: float) -> bool:
        """Tell whether a request must not be sent now; one that may is on trial until it has its outcome."""
        deaths = died_on_same_shards(pending)
        if deaths < SUSPECT_DEATHS:
            return False
        other = self._tried.get(pending.name)
        if other is not None and other is not pending and not other.settled and other.in_flight:
            return True
        may_ask_others = deaths < POISON_DEATHS and now >= pending.died_at + HOLD_SECONDS
        if not may_ask_others and not self.witnesses(pending):
            return True
        self._tried[pending.name] = pending
        return False

    def witnesses(self, pending: Pending) -> list[str]:
        """Return the devices that died with a request in flight, and are back in another life."""
        there = []
        for death in pending.deaths:
            session = self._runners.session(death.device)
            if session is not None and session.boot > death.boot and not self._runners.is_away(death.device):
                there.append(death.device)
        return list(dict.fromkeys(there))
