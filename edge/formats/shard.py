"""Shards as files: blobs, and what the graph blob of a shard holds in each shard format."""

import hashlib
from typing import Literal

import msgspec

from edge.errors import BundleError, DigestMismatch
from edge.formats.tensor import MAX_NAME_LENGTH

MAX_PIECES = 65536
"""Pieces of one `.tflite` shard: two a weight, and one more."""

MAX_PART_TENSORS = 4096
"""Inputs or outputs of one `.tflite` shard."""

_HEX = frozenset("0123456789abcdef")


def digest_of(data: bytes | memoryview) -> str:
    """Return `sha256:<hex>` of `data`."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def check_digest(digest: str, *, where: str) -> str:
    """Return the hex part of a digest.

    Raises:
        BundleError: it is not `sha256:` and 64 lower-case hex digits.
    """
    algorithm, _, value = digest.partition(":")
    if algorithm != "sha256" or len(value) != 64 or not _HEX.issuperset(value):
        raise BundleError(f"{where}: digest {digest[:80]!r} is not sha256:<64 hex digits>")
    return value


def check_bytes(data: bytes | memoryview, *, expected: str, where: str) -> None:
    """Raise `DigestMismatch` when `data` does not hash to `expected`."""
    found = digest_of(data)
    if found != expected:
        raise DigestMismatch(expected=expected, found=found, where=where)


class Blob(msgspec.Struct, frozen=True, kw_only=True):
    """A content-addressed file.

    Attributes:
        digest: `sha256:<hex>`.
        size_bytes: length of the file.
        block_digests: raw SHA-256 of each 128 KiB block, joined; empty for blobs of one block.
    """

    digest: str
    size_bytes: int
    block_digests: bytes = b""


class Shard(msgspec.Struct, frozen=True, kw_only=True):
    """Layers `[first_layer, stop_layer)` as files.

    Attributes:
        graph: blob of the graph part: a `GraphPart` for ONNX, a `TflitePart` for TFLite.
        weights: blobs its constants refer to; in a `TflitePart` by their place here.
        reads: non-constant tensors its nodes take from before it.
        size_bytes: graph, weights and what its constants occupy once materialised.
    """

    first_layer: int
    stop_layer: int
    graph: Blob
    weights: tuple[Blob, ...]
    reads: tuple[str, ...]
    size_bytes: int


class Constant(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """A fragment with initializers or constant-only nodes; several shards may carry the same one.

    Attributes:
        name: unique model-wide; a stage joins a name once.
        fragment: serialised `ModelProto` with only that part.
    """

    name: str
    fragment: bytes


class GraphPart(msgspec.Struct, frozen=True, kw_only=True):
    """The graph blob of an ONNX shard, msgpack.

    Attributes:
        constants: in an order in which each may use the ones before it.
        nodes: serialised `ModelProto` with only the nodes.
    """

    format: Literal["1.0"] = "1.0"
    constants: tuple[Constant, ...]
    nodes: bytes


class TflitePart(msgspec.Struct, frozen=True, kw_only=True):
    """The graph blob of a TFLite shard, msgpack: a complete `.tflite` sub-model in pieces.

    Attributes:
        inputs, outputs: names of the cut tensors that the sub-model takes and gives, in the order of its subgraph.
        pieces: joined in order they are the file: bytes stand for themselves, a number for the weight blob at that
            place of `Shard.weights`.
    """

    format: Literal["1.0"] = "1.0"
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    pieces: tuple[bytes | int, ...]


_msgpack = msgspec.msgpack.Encoder(order="sorted")
_part_decoder = msgspec.msgpack.Decoder(GraphPart)
_tflite_decoder = msgspec.msgpack.Decoder(TflitePart)


def encode_graph_part(part: GraphPart | TflitePart) -> bytes:
    """Encode the graph blob of a shard."""
    return _msgpack.encode(part)


def decode_graph_part(data: bytes, *, where: str) -> GraphPart:
    """Decode the graph blob of an ONNX shard.

    Raises:
        BundleError: malformed.
    """
    try:
        return _part_decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{where}: {error}") from error


def decode_tflite_part(data: bytes, *, weights: int, where: str) -> TflitePart:
    """Decode the graph blob of a TFLite shard.

    Args:
        data: msgpack.
        weights: how many weight blobs the shard has.
        where: for messages.

    Raises:
        BundleError: malformed, or it names weights that the shard does not have.
    """
    try:
        part = _tflite_decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{where}: {error}") from error
    names = (*part.inputs, *part.outputs)
    if len(part.pieces) > MAX_PIECES or len(names) > MAX_PART_TENSORS or any(len(n) > MAX_NAME_LENGTH for n in names):
        raise BundleError(f"{where}: more pieces, tensors or longer names than allowed")
    if bad := [piece for piece in part.pieces if isinstance(piece, int) and not 0 <= piece < weights]:
        raise BundleError(f"{where}: it names weight {bad[0]}, the shard has {weights}")
    return part
