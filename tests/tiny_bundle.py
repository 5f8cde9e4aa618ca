"""Bundles of a few shards made by hand, and a coordinator of a few lines that puts them to work."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from edge.formats.bundle import (
    Blob,
    BoundaryTensor,
    Compression,
    Constant,
    GraphPart,
    Layer,
    Manifest,
    OperatorUse,
    Origin,
    RuntimeNeed,
    Shard,
    digest_of,
    encode_graph_part,
    encode_manifest,
)
from edge.formats.message import (
    BLOCK_BYTES,
    Event,
    Failed,
    FetchRequest,
    Hello,
    Message,
    Ready,
    decode_message,
    encode_message,
)
from edge.formats.plan import Codec, Deployment, Plan, Stage, encode_deployment
from edge.formats.tensor import TensorSpec
from edge.formats.topics import Topics
from edge.mqtt import MqttTransport
from edge.protocol.fetch import answer_fetch
from edge.transport import Channel, Connected, Publication, Received, TransportEvent

WIDTH = 384
Floats = npt.NDArray[np.float32]


def _fragment(**parts: Any) -> bytes:
    return bytes(onnx.ModelProto(graph=onnx.GraphProto(**parts)).SerializeToString())


def _value(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, WIDTH])


@dataclass(frozen=True, kw_only=True, slots=True)
class TinyBundle:
    """`y = relu(x · w0) · w1`, one shard a product; `blobs` by digest, the manifest among them."""

    manifest: Manifest
    manifest_blob: Blob
    blobs: dict[str, bytes]
    weights: tuple[Floats, ...]

    def answer(self, x: Floats) -> Floats:
        """Return what the model answers, within rounding."""
        return np.asarray(np.maximum(x @ self.weights[0], 0) @ self.weights[1], dtype=np.float32)

    def read_block(self, digest: str, index: int) -> tuple[int, bytes] | None:
        """Return the size and one block of a blob, as `BlobStore.read_block` does."""
        data = self.blobs.get(digest)
        if data is None or not 0 <= index * BLOCK_BYTES < max(1, len(data)):
            return None
        return len(data), data[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]


def make_input(seed: int) -> Floats:
    """Return an input of the tiny model."""
    return np.random.default_rng(seed).standard_normal((1, WIDTH)).astype(np.float32)


class DiamondBundle(TinyBundle):
    """`a = relu(x · w0)`, `b = a · w1`, `c = relu(a · w2)`, `y = (b + c) · w3`, one shard each."""

    def answer(self, x: Floats) -> Floats:
        """Return what the model answers, within rounding."""
        a = np.maximum(x @ self.weights[0], 0)
        both = a @ self.weights[1] + np.maximum(a @ self.weights[2], 0)
        return np.asarray(both @ self.weights[3], dtype=np.float32)


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """One shard to be: its nodes, whose weight is called `w` and the number of the shard, and what they read."""

    nodes: tuple[onnx.NodeProto, ...]
    reads: tuple[str, ...]


TINY = (
    Piece(
        nodes=(helper.make_node("MatMul", ["x", "w0"], ["m0"]), helper.make_node("Relu", ["m0"], ["hidden"])),
        reads=("x",),
    ),
    Piece(nodes=(helper.make_node("MatMul", ["hidden", "w1"], ["y"]),), reads=("hidden",)),
)
DIAMOND = (
    Piece(
        nodes=(helper.make_node("MatMul", ["x", "w0"], ["m0"]), helper.make_node("Relu", ["m0"], ["a"])), reads=("x",)
    ),
    Piece(nodes=(helper.make_node("MatMul", ["a", "w1"], ["b"]),), reads=("a",)),
    Piece(
        nodes=(helper.make_node("MatMul", ["a", "w2"], ["m2"]), helper.make_node("Relu", ["m2"], ["c"])), reads=("a",)
    ),
    Piece(
        nodes=(helper.make_node("Add", ["b", "c"], ["s"]), helper.make_node("MatMul", ["s", "w3"], ["y"])),
        reads=("b", "c"),
    ),
)


def make_tiny_bundle(seed: int = 0) -> TinyBundle:
    """Make the bundle; another seed gives other weights of the same shapes."""
    return _make(TinyBundle, "tiny", TINY, (("x",), ("hidden",), ("y",)), seed)


def make_diamond_bundle(seed: int = 0) -> DiamondBundle:
    """Make a bundle whose two middle shards may run side by side."""
    return _make(DiamondBundle, "diamond", DIAMOND, (("x",), ("a",), ("a", "b"), ("b", "c"), ("y",)), seed)


class DeepBundle(TinyBundle):
    """`y = x · w0 · w1 · …`, one shard a product."""

    def answer(self, x: Floats) -> Floats:
        """Return what the model answers, within rounding."""
        for weight in self.weights:
            x = np.asarray(x @ weight, dtype=np.float32)
        return x


def make_deep_bundle(shards: int, seed: int = 0) -> DeepBundle:
    """Make a bundle of many shards, five blocks of weights each."""
    names = ["x", *(f"t{index}" for index in range(1, shards)), "y"]
    pieces = tuple(
        Piece(
            nodes=(helper.make_node("MatMul", [names[index], f"w{index}"], [names[index + 1]]),), reads=(names[index],)
        )
        for index in range(shards)
    )
    return _make(DeepBundle, "deep", pieces, tuple((name,) for name in names), seed)


_Kind = TypeVar("_Kind", bound=TinyBundle)


def _make(
    kind: type[_Kind], name: str, pieces: tuple[Piece, ...], cuts: tuple[tuple[str, ...], ...], seed: int
) -> _Kind:
    rng = np.random.default_rng(seed)
    weights = [rng.standard_normal((WIDTH, WIDTH)).astype(np.float32) / WIDTH**0.5 for _ in pieces]
    blobs: dict[str, bytes] = {}

    def keep(data: bytes) -> Blob:
        cut = [data[at : at + BLOCK_BYTES] for at in range(0, len(data), BLOCK_BYTES)]
        digests = b"".join(sha256(block).digest() for block in cut) if len(cut) > 1 else b""
        blobs[digest_of(data)] = data
        return Blob(digest=digest_of(data), size_bytes=len(data), block_digests=digests)

    shards = [_shard(index, piece, weights[index], keep) for index, piece in enumerate(pieces)]
    tensors = {
        tensor: BoundaryTensor(
            spec=TensorSpec(name=tensor, dtype="float32", shape=(1, WIDTH)),
            size_bytes=4 * WIDTH,
            as_input=_fragment(input=[_value(tensor)]),
            as_output=_fragment(output=[_value(tensor)]),
        )
        for cut in cuts
        for tensor in cut
    }
    header = onnx.ModelProto(ir_version=8, opset_import=[helper.make_opsetid("", 17)], graph=onnx.GraphProto(name="t"))
    manifest = Manifest(
        name=name,
        version="1",
        origin=Origin(format="onnx", digest=digest_of(b""), licence="Apache-2.0", description="a toy"),
        profile="x86-gateway",
        max_shard_bytes=1 << 20,
        compression=Compression(quantize="none"),
        operators=(OperatorUse(domain="", name="MatMul", version=13),),
        runtimes=(RuntimeNeed(name="onnxruntime", least_version="1.20"),),
        header=header.SerializeToString(),
        inputs=(tensors["x"].spec,),
        outputs=(tensors["y"].spec,),
        tensors=tuple(tensors.values()),
        cuts=cuts,
        layers=tuple(
            Layer(
                name=f"l{i}", operators=("MatMul",), macs=WIDTH**2, weight_bytes=4 * WIDTH**2, peak_activation_bytes=0
            )
            for i in range(len(pieces))
        ),
        shards=tuple(shards),
        golden=(),
        tolerance=1e-5,
        least_cosine=0.999,
    )
    manifest_blob = keep(encode_manifest(manifest))
    return kind(manifest=manifest, manifest_blob=manifest_blob, blobs=blobs, weights=tuple(weights))


def _shard(index: int, piece: Piece, weight: Floats, keep: Callable[[bytes], Blob]) -> Shard:
    blob = keep(weight.tobytes())
    tensor = onnx.TensorProto(
        name=f"w{index}",
        data_type=TensorProto.FLOAT,
        dims=weight.shape,
        data_location=TensorProto.EXTERNAL,
        external_data=[
            onnx.StringStringEntryProto(key="location", value=blob.digest.removeprefix("sha256:")),
            onnx.StringStringEntryProto(key="length", value=str(blob.size_bytes)),
        ],
    )
    part = GraphPart(
        constants=(Constant(name=tensor.name, fragment=_fragment(initializer=[tensor])),),
        nodes=_fragment(node=list(piece.nodes)),
    )
    return Shard(
        first_layer=index,
        stop_layer=index + 1,
        graph=keep(encode_graph_part(part)),
        weights=(blob,),
        reads=piece.reads,
        size_bytes=blob.size_bytes,
    )


def make_deployment(
    bundle: TinyBundle,
    devices: tuple[str, ...],
    *,
    epoch: str = "1-a-1",
    holders: tuple[str, ...] = ("boss",),
    memory_bytes: int = 1 << 20,
    window: int = 4,
    name: str = "tiny",
    beside: tuple[int, ...] = (),
    replicas: Mapping[int, tuple[str, ...]] | None = None,
    codec: Codec = "raw",
) -> Deployment:
    """Return a plan of one shard a device, the last with all that are left.

    Stages in `beside` run side by side with the one before; `replicas` are further devices of a stage.
    """
    more = replicas or {}
    shards = len(bundle.manifest.shards)
    stages = tuple(
        Stage(
            index=index,
            device=device,
            first_shard=index,
            stop_shard=shards if index == len(devices) - 1 else index + 1,
            memory_bytes=memory_bytes,
            beside=index in beside,
            replicas=more.get(index, ()),
        )
        for index, device in enumerate(devices)
    )
    plan = Plan(objective="throughput", stages=stages, bottleneck_seconds=0.001, latency_seconds=0.01, binds="nothing")
    return Deployment(
        name=name,
        epoch=epoch,
        manifest=bundle.manifest_blob,
        plan=plan,
        holders=(*holders, *dict.fromkeys(devices)),
        window=window,
        codec=codec,
    )


class TinyCoordinator:
    """Publishes plans, holds the blobs, and collects what the devices say. Not a model of the real one."""

    def __init__(self, url: str, *bundles: TinyBundle, name: str = "boss", fleet: str = "default") -> None:
        self.topics = Topics(fleet=fleet)
        self.events: list[tuple[str, Event]] = []
        self.asked_blocks: list[tuple[str, int]] = []
        self.lose_block: tuple[str, int] | None = None
        self._name = name
        self._bundles = bundles
        self._changed = threading.Condition()
        self._retained: dict[str, bytes] = {}
        self.transport = MqttTransport(url, fleet=fleet, node=name, on_event=self._on_event)

    def start(self) -> None:
        """Connect."""
        self.transport.start()
        self.transport.wait_connected(10)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Publish on the control connection."""
        self.transport.publish(Publication(channel=Channel.CONTROL, topic=topic, payload=payload, qos=1, retain=retain))

    def send(self, topic: str, message: Message) -> None:
        """Publish a control message."""
        self.publish(topic, encode_message(message))

    def desire(self, deployment: Deployment) -> None:
        """Ask the devices to prepare an epoch."""
        self._keep(self.topics.desired(deployment.name), deployment)

    def serve(self, deployment: Deployment) -> None:
        """Commit an epoch."""
        self._keep(self.topics.serving(deployment.name), deployment)

    def _keep(self, topic: str, deployment: Deployment) -> None:
        self._retained[topic] = encode_deployment(deployment)
        self.publish(topic, self._retained[topic], retain=True)

    def deploy(self, deployment: Deployment, timeout_seconds: float = 20.0) -> None:
        """Prepare an epoch, wait for every stage, commit."""
        self.desire(deployment)
        assert deployment.plan is not None
        for stage in deployment.plan.stages:
            wanted = {"stage": stage.index, "epoch": deployment.epoch, "deployment": deployment.name}
            for device in stage.devices:
                self.await_event(Ready, timeout_seconds, device=device, **wanted)
        self.serve(deployment)

    def await_event(self, kind: type[Any], timeout_seconds: float = 20.0, *, device: str = "", **fields: object) -> Any:
        """Return the first event of a kind with these field values, of a device or any; fail loudly without one."""

        def found() -> Any:
            for sender, event in self.events:
                if (
                    type(event) is kind
                    and device in ("", sender)
                    and all(getattr(event, name) == value for name, value in fields.items())
                ):
                    return event
            return None

        with self._changed:
            if self._changed.wait_for(lambda: found() is not None, timeout_seconds):
                return found()
            failed = [event for _, event in self.events if isinstance(event, Failed)]
            raise AssertionError(f"no {kind.__name__} with {fields}; failures: {failed}; all: {self.events[-5:]}")

    def _on_event(self, event: TransportEvent) -> None:
        if isinstance(event, Connected) and event.channel is Channel.DATA:
            self.transport.subscribe(Channel.DATA, self.topics.fetch(self._name))
        elif isinstance(event, Connected):
            self.transport.subscribe(Channel.CONTROL, self.topics.any_device("event"))
            self.transport.subscribe(Channel.CONTROL, self.topics.hello())
        elif isinstance(event, Received):
            self._on_message(event)

    def _on_message(self, event: Received) -> None:
        levels = self.topics.parse(event.topic) or ()
        if levels[:1] == ("fetch",):
            request = decode_message(event.payload, FetchRequest)
            self.asked_blocks.append((request.digest, request.block))
            if (request.digest, request.block) == self.lose_block:
                return
            block = answer_fetch(request, self._read_block)
            payload = encode_message(block)
            self.transport.publish(Publication(channel=Channel.DATA, topic=request.reply_to, payload=payload))
        elif levels[-1:] == ("event",):
            message: Any = decode_message(event.payload, object)
            with self._changed:
                self.events.append((levels[1], message))
                self._changed.notify_all()
        elif levels == ("fleet", "hello") and decode_message(event.payload, Hello).node != self._name:
            for topic, payload in self._retained.items():
                self.publish(topic, payload, retain=True)

    def _read_block(self, digest: str, index: int) -> tuple[int, bytes] | None:
        for bundle in self._bundles:
            if found := bundle.read_block(digest, index):
                return found
        return None


@contextmanager
def tiny_coordinator(url: str, *bundles: TinyBundle, name: str = "boss") -> Iterator[TinyCoordinator]:
    """Run a tiny coordinator for the length of a `with` block."""
    coordinator = TinyCoordinator(url, *bundles, name=name)
    coordinator.start()
    try:
        yield coordinator
    finally:
        coordinator.transport.close()
