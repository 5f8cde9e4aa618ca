"""From a manifest, and what was asked of its layers, to what the planner places."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import msgspec

from edge.formats.bundle import Manifest, Shard
from edge.formats.plan import Codec, Constraints, Pin, Takes
from host.errors import PlanError
from host.planning.branches import sections_of
from host.planning.costs import ShardCost, Workload


def work_dtype(manifest: Manifest) -> str:
    """Return the dtype whose speed counts for a bundle, a key of `MacsPerSecond`."""
    mode = manifest.compression.quantize
    # ONNX Runtime multiplies blocks of weights with activations that it rounds to 8 bits; LiteRT unpacks them at load.
    if mode in ("int4", "int8-weights"):
        return "int8" if manifest.shard_format == "onnx" else "float32"
    return "int8" if mode in ("int8", "int8-dynamic") else "float32"


def wire_bytes(manifest: Manifest, *, codec: Codec = "raw") -> dict[str, int]:
    """Return what each boundary tensor takes on the wire, first golden input.

    With `deflate`, a tensor that it would make larger, or that was not measured, travels as it is.
    """
    return {
        tensor.spec.name: min(tensor.size_bytes, tensor.deflated_bytes or tensor.size_bytes)
        if codec == "deflate"
        else tensor.size_bytes
        for tensor in manifest.tensors
    }


def workload_of(manifest: Manifest, *, codec: Codec = "raw") -> Workload:
    """Return what each shard of a bundle asks of a device, first golden input, and which may run side by side.

    Args:
        manifest: of the bundle.
        codec: how tensors travel between stages.
    """
    own = _workload(manifest, codec)
    if not manifest.builds:
        return own
    builds: dict[Takes, Workload] = {
        each: _workload(_deflated_alike(manifest.in_format(each), manifest), codec) for each in manifest.formats[1:]
    }
    cuts = tuple(frozenset(manifest.cut_before(shard)) for shard in range(len(manifest.shards) + 1))
    return replace(own, builds=builds, cuts=cuts)


def _deflated_alike(view: Manifest, own: Manifest) -> Manifest:
    """A build whose tensors are taken to deflate as the bundle's own do, as far as they are of one size.

    Only the order of their axes may differ then. Of others it was not measured: they travel as they are.
    """
    deflated = {tensor.spec.name: (tensor.size_bytes, tensor.deflated_bytes) for tensor in own.tensors}
    tensors = (
        msgspec.structs.replace(tensor, deflated_bytes=deflated[tensor.spec.name][1])
        if deflated[tensor.spec.name][0] == tensor.size_bytes
        else tensor
        for tensor in view.tensors
    )
    return msgspec.structs.replace(view, tensors=tuple(tensors))


def _workload(manifest: Manifest, codec: Codec) -> Workload:
    """One request through the shards of one build."""
    sizes, raw = wire_bytes(manifest, codec=codec), wire_bytes(manifest)

    def cut_bytes(shard: int, of: Mapping[str, int]) -> int:
        return sum(of[name] for name in manifest.cut_before(shard))

    shards = tuple(
        _shard_cost(manifest, shard, received_bytes=cut_bytes(index, sizes), sent_bytes=cut_bytes(index + 1, sizes))
        for index, shard in enumerate(manifest.shards)
    )
    sections = sections_of(manifest, sizes)
    if codec != "raw":
        shards = tuple(
            replace(shard, received_raw_bytes=cut_bytes(index, raw), sent_raw_bytes=cut_bytes(index + 1, raw))
            for index, shard in enumerate(shards)
        )
        sections = tuple(
            replace(section, received_raw=in_memory.received, sent_raw=in_memory.sent)
            for section, in_memory in zip(sections, sections_of(manifest, raw), strict=True)
        )
    return Workload(shards=shards, sections=sections)


def shard_constraints(manifest: Manifest, constraints: Constraints) -> Constraints:
    """Return constraints whose pins name shards in place of layers.

    Args:
        manifest: of the bundle.
        constraints: pins and forbidden name layers; negative ones count from the last.

    Raises:
        PlanError: a layer that the model does not have, or pins that cannot all be kept.
    """
    pins = _on_shards(manifest, constraints.pins)
    forbidden = _on_shards(manifest, constraints.forbidden)
    pinned: dict[int, str] = {}
    for pin in pins:
        other = pinned.setdefault(pin.layer, pin.device)
        if other != pin.device:
            raise PlanError(f"{_layers_of(manifest, pin.layer)} on {other!r} and on {pin.device!r}: pin one of them")
    for pin in pins:
        where = _layers_of(manifest, pin.layer)
        if pin in forbidden:
            raise PlanError(f"{where} on {pin.device!r} and forbidden there: leave one of the two out")
        if pin.device in constraints.without or (constraints.devices and pin.device not in constraints.devices):
            raise PlanError(f"{where} on {pin.device!r}, which may not take part: let it, or pin another device")
    return msgspec.structs.replace(constraints, pins=pins, forbidden=forbidden)


def _on_shards(manifest: Manifest, pins: Iterable[Pin]) -> tuple[Pin, ...]:
    count = len(manifest.layers)
    found: dict[tuple[int, str], Pin] = {}
    for pin in pins:
        if not -count <= pin.layer < count:
            raise PlanError(
                f"layer {pin.layer} of {manifest.name!r} for {pin.device!r}: it has the layers 0 to {count - 1}"
            )
        layer = pin.layer % count
        shard = next(index for index, shard in enumerate(manifest.shards) if layer < shard.stop_layer)
        found.setdefault((shard, pin.device), Pin(layer=shard, device=pin.device))
    return tuple(found[key] for key in sorted(found))


def _layers_of(manifest: Manifest, index: int) -> str:
    """Say which layers a shard holds, and that they are pinned."""
    shard = manifest.shards[index]
    if shard.stop_layer - shard.first_layer == 1:
        return f"layer {shard.first_layer} of {manifest.name!r} is pinned"
    return f"layers {shard.first_layer} to {shard.stop_layer - 1} of {manifest.name!r} are one shard, which is pinned"


def _shard_cost(manifest: Manifest, shard: Shard, *, received_bytes: int, sent_bytes: int) -> ShardCost:
    layers = manifest.layers[shard.first_layer : shard.stop_layer]
    blobs = {blob.digest: blob.size_bytes for blob in (shard.graph, *shard.weights)}
    return ShardCost(
        blobs=blobs,
        extra_bytes=max(0, shard.size_bytes - sum(blobs.values())),
        peak_activation_bytes=max((layer.peak_activation_bytes for layer in layers), default=0),
        received_bytes=received_bytes,
        sent_bytes=sent_bytes,
    )
