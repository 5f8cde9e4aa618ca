"""Which devices are away, by what their retained states say; no IO, no clock."""

from collections import OrderedDict
from dataclasses import dataclass

from edge.formats.message import Session, State
from edge.formats.node import is_late

MAX_STATES = 8192


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """What a state says that was not known.

    Attributes:
        left: the device is away now; or it was, unseen, and is back in another session.
        there: it is there now.
        restarted: its process is another than before.
    """

    device: str
    left: bool
    there: bool
    restarted: bool = False


class Absences:
    """The newest state of each device; one that never said anything counts as there.

    A last will may come after the birth message of the session that followed: a state of an older session says nothing.
    """

    def __init__(self) -> None:
        """Start with nothing known."""
        self._known: OrderedDict[str, State] = OrderedDict()

    def is_away(self, device: str) -> bool:
        """Tell whether a device said, or had said for it, that it is gone."""
        known = self._known.get(device)
        return known is not None and not known.online

    def session(self, device: str) -> Session | None:
        """Return the newest session of a device, None when it never said anything."""
        known = self._known.get(device)
        return known.session if known is not None else None

    def take(self, state: State) -> Change | None:
        """Take a state; return what it changes, None when that is nothing."""
        known = self._known.get(state.node)
        if known is not None and is_late(state, known):
            return None
        self._known[state.node] = state
        self._known.move_to_end(state.node)
        while len(self._known) > MAX_STATES:
            self._known.popitem(last=False)
        if known is None:
            return None if state.online else Change(device=state.node, left=True, there=False)
        again = state.session != known.session
        if state.online == known.online and not (again and state.online):
            return None
        restarted = state.session.boot > known.session.boot
        return Change(device=state.node, left=known.online, there=state.online, restarted=restarted and state.online)
