"""A made-up chain of shards: what a fleet is simulated with where there is no bundle."""

from __future__ import annotations

from collections.abc import Sequence

from edge.formats.bundle import (
    Blob,
    BoundaryTensor,
    Compression,
    Layer,
    Manifest,
    Origin,
    RuntimeNeed,
    Shard,
    digest_of,
)
from edge.formats.tensor import TensorSpec


def chain_manifest(cut_bytes: Sequence[int], *, weight_bytes: int = 1000) -> Manifest:
    """Return a chain of shards, one tensor between two of them.

    Args:
        cut_bytes: size of the input, of each tensor between shards, and of the output.
        weight_bytes: of each shard.
    """
    names = [f"t{index}" for index in range(len(cut_bytes))]
    tensors = tuple(
        BoundaryTensor(
            spec=TensorSpec(name=name, dtype="float32", shape=(1, size // 4)),
            size_bytes=size,
            as_input=b"",
            as_output=b"",
        )
        for name, size in zip(names, cut_bytes, strict=True)
    )
    shards = len(cut_bytes) - 1
    return Manifest(
        name="chain",
        version="1.0.0",
        origin=Origin(format="onnx", digest=digest_of(b""), licence="unknown", description="a chain"),
        profile="rpi4",
        max_shard_bytes=1 << 30,
        compression=Compression(quantize="none"),
        operators=(),
        runtimes=(RuntimeNeed(name="onnxruntime", least_version="1.22.0"),),
        header=b"",
        inputs=(tensors[0].spec,),
        outputs=(tensors[-1].spec,),
        tensors=tensors,
        cuts=tuple((name,) for name in names),
        layers=tuple(
            Layer(name=f"l{at}", operators=("Mul",), macs=1, weight_bytes=weight_bytes, peak_activation_bytes=32)
            for at in range(shards)
        ),
        shards=tuple(
            Shard(
                first_layer=at,
                stop_layer=at + 1,
                graph=_blob(f"graph {at}", 100),
                weights=(_blob(f"weights {at}", weight_bytes),),
                reads=(names[at],),
                size_bytes=weight_bytes + 100,
            )
            for at in range(shards)
        ),
        golden=(),
        tolerance=1e-4,
        least_cosine=0.999,
    )


def _blob(content: str, size_bytes: int) -> Blob:
    return Blob(digest=digest_of(content.encode()), size_bytes=size_bytes)
