"""How an agent is present in its fleet: birth, last will, description, rivals of its name. Part of the session."""

import zlib
from dataclasses import dataclass, field

from edge.formats.message import (
    About,
    Hello,
    Message,
    RuntimeOffer,
    Session,
    State,
    decode_message,
    encode_message,
)
from edge.formats.topics import Topics
from edge.protocol.effects import Effect, Stop
from edge.transport import Channel, Publication, Received

ANNOUNCE_SECONDS = 1.0
ANSWER_SECONDS = 0.5
"""Within this time a hello is answered, each node at a moment of its own: a large fleet must not answer all at once."""

BIRTH_SECONDS = 0.5
"""How long a birth message waits for the data connection at most: who hears it may send frames at once."""

RIVAL_SECONDS = 30.0
RIVAL_TIMES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class AgentIdentity:
    """What an agent is, for as long as its process lives.

    Attributes:
        boot: counter on disk.
        instance: drawn at random by this process.
        started: monotonic seconds when the process began.
        memory_bytes: RAM that stages may use in all.
    """

    name: str
    fleet: str
    boot: int
    instance: str
    started: float
    profile: str
    runtimes: tuple[RuntimeOffer, ...]
    memory_bytes: int
    cores: int
    agent_version: str


@dataclass(slots=True)
class Presence:
    """Knows whether the node is online, and says who it is when somebody may not know.

    Attributes:
        connect: number of the control connection that stands, or stood last.
        held_bytes: size of all blobs held.
        free_disk_bytes: room for further ones.
        due: whether something changed that was not announced yet.
        cordoned: whether new plans leave it out.
    """

    identity: AgentIdentity
    topics: Topics
    held_bytes: int
    free_disk_bytes: int
    connect: int = 0
    online: bool = False
    due: bool = False
    cordoned: bool = False
    _announced: float = float("-inf")
    _is_born: bool = False
    _answer_at: float | None = None
    _answers: int = 0
    _rivals: list[float] = field(default_factory=list)

    @property
    def session(self) -> Session:
        """The session of this connection."""
        return Session(boot=self.identity.boot, connect=self.connect)

    def connected(self, connect: int, free_memory_bytes: int, now: float, *, born: bool = True) -> list[Effect]:
        """Come online; unless it is `born` at once, when frames can arrive, or after `BIRTH_SECONDS`."""
        self.connect, self.online, self._is_born = connect, True, False
        self._announced = float("-inf") if born else now + BIRTH_SECONDS - ANNOUNCE_SECONDS
        self._answer_at = None
        return self.announce(free_memory_bytes, now)

    def born(self, free_memory_bytes: int, now: float) -> list[Effect]:
        """Note that frames can arrive: nothing keeps the birth message any more."""
        if self._is_born or not self.online:
            return []
        self._announced = float("-inf")
        return self.announce(free_memory_bytes, now)

    def announce(self, free_memory_bytes: int, now: float) -> list[Effect]:
        """Publish birth message and description; at most once in `ANNOUNCE_SECONDS`, else when it is due next."""
        if not self.online or now - self._announced < ANNOUNCE_SECONDS:
            self.due = True
            return []
        self._announced, self.due = now, False
        is_birth, self._is_born = not self._is_born, True
        me = self.identity
        about = About(
            node=me.name,
            session=self.session,
            profile=me.profile,
            runtimes=me.runtimes,
            memory_bytes=me.memory_bytes,
            free_memory_bytes=free_memory_bytes,
            free_disk_bytes=self.free_disk_bytes,
            cores=me.cores,
            held_bytes=self.held_bytes,
            agent_version=me.agent_version,
            cordoned=self.cordoned,
        )
        return [
            state_publication(self.topics, me, connect=self.connect, online=True, now=now),
            control(self.topics.about(me.name), about, qos=1, retain=True),
            *([control(self.topics.hello(), Hello(node=me.name, role="agent"), qos=1)] if is_birth else ()),
        ]

    def asked(self, now: float) -> None:
        """Note a hello: it is answered within `ANSWER_SECONDS`, together with those that come until then."""
        if self._answer_at is None and self.online:
            self._answers += 1
            drawn = zlib.crc32(f"{self.identity.name} {self.identity.instance} {self._answers}".encode()) / 2**32
            self._answer_at = max(now + ANSWER_SECONDS * drawn, self._announced + ANNOUNCE_SECONDS)

    def must_answer(self, now: float) -> bool:
        """Tell whether it is time to answer a hello; asked once, it is no longer."""
        if self._answer_at is None or now < self._answer_at:
            return False
        self._answer_at = None
        return self.online

    def own_state(self, event: Received, free_memory_bytes: int, now: float) -> list[Effect]:
        """Take what somebody published as this node's state.

        Raises:
            FormatError: it is no state.
        """
        state = decode_message(event.payload, State)
        me = self.identity
        if state.online and state.session == self.session and state.instance == me.instance:
            return []
        if (state.uptime_seconds, state.instance) <= (now - me.started, me.instance) or state.instance == me.instance:
            # A late last will of an earlier connection, or a rival that came later: the truth is said again.
            return self.announce(free_memory_bytes, now)
        # Also what the broker kept of a former life of this device, but that is seen once or twice only.
        self._rivals = [*(at for at in self._rivals if now - at < RIVAL_SECONDS), now]
        if len(self._rivals) >= RIVAL_TIMES:
            return [Stop(reason=f"another agent is called {self.identity.name}: give each its own --name")]
        return self.announce(free_memory_bytes, now)


def state_publication(topics: Topics, me: AgentIdentity, *, connect: int, online: bool, now: float) -> Publication:
    """Return the birth message or the last will of an agent."""
    session = Session(boot=me.boot, connect=connect)
    state = State(
        node=me.name,
        role="agent",
        online=online,
        session=session,
        instance=me.instance,
        uptime_seconds=now - me.started,
    )
    return control(topics.state(me.name), state, qos=1, retain=True)


def control(topic: str, message: Message, *, qos: int, retain: bool = False) -> Publication:
    """Return a control message as a publication."""
    return Publication(channel=Channel.CONTROL, topic=topic, payload=encode_message(message), qos=qos, retain=retain)
