"""Tensor frames: a small msgpack header and raw little-endian tensors, decoded without a copy.

Layout (all integers little-endian)::

    0   4  magic b"SWF1"
    4   4  u32 header length H
    8   H  header, msgpack map
    .. pad with zeros to a multiple of 64
    .. body

The body is every tensor of the header in order, raw, C order, each padded to a multiple of 64; with the codec
`deflate` it is one zlib stream of that. A body that would not shrink travels raw. Text is packed as
`edge.formats.tensor` says; how many bytes each such tensor takes stands in the header, as its shape does not tell.
"""

import struct
import zlib
from collections.abc import Mapping
from typing import Literal

import msgspec
import numpy as np

from edge.errors import CorruptFrame, FormatError
from edge.formats.plan import Codec
from edge.formats.tensor import STRING, Array, TensorSpec, pack, size_bytes, spec_of, unpack
from edge.formats.version import check_version

FRAME_FORMAT = "1.2"
ALIGNMENT_BYTES = 64
MAX_HEADER_BYTES = 256 * 1024
MAX_TENSORS = 256
MAX_TRACE = 256
MAX_FRAME_BYTES = 1 << 30

_MAGIC = b"SWF1"
_PREFIX = struct.Struct("<4sI")
_DEFLATE_LEVEL = 1


class Hop(msgspec.Struct, frozen=True, kw_only=True):
    """What one stage did with a request; durations only, no clock crosses a device.

    Attributes:
        stage: index of the stage.
        device: name of the device.
        queued_seconds: from complete arrival to the start of the run.
        run_seconds: inside the runtime.
        received_bytes: size of the frame that arrived.
        sent_bytes: size of the tensors that left.
    """

    stage: int
    device: str
    queued_seconds: float
    run_seconds: float
    received_bytes: int
    sent_bytes: int


class FrameError(msgspec.Struct, frozen=True, kw_only=True):
    """Why a request has no result.

    Attributes:
        code: a key of `edge.errors.REQUEST_ERRORS`.
        message: one line for a person.
        retry_after_ms: least wait before a resend, for `busy`.
        device: the device that says so.
    """

    code: str
    message: str
    device: str = ""
    retry_after_ms: int = 0


class FrameHeader(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the protocol needs to know about a frame.

    Attributes:
        format: version of this format.
        kind: `tensor` on its way through stages, `result`, or `error`.
        request_id: unique for ever.
        attempt: 0 for the first send, raised whenever the pipeline may have run it.
        sender: node that published this frame.
        reply_to: topic for the outcome.
        ttl_ms: time left for the request, in milliseconds.
        deployment: deployment name.
        epoch: epoch name, see `edge.formats.plan.Epoch`.
        stage: index of the stage that shall run the tensors.
        part, parts: which of how many frames a join waits for.
        tensors: specs of the raw tensors that follow.
        text_bytes: packed size of each tensor of text among them, in order.
        codec: how the body travels; to `encode_frame`, how it may.
        crc32: of all bytes after the padded header.
        trace: one entry a stage passed.
        stream: whose state devices keep, and this request goes on from; empty for none.
        sequence: number of this request in its stream, and of the state that it leaves; each once.
        after: number of the request whose state it begins with; -1 for zeros.
        observer: topic that also gets each stage's `taken`, so that one clock sees every hop; empty for none.
        error: set when `kind` is `error`.
    """

    format: str = FRAME_FORMAT
    kind: Literal["tensor", "result", "error"] = "tensor"
    request_id: str
    attempt: int = 0
    sender: str
    reply_to: str
    ttl_ms: int
    deployment: str
    epoch: str
    stage: int
    part: int = 0
    parts: int = 1
    tensors: tuple[TensorSpec, ...] = ()
    text_bytes: tuple[int, ...] = ()
    codec: Codec = "raw"
    crc32: int = 0
    trace: tuple[Hop, ...] = ()
    stream: str = ""
    sequence: int = 0
    after: int = -1
    observer: str = ""
    error: FrameError | None = None


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """A decoded frame; `tensors` are read-only views, of a raw frame into the received bytes."""

    header: FrameHeader
    tensors: dict[str, Array]


_decoder = msgspec.msgpack.Decoder(FrameHeader)
_encoder = msgspec.msgpack.Encoder()


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def encode_frame(header: FrameHeader, tensors: Mapping[str, Array]) -> bytes:
    """Encode `tensors` behind `header`; its `tensors`, `text_bytes`, `codec` and `crc32` are filled in here.

    Raises:
        FormatError: a dtype that cannot travel, text that is none, or more than `MAX_TENSORS` tensors.
    """
    if len(tensors) > MAX_TENSORS:
        raise FormatError(f"{len(tensors)} tensors in a frame; at most {MAX_TENSORS} are allowed")
    specs = tuple(spec_of(name, array) for name, array in tensors.items())
    body: list[memoryview | bytes] = []
    text_bytes: list[int] = []
    for spec, array in zip(specs, tensors.values(), strict=True):
        # A view of the raw bytes: the one copy of a tensor is made when all are joined.
        raw = pack(spec.name, array)
        text_bytes += [raw.nbytes] if spec.dtype == STRING else []
        body += (raw, bytes(_padded(raw.nbytes) - raw.nbytes))
    codec: Codec = "raw"
    if header.codec == "deflate" and (packed := _deflate(body)) is not None:
        codec, body = "deflate", packed
    checksum = 0
    for piece in body:
        checksum = zlib.crc32(piece, checksum)
    head = _encoder.encode(
        msgspec.structs.replace(header, tensors=specs, text_bytes=tuple(text_bytes), codec=codec, crc32=checksum)
    )
    prefix = _PREFIX.pack(_MAGIC, len(head)) + head
    return b"".join((prefix, bytes(_padded(len(prefix)) - len(prefix)), *body))


def _deflate(body: list[memoryview | bytes]) -> list[memoryview | bytes] | None:
    """Return a body as one zlib stream, None where that is no smaller."""
    compress = zlib.compressobj(_DEFLATE_LEVEL)
    packed: list[memoryview | bytes] = [compress.compress(piece) for piece in body]
    packed.append(compress.flush())
    return packed if sum(map(len, packed)) < sum(map(len, body)) else None


def decode_header(data: bytes | memoryview) -> tuple[FrameHeader, int]:
    """Decode the header and return it with the offset of the first tensor.

    Raises:
        FormatError: not a frame, or a bound is exceeded.
    """
    if len(data) < _PREFIX.size:
        raise FormatError(f"frame: {len(data)} bytes are too few for a frame")
    magic, length = _PREFIX.unpack_from(data)
    if magic != _MAGIC:
        raise FormatError(f"frame: starts with {bytes(magic)!r}, expected {_MAGIC!r}")
    if length > MAX_HEADER_BYTES or _PREFIX.size + length > len(data):
        raise FormatError(f"frame: header of {length} bytes does not fit")
    try:
        header = _decoder.decode(memoryview(data)[_PREFIX.size : _PREFIX.size + length])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"frame: header: {error}") from error
    check_version(header.format, supported=FRAME_FORMAT, what="frame")
    if len(header.tensors) > MAX_TENSORS or len(header.trace) > MAX_TRACE:
        raise FormatError("frame: more tensors or hops than allowed")
    return header, _padded(_PREFIX.size + length)


def decode_frame(data: bytes | memoryview, *, limit_bytes: int = MAX_FRAME_BYTES) -> Frame:
    """Decode a frame; its tensors are read-only, of a raw frame views into `data`.

    Args:
        data: the frame.
        limit_bytes: most that its tensors may take, padded.

    Raises:
        FormatError: not a frame, lengths that do not add up, or too large.
        CorruptFrame: the checksum is wrong.
    """
    header, offset = decode_header(data)
    view = memoryview(data).toreadonly()[offset:]
    sizes = _sizes(header)
    total = sum(map(_padded, sizes))
    if total > limit_bytes:
        raise FormatError(f"frame: tensors of {total} bytes are more than {limit_bytes}")
    if header.codec == "raw" and total != len(view):
        raise FormatError(f"frame: {len(view)} bytes after the header, its tensors take {total}")
    if zlib.crc32(view) != header.crc32:
        raise CorruptFrame(f"frame of request {header.request_id[:64]!r}: checksum is wrong")
    body = view if header.codec == "raw" else _inflate(view, total)
    tensors: dict[str, Array] = {}
    start = 0
    for spec, size in zip(header.tensors, sizes, strict=True):
        if spec.name in tensors:
            raise FormatError(f"frame: tensor {spec.name[:80]!r} comes twice")
        tensors[spec.name] = unpack(spec, body[start : start + size])
        start += _padded(size)
    return Frame(header=header, tensors=tensors)


def _sizes(header: FrameHeader) -> list[int]:
    """Return the packed size of each tensor."""
    texts = [spec.dtype == STRING for spec in header.tensors]
    if len(header.text_bytes) != sum(texts):
        raise FormatError(f"frame: sizes of {len(header.text_bytes)} tensors of text, it has {sum(texts)}")
    given = iter(header.text_bytes)
    return [
        size_bytes(spec, text_bytes=next(given) if is_text else 0)
        for spec, is_text in zip(header.tensors, texts, strict=True)
    ]


def _inflate(packed: memoryview, total: int) -> memoryview:
    """Return the `total` bytes of a body that came as a zlib stream, aligned in memory.

    Raises:
        FormatError: it is no zlib stream of exactly so many bytes.
    """
    stream = zlib.decompressobj()
    try:
        raw = stream.decompress(packed, max(1, total))
        # What may be left is the end mark and the checksum of the stream, and makes not one byte more.
        surplus = stream.decompress(stream.unconsumed_tail, 1)
    except zlib.error as error:
        raise FormatError(f"frame: {error}") from error
    if len(raw) != total or surplus or not stream.eof or stream.unused_data:
        raise FormatError(f"frame: its zlib stream is not one of {total} bytes")
    room = np.empty(total + ALIGNMENT_BYTES, np.uint8)
    body = room.data[-room.ctypes.data % ALIGNMENT_BYTES :][:total]
    body[:] = raw
    return body.toreadonly()
