"""Frames that travel compressed: read back as they were, aligned, and never larger than they say."""

import zlib
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.errors import CorruptFrame, FormatError
from edge.formats.frame import ALIGNMENT_BYTES, FrameHeader, decode_frame, decode_header, encode_frame
from edge.formats.tensor import Array
from tests.property.test_wire_formats import HEADERS, TENSORS, same

DEFLATE = FrameHeader(
    request_id="r", sender="s", reply_to="t", ttl_ms=1, deployment="d", epoch="1-a-1", stage=0, codec="deflate"
)
ZEROS: dict[str, Array] = {"x": np.zeros((4, 1000), np.float32), "y": np.arange(300, dtype=np.int64)}
FRAME = encode_frame(DEFLATE, ZEROS)


@settings(deadline=None)
@given(header=HEADERS, tensors=TENSORS, zeros=st.integers(0, 4000))
def test_a_frame_is_read_back_as_it_was_written(header: FrameHeader, tensors: dict[str, Array], zeros: int) -> None:
    more: dict[str, Array] = {**tensors, "zeros": np.zeros(zeros, np.uint8)}
    data = encode_frame(msgspec.structs.replace(header, codec="deflate"), more)
    frame = decode_frame(data)
    found = frame.header
    written = msgspec.structs.replace(
        header, tensors=found.tensors, text_bytes=found.text_bytes, crc32=found.crc32, codec=found.codec
    )
    assert same(frame, written, more)
    assert all(not array.flags.writeable for array in frame.tensors.values())
    assert len(data) <= len(encode_frame(header, more)) + ALIGNMENT_BYTES


def test_tensors_are_aligned_in_memory_when_they_are_decoded() -> None:
    frame = decode_frame(FRAME)
    assert frame.header.codec == "deflate"
    assert [array.ctypes.data % ALIGNMENT_BYTES for array in frame.tensors.values()] == [0, 0]


def test_what_does_not_shrink_travels_raw() -> None:
    noise = {"x": np.random.default_rng(0).integers(0, 256, 10_000, np.uint8)}
    assert encode_frame(DEFLATE, noise) == encode_frame(msgspec.structs.replace(DEFLATE, codec="raw"), noise)
    assert decode_frame(encode_frame(DEFLATE, {})).header.codec == "raw"


def test_a_frame_takes_no_more_than_it_may() -> None:
    room = 4 * 4000 + 8 * 300 + 32
    assert decode_frame(FRAME, limit_bytes=room).header == decode_header(FRAME)[0]
    with pytest.raises(FormatError) as caught:
        decode_frame(FRAME, limit_bytes=room - 1)
    assert str(caught.value) == "frame: tensors of 18432 bytes are more than 18431"


def remade(body: bytes, **changes: Any) -> bytes:
    """The frame with another body, whose checksum is right."""
    header, _ = decode_header(FRAME)
    head = msgspec.msgpack.encode(msgspec.structs.replace(header, crc32=zlib.crc32(body), **changes))
    prefix = FRAME[:4] + len(head).to_bytes(4, "little") + head
    return prefix + bytes(-len(prefix) % ALIGNMENT_BYTES) + body


PLAIN = zlib.decompress(FRAME[decode_header(FRAME)[1] :])


@pytest.mark.parametrize(
    "body",
    [
        zlib.compress(bytes(1 << 26)),
        zlib.compress(PLAIN + b"\0"),
        zlib.compress(PLAIN[:-1]),
        zlib.compress(PLAIN) + b"\0",
        zlib.compress(PLAIN) * 2,
        zlib.compress(PLAIN)[:-1],
        zlib.compress(PLAIN)[:-4] + b"\0\0\0\0",
        zlib.compress(b""),
        b"",
        PLAIN,
    ],
    ids=["bomb", "longer", "shorter", "trailing", "twice", "cut", "checksum", "nothing", "empty", "raw"],
)
def test_a_stream_of_another_length_is_refused(body: bytes) -> None:
    with pytest.raises(FormatError, match=r"^frame: (its zlib stream is not one of 18432 bytes|Error -[35] while)"):
        decode_frame(remade(body))


def test_a_bomb_takes_no_memory() -> None:
    body = zlib.compress(bytes(1 << 26))
    specs = (msgspec.structs.replace(decode_header(FRAME)[0].tensors[0], shape=(1 << 26,), dtype="uint8"),)
    with pytest.raises(FormatError, match="are more than 1000000"):
        decode_frame(remade(body, tensors=specs), limit_bytes=1_000_000)


def test_a_codec_that_is_not_known_is_refused() -> None:
    header, offset = decode_header(FRAME)
    fields = {**msgspec.to_builtins(header), "codec": "zstd"}
    head = msgspec.msgpack.encode(fields)
    prefix = FRAME[:4] + len(head).to_bytes(4, "little") + head
    with pytest.raises(FormatError, match="Invalid enum value 'zstd'"):
        decode_frame(prefix + bytes(-len(prefix) % ALIGNMENT_BYTES) + FRAME[offset:])


@settings(deadline=None, max_examples=300)
@given(changes=st.lists(st.tuples(st.integers(0, len(FRAME) - 1), st.integers(1, 255)), min_size=1, max_size=4))
def test_flipped_bytes_are_read_or_refused(changes: list[tuple[int, int]]) -> None:
    changed = bytearray(FRAME)
    for at, mask in changes:
        changed[at] ^= mask
    try:
        decode_frame(bytes(changed), limit_bytes=1 << 20)
    except (FormatError, CorruptFrame):
        return


@pytest.mark.parametrize("length", range(0, len(FRAME), 7))
def test_a_piece_is_refused(length: int) -> None:
    with pytest.raises((FormatError, CorruptFrame)):
        decode_frame(FRAME[:length])
