"""A bundle whose tensors are single numbers: what travels and is checked in a simulated fleet.

Names, cuts, shards and files are those of the real manifest, and so are all sizes; each tensor is one 64-bit integer.
A shard makes each of its tensors by mixing its own number, the name of the tensor, and the tensors that it reads. So an
answer is right only when every shard ran once, in order, on tensors of the same request.

A further build of the bundle has the same numbers: of its forms only the sizes remain, which count where tensors travel
in them.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import msgspec
import numpy as np

from edge.errors import InvalidInput
from edge.formats.bundle import Blob, GoldenPair, Manifest, Shard, ShardFormat, digest_of, encode_manifest
from edge.formats.frame import FrameHeader, encode_frame
from edge.formats.message import BLOCK_BYTES
from edge.formats.plan import Codec
from edge.formats.tensor import Array, TensorSpec
from edge.protocol.builds import blobs_in

_MASK = (1 << 63) - 1
_GOLDEN = 20_240_229
_ZEROS = bytes(BLOCK_BYTES)


def mix(*numbers: int) -> int:
    """Return a number of 63 bits that depends on every number and on their order (splitmix64's finaliser)."""
    mixed = 0x1E3779B97F4A7C15
    for number in numbers:
        mixed = (mixed ^ number) * 0x3F58476D1CE4E5B9 & _MASK
        mixed = (mixed ^ mixed >> 30) * 0x14D049BB133111EB & _MASK
        mixed ^= mixed >> 27
    return mixed


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulatedBundle:
    """A bundle for simulated fleets.

    Attributes:
        manifest: of tiny tensors; `BoundaryTensor.size_bytes` and the sizes of files are the real ones.
        manifest_blob: describes the encoded manifest.
        tensor_bytes: real size of each boundary tensor.
        deflated_bytes: its size on the wire when it is compressed.
        other_bytes: real sizes of them in the form of each further build, which do not change when compressed.
        takes: in what form frames come to a stage, by deployment, epoch and stage; devices note it when they load one.
        contents: of the few blobs that somebody reads: the manifest and the golden frames.
        blob_bytes: size of every blob.
    """

    manifest: Manifest
    manifest_blob: Blob
    tensor_bytes: Mapping[str, int]
    deflated_bytes: Mapping[str, int]
    contents: Mapping[str, bytes]
    blob_bytes: Mapping[str, int]
    other_bytes: Mapping[ShardFormat, Mapping[str, int]] = field(default_factory=dict)
    takes: dict[tuple[str, str, int], ShardFormat] = field(default_factory=dict)
    _makes: tuple[tuple[str, ...], ...] = field(repr=False)
    _cuts: tuple[tuple[str, ...], ...] = field(repr=False)

    def wire_bytes(self, codec: Codec, form: ShardFormat | None = None) -> Mapping[str, int]:
        """Return the size of each boundary tensor on the wire, in the form of one build; None for the own one."""
        if form is not None and form in self.other_bytes:
            return self.other_bytes[form]
        return self.deflated_bytes if codec == "deflate" else self.tensor_bytes

    def inputs(self, number: int) -> dict[str, Array]:
        """Return the inputs of a request that carries `number`."""
        return _arrays({spec.name: mix(number, _code(spec.name)) for spec in self.manifest.inputs})

    def run(self, first_shard: int, stop_shard: int, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Return what shards `[first_shard, stop_shard)` make of the tensors before them, what they forward included.

        Raises:
            InvalidInput: a tensor that they read is not there, or is no single number.
        """
        values: dict[str, int] = {}
        for name, array in tensors.items():
            if array.size != 1:
                raise InvalidInput(f"tensor {name[:80]!r} is no single number")
            values[name] = int(array.reshape(-1)[0])
        for index in range(first_shard, stop_shard):
            shard = self.manifest.shards[index]
            try:
                read = [values[name] for name in shard.reads]
            except KeyError as error:
                raise InvalidInput(f"shard {index} reads {error.args[0]!r}, which did not come") from error
            for name in self._makes[index]:
                values[name] = mix(index, _code(name), *read)
        return _arrays({name: values[name] for name in self._cuts[stop_shard] if name in values})

    def answer(self, number: int) -> dict[str, Array]:
        """Return the right answer to a request that carries `number`."""
        return self.run(0, len(self.manifest.shards), self.inputs(number))

    # ------------------------------------------------------------------------------------- as a source of blobs
    def has(self, digest: str) -> bool:
        """See `host.fleet.blobs.BlobSource.has`."""
        return digest in self.blob_bytes

    def read(self, digest: str) -> bytes:
        """See `host.fleet.blobs.BlobSource.read`; weights are zeros."""
        return self.contents.get(digest) or bytes(self.blob_bytes[digest])

    def read_block(self, digest: str, index: int) -> tuple[int, bytes] | None:
        """See `host.fleet.blobs.BlobSource.read_block`."""
        size = self.blob_bytes.get(digest)
        if size is None or not 0 <= index * BLOCK_BYTES <= size:
            return None
        start = index * BLOCK_BYTES
        if digest in self.contents:
            return size, self.contents[digest][start : start + BLOCK_BYTES]
        return size, _ZEROS[: min(BLOCK_BYTES, size - start)]


def simulated_bundle(manifest: Manifest) -> SimulatedBundle:
    """Return the stand-in for a bundle, from its manifest alone."""
    contents: dict[str, bytes] = {}

    def keep(data: bytes) -> Blob:
        contents[digest_of(data)] = data
        return Blob(digest=digest_of(data), size_bytes=len(data))

    cuts = tuple(manifest.cut_before(shard) for shard in range(len(manifest.shards) + 1))
    tiny = msgspec.structs.replace(
        manifest,
        header=b"",
        inputs=tuple(_tiny(spec) for spec in manifest.inputs),
        outputs=tuple(_tiny(spec) for spec in manifest.outputs),
        tensors=tuple(
            msgspec.structs.replace(tensor, spec=_tiny(tensor.spec), as_input=b"", as_output=b"")
            for tensor in manifest.tensors
        ),
        shards=tuple(_plain(shard, keep) for shard in manifest.shards),
        builds=tuple(
            msgspec.structs.replace(
                build, header=b"", forms=(), shards=tuple(_plain(shard, keep) for shard in build.shards)
            )
            for build in manifest.builds
        ),
        golden=(),
        compression=msgspec.structs.replace(manifest.compression, recipe=None, learned=None),
    )
    others = {
        each: {tensor.spec.name: tensor.size_bytes for tensor in manifest.in_format(each).tensors}
        for each in manifest.formats[1:]
    }
    draft = _bundle(tiny, cuts, {}, Blob(digest="", size_bytes=0), others)
    inputs, whole = (keep(encode_frame(_HEADER, tensors)) for tensors in (draft.inputs(_GOLDEN), draft.answer(_GOLDEN)))
    tiny = msgspec.structs.replace(tiny, golden=(GoldenPair(inputs=inputs, outputs=whole, whole=whole),))
    return _bundle(tiny, cuts, contents, keep(encode_manifest(tiny)), others)


_HEADER = FrameHeader(
    kind="result", request_id="golden", sender="", reply_to="", ttl_ms=0, deployment="", epoch="", stage=0
)


def _bundle(
    manifest: Manifest,
    cuts: tuple[tuple[str, ...], ...],
    contents: Mapping[str, bytes],
    blob: Blob,
    others: Mapping[ShardFormat, Mapping[str, int]],
) -> SimulatedBundle:
    blobs = blobs_in(manifest, manifest.formats, 0, len(manifest.shards))
    sizes = {found.digest: found.size_bytes for found in blobs}
    return SimulatedBundle(
        manifest=manifest,
        manifest_blob=blob,
        tensor_bytes={tensor.spec.name: tensor.size_bytes for tensor in manifest.tensors},
        deflated_bytes={tensor.spec.name: tensor.deflated_bytes or tensor.size_bytes for tensor in manifest.tensors},
        contents=contents,
        blob_bytes=sizes | {digest: len(data) for digest, data in contents.items()},
        other_bytes=others,
        _makes=tuple(tuple(name for name in after if name not in before) for before, after in pairwise(cuts)),
        _cuts=cuts,
    )


def _tiny(spec: TensorSpec) -> TensorSpec:
    return TensorSpec(name=spec.name, dtype="int64", shape=(1,))


def _plain(shard: Shard, keep: Callable[[bytes], Blob]) -> Shard:
    """Return a shard without digests of blocks: nobody can make the real blocks here.

    A blob of one block is checked by its own digest on its way, so that it gets contents and the digest of these.
    """

    def plain(blob: Blob) -> Blob:
        digest = blob.digest
        if blob.size_bytes <= BLOCK_BYTES:
            seed = bytes.fromhex(digest_of(digest.encode()).removeprefix("sha256:"))
            digest = keep((seed * (blob.size_bytes // len(seed) + 1))[: blob.size_bytes]).digest
        return msgspec.structs.replace(blob, digest=digest, block_digests=b"")

    graph, *weights = (plain(blob) for blob in (shard.graph, *shard.weights))
    return msgspec.structs.replace(shard, graph=graph, weights=tuple(weights))


def _arrays(values: Mapping[str, int]) -> dict[str, Array]:
    return {name: np.array([value], dtype=np.int64) for name, value in values.items()}


def _code(name: str) -> int:
    return zlib.crc32(name.encode())
