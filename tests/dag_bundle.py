"""Manifests of any graph of shards, with nothing behind them: for what is worked out of a manifest alone."""

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

INPUT = -1


def manifest_of_reads(reads: Sequence[Sequence[int]], macs: Sequence[int] | None = None) -> Manifest:
    """A manifest of one-layer shards: shard `i` reads what the shards `reads[i]` make, `INPUT` the input `x`.

    The last shard makes the output. The tensor of shard `i` is `t<i>` with `16 << i` bytes, `x` has 8.
    """
    count = len(reads)
    names = {INPUT: "x", **{index: f"t{index}" for index in range(count)}}
    specs = {name: TensorSpec(name=name, dtype="float32", shape=(1, 4)) for name in names.values()}
    last = {source: index for index, sources in enumerate(reads) for source in sources}
    cuts: list[tuple[str, ...]] = [("x",)]
    cuts += [
        tuple(names[source] for source in range(INPUT, place) if last.get(source, INPUT) >= place)
        for place in range(1, count)
    ]
    cuts.append((names[count - 1],))
    blob = Blob(digest=digest_of(b""), size_bytes=0)
    return Manifest(
        name="dag",
        version="1.0.0",
        origin=Origin(format="onnx", digest=digest_of(b""), licence="unknown", description="a graph"),
        profile="rpi4",
        max_shard_bytes=1 << 30,
        compression=Compression(quantize="none"),
        operators=(),
        runtimes=(RuntimeNeed(name="onnxruntime", least_version="1.22.0"),),
        header=b"",
        inputs=(specs["x"],),
        outputs=(specs[names[count - 1]],),
        tensors=tuple(
            BoundaryTensor(spec=specs[name], size_bytes=8 << (source + 1), as_input=b"", as_output=b"")
            for source, name in names.items()
        ),
        cuts=tuple(cuts),
        layers=tuple(
            Layer(
                name=f"l{index}",
                operators=("Gemm",),
                macs=macs[index] if macs is not None else 1,
                weight_bytes=0,
                peak_activation_bytes=32,
            )
            for index in range(count)
        ),
        shards=tuple(
            Shard(
                first_layer=index,
                stop_layer=index + 1,
                graph=blob,
                weights=(),
                reads=tuple(names[source] for source in sources),
                size_bytes=0,
            )
            for index, sources in enumerate(reads)
        ),
        golden=(),
        tolerance=1e-4,
        least_cosine=0.999,
    )
