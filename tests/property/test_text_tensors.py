"""Tensors of text on the wire: read back as they were; counts and lengths that lie are refused."""

import struct
import zlib
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.errors import FormatError
from edge.formats.frame import FrameHeader, decode_frame, decode_header, encode_frame
from edge.formats.tensor import MAX_STRINGS, TensorSpec, as_tensor, check_inputs, pack, size_bytes, unpack

HEADER = FrameHeader(request_id="r", sender="s", reply_to="t", ttl_ms=1, deployment="d", epoch="1-a-1", stage=0)
WORDS = np.array(["Straße", "", "日本語"], object)
SPEC = TensorSpec(name="words", dtype="string", shape=(3,))


@settings(deadline=None)
@given(st.lists(st.text(max_size=30), max_size=20))
def test_text_is_read_back_as_it_was_packed(texts: list[str]) -> None:
    array = np.array([*texts, ""], object)[:-1]
    spec = TensorSpec(name="t", dtype="string", shape=array.shape)
    packed = pack("t", array)
    assert size_bytes(spec, text_bytes=packed.nbytes) == packed.nbytes
    assert unpack(spec, packed).tolist() == texts


@settings(deadline=None, max_examples=400)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 255)), max_size=4), st.integers(0, 40), st.integers(0, 5))
def test_packed_text_that_is_changed_or_cut_is_read_or_refused(
    flips: list[tuple[int, int]], stop: int, count: int
) -> None:
    data = bytearray(pack("words", WORDS))
    for at, mask in flips:
        data[at % len(data)] ^= mask
    data = data[: len(data) - stop if stop < len(data) else len(data)]
    spec = TensorSpec(name="words", dtype="string", shape=(count,))
    try:
        size_bytes(spec, text_bytes=len(data))
        texts = unpack(spec, memoryview(data))
    except FormatError:
        return
    assert pack("words", texts) == bytes(data)


def remade(body: bytes, **changes: Any) -> bytes:
    """A frame whose body and header say what they like, and whose checksum is right."""
    header, _ = decode_header(encode_frame(HEADER, {"words": WORDS}))
    head = msgspec.msgpack.encode(msgspec.structs.replace(header, crc32=zlib.crc32(body), **changes))
    prefix = struct.pack("<4sI", b"SWF1", len(head)) + head
    return prefix + bytes(-len(prefix) % 64) + body


BODY = bytes(pack("words", WORDS))
PADDED = BODY + bytes(-len(BODY) % 64)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (remade(PADDED, text_bytes=()), "sizes of 0 tensors of text, it has 1"),
        (remade(PADDED, text_bytes=(29, 29)), "sizes of 2 tensors of text, it has 1"),
        (remade(PADDED, text_bytes=(11,)), "3 strings do not pack into 11 bytes"),
        (remade(PADDED, text_bytes=(-1,)), "3 strings do not pack into -1 bytes"),
        (remade(PADDED, text_bytes=(1 << 40,)), "3 strings do not pack into 1099511627776 bytes"),
        (remade(PADDED, text_bytes=(len(BODY) - 1,)), "lengths of its strings do not add up to 27 bytes"),
        (remade(PADDED, text_bytes=(64 + len(BODY),)), "64 bytes after the header, its tensors take 128"),
        (
            remade(PADDED, tensors=(TensorSpec(name="words", dtype="string", shape=(1 << 20, 1 << 10)),)),
            "1073741824 strings are more than 65536",
        ),
        (
            remade(PADDED, tensors=(TensorSpec(name="words", dtype="string", shape=(1 << 8, 1 << 8)),)),
            "65536 strings do not pack into 28 bytes",
        ),
        (remade(PADDED.replace("ß".encode(), b"\xff\xfe")), "string 0 is no UTF-8"),
    ],
)
def test_a_frame_of_text_that_lies_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(FormatError) as caught:
        decode_frame(data)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.array(["a", 3], object), "tensor 'x': element 1 is a int, not a string"),
        (np.array([b"a"], object), "tensor 'x': element 0 is a bytes, not a string"),
        (np.array([None], object), "tensor 'x': element 0 is a NoneType, not a string"),
        (np.array(["\ud83d"], object), "tensor 'x': element 0 holds half of a character (a lone surrogate)"),
        (np.full(MAX_STRINGS + 1, "", object), "tensor 'x': 65537 strings are more than 65536"),
    ],
)
def test_only_text_is_sent_as_text(array: Any, reason: str) -> None:
    with pytest.raises(FormatError) as caught:
        encode_frame(HEADER, {"x": array})
    assert str(caught.value) == reason


def test_what_a_client_is_given_is_checked_before_it_is_sent() -> None:
    assert check_inputs({"words": WORDS}, [SPEC]) is None
    numbers: Any = np.array([1, 2, 3], object)
    assert check_inputs({"words": numbers}, [SPEC]) == "input 'words': element 0 is a int, not a string"
    assert check_inputs({"words": np.zeros(3)}, [SPEC]) == "input 'words' is float64[3], expected string[3]"


def test_text_of_fixed_width_becomes_strings() -> None:
    assert check_inputs({"words": as_tensor(["a", "bc", ""])}, [SPEC]) is None
    assert as_tensor([1.5]).dtype == np.float64
