"""Who is in the fleet, from what nodes say of themselves. No IO and no clock."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from edge.errors import FormatError
from edge.formats.message import About, Heartbeat, Session, Speed, State, check_speed, decode_message
from edge.formats.node import is_late
from edge.formats.speed import StageLoad
from edge.formats.topics import Topics, check_name
from edge.transport import Channel, Received, TransportEvent

HEARTBEAT_SECONDS = 1.0
SILENT_SECONDS = 2.5 * HEARTBEAT_SECONDS
"""A node is gone when two of its heartbeats did not come and the third is overdue, whatever its retained state says."""

MAX_NODES = 4096
# Speeds first: who knows a device by its description knows then what it measured, and does not plan without it.
_KINDS = ("speed", "state", "about", "heartbeat")


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """What is known of one node.

    Attributes:
        state: its newest birth or last will, None when only its description was seen.
        about: its newest description, None when none was seen.
        heartbeat: its newest heartbeat, None when none was heard.
        speed: what it measured of itself, None when it said nothing of it.
        heard: when it last proved to be alive, in the clock of whoever watches; None when it never did.
    """

    name: str
    state: State | None = None
    about: About | None = None
    heartbeat: Heartbeat | None = None
    speed: Speed | None = None
    heard: float | None = None

    @property
    def is_agent(self) -> bool:
        """Whether it runs stages."""
        return self.about is not None or (self.state is not None and self.state.role == "agent")

    def online(self, now: float) -> bool:
        """Tell whether it is there: not signed off, and heard of lately."""
        signed_on = self.state is not None and self.state.online
        return signed_on and self.heard is not None and now - self.heard <= SILENT_SECONDS

    def load(self, deployment: str, epoch: str, stage: int) -> StageLoad | None:
        """Return what it measured of a stage that it runs; None when it said nothing of it."""
        loads = self.heartbeat.stages if self.heartbeat is not None else ()
        wanted = (deployment, epoch, stage)
        return next((load for load in loads if (load.deployment, load.epoch, load.stage) == wanted), None)

    def beats(self, now: float) -> bool:
        """Tell whether it is there for certain: a heartbeat was heard, not only a retained word."""
        return self.online(now) and self.heartbeat is not None


class Roster:
    """Collects states, descriptions, speeds and heartbeats of a fleet."""

    def __init__(self, topics: Topics) -> None:
        self._topics = topics
        self._nodes: dict[str, Node] = {}

    @property
    def filters(self) -> tuple[str, ...]:
        """Topic filters whose messages `receive` wants."""
        return tuple(self._topics.any_device(kind) for kind in _KINDS)

    def receive(self, topic: str, payload: bytes, *, retained: bool, now: float) -> Node | None:
        """Take a message; return the node as it is known now, or None when the message says nothing about one.

        Raises:
            FormatError: it is about a node and malformed, or from somebody else than its topic says.
        """
        levels = self._topics.parse(topic)
        if levels is None or len(levels) != 3 or levels[0] != "device" or not payload:
            return None
        name, kind = levels[1], levels[2]
        if kind not in _KINDS:
            return None
        check_name(name, what="node name")
        message = decode_message(payload, object)
        if not isinstance(message, State | About | Heartbeat | Speed):
            raise FormatError(f"{topic}: holds a {type(message).__name__}")
        if message.node != name:
            raise FormatError(f"{topic}: speaks of {message.node[:64]!r}")
        known = self._nodes.get(name, Node(name=name))
        if name not in self._nodes and len(self._nodes) >= MAX_NODES:
            raise FormatError(f"{topic}: more than {MAX_NODES} nodes")
        self._nodes[name] = updated = _updated(known, message, fresh=not retained, now=now)
        return updated

    def get(self, name: str) -> Node:
        """Return what is known of a node, which may be nothing."""
        return self._nodes.get(name, Node(name=name))

    def forget(self, name: str) -> None:
        """A node is gone for good."""
        self._nodes.pop(name, None)

    def online(self, name: str, now: float) -> bool:
        """Tell whether a node is there."""
        return self.get(name).online(now)

    def likely(self, names: Iterable[str], now: float) -> tuple[str, ...]:
        """Return nodes in the order in which to ask them: those that are there first, else as given."""
        return tuple(sorted(names, key=lambda name: not self.online(name, now)))

    def agents(self) -> Sequence[Node]:
        """Return every device, online or not, by name."""
        return [node for _, node in sorted(self._nodes.items()) if node.is_agent]

    def agents_online(self, now: float) -> Sequence[Node]:
        """Return the devices that are there and have described themselves, by name."""
        return [node for node in self.agents() if node.online(now) and node.about is not None]

    def speeds(self) -> Mapping[str, Speed]:
        """Return what devices measured of themselves, online or not, by name."""
        return {name: node.speed for name, node in sorted(self._nodes.items()) if node.speed is not None}


def is_urgent(event: TransportEvent) -> bool:
    """Tell whether an event may change what is to be done; heartbeats and blocks come in hundreds and can wait."""
    if not isinstance(event, Received):
        return True
    if event.channel is Channel.DATA:
        return "/result/" in event.topic
    return not event.topic.endswith("/heartbeat")


def _updated(known: Node, message: State | About | Heartbeat | Speed, *, fresh: bool, now: float) -> Node:
    # A retained message may be old: it tells what was, and gives its node the benefit of the doubt once.
    heard = now if fresh or known.heard is None else known.heard
    match message:
        case State():
            if known.state is not None and is_late(message, known.state):
                return known  # the last will of an older connection
            return _with(known, state=message, heard=heard)
        case About():
            current = known.state is not None and known.state.online and message.session == known.state.session
            if known.about is not None and message.session < known.about.session and not current:
                return known
            return _with(known, about=message, heard=heard)
        case Heartbeat():
            return _with(_signed_on(known, message.session), heartbeat=message, heard=now)
        case Speed():
            # What is said again stays the object that it was: whoever compares all of a large fleet is soon done.
            return known if message == known.speed else _with(known, speed=check_speed(message))


def _signed_on(known: Node, session: Session) -> Node:
    """A heartbeat without a birth message, or of a newer session than the last will: it is on its way or was lost."""
    state = known.state
    if state is None:
        return _with(known, state=State(node=known.name, role="agent", online=True, session=session))
    if not state.online and session > state.session:
        newer = State(node=state.node, role=state.role, online=True, session=session)
        return _with(known, state=newer)
    return known


def _with(
    known: Node,
    *,
    state: State | None = None,
    about: About | None = None,
    heartbeat: Heartbeat | None = None,
    speed: Speed | None = None,
    heard: float | None = None,
) -> Node:
    return Node(
        name=known.name,
        state=state or known.state,
        about=about or known.about,
        heartbeat=heartbeat or known.heartbeat,
        speed=speed or known.speed,
        heard=known.heard if heard is None else heard,
    )
