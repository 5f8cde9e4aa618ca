"""A bundle for fleets in memory: every record is there, and no graph that a runtime could load."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edge.formats.bundle import (
    Blob,
    BoundaryTensor,
    Compression,
    Form,
    GoldenPair,
    Layer,
    Manifest,
    Origin,
    RuntimeNeed,
    Shard,
    digest_of,
    encode_manifest,
)
from edge.formats.frame import FrameHeader, encode_frame
from edge.formats.tensor import TensorSpec
from host.fleet.blobs import MemoryBlobs
from tests.twin_bundle import half_build


@dataclass(frozen=True, kw_only=True, slots=True)
class FakeBundle:
    """A bundle whose shards nobody can load; its whole model doubles its input."""

    manifest: Manifest
    manifest_blob: Blob
    blobs: MemoryBlobs
    stored: Mapping[str, bytes]


_GOLDEN = FrameHeader(
    kind="result", request_id="golden", sender="", reply_to="", ttl_ms=0, deployment="", epoch="", stage=0
)


def joined(first: FakeBundle, *others: FakeBundle) -> FakeBundle:
    """Return the first bundle with the blobs of all beside it."""
    stored = {digest: data for bundle in (first, *others) for digest, data in bundle.stored.items()}
    return FakeBundle(
        manifest=first.manifest, manifest_blob=first.manifest_blob, blobs=MemoryBlobs(stored), stored=stored
    )


def fake_bundle(
    *,
    shards: int = 4,
    weight_bytes: int = 1000,
    macs: int = 10**9,
    version: str = "1.0.0",
    expires: str | None = None,
    twin: Form | None = None,
) -> FakeBundle:
    """Make a bundle of equal shards; with a `twin` also for LiteRT, half as large, its one tensor in that form."""
    stored: dict[str, bytes] = {}

    def store(data: bytes) -> Blob:
        stored[digest_of(data)] = data
        return Blob(digest=digest_of(data), size_bytes=len(data))

    def frame(values: float) -> Blob:
        return store(encode_frame(_GOLDEN, {"x": np.full((1, 4), values, np.float32)}))

    spec = TensorSpec(name="x", dtype="float32", shape=(1, 4))
    made = tuple(
        Shard(
            first_layer=index,
            stop_layer=index + 1,
            graph=store(b"graph %d" % index),
            weights=(store(bytes([index]) * weight_bytes),),
            reads=("x",),
            size_bytes=weight_bytes + 7,
        )
        for index in range(shards)
    )
    manifest = Manifest(
        name="double",
        version=version,
        expires=expires,
        origin=Origin(format="onnx", digest=digest_of(b""), licence="unknown", description="doubles its input"),
        profile="rpi4",
        max_shard_bytes=1 << 30,
        compression=Compression(quantize="none"),
        operators=(),
        runtimes=(RuntimeNeed(name="onnxruntime", least_version="1.22.0"),),
        header=b"",
        inputs=(spec,),
        outputs=(spec,),
        tensors=(BoundaryTensor(spec=spec, size_bytes=16, as_input=b"", as_output=b""),),
        cuts=(("x",),) * (shards + 1),
        layers=tuple(
            Layer(name=f"l{i}", operators=("Mul",), macs=macs, weight_bytes=weight_bytes, peak_activation_bytes=32)
            for i in range(shards)
        ),
        shards=made,
        builds=() if twin is None else (half_build(made, twin, store),),
        golden=(GoldenPair(inputs=frame(1.0), outputs=frame(2.0), whole=frame(2.0)),),
        tolerance=1e-4,
        least_cosine=0.999,
    )
    blob = store(encode_manifest(manifest))
    return FakeBundle(manifest=manifest, manifest_blob=blob, blobs=MemoryBlobs(stored), stored=stored)
