"""The agent's protocol: (event, now) → effects. No IO, no clock, no threads.

The same code runs on a device (`edge.agent`) and in a simulated fleet: whoever drives it carries out the effects
and hands back the events that follow. Its parts, beside it: `presence` (who is here), `epochs` (what is prepared and
served), `fetch` (blobs that are on their way) and `intake` (frames).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from edge.errors import FormatError, ShardwireError
from edge.formats.bundle import Blob
from edge.formats.message import (
    Abandon,
    Block,
    Done,
    FetchRequest,
    Heartbeat,
    Hello,
    Lease,
    Session,
    Taken,
    decode_message,
    encode_message,
)
from edge.formats.plan import Deployment, decode_deployment
from edge.formats.topics import Topics, check_name
from edge.protocol.effects import (
    AgentEvent,
    AnswerFetch,
    Beat,
    BeginBlob,
    BlobBegun,
    BlobFailed,
    BlobsDropped,
    BlobSpoiled,
    BlobStored,
    BlocksKept,
    Effect,
    FrameDone,
    Log,
    ManifestRead,
    StageLoaded,
    StageRefused,
    Subscribe,
    Tick,
)
from edge.protocol.epochs import Announce, EpochAction, Epochs, Need
from edge.protocol.fetch import AskBlock, FetchAction, Fetcher, FetchFailed
from edge.protocol.intake import Intake
from edge.protocol.needs import Capacity
from edge.protocol.presence import AgentIdentity, Presence, control
from edge.protocol.relay import Relay
from edge.transport import Channel, Connected, Disconnected, Publication, Received, Subscribed


@dataclass(frozen=True, kw_only=True, slots=True)
class OnDisk:
    """What an agent finds on its disk when it starts.

    Attributes:
        serving: newest serving plan of each deployment.
        held: digests of the blobs.
        poisoned: requests that killed it.
    """

    serving: tuple[Deployment, ...] = ()
    held: frozenset[str] = frozenset()
    held_bytes: int = 0
    free_disk_bytes: int = 0
    poisoned: frozenset[str] = frozenset()


class AgentSession:
    """One agent: feed it every event, carry out every effect, in order."""

    def __init__(self, identity: AgentIdentity, disk: OnDisk) -> None:
        self._name = identity.name
        self._topics = Topics(fleet=identity.fleet)
        self._disk = disk
        self._data_up = False
        self._presence = Presence(
            identity=identity,
            topics=self._topics,
            held_bytes=disk.held_bytes,
            free_disk_bytes=disk.free_disk_bytes,
        )
        self._fetcher = Fetcher(reply_to=self._topics.blocks(self._name))
        self._begun: dict[str, tuple[Blob, tuple[str, ...]]] = {}
        capacity = Capacity(memory_bytes=identity.memory_bytes, runtimes=identity.runtimes)
        self._epochs = Epochs(node=self._name, capacity=capacity, held=disk.held)
        self.relay = Relay(topics=self._topics, node=self._name, session=Session(boot=identity.boot, connect=0))
        self._intake = Intake(
            topics=self._topics,
            node=self._name,
            relay=self.relay,
            epochs=self._epochs,
            poisoned=disk.poisoned,
            queue_limit_bytes=identity.memory_bytes // 4,
        )
        self._steps: dict[type[Any], Callable[[Any, float], list[Effect]]] = {
            Connected: self._connected,
            Disconnected: self._disconnected,
            Subscribed: self._subscribed,
            Received: self._received,
            Tick: self._tick,
            Beat: self._beat,
            BlobBegun: self._blob_begun,
            BlocksKept: self._blocks_kept,
            BlobStored: self._blob_stored,
            BlobSpoiled: self._blob_spoiled,
            BlobFailed: self._blob_failed,
            BlobsDropped: self._blobs_dropped,
            ManifestRead: self._manifest_read,
            StageLoaded: self._stage_loaded,
            StageRefused: self._stage_refused,
            FrameDone: self._frame_done,
        }
        self._control_readers: dict[str, Callable[[Received, str, float], list[Effect]]] = {
            "state": self._own_state,
            "command": self._command,
            "hello": self._hello,
            "lease": self._lease,
            "desired": self._desired,
            "serving": self._serving,
        }
        self._data_readers: dict[str, Callable[[bytes, float], list[Effect]]] = {
            "fetch": self._fetch_request,
            "blocks": self._block,
            "ack": self._ack,
        }

    @property
    def session(self) -> Session:
        """The session of the control connection that stands, or stood last."""
        return self._presence.session

    def start(self, now: float) -> list[Effect]:
        """Serve again what was served before, from the disk and with nobody's help."""
        effects: list[Effect] = []
        # Tombstones last: they collect blobs, and what the live ones need must be known by then.
        for deployment in sorted(self._disk.serving, key=lambda found: found.removed):
            effects += self._carry(self._epochs.serving(deployment, now), now)
        return effects

    def handle(self, event: AgentEvent, now: float) -> list[Effect]:
        """Take one event.

        Args:
            event: what happened.
            now: monotonic seconds, never less than before.

        Returns:
            What must be done, in order. A malformed message gives a log line and nothing else.
        """
        try:
            return self._steps[type(event)](event, now)
        except ShardwireError as error:
            where = event.topic[:200] if isinstance(event, Received) else type(event).__name__
            return [Log(level="warning", text=f"{where}: dropped: {error}")]

    # ------------------------------------------------------------------------------------------------- connections
    def _connected(self, event: Connected, now: float) -> list[Effect]:
        name, topics = self._name, self._topics
        if event.channel is Channel.DATA:
            self._data_up = True
            data = (topics.any_run(name), topics.fetch(name), topics.blocks(name), topics.ack(name))
            return [Subscribe(channel=Channel.DATA, filter=filter) for filter in data]
        filters = (
            topics.state(name),
            topics.command(name),
            topics.hello(),
            topics.any_deployment("desired"),
            topics.any_deployment("serving"),
            topics.lease(),
        )
        # Subscribed before it is announced: who sees us may send a command at once.
        return [
            *(Subscribe(channel=Channel.CONTROL, filter=filter) for filter in filters),
            *self._presence.connected(event.connect, self._epochs.budget_bytes(), now),
        ]

    def _disconnected(self, event: Disconnected, _now: float) -> list[Effect]:
        if event.channel is Channel.DATA:
            self._data_up = self._epochs.can_serve = False
        else:
            self._presence.online = False
        return []

    def _subscribed(self, event: Subscribed, now: float) -> list[Effect]:
        if event.filter != self._topics.any_run(self._name):
            return []
        self._epochs.can_serve = True
        return self._carry(self._epochs.events(), now)

    def _announce(self, now: float) -> list[Effect]:
        return self._presence.announce(self._epochs.budget_bytes(), now)

    # ---------------------------------------------------------------------------------------------------- messages
    def _received(self, event: Received, now: float) -> list[Effect]:
        levels = self._topics.parse(event.topic)
        if levels is None:
            return []
        if event.channel is Channel.DATA:
            if levels[:2] == ("run", self._name) and len(levels) == 5:
                return self._intake.packet(levels, event.payload, now)
            read = self._data_readers.get(levels[0]) if levels[1:] == (self._name,) else None
            return read(event.payload, now) if read is not None else []
        subject = levels[1]
        asked = levels in (
            ("device", self._name, "state"),
            ("device", self._name, "command"),
            ("fleet", "hello"),
            ("coordinator", "lease"),
            ("deployment", subject, "desired"),
            ("deployment", subject, "serving"),
        )
        return self._control_readers[levels[-1]](event, subject, now) if asked else []

    def _own_state(self, event: Received, _subject: str, now: float) -> list[Effect]:
        return self._presence.own_state(event, self._epochs.budget_bytes(), now)

    def _hello(self, event: Received, _subject: str, now: float) -> list[Effect]:
        if decode_message(event.payload, Hello).node == self._name:
            return []
        return [*self._announce(now), *self._carry(self._epochs.events(), now)]

    def _lease(self, event: Received, _subject: str, _now: float) -> list[Effect]:
        decode_message(event.payload, Lease)
        return []

    def _desired(self, event: Received, subject: str, now: float) -> list[Effect]:
        if not event.payload:
            return []  # the coordinator took its retained value back; an `Abandon` says what to drop
        return self._carry(self._epochs.desired(_deployment(event.payload, subject), now), now)

    def _serving(self, event: Received, subject: str, now: float) -> list[Effect]:
        return self._carry(self._epochs.serving(_deployment(event.payload, subject), now), now)

    def _command(self, event: Received, _subject: str, now: float) -> list[Effect]:
        command = decode_message(event.payload, Abandon)
        check_name(command.deployment, what="deployment name")
        return self._carry(self._epochs.abandon(command.deployment, command.epoch), now)

    # ------------------------------------------------------------------------------------------------------- blobs
    def _fetch_request(self, payload: bytes, _now: float) -> list[Effect]:
        request = decode_message(payload, FetchRequest)
        levels = self._topics.parse(request.reply_to)
        if levels is None or len(levels) != 2 or levels[0] != "blocks":
            raise FormatError(f"{request.reply_to[:120]!r} is no blocks topic of this fleet")
        check_name(levels[1], what="node name")
        return [AnswerFetch(request=request)]

    def _block(self, payload: bytes, now: float) -> list[Effect]:
        return self._fetch(self._fetcher.take(decode_message(payload, Block), now), now)

    def _blob_begun(self, event: BlobBegun, now: float) -> list[Effect]:
        begun = self._begun.get(event.digest)
        if begun is None:
            return []
        return self._fetch(self._fetcher.want(begun[0], begun[1], event.missing, now), now)

    def _blocks_kept(self, event: BlocksKept, now: float) -> list[Effect]:
        return self._fetch(self._fetcher.kept(event.digest, event.indices, now), now)

    def _blob_stored(self, event: BlobStored, now: float) -> list[Effect]:
        self._presence.held_bytes, self._presence.free_disk_bytes = event.held_bytes, event.free_disk_bytes
        self._begun.pop(event.digest, None)
        self._fetcher.forget(event.digest)
        return self._carry(self._epochs.stored(event.digest, now), now)

    def _blob_spoiled(self, event: BlobSpoiled, now: float) -> list[Effect]:
        begun = self._begun.get(event.digest)
        if begun is None:
            # It was here, and the file has changed since.
            self._epochs.dropped((event.digest,))
            reason = f"stored blob {event.digest[7:19]} has changed on the disk"
            return self._blob_failed(BlobFailed(digest=event.digest, code="DigestMismatch", reason=reason), now)
        blob, holders = begun
        self._fetcher.forget(event.digest)
        if len(holders) <= 1:
            reason = f"blob {event.digest[7:19]}: what its holders sent has another digest"
            return self._blob_failed(BlobFailed(digest=event.digest, code="DigestMismatch", reason=reason), now)
        self._begun[event.digest] = (blob, holders[1:])
        return [BeginBlob(blob=blob)]

    def _blob_failed(self, event: BlobFailed, now: float) -> list[Effect]:
        self._begun.pop(event.digest, None)
        self._fetcher.forget(event.digest)
        return self._carry(self._epochs.blob_failed(event.digest, event.code, event.reason), now)

    def _blobs_dropped(self, event: BlobsDropped, now: float) -> list[Effect]:
        self._presence.held_bytes, self._presence.free_disk_bytes = event.held_bytes, event.free_disk_bytes
        self._epochs.dropped(event.digests)
        return self._announce(now)

    def _manifest_read(self, event: ManifestRead, now: float) -> list[Effect]:
        return self._carry(self._epochs.manifest_read(event.digest, event.manifest, now), now)

    def _fetch(self, actions: Iterable[FetchAction], now: float) -> list[Effect]:
        effects: list[Effect] = []
        for action in actions:
            if isinstance(action, AskBlock):
                topic, payload = self._topics.fetch(action.holder), encode_message(action.request)
                effects.append(Publication(channel=Channel.DATA, topic=topic, payload=payload))
            elif isinstance(action, FetchFailed):
                failed = BlobFailed(digest=action.digest, code="TransportError", reason=action.reason)
                effects += self._blob_failed(failed, now)
            else:
                effects.append(action)
        return effects

    # ---------------------------------------------------------------------------------------------- stages, frames
    def _stage_loaded(self, event: StageLoaded, now: float) -> list[Effect]:
        self._presence.due = True
        return self._carry(self._epochs.stage_loaded(event), now)

    def _stage_refused(self, event: StageRefused, now: float) -> list[Effect]:
        return self._carry(self._epochs.stage_refused(event.key, event.code, event.reason, now), now)

    def _frame_done(self, event: FrameDone, _now: float) -> list[Effect]:
        return self._intake.frame_done(event)

    def _ack(self, payload: bytes, _now: float) -> list[Effect]:
        ack = decode_message(payload, object)
        if isinstance(ack, Done):
            return self._intake.done(ack)
        if not isinstance(ack, Taken):
            raise FormatError(f"{type(ack).__name__} is no ack")
        return []

    # -------------------------------------------------------------------------------------------------------- time
    def _beat(self, event: Beat, now: float) -> list[Effect]:
        self._epochs.free_memory_bytes = event.free_memory_bytes
        heartbeat = Heartbeat(
            node=self._name,
            session=self.session,
            frames_done=event.frames_done,
            oldest_queued_seconds=self._intake.oldest_seconds(now),
            data_up=self._data_up,
        )
        return [control(self._topics.heartbeat(self._name), heartbeat, qos=0)]

    def _tick(self, _event: Tick, now: float) -> list[Effect]:
        effects = self._intake.tick(now)
        if self._data_up:
            # While the connection is down nobody can answer, and no holder is to blame.
            effects += self._fetch(self._fetcher.tick(now), now)
        missing = {digest: self._fetcher.missing_bytes(digest) for digest in self._fetcher.wanted}
        effects += self._carry(self._epochs.tick(missing, now), now)
        return effects + (self._announce(now) if self._presence.due else [])

    # ----------------------------------------------------------------------------------------------------- carrying
    def _carry(self, actions: Iterable[EpochAction], now: float) -> list[Effect]:
        effects: list[Effect] = []
        for action in actions:
            if isinstance(action, Announce):
                effects.append(control(self._topics.event(self._name), action.event, qos=1))
            elif isinstance(action, Need):
                effects += self._need(action, now)
            else:
                effects.append(action)
        for digest in self._begun.keys() - self._epochs.wanted():
            del self._begun[digest]
            self._fetcher.forget(digest)
        self._intake.fit_limits()
        return effects

    def _need(self, need: Need, now: float) -> list[Effect]:
        if need.blob.digest in self._begun:
            return []
        self._begun[need.blob.digest] = (need.blob, need.holders)
        if not need.holders:
            reason = f"blob {need.blob.digest[7:19]} is not here, and the deployment names no holder of it"
            return self._blob_failed(BlobFailed(digest=need.blob.digest, code="StoreError", reason=reason), now)
        return [BeginBlob(blob=need.blob)]


def _deployment(payload: bytes, subject: str) -> Deployment:
    deployment = decode_deployment(payload)
    if deployment.name != subject:
        raise FormatError(f"deployment {deployment.name!r} on the topic of {subject[:80]!r}")
    return deployment
