"""The agent's protocol driven without threads, network or disk, on a virtual clock that the test moves."""

import dataclasses
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from edge.errors import BundleError, RequestError, StageFailed
from edge.formats.bundle import decode_manifest, digest_of
from edge.formats.frame import Frame, FrameHeader, decode_frame, encode_frame
from edge.formats.message import (
    BLOCK_BYTES,
    FetchRequest,
    Message,
    RuntimeOffer,
    Session,
    Taken,
    decode_message,
    encode_message,
)
from edge.formats.packet import Reassembler, split
from edge.formats.plan import Deployment, encode_deployment
from edge.formats.tensor import Array
from edge.formats.topics import Topics
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
    CloseStage,
    CollectBlobs,
    Echoed,
    Effect,
    FrameDone,
    LoadStage,
    Log,
    ManifestRead,
    ReadManifest,
    RunBench,
    RunFrame,
    SaveServing,
    SaveSpeed,
    StageClosed,
    StageKey,
    StageLoaded,
    StageRefused,
    Stop,
    Subscribe,
    Tick,
    Unsubscribe,
)
from edge.protocol.fetch import KeepBlock, all_blocks, answer_fetch
from edge.protocol.marks import ForgetDeaths, SaveMarks
from edge.protocol.on_disk import OnDisk
from edge.protocol.presence import AgentIdentity, state_publication
from edge.protocol.session import AgentSession
from edge.transport import Channel, MemoryBroker, MemoryTransport, Publication, Received, TransportEvent
from tests.tiny_bundle import TinyBundle

TOPICS = Topics(fleet="default")
INSTANCE = "5"
STARTED = 90.0
OFFER = RuntimeOffer(name="onnxruntime", version="1.32.0", providers=("CPUExecutionProvider",))


def run_as_addition(frame: Frame) -> dict[str, Array]:
    """Play a stage: every stage of the tiny bundle adds one and gives the next cut."""
    name = {"x": "hidden", "hidden": "y"}[next(iter(frame.tensors))]
    return {name: np.asarray(next(iter(frame.tensors.values())) + np.float32(1))}


def _identity(
    name: str, *, boot: int, memory_bytes: int, runtimes: tuple[RuntimeOffer, ...] = (OFFER,)
) -> AgentIdentity:
    return AgentIdentity(
        name=name,
        fleet="default",
        boot=boot,
        instance=INSTANCE,
        started=STARTED,
        profile="rpi4",
        runtimes=runtimes,
        memory_bytes=memory_bytes,
        cores=4,
        agent_version="0",
    )


class VirtualAgent:
    """Carries out the effects of one `AgentSession` at once; holds back what the test says.

    Attributes:
        hold_loads, hold_runs: keep stages or frames in `loads` and `runs` instead of finishing them at once.
        ran: ids of the requests that were run.
    """

    def __init__(
        self,
        broker: MemoryBroker,
        name: str = "pi-1",
        *,
        boot: int = 1,
        memory_bytes: int = 1 << 30,
        disk: OnDisk | None = None,
        blobs: dict[str, bytes] | None = None,
        run: Callable[[Frame], dict[str, Array]] = run_as_addition,
        runtimes: tuple[RuntimeOffer, ...] = (OFFER,),
    ) -> None:
        identity = _identity(name, boot=boot, memory_bytes=memory_bytes, runtimes=runtimes)
        self.name = name
        self.now = 100.0
        self.blobs = dict(blobs or {})
        found = disk or OnDisk()
        self.session = AgentSession(
            identity,
            dataclasses.replace(found, held=frozenset(self.blobs)),
        )
        self.run = run
        self.hold_loads = False
        self.hold_runs = False
        self.loads: list[LoadStage] = []
        self.runs: list[RunFrame] = []
        self.ran: list[str] = []
        self.stages: set[StageKey] = set()
        self.saved: list[Deployment] = []
        self.marks = found.marks
        self.forgiven: list[ForgetDeaths] = []
        self.benches: list[RunBench] = []
        self.echoes: list[Echoed] = []
        self.speeds: list[SaveSpeed] = []
        self.logs: list[str] = []
        self.stopped = ""
        self._partial: dict[str, dict[int, bytes]] = {}
        self._events: deque[AgentEvent] = deque()
        self.transport = MemoryTransport(
            broker,
            on_event=self._events.append,
            will=lambda connect: state_publication(TOPICS, identity, connect=connect, online=False, now=STARTED),
        )
        self._carriers = self._make_carriers()

    def _make_carriers(self) -> dict[type[Any], Callable[[Any], object]]:
        return {
            Publication: self.transport.publish,
            Subscribe: lambda effect: self.transport.subscribe(effect.channel, effect.filter),
            Unsubscribe: lambda effect: self.transport.unsubscribe(effect.channel, effect.filter),
            SaveServing: lambda effect: self.saved.append(effect.deployment),
            SaveMarks: lambda effect: setattr(self, "marks", effect.marks),
            ForgetDeaths: self.forgiven.append,
            BeginBlob: self._begin,
            KeepBlock: self._keep,
            ReadManifest: self._read_manifest,
            CollectBlobs: self._collect,
            AnswerFetch: self._answer,
            LoadStage: self._load,
            CloseStage: self._close,
            RunFrame: self._run,
            RunBench: self.benches.append,
            Echoed: self.echoes.append,
            SaveSpeed: self.speeds.append,
            Log: lambda effect: self.logs.append(effect.text),
            Stop: lambda effect: setattr(self, "stopped", effect.reason),
        }

    def start(self) -> None:
        """Start and connect."""
        self._carry(self.session.start(self.now))
        for channel in Channel:
            self.transport.connect(channel)
        self.pump()

    @property
    def idle(self) -> bool:
        """Whether nothing waits to be taken."""
        return not self._events

    def pump(self) -> None:
        """Take everything that waits."""
        while self._events:
            self._carry(self.session.handle(self._events.popleft(), self.now))

    def feed(self, event: AgentEvent) -> None:
        """Take one event and what follows from it."""
        self._events.append(event)
        self.pump()

    def wait(self, seconds: float, step: float = 0.25) -> None:
        """Let time pass, a tick at a time."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + step)
            self.feed(Tick())

    def beat(self, *, free_memory_bytes: int = 1 << 30) -> None:
        """Let the compute loop beat once."""
        self.feed(Beat(frames_done=0, free_memory_bytes=free_memory_bytes))

    def finish_load(self, refuse: str = "") -> None:
        """End the oldest load that was held back."""
        job = self.loads.pop(0)
        if refuse:
            self.feed(StageRefused(key=job.key, code="StageError", reason=refuse))
        else:
            self.stages.add(job.key)
            self.feed(StageLoaded(key=job.key, load_seconds=0.1, rss_bytes=1000))

    def finish_run(self) -> None:
        """End the oldest run that was held back."""
        job = self.runs.pop(0)
        self.ran.append(job.frame.header.request_id)
        publications = self.session.relay.after_run(job, self.run(job.frame), started=self.now, stopped=self.now + 0.01)
        self._carry(publications)
        self.feed(
            FrameDone(key=job.key, request_id=job.frame.header.request_id, run_seconds=0.01, ended=not job.onward)
        )

    def fail_run(self, error: RequestError) -> None:
        """Let the oldest run that was held back fail."""
        job = self.runs.pop(0)
        self._carry(self.session.relay.after_error(job, error))
        failed = isinstance(error, StageFailed)
        self.feed(
            FrameDone(key=job.key, request_id=job.frame.header.request_id, run_seconds=0.01, ended=True, failed=failed)
        )

    # ----------------------------------------------------------------------------------------------------- carriers
    def _carry(self, effects: list[Effect] | list[Publication]) -> None:
        for effect in effects:
            self._carriers[type(effect)](effect)

    def _begin(self, effect: BeginBlob) -> None:
        digest = effect.blob.digest
        if digest in self.blobs:
            self._events.append(BlobStored(digest=digest, held_bytes=0, free_disk_bytes=0))
        else:
            self._partial[digest] = {}
            self._events.append(BlobBegun(digest=digest, missing=tuple(all_blocks(effect.blob))))

    def _keep(self, effect: KeepBlock) -> None:
        digest = effect.blob.digest
        blocks = self._partial[digest]
        blocks[effect.index] = effect.data
        self._events.append(BlocksKept(digest=digest, indices=(effect.index,)))
        if len(blocks) == len(all_blocks(effect.blob)):
            data = b"".join(blocks[index] for index in sorted(blocks))
            if digest_of(data) != digest:
                self._events.append(BlobSpoiled(digest=digest))
                return
            self.blobs[digest] = data
            self._events.append(BlobStored(digest=digest, held_bytes=len(data), free_disk_bytes=0))

    def _read_manifest(self, effect: ReadManifest) -> None:
        digest = effect.blob.digest
        try:
            self._events.append(ManifestRead(digest=digest, manifest=decode_manifest(self.blobs[digest])))
        except BundleError as error:
            self._events.append(BlobFailed(digest=digest, code="BundleError", reason=str(error)))

    def _collect(self, effect: CollectBlobs) -> None:
        dropped = tuple(digest for digest in self.blobs if digest not in effect.keep)
        for digest in dropped:
            del self.blobs[digest]
        self._events.append(BlobsDropped(digests=dropped, held_bytes=0, free_disk_bytes=0))

    def _answer(self, effect: AnswerFetch) -> None:
        def read_block(digest: str, index: int) -> tuple[int, bytes] | None:
            data = self.blobs.get(digest)
            return (len(data), data[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]) if data is not None else None

        block = answer_fetch(effect.request, read_block)
        self.transport.publish(
            Publication(channel=Channel.DATA, topic=effect.request.reply_to, payload=encode_message(block))
        )

    def _load(self, effect: LoadStage) -> None:
        self.loads.append(effect)
        if not self.hold_loads:
            job = self.loads.pop()
            self.stages.add(job.key)
            self._events.append(StageLoaded(key=job.key, load_seconds=0.1, rss_bytes=1000))

    def _close(self, effect: CloseStage) -> None:
        self.stages.discard(effect.key)
        self._events.append(StageClosed(key=effect.key))

    def _run(self, effect: RunFrame) -> None:
        self.runs.append(effect)
        if not self.hold_runs:
            self.finish_run()


class Ear:
    """Hears everything on a `MemoryBroker`, and may speak and hold blobs."""

    def __init__(self, broker: MemoryBroker, *bundles: TinyBundle, name: str = "boss") -> None:
        self.heard: list[Received] = []
        self.asked: list[FetchRequest] = []
        self.deaf = False
        self._name = name
        self._bundles = bundles
        self.transport = MemoryTransport(broker, on_event=self._on_event)
        for channel in Channel:
            self.transport.connect(channel)
        self.transport.subscribe(Channel.CONTROL, "shardwire/#")

    def say(self, topic: str, payload: bytes | Message, *, retain: bool = False) -> None:
        """Publish."""
        data = payload if isinstance(payload, bytes) else encode_message(payload)
        self.transport.publish(Publication(channel=Channel.CONTROL, topic=topic, payload=data, retain=retain))

    def desire(self, deployment: Deployment) -> None:
        """Ask for an epoch."""
        self.say(TOPICS.desired(deployment.name), encode_deployment(deployment), retain=True)

    def serve(self, deployment: Deployment) -> None:
        """Commit an epoch."""
        self.say(TOPICS.serving(deployment.name), encode_deployment(deployment), retain=True)

    def send_frame(self, header: FrameHeader, tensors: dict[str, Array], device: str = "pi-1") -> None:
        """Publish a tensor frame for a stage."""
        topic = TOPICS.run(device, header.deployment, header.epoch, header.stage)
        for packet in split(
            encode_frame(header, tensors),
            sender=header.sender,
            session=Session(boot=1, connect=1),
            sequence=len(self.heard),
        ):
            self.say(topic, packet)

    def messages(self, kind: type[Any]) -> list[Any]:
        """Return the control messages of a kind heard so far, and forget nothing."""
        found = []
        for event in self.heard:
            if event.topic.split("/")[2] in ("run", "result") or event.topic.endswith(("desired", "serving", "canary")):
                continue
            message = decode_message(event.payload, object)
            if type(message) is kind:
                found.append(message)
        return found

    def frames(self, topic: str) -> list[Frame]:
        """Return the frames heard on a topic."""
        joined = Reassembler()
        packets = (event.payload for event in self.heard if event.topic == topic)
        return [decode_frame(data) for packet in packets if (data := joined.add(packet, 0.0)) is not None]

    def taken(self, topic: str) -> list[Taken]:
        """Return the acks of frames heard on a topic."""
        acks = [decode_message(event.payload, object) for event in self.heard if event.topic == topic]
        return [ack for ack in acks if isinstance(ack, Taken)]

    def forget(self) -> None:
        """Forget what was heard."""
        self.heard.clear()

    def _on_event(self, event: TransportEvent) -> None:
        if not isinstance(event, Received):
            return
        self.heard.append(event)
        if event.topic == TOPICS.fetch(self._name):
            request = decode_message(event.payload, FetchRequest)
            self.asked.append(request)
            if not self.deaf:
                block = answer_fetch(request, self._read_block)
                self.say(request.reply_to, block)

    def _read_block(self, digest: str, index: int) -> tuple[int, bytes] | None:
        for bundle in self._bundles:
            if found := bundle.read_block(digest, index):
                return found
        return None


def prepare(agent: VirtualAgent, ear: Ear, deployment: Deployment) -> None:
    """Desire a deployment and let the agent do what it can."""
    ear.desire(deployment)
    agent.pump()


def serve(agent: VirtualAgent, ear: Ear, deployment: Deployment) -> None:
    """Prepare a deployment and commit it."""
    prepare(agent, ear, deployment)
    ear.serve(deployment)
    agent.pump()
