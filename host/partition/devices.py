"""From a manifest and from what devices say of themselves to the numbers that the planner works with."""

from __future__ import annotations

import re

from edge.formats.bundle import Manifest, RuntimeNeed, Shard
from edge.formats.message import About
from edge.formats.profile import DeviceProfile
from host.partition.planner import DeviceCost, LayerWork, LinkCost, ShardCost

SESSION_BYTES = 16 * 1024 * 1024
"""What a session takes beside weights and activations: code it touches, weights packed for its kernels, its arena.

With it EfficientNet-Lite0 as one stage is predicted to need 44 MiB in fp32 and 27 MiB in int8; an agent grew by 42 and
15 MB when it took the stage.
"""

SESSION_SECONDS = 0.0001
"""Entering and leaving a session: feeds, outputs, and waking the compute thread."""

# A two-stage pipeline of EfficientNet-Lite0 through paho on the x86-gateway took 2.8 ms of processor time a request
# more than one process, for four messages and 1.4 MB: about 0.3 ms a message and 1 ns a byte, which at that machine's
# 16.46e9 bytes/s is sixteen passes over memory. Slower memory makes both slower.
_REFERENCE_BYTES_PER_SECOND = 16.46e9
_REFERENCE_MESSAGE_SECONDS = 0.0003
_PASSES_A_BYTE = 16
_MOST_PER_SECOND = 1e18
"""What a device cannot have measured is not believed; as in `edge.formats.profile`."""


def work_dtype(manifest: Manifest) -> str:
    """Return the dtype whose speed counts for a bundle, a key of `MacsPerSecond`."""
    # Blocks of 4-bit weights are multiplied with activations that are rounded to 8 bits on the way.
    return "int8" if manifest.compression.quantize in ("int8", "int8-dynamic", "int4") else "float32"


def shard_costs(manifest: Manifest) -> tuple[ShardCost, ...]:
    """Return what each shard of a bundle asks of a device, first golden input."""
    sizes = {tensor.spec.name: tensor.size_bytes for tensor in manifest.tensors}

    def cut_bytes(shard: int) -> int:
        return sum(sizes[name] for name in manifest.cut_before(shard))

    return tuple(
        _shard_cost(manifest, shard, received_bytes=cut_bytes(index), sent_bytes=cut_bytes(index + 1))
        for index, shard in enumerate(manifest.shards)
    )


def _shard_cost(manifest: Manifest, shard: Shard, *, received_bytes: int, sent_bytes: int) -> ShardCost:
    layers = manifest.layers[shard.first_layer : shard.stop_layer]
    blobs = {blob.digest: blob.size_bytes for blob in (shard.graph, *shard.weights)}
    return ShardCost(
        # What is alive at the peak was written and is read again: the best bound on activation traffic that is known.
        layers=tuple(
            LayerWork(macs=layer.macs, moved_bytes=layer.weight_bytes + layer.peak_activation_bytes) for layer in layers
        ),
        blobs=blobs,
        extra_bytes=max(0, shard.size_bytes - sum(blobs.values())),
        peak_activation_bytes=max((layer.peak_activation_bytes for layer in layers), default=0),
        received_bytes=received_bytes,
        sent_bytes=sent_bytes,
    )


def device_cost(about: About, profile: DeviceProfile, *, dtype: str) -> DeviceCost:
    """Return what a device offers: what it measured itself counts before its profile.

    Args:
        about: the newest announcement of the device.
        profile: the profile that it names.
        dtype: of the bundle, from `work_dtype`.
    """
    measured = about.macs_per_second.get(dtype, 0.0)
    slowness = _REFERENCE_BYTES_PER_SECOND / profile.memory_bytes_per_second
    return DeviceCost(
        name=about.node,
        macs_per_second=measured if 1 <= measured <= _MOST_PER_SECOND else profile.macs_per_second.of(dtype),
        memory_bytes_per_second=profile.memory_bytes_per_second,
        link=LinkCost(
            up_bytes_per_second=profile.link.up_bytes_per_second,
            down_bytes_per_second=profile.link.down_bytes_per_second,
            latency_seconds=profile.link.latency_seconds,
        ),
        memory_bytes=about.free_memory_bytes,
        flash_bytes=min(about.free_disk_bytes, profile.flash_bytes),
        session_bytes=SESSION_BYTES,
        session_seconds=SESSION_SECONDS * slowness,
        message_seconds=_REFERENCE_MESSAGE_SECONDS * slowness,
        message_seconds_per_byte=_PASSES_A_BYTE / profile.memory_bytes_per_second,
    )


def missing_runtime(about: About, manifest: Manifest) -> str | None:
    """Say in one line why a device cannot run a bundle, or None when it has a runtime that can."""
    offers = {offer.name: offer.version for offer in about.runtimes}
    if not manifest.runtimes or any(_serves(offers.get(need.name), need) for need in manifest.runtimes):
        return None
    needed = " or ".join(f"{need.name} {need.least_version}" for need in manifest.runtimes)
    has = ", ".join(f"{name} {version}" for name, version in offers.items()) or "no runtime"
    return f"{about.node} has {has}, the bundle needs {needed} or newer"


def _serves(version: str | None, need: RuntimeNeed) -> bool:
    return version is not None and _numbers(version) >= _numbers(need.least_version)


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version; what is no number counts as 0."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
