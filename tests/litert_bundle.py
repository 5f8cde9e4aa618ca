"""Bundles of TFLite shards made by hand: the tiny model of `tests.tiny_bundle` with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from typing import Any

import msgspec
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edge.formats.bundle import (
    Blob,
    Build,
    Form,
    Manifest,
    OperatorUse,
    RuntimeNeed,
    Shard,
    TflitePart,
    digest_of,
    encode_graph_part,
    encode_manifest,
)
from edge.formats.message import BLOCK_BYTES
from tests.litert_models.make_models import Operator, Tensor, dense, make_model
from tests.tiny_bundle import WIDTH, Floats, TinyBundle, make_tiny_bundle

RUNTIMES = (
    RuntimeNeed(name="litert", least_version="1.0"),
    RuntimeNeed(name="tflite-runtime", least_version="2.14"),
)
SCALE = 1 / 32
ZERO_POINT = -128

Keep = Callable[[bytes], Blob]


def make_litert_bundle(seed: int = 0) -> TinyBundle:
    """Make `y = relu(x · w0) · w1` of TFLite shards only, one a product."""
    tiny = make_tiny_bundle(seed)
    blobs: dict[str, bytes] = {}
    build = _build(tiny.weights, _keeper(blobs), quantized=False)
    manifest = msgspec.structs.replace(
        tiny.manifest,
        runtimes=build.runtimes,
        header=b"",
        operators=build.operators,
        shards=build.shards,
        tensors=tuple(msgspec.structs.replace(t, as_input=b"", as_output=b"") for t in tiny.manifest.tensors),
    )
    return _bundle(tiny, manifest, blobs)


def make_mixed_bundle(seed: int = 0, *, quantized: bool = False, litert_first: bool = False) -> TinyBundle:
    """Make the tiny ONNX bundle with TFLite shards beside its own.

    Args:
        seed: of the weights.
        quantized: `hidden` is int8 between the TFLite shards.
        litert_first: the TFLite shards are the bundle's own, and the ONNX shards the other build; not when quantized.
    """
    tiny = make_tiny_bundle(seed)
    blobs = {digest: data for digest, data in tiny.blobs.items() if digest != tiny.manifest_blob.digest}
    build = _build(tiny.weights, _keeper(blobs), quantized=quantized)
    own = tiny.manifest
    if litert_first:
        other = Build(runtimes=own.runtimes, header=own.header, operators=own.operators, shards=own.shards)
        manifest = msgspec.structs.replace(
            own, runtimes=build.runtimes, header=b"", operators=build.operators, shards=build.shards, builds=(other,)
        )
    else:
        manifest = msgspec.structs.replace(own, builds=(build,))
    return _bundle(tiny, manifest, blobs)


def _bundle(tiny: TinyBundle, manifest: Manifest, blobs: dict[str, bytes]) -> TinyBundle:
    manifest_blob = _keeper(blobs)(encode_manifest(manifest))
    return TinyBundle(manifest=manifest, manifest_blob=manifest_blob, blobs=blobs, weights=tiny.weights)


def _keeper(blobs: dict[str, bytes]) -> Keep:
    def keep(data: bytes) -> Blob:
        cut = [data[at : at + BLOCK_BYTES] for at in range(0, len(data), BLOCK_BYTES)]
        digests = b"".join(sha256(block).digest() for block in cut) if len(cut) > 1 else b""
        blobs[digest_of(data)] = data
        return Blob(digest=digest_of(data), size_bytes=len(data), block_digests=digests)

    return keep


def _build(weights: tuple[Floats, ...], keep: Keep, *, quantized: bool) -> Build:
    form = Form(name="hidden", dtype="int8", scale=SCALE, zero_point=ZERO_POINT)
    return Build(
        runtimes=RUNTIMES,
        operators=(OperatorUse(domain="", name="FULLY_CONNECTED", version=1),),
        shards=tuple(
            _shard(index, taken, given, model, weight, keep)
            for index, (taken, given, model, weight) in enumerate(_models(weights, quantized=quantized))
        ),
        forms=(form,) if quantized else (),
    )


def _models(weights: tuple[Floats, ...], *, quantized: bool) -> list[tuple[str, str, bytes, bytes]]:
    """Return of each shard what it takes, what it gives, its file, and its weight as it stands in there."""

    def row(name: str, **more: Any) -> Tensor:
        return Tensor(name=name, shape=(1, WIDTH), **more)

    # TFLite's weights are [outputs, inputs].
    turned = [np.ascontiguousarray(weight.T) for weight in weights]
    matrices = [Tensor(name=f"w{at}", shape=(WIDTH, WIDTH), data=data) for at, data in enumerate(turned)]
    inner = "made" if quantized else "hidden"
    tensors = [row(inner)]
    to_bytes, from_bytes = [], []
    if quantized:
        tensors.append(row("hidden", dtype="int8", scale=SCALE, zero_point=ZERO_POINT))
        builtin = schema.BuiltinOperator
        to_bytes = [Operator(code=builtin.QUANTIZE, inputs=(inner,), outputs=("hidden",))]
        from_bytes = [Operator(code=builtin.DEQUANTIZE, inputs=("hidden",), outputs=(inner,), version=2)]
    first = make_model(
        [row("x"), matrices[0], *tensors], [dense("x", "w0", inner, relu=True), *to_bytes], ["x"], ["hidden"]
    )
    second = make_model([*tensors, matrices[1], row("y")], [*from_bytes, dense(inner, "w1", "y")], ["hidden"], ["y"])
    return [("x", "hidden", first, turned[0].tobytes()), ("hidden", "y", second, turned[1].tobytes())]


def _shard(index: int, taken: str, given: str, model: bytes, weight: bytes, keep: Keep) -> Shard:
    before, after = model.split(weight)
    blob = keep(weight)
    part = TflitePart(inputs=(taken,), outputs=(given,), pieces=(before, 0, after))
    return Shard(
        first_layer=index,
        stop_layer=index + 1,
        graph=keep(encode_graph_part(part)),
        weights=(blob,),
        reads=(taken,),
        size_bytes=len(model),
    )
