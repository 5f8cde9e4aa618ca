"""Bundles with a second build of their shards, in files that no runtime could load."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import msgspec

from edge.formats.bundle import Blob, Build, Form, RuntimeNeed, Shard, digest_of, encode_manifest
from tests.tiny_bundle import TinyBundle

TFLITE_RUNTIMES = (
    RuntimeNeed(name="litert", least_version="1.0"),
    RuntimeNeed(name="tflite-runtime", least_version="2.14"),
)
LAYOUT = Form(name="x", dtype="float32", axes=(1, 0))
"""The tensor of a fake bundle's twin of the same size, its axes the other way round."""

BYTES = Form(name="x", dtype="int8", scale=0.1, zero_point=3)
"""The tensor of a twin that holds it as bytes."""


def half_build(shards: tuple[Shard, ...], form: Form, store: Callable[[bytes], Blob]) -> Build:
    """Return a build for LiteRT of shards with half the weights.

    Args:
        shards: of the first build.
        form: of its one tensor.
        store: keeps a file.
    """
    halves = []
    for index, shard in enumerate(shards):
        size = sum(blob.size_bytes for blob in shard.weights) // 2
        halves.append(
            msgspec.structs.replace(
                shard,
                graph=store(b"model %d" % index),
                weights=(store(bytes([100 + index]) * size),),
                size_bytes=size + 7,
            )
        )
    return Build(runtimes=TFLITE_RUNTIMES, operators=(), shards=tuple(halves), forms=(form,))


def with_twin(bundle: TinyBundle) -> TinyBundle:
    """Return a bundle that holds the same layers for LiteRT, too, in files that no runtime could load."""
    blobs = dict(bundle.blobs)

    def keep(data: bytes) -> Blob:
        blobs[digest_of(data)] = data
        return Blob(digest=digest_of(data), size_bytes=len(data))

    shards = tuple(
        msgspec.structs.replace(shard, graph=keep(b"model %d" % index), weights=(keep(b"buffer %d" % index),))
        for index, shard in enumerate(bundle.manifest.shards)
    )
    build = Build(
        runtimes=(RuntimeNeed(name="litert", least_version="1.0"),),
        operators=(),
        shards=shards,
        forms=tuple(Form(name=tensor.spec.name, dtype="float32", axes=(1, 0)) for tensor in bundle.manifest.tensors),
    )
    manifest = msgspec.structs.replace(bundle.manifest, builds=(build,))
    return dataclasses.replace(bundle, manifest=manifest, manifest_blob=keep(encode_manifest(manifest)), blobs=blobs)
