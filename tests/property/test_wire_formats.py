"""The wire formats: what is written is read back, and no bytes from outside raise anything but the errors for it."""

import contextlib
import math
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.errors import BundleError, CorruptFrame, FormatError
from edge.formats.bundle import (
    Constant,
    GraphPart,
    check_digest,
    decode_graph_part,
    decode_manifest,
    encode_graph_part,
    encode_manifest,
)
from edge.formats.frame import Frame, FrameError, FrameHeader, Hop, decode_frame, encode_frame
from edge.formats.message import (
    Abandon,
    About,
    Block,
    CommandOutcome,
    DeployRequest,
    Done,
    Dropped,
    Failed,
    FetchRequest,
    Heartbeat,
    Hello,
    Lease,
    Message,
    Progress,
    Ready,
    RuntimeOffer,
    Session,
    State,
    Taken,
    UndeployRequest,
    decode_message,
    encode_message,
)
from edge.formats.packet import Reassembler, split
from edge.formats.plan import Constraints, Deployment, Epoch, decode_deployment, encode_deployment, parse_epoch
from edge.formats.tensor import DTYPES, Array, pack
from edge.formats.topics import Topics, check_name
from tests.tiny_bundle import make_deployment, make_tiny_bundle

NAMES = st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True)
TEXTS = st.text(max_size=40)
COUNTS = st.integers(0, 2**31 - 1)
SECONDS = st.floats(0, 1e6)
SESSIONS = st.builds(Session, boot=COUNTS, connect=COUNTS)
DIGESTS = st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True)
BUNDLE = make_tiny_bundle()


@st.composite
def arrays(draw: st.DrawFn) -> Array:
    dtype = DTYPES[draw(st.sampled_from(sorted(DTYPES)))]
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=4)))
    if dtype.kind == "O":
        texts = draw(st.lists(st.text(max_size=12), min_size=math.prod(shape), max_size=math.prod(shape)))
        return np.array([*texts, ""], dtype=object)[:-1].reshape(shape)
    rng = np.random.default_rng(draw(COUNTS))
    data = rng.integers(0, 2 if dtype.name == "bool" else 256, int(np.prod(shape)) * dtype.itemsize, dtype=np.uint8)
    return np.frombuffer(data.tobytes(), dtype=dtype).reshape(shape)


HOPS = st.builds(
    Hop,
    stage=COUNTS,
    device=NAMES,
    queued_seconds=SECONDS,
    run_seconds=SECONDS,
    received_bytes=COUNTS,
    sent_bytes=COUNTS,
)
HEADERS = st.builds(
    FrameHeader,
    kind=st.sampled_from(["tensor", "result", "error"]),
    request_id=TEXTS,
    attempt=st.integers(0, 7),
    sender=NAMES,
    reply_to=TEXTS,
    ttl_ms=COUNTS,
    deployment=NAMES,
    epoch=TEXTS,
    stage=st.integers(0, 255),
    trace=st.lists(HOPS, max_size=3).map(tuple),
    observer=TEXTS,
    error=st.none() | st.builds(FrameError, code=TEXTS, message=TEXTS, device=NAMES, retry_after_ms=COUNTS),
)
TENSORS = st.dictionaries(st.text(min_size=1, max_size=20), arrays(), max_size=4)

MESSAGES: st.SearchStrategy[Message] = st.one_of(
    st.builds(
        State,
        node=NAMES,
        role=st.sampled_from(["agent", "coordinator", "client"]),
        online=st.booleans(),
        session=SESSIONS,
    ),
    st.builds(
        About,
        node=NAMES,
        session=SESSIONS,
        profile=NAMES,
        runtimes=st.lists(st.builds(RuntimeOffer, name=TEXTS, version=TEXTS, providers=st.just(("CPU",)))).map(tuple),
        memory_bytes=COUNTS,
        free_memory_bytes=COUNTS,
        free_disk_bytes=COUNTS,
        cores=COUNTS,
        held_bytes=COUNTS,
        macs_per_second=st.dictionaries(TEXTS, SECONDS, max_size=2),
        agent_version=TEXTS,
    ),
    st.builds(
        Heartbeat,
        node=NAMES,
        session=SESSIONS,
        frames_done=COUNTS,
        oldest_queued_seconds=SECONDS,
        data_up=st.booleans(),
    ),
    st.builds(Hello, node=NAMES),
    st.builds(Lease, coordinator=NAMES, term=COUNTS, session=SESSIONS),
    st.builds(Abandon, deployment=NAMES, epoch=TEXTS, reason=TEXTS),
    st.builds(
        DeployRequest,
        request_id=TEXTS,
        name=NAMES,
        manifest=st.just(BUNDLE.manifest_blob),
        holders=st.lists(NAMES).map(tuple),
        constraints=st.builds(Constraints, devices=st.lists(NAMES).map(tuple)),
        window=COUNTS,
        reply_to=TEXTS,
    ),
    st.builds(UndeployRequest, request_id=TEXTS, name=NAMES, reply_to=TEXTS),
    st.builds(CommandOutcome, request_id=TEXTS, done=st.booleans(), ok=st.booleans(), epoch=TEXTS, reason=TEXTS),
    st.builds(
        Progress,
        deployment=NAMES,
        epoch=TEXTS,
        stage=COUNTS,
        phase=st.sampled_from(["fetching", "loading"]),
        done_bytes=COUNTS,
        total_bytes=COUNTS,
    ),
    st.builds(
        Ready, deployment=NAMES, epoch=TEXTS, stage=COUNTS, fetched_bytes=COUNTS, load_seconds=SECONDS, rss_bytes=COUNTS
    ),
    st.builds(Failed, deployment=NAMES, epoch=TEXTS, stage=COUNTS, code=TEXTS, reason=TEXTS),
    st.builds(Dropped, deployment=NAMES, epoch=TEXTS),
    st.builds(FetchRequest, digest=DIGESTS, block=COUNTS, reply_to=TEXTS),
    st.builds(Block, digest=DIGESTS, block=COUNTS, total_bytes=st.integers(-1, 2**40), data=st.binary(max_size=64)),
    st.builds(Taken, node=NAMES, request_id=TEXTS, attempt=COUNTS, stage=COUNTS),
    st.builds(Done, node=NAMES, request_id=TEXTS, attempt=COUNTS),
)


def same(one: Frame, header: FrameHeader, tensors: dict[str, Array]) -> bool:
    return (
        one.header == header
        and one.tensors.keys() == tensors.keys()
        and all(
            one.tensors[name].dtype == array.dtype
            and one.tensors[name].shape == array.shape
            and pack(name, one.tensors[name]) == pack(name, array)
            for name, array in tensors.items()
        )
    )


@settings(deadline=None)
@given(header=HEADERS, tensors=TENSORS)
def test_a_frame_is_read_back_as_it_was_written(header: FrameHeader, tensors: dict[str, Array]) -> None:
    data = encode_frame(header, tensors)
    frame = decode_frame(data)
    written = msgspec.structs.replace(
        header, tensors=frame.header.tensors, text_bytes=frame.header.text_bytes, crc32=frame.header.crc32
    )
    assert same(frame, written, tensors)
    assert all(not array.flags.writeable for array in frame.tensors.values())
    assert len(data) % 64 == 0


@settings(deadline=None)
@given(header=HEADERS, tensors=TENSORS, fortran=st.booleans())
def test_the_memory_layout_of_a_tensor_does_not_show(
    header: FrameHeader, tensors: dict[str, Array], fortran: bool
) -> None:
    laid_out = {name: array.copy(order="F" if fortran else "C") for name, array in tensors.items()}
    assert encode_frame(header, laid_out) == encode_frame(header, tensors)


FRAME = encode_frame(
    FrameHeader(request_id="r", sender="s", reply_to="t", ttl_ms=1, deployment="d", epoch="1-a-1", stage=0),
    {"x": np.arange(12, dtype=np.float32), "y": np.zeros((0, 3), np.int64)},
)
TEXT = encode_frame(
    FrameHeader(request_id="r", sender="s", reply_to="t", ttl_ms=1, deployment="d", epoch="1-a-1", stage=0),
    {"words": np.array([["Straße", ""], ["日本語", "ok"]], object), "x": np.ones(3, np.float16)},
)
PACKET = next(split(FRAME, sender="pi-1", session=Session(boot=1, connect=1), sequence=1))
DEPLOYMENT = encode_deployment(make_deployment(BUNDLE, ("pi-1", "pi-2")))
MANIFEST = encode_manifest(BUNDLE.manifest)
PART = encode_graph_part(GraphPart(constants=(Constant(name="a", fragment=b"b"),), nodes=b"nodes"))
ABOUT = encode_message(
    About(
        node="pi-1",
        session=Session(boot=1, connect=1),
        profile="rpi4",
        runtimes=(RuntimeOffer(name="onnxruntime", version="1", providers=("CPU",)),),
        memory_bytes=1,
        free_memory_bytes=1,
        free_disk_bytes=1,
        cores=1,
        held_bytes=1,
        agent_version="0",
    )
)


def read_packet(data: bytes) -> None:
    if Reassembler().add(data, 0.0) is None:
        raise FormatError("only a piece of a frame")


READERS: list[tuple[bytes, Callable[[bytes], Any], tuple[type[Exception], ...]]] = [
    (FRAME, decode_frame, (FormatError, CorruptFrame)),
    (TEXT, decode_frame, (FormatError, CorruptFrame)),
    (PACKET, read_packet, (FormatError,)),
    (ABOUT, lambda data: decode_message(data, About), (FormatError,)),
    (DEPLOYMENT, decode_deployment, (FormatError,)),
    (MANIFEST, decode_manifest, (BundleError, FormatError)),
    (PART, lambda data: decode_graph_part(data, where="shard 0"), (BundleError,)),
]
READER_NAMES = ["frame", "frame of text", "packet", "message", "deployment", "manifest", "graph part"]


@pytest.mark.parametrize(("data", "read", "errors"), READERS, ids=READER_NAMES)
def test_flipped_bytes_are_read_or_refused(data: bytes, read: Callable[[bytes], Any], errors: Any) -> None:
    @given(st.lists(st.tuples(st.integers(0, len(data) - 1), st.integers(1, 255)), min_size=1, max_size=4))
    @settings(deadline=None, max_examples=300)
    def flip(changes: list[tuple[int, int]]) -> None:
        changed = bytearray(data)
        for at, mask in changes:
            changed[at] ^= mask
        with contextlib.suppress(*errors):
            read(bytes(changed))

    flip()


@pytest.mark.parametrize(("data", "read", "errors"), READERS, ids=READER_NAMES)
def test_a_piece_is_refused_and_garbage_too(data: bytes, read: Callable[[bytes], Any], errors: Any) -> None:
    @given(st.integers(0, len(data) - 1), st.binary(max_size=200))
    @settings(deadline=None, max_examples=200)
    def cut(at: int, garbage: bytes) -> None:
        for wrong in (data[:at], data + b"\0" * 7, garbage, data[:at] + garbage):
            if wrong == data:
                continue
            try:
                read(wrong)
            except errors:
                continue

    cut()
    for at in range(0, len(data), max(1, len(data) // 50)):
        with pytest.raises(errors):
            read(data[:at])


@settings(deadline=None)
@given(message=MESSAGES)
def test_a_message_is_read_back_as_it_was_written(message: Message) -> None:
    assert decode_message(encode_message(message), type(message)) == message
    other = Hello if not isinstance(message, Hello) else Done
    with pytest.raises(FormatError, match=f"message: got {type(message).__name__}, expected {other.__name__}"):
        decode_message(encode_message(message), other)


@given(term=st.integers(0, 10**9), coordinator=st.from_regex(r"[0-9a-f]{1,16}", fullmatch=True), sequence=COUNTS)
def test_an_epoch_is_read_back_and_ordered_by_term_first(term: int, coordinator: str, sequence: int) -> None:
    epoch = Epoch(term=term, coordinator=coordinator, sequence=sequence)
    assert parse_epoch(str(epoch)) == epoch
    assert epoch < Epoch(term=term + 1, coordinator="0", sequence=0)
    assert epoch < Epoch(term=term, coordinator=coordinator, sequence=sequence + 1)


@given(st.text(max_size=80))
def test_what_is_no_epoch_is_refused(text: str) -> None:
    with contextlib.suppress(FormatError):
        assert str(parse_epoch(text)).replace("-", "").isalnum()


@pytest.mark.parametrize("devices", [("pi-1",), ("pi-1", "pi-2")])
def test_a_deployment_is_read_back_as_it_was_written(devices: tuple[str, ...]) -> None:
    deployment = make_deployment(BUNDLE, devices)
    assert decode_deployment(encode_deployment(deployment)) == deployment
    tombstone = Deployment(name="tiny", epoch="1-a-1", manifest=None, plan=None)
    assert decode_deployment(encode_deployment(tombstone)) == tombstone


@pytest.mark.parametrize("field", ["holder", "device", "name"])
@pytest.mark.parametrize("name", ["a/b", "+", "#", "", "A", "a" * 64, "pi.1", "-a"])
def test_names_that_would_break_out_of_a_topic_are_refused_in_a_plan(field: str, name: str) -> None:
    deployment = make_deployment(
        BUNDLE,
        (name,) if field == "device" else ("pi-1",),
        holders=(name,) if field == "holder" else ("boss",),
        name=name if field == "name" else "tiny",
    )
    with pytest.raises(FormatError, match="is not allowed: use 1 to 63 of a-z, 0-9 and '-'"):
        decode_deployment(encode_deployment(deployment))


def test_a_manifest_is_read_back_as_it_was_written() -> None:
    assert decode_manifest(MANIFEST) == BUNDLE.manifest
    assert encode_manifest(decode_manifest(MANIFEST)) == MANIFEST


@given(st.text(max_size=90))
def test_only_digests_are_digests(text: str) -> None:
    try:
        value = check_digest(text, where="here")
    except BundleError:
        return
    assert text == f"sha256:{value}"


@given(node=NAMES, deployment=NAMES, stage=st.integers(0, 255))
def test_every_topic_is_parsed_back_into_its_levels(node: str, deployment: str, stage: int) -> None:
    topics = Topics(fleet="home")
    assert topics.parse(topics.run(node, deployment, "1-a-1", stage)) == ("run", node, deployment, "1-a-1", str(stage))
    assert topics.parse(topics.state(node)) == ("device", node, "state")
    assert topics.parse(topics.serving(deployment)) == ("deployment", deployment, "serving")
    assert Topics(fleet="work").parse(topics.state(node)) is None


@given(st.text(max_size=70))
def test_a_name_is_refused_or_safe_in_a_topic(text: str) -> None:
    try:
        check_name(text, what="name")
    except FormatError:
        return
    assert not set(text) & set("/+#.$ ")
    assert 1 <= len(text) <= 63
