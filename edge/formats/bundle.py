"""The Shardwire manifest: what a bundle holds, how its shards join, and what they must answer."""

import hashlib
from typing import Literal

import msgspec

from edge.errors import BundleError, DigestMismatch
from edge.formats.preprocess import Labels, Preprocess
from edge.formats.tensor import DTYPES, MAX_NAME_LENGTH, MAX_RANK, TensorSpec
from edge.formats.version import check_version

MANIFEST_FORMAT = "1.1"
MANIFEST_MEDIA_TYPE = "application/vnd.shardwire.manifest.v1+json"
MAX_MANIFEST_BYTES = 64 * 1024 * 1024
MAX_BLOB_BYTES = 8 << 30
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


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """Where the model came from.

    Attributes:
        format: `onnx`, `torch`.
        digest: of the source file or weights.
        licence: SPDX expression of the weights, or `unknown`.
        description: one line.
    """

    format: str
    digest: str
    licence: str
    description: str


class Compression(msgspec.Struct, frozen=True, kw_only=True):
    """How the weights were made smaller.

    Attributes:
        quantize: `none`, `int8`, `int8-dynamic`, `int4` or `float16`.
        variant: of `int8`, e.g. `u8s8-reduce-range`; empty for others.
        recipe: blob of the recipe that reproduces the model, None for `none` without recipe.
        learned: blob of the weights that data changed, as safetensors, which the recipe names; None without. No device
            needs it.
    """

    quantize: str
    variant: str = ""
    recipe: Blob | None = None
    learned: Blob | None = None


class OperatorUse(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """One operator that the shards use, with the opset version of its domain."""

    domain: str
    name: str
    version: int


class RuntimeNeed(msgspec.Struct, frozen=True, kw_only=True):
    """A runtime that can run the shards, from which version on."""

    name: str
    least_version: str


class BoundaryTensor(msgspec.Struct, frozen=True, kw_only=True):
    """A tensor that is alive across some cut.

    Attributes:
        spec: dtype and shape; None where the dimension depends on the input.
        size_bytes: as seen with the first golden input.
        deflated_bytes: the same value after zlib level 1; 0 where that was not measured, as inside a
            shard and before version 1.1.
        as_input: fragment that declares it as a graph input.
        as_output: fragment that declares it as a graph output.
    """

    spec: TensorSpec
    size_bytes: int
    deflated_bytes: int = 0
    as_input: bytes
    as_output: bytes


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """The nodes between two neighbouring cuts.

    Attributes:
        name: name of its first node.
        operators: operator types in order.
        macs: multiply-accumulate operations of one request, first golden input.
        weight_bytes: constants it reads, materialised.
        peak_activation_bytes: largest sum of live activations inside it.
        nodes: names of its nodes, in order; empty before version 1.1.
    """

    name: str
    operators: tuple[str, ...]
    nodes: tuple[str, ...] = ()
    macs: int
    weight_bytes: int
    peak_activation_bytes: int


class Shard(msgspec.Struct, frozen=True, kw_only=True):
    """Layers `[first_layer, stop_layer)` as files.

    Attributes:
        graph: blob of the `GraphPart` (constants and nodes as protobuf fragments).
        weights: blobs its constants refer to.
        reads: non-constant tensors its nodes take from before it.
        size_bytes: graph, weights and what its constants occupy once materialised.
    """

    first_layer: int
    stop_layer: int
    graph: Blob
    weights: tuple[Blob, ...]
    reads: tuple[str, ...]
    size_bytes: int


class GoldenPair(msgspec.Struct, frozen=True, kw_only=True):
    """One input and its answers, each a tensor frame (`edge.formats.frame`) as a blob.

    Attributes:
        outputs: of the *source* model in its own framework.
        whole: of the optimised and compressed model before cutting, unoptimised at run time (`exact`).
    """

    inputs: Blob
    outputs: Blob
    whole: Blob


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about the shards of one compressed model.

    Attributes:
        name, version: of the model; version orders updates.
        profile: id of the device profile it was packaged for.
        max_shard_bytes: limit the shards were sized to.
        header: the base fragment: ir_version, opset imports and graph name.
        inputs, outputs: of the whole model.
        tensors: every tensor named in `cuts`.
        cuts: `len(layers) + 1` sets of tensor names; the first are the inputs, the last the outputs.
        tolerance: relative error, max|a-b| / max|b|, that shards may show against `GoldenPair.whole`
            on any processor.
        least_cosine: cosine similarity to `GoldenPair.outputs` that every answer keeps.
        expires: ISO date after which the bundle is refused, or None.
    """

    format: str = MANIFEST_FORMAT
    name: str
    version: str
    origin: Origin
    profile: str
    max_shard_bytes: int
    compression: Compression
    operators: tuple[OperatorUse, ...]
    runtimes: tuple[RuntimeNeed, ...]
    header: bytes
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    tensors: tuple[BoundaryTensor, ...]
    cuts: tuple[tuple[str, ...], ...]
    layers: tuple[Layer, ...]
    shards: tuple[Shard, ...]
    golden: tuple[GoldenPair, ...]
    tolerance: float
    least_cosine: float
    preprocess: Preprocess | None = None
    labels: Labels | None = None
    expires: str | None = None

    def tensor(self, name: str) -> BoundaryTensor:
        """Return the boundary tensor `name`.

        Raises:
            BundleError: the manifest does not describe it.
        """
        for tensor in self.tensors:
            if tensor.spec.name == name:
                return tensor
        raise BundleError(f"manifest: tensor {name!r} is in a cut but not described")

    def cut_before(self, shard: int) -> tuple[str, ...]:
        """Return the names alive just before shard `shard`; `len(shards)` gives the model outputs."""
        layer = self.shards[shard].first_layer if shard < len(self.shards) else len(self.layers)
        return self.cuts[layer]

    def blobs(self, first_shard: int, stop_shard: int) -> tuple[Blob, ...]:
        """Return the blobs that the shards `[first_shard, stop_shard)` need, each once, in order of use."""
        wanted: dict[str, Blob] = {}
        for shard in self.shards[first_shard:stop_shard]:
            for blob in (shard.graph, *shard.weights):
                wanted.setdefault(blob.digest, blob)
        return tuple(wanted.values())


class Constant(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """A fragment with initializers or constant-only nodes; several shards may carry the same one.

    Attributes:
        name: unique model-wide; a stage joins a name once.
        fragment: serialised `ModelProto` with only that part.
    """

    name: str
    fragment: bytes


class GraphPart(msgspec.Struct, frozen=True, kw_only=True):
    """The graph blob of a shard, msgpack.

    Attributes:
        constants: in an order in which each may use the ones before it.
        nodes: serialised `ModelProto` with only the nodes.
    """

    format: Literal["1.0"] = "1.0"
    constants: tuple[Constant, ...]
    nodes: bytes


_json = msgspec.json.Encoder(order="sorted")
_msgpack = msgspec.msgpack.Encoder(order="sorted")
_manifest_decoder = msgspec.json.Decoder(Manifest)
_part_decoder = msgspec.msgpack.Decoder(GraphPart)


def encode_manifest(manifest: Manifest) -> bytes:
    """Encode as canonical JSON (sorted keys, no white space)."""
    return _json.encode(manifest)


def decode_manifest(data: bytes, *, where: str = "manifest") -> Manifest:
    """Decode and check a manifest.

    Raises:
        BundleError: malformed, or parts that do not add up; the text names the place.
        UnsupportedVersion: another major version.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleError(f"{where}: {len(data)} bytes are more than {MAX_MANIFEST_BYTES}")
    try:
        version = msgspec.json.decode(data, type=_Versioned).format
        check_version(version, supported=MANIFEST_FORMAT, what=where)
        manifest = _manifest_decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{where}: {error}") from error
    _check(manifest, where)
    return manifest


class _Versioned(msgspec.Struct):
    format: str


def _check(manifest: Manifest, where: str) -> None:
    _check_ranges(manifest, where)
    _check_cuts(manifest, where)
    pairs = [blob for pair in manifest.golden for blob in (pair.inputs, pair.outputs, pair.whole)]
    recipe = [manifest.compression.recipe] if manifest.compression.recipe else []
    for blob in (*manifest.blobs(0, len(manifest.shards)), *pairs, *recipe):
        check_digest(blob.digest, where=where)
        if not 0 <= blob.size_bytes <= MAX_BLOB_BYTES:
            raise BundleError(f"{where}: blob {blob.digest} has size {blob.size_bytes}")


def _check_ranges(manifest: Manifest, where: str) -> None:
    layers = len(manifest.layers)
    if not layers or len(manifest.cuts) != layers + 1:
        raise BundleError(f"{where}: {layers} layers need {layers + 1} cuts, found {len(manifest.cuts)}")
    expected = 0
    for index, shard in enumerate(manifest.shards):
        if shard.first_layer != expected or shard.stop_layer <= expected:
            raise BundleError(f"{where}: shards[{index}] starts at layer {shard.first_layer}, expected {expected}")
        expected = shard.stop_layer
    if expected != layers:
        raise BundleError(f"{where}: shards end at layer {expected}, the model has {layers}")


def _check_cuts(manifest: Manifest, where: str) -> None:
    described = {tensor.spec.name for tensor in manifest.tensors}
    for index, cut in enumerate(manifest.cuts):
        if unknown := [name for name in cut if name not in described]:
            raise BundleError(f"{where}: cuts[{index}] names {unknown[0]!r}, which tensors does not describe")
    for layer in manifest.layers:
        if long := [name for name in layer.nodes if len(name) > MAX_NAME_LENGTH]:
            raise BundleError(f"{where}: layer {layer.name[:80]!r}: a node's name has {len(long[0])} characters")
    for tensor in manifest.tensors:
        spec = tensor.spec
        if not 0 <= tensor.deflated_bytes <= MAX_BLOB_BYTES:
            raise BundleError(f"{where}: tensor {spec.name[:80]!r} deflates to {tensor.deflated_bytes} bytes")
        if spec.dtype not in DTYPES or len(spec.shape) > MAX_RANK or len(spec.name) > MAX_NAME_LENGTH:
            raise BundleError(f"{where}: tensor {spec.name[:80]!r}: {spec.dtype} of rank {len(spec.shape)}")
    if {spec.name for spec in manifest.inputs} != set(manifest.cuts[0]):
        raise BundleError(f"{where}: cuts[0] is not the inputs")
    if {spec.name for spec in manifest.outputs} != set(manifest.cuts[-1]):
        raise BundleError(f"{where}: the last cut is not the outputs")


def encode_graph_part(part: GraphPart) -> bytes:
    """Encode the graph blob of a shard."""
    return _msgpack.encode(part)


def decode_graph_part(data: bytes, *, where: str) -> GraphPart:
    """Decode the graph blob of a shard.

    Raises:
        BundleError: malformed.
    """
    try:
        return _part_decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{where}: {error}") from error
