"""The Shardwire manifest: what a bundle holds, how its shards join, and what they must answer."""

import msgspec

from edge.errors import BundleError
from edge.formats.builds import (
    SHARD_FORMATS,
    Build,
    Form,
    OperatorUse,
    RuntimeNeed,
    ShardFormat,
    check_build,
    shard_format,
)
from edge.formats.processing import NO_PROCESSING, Processing, check_processing
from edge.formats.processing_before import LabelsBefore, PreprocessBefore, converted
from edge.formats.shard import (
    Blob,
    Constant,
    GraphPart,
    Shard,
    TflitePart,
    check_bytes,
    check_digest,
    decode_graph_part,
    decode_tflite_part,
    digest_of,
    encode_graph_part,
)
from edge.formats.streams import Bucket, StreamState, check_streams
from edge.formats.tensor import DTYPES, MAX_NAME_LENGTH, MAX_RANK, TensorSpec
from edge.formats.version import check_version

MANIFEST_FORMAT = "1.2"
MANIFEST_MEDIA_TYPE = "application/vnd.shardwire.manifest.v1+json"
MAX_MANIFEST_BYTES = 64 * 1024 * 1024
MAX_BLOB_BYTES = 8 << 30

__all__ = [
    "MANIFEST_FORMAT",
    "MANIFEST_MEDIA_TYPE",
    "MAX_BLOB_BYTES",
    "MAX_MANIFEST_BYTES",
    "SHARD_FORMATS",
    "Blob",
    "BoundaryTensor",
    "Bucket",
    "Build",
    "Compression",
    "Constant",
    "Form",
    "GoldenPair",
    "GraphPart",
    "Layer",
    "Manifest",
    "OperatorUse",
    "Origin",
    "Processing",
    "RuntimeNeed",
    "Shard",
    "ShardFormat",
    "StreamState",
    "TflitePart",
    "check_bytes",
    "check_digest",
    "decode_graph_part",
    "decode_manifest",
    "decode_tflite_part",
    "digest_of",
    "encode_graph_part",
    "encode_manifest",
]


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
        processing: how inputs are made and answers are read; before version 1.2 `preprocess` and `labels`.
        expires: ISO date after which the bundle is refused, or None.
        builds: the same layers in other shard formats; none before version 1.2.
        states: what a stream carries along; none before version 1.2.
        buckets: dimensions that are padded; none before version 1.2.
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
    processing: Processing = NO_PROCESSING
    expires: str | None = None
    builds: tuple[Build, ...] = ()
    states: tuple[StreamState, ...] = ()
    buckets: tuple[Bucket, ...] = ()

    @property
    def shard_format(self) -> ShardFormat:
        """The format of `shards`."""
        return shard_format(self.runtimes)

    @property
    def needs(self) -> tuple[RuntimeNeed, ...]:
        """The runtimes that can run one of its builds, the preferred one first."""
        return (*self.runtimes, *(need for build in self.builds for need in build.runtimes))

    @property
    def formats(self) -> tuple[ShardFormat, ...]:
        """The shard formats that it holds, that of `shards` first."""
        return (self.shard_format, *(build.shard_format for build in self.builds))

    def in_format(self, wanted: ShardFormat) -> "Manifest":
        """Return this manifest with the shards, and the specs of the cut tensors, of one shard format.

        The inputs and outputs of the model, the names in the cuts and the layers stay as they are; `builds` is empty
        where it is not the own format, so that a view of a view cannot be mistaken for the whole.

        Raises:
            BundleError: the bundle holds no shards of that format.
        """
        if wanted == self.shard_format:
            return self
        for build in self.builds:
            if build.shard_format == wanted:
                forms = {form.name: form for form in build.forms}
                return msgspec.structs.replace(
                    self,
                    runtimes=build.runtimes,
                    header=build.header,
                    operators=build.operators,
                    shards=build.shards,
                    tensors=tuple(_in_form(tensor, forms.get(tensor.spec.name)) for tensor in self.tensors),
                    builds=(),
                )
        raise BundleError(f"manifest: {self.name} has no {wanted} shards, only {', '.join(self.formats)}")

    def form(self, name: str, wanted: ShardFormat) -> Form:
        """Return how the shards of one format hold a tensor of a cut.

        Raises:
            BundleError: there are none of that format, or the tensor is not described.
        """
        if wanted not in self.formats:
            raise BundleError(f"manifest: {self.name} has no {wanted} shards, only {', '.join(self.formats)}")
        for build in self.builds:
            if build.shard_format == wanted:
                for form in build.forms:
                    if form.name == name:
                        return form
        return Form(name=name, dtype=self.tensor(name).spec.dtype)

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


_json = msgspec.json.Encoder(order="sorted")
_manifest_decoder = msgspec.json.Decoder(Manifest)


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
        before = msgspec.json.decode(data, type=_Before)
        check_version(before.format, supported=MANIFEST_FORMAT, what=where)
        manifest = _manifest_decoder.decode(data)
        if before.preprocess is not None or before.labels is not None:
            processing = converted(before.preprocess, before.labels)
            manifest = msgspec.structs.replace(manifest, processing=processing)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{where}: {error}") from error
    _check(manifest, where)
    return manifest


class _Before(msgspec.Struct):
    format: str
    preprocess: PreprocessBefore | None = None
    labels: LabelsBefore | None = None


def _check(manifest: Manifest, where: str) -> None:
    _check_ranges(manifest, where)
    _check_cuts(manifest, where)
    for build in manifest.builds:
        check_build(build, own=manifest.shard_format, shards=manifest.shards, where=where)
    if len(set(manifest.formats)) != len(manifest.formats):
        raise BundleError(f"{where}: two builds of one shard format")
    check_streams(manifest.inputs, manifest.outputs, manifest.states, manifest.buckets, where=where)
    check_processing(manifest.processing, inputs=manifest.inputs, outputs=manifest.outputs, where=where)
    pairs = [blob for pair in manifest.golden for blob in (pair.inputs, pair.outputs, pair.whole)]
    recipe = [manifest.compression.recipe] if manifest.compression.recipe else []
    shards = [*manifest.shards, *(shard for build in manifest.builds for shard in build.shards)]
    files = [blob for shard in shards for blob in (shard.graph, *shard.weights)]
    for blob in (*files, *pairs, *recipe, *manifest.processing.blobs):
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


def _in_form(tensor: BoundaryTensor, form: Form | None) -> BoundaryTensor:
    if form is None:
        return tensor
    spec = tensor.spec
    if form.axes and len(form.axes) != len(spec.shape):
        raise BundleError(f"manifest: form of {spec.name[:80]!r} has {len(form.axes)} axes for rank {len(spec.shape)}")
    shape = tuple(spec.shape[axis] for axis in form.axes) if form.axes else spec.shape
    have, want = DTYPES[spec.dtype].itemsize, DTYPES[form.dtype].itemsize
    return msgspec.structs.replace(
        tensor,
        spec=TensorSpec(name=spec.name, dtype=form.dtype, shape=shape),
        size_bytes=tensor.size_bytes * want // have,
        deflated_bytes=0,
        as_input=b"",
        as_output=b"",
    )
