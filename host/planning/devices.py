"""From a manifest and from what devices say of themselves to the numbers that the planner works with."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from edge.formats.bundle import Manifest, RuntimeNeed, digest_of, encode_manifest
from edge.formats.message import About, Speed
from edge.formats.profile import DeviceProfile
from edge.protocol.needs import usable_runtimes
from host.planning.costs import DeviceCost, LinkCost
from host.planning.speeds import ShardTimes, believed_link, believed_messages, shard_times
from host.planning.workload import work_dtype

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


_SAME_TIMES = 1.1
_SAME_OTHERS = 1.25
_SAME_SECONDS = 0.0002
"""Latencies and costs of a call that differ by no more than this are the same."""


def device_cost(
    about: About,
    profile: DeviceProfile,
    manifest: Manifest,
    *,
    digest: str = "",
    mode: str = "default",
    speed: Speed | None = None,
    kin: Sequence[Speed] = (),
) -> DeviceCost:
    """Return what a device offers for a bundle: what it measured itself counts before its profile.

    Args:
        about: the newest announcement of the device.
        profile: the profile that it names.
        manifest: of the bundle.
        digest: of the manifest's blob; worked out when left out, which only gives the right one for a manifest that
            this release wrote.
        mode: how its stages will be run.
        speed: what the device measured of itself, None when it did not.
        kin: what other devices measured; those of another profile are passed over.
    """
    # What was measured by another kind of device under this name is of no use.
    own = speed if speed is not None and speed.profile == about.profile else None
    others = [one for one in kin if one.profile == about.profile and one.node != about.node]
    identity, rough = digest or digest_of(encode_manifest(manifest)), profile_seconds(about, profile, manifest)
    known = {
        name: shard_times(manifest, identity, rough, mode=mode, speed=own, kin=others, runtime=name)
        for name in _runtimes(about, manifest)
    }
    runtime = _fastest(known)
    times = known.pop(runtime)
    slowness = _REFERENCE_BYTES_PER_SECOND / profile.memory_bytes_per_second
    session_seconds = SESSION_SECONDS * slowness if times.session_seconds is None else times.session_seconds
    message_seconds, per_byte = _message_cost(profile, own, others)
    return DeviceCost(
        name=about.node,
        shard_seconds=times.shard_seconds,
        source=times.source,
        link=_link(profile, own),
        memory_bytes=about.free_memory_bytes,
        flash_bytes=min(about.free_disk_bytes, profile.flash_bytes),
        session_bytes=SESSION_BYTES,
        session_seconds=session_seconds,
        message_seconds=message_seconds,
        message_seconds_per_byte=per_byte,
        busy_watts=profile.power.busy_watts if profile.power is not None else 0.0,
        runtime=runtime,
        others=tuple((name, found.shard_seconds) for name, found in known.items()),
    )


def _runtimes(about: About, manifest: Manifest) -> tuple[str, ...]:
    """The runtimes of a device that can run a bundle, preferred first; one empty name where a bundle is for one only.

    A device that has none counts as having the first: whether it may take part, `missing_runtime` says.
    """
    if len(manifest.needs) < 2:
        return ("",)
    return usable_runtimes(manifest, about.runtimes) or (manifest.needs[0].name,)


def _fastest(times: Mapping[str, ShardTimes]) -> str:
    """Return the runtime that takes least for the whole model; of those that are as good, the first.

    What was measured is mostly slower than what a profile promises. So a runtime that was not measured counts as no
    better than the best that was.
    """

    def seconds(found: ShardTimes) -> float:
        return math.fsum(found.shard_seconds) + (found.session_seconds or 0.0)

    measured = [seconds(found) for found in times.values() if found.source == "measured"]

    def expected(name: str) -> float:
        return min(measured) if measured and times[name].source != "measured" else seconds(times[name])

    return min(times, key=expected)


def profile_seconds(about: About, profile: DeviceProfile, manifest: Manifest) -> tuple[float, ...]:
    """Return the time of each shard of a bundle by the profile of a device."""
    dtype = work_dtype(manifest)
    measured = about.macs_per_second.get(dtype, 0.0)
    return roofline_seconds(
        manifest,
        macs_per_second=measured if 1 <= measured <= _MOST_PER_SECOND else profile.macs_per_second.of(dtype),
        memory_bytes_per_second=profile.memory_bytes_per_second,
    )


def _message_cost(profile: DeviceProfile, own: Speed | None, kin: Sequence[Speed]) -> tuple[float, float]:
    found = believed_messages(own)
    if found is not None:
        return found
    others = [cost for one in sorted(kin, key=lambda speed: speed.node) if (cost := believed_messages(one)) is not None]
    if others:
        return _mean(cost[0] for cost in others), _mean(cost[1] for cost in others)
    slowness = _REFERENCE_BYTES_PER_SECOND / profile.memory_bytes_per_second
    return _REFERENCE_MESSAGE_SECONDS * slowness, _PASSES_A_BYTE / profile.memory_bytes_per_second


def _link(profile: DeviceProfile, own: Speed | None) -> LinkCost:
    link = believed_link(own)
    if link is not None:
        return LinkCost(
            up_bytes_per_second=link.bytes_per_second,
            down_bytes_per_second=link.bytes_per_second,
            latency_seconds=link.latency_seconds,
        )
    return LinkCost(
        up_bytes_per_second=profile.link.up_bytes_per_second,
        down_bytes_per_second=profile.link.down_bytes_per_second,
        latency_seconds=profile.link.latency_seconds,
    )


def alike(costs: Sequence[DeviceCost], *, profiles: Mapping[str, str]) -> tuple[DeviceCost, ...]:
    """Make devices equal that are nearly so, as the planner is faster the fewer kinds there are.

    No two measurements are equal. Devices of one profile are one kind when their times come from the same source, the
    times of all shards together differ by at most 10 %, and links, costs of messages and free room by at most 25 % (or
    0.2 ms). The kind has the means of the times, and the least room. Which devices become one kind depends on their
    figures alone, not on their names or their order.

    Args:
        costs: of each device.
        profiles: id of the profile of each device, by its name.

    Returns:
        The costs in the order given.
    """
    groups: list[list[DeviceCost]] = []
    for cost in sorted(costs, key=lambda cost: (profiles.get(cost.name, ""), *_figures(cost))):
        profile = profiles.get(cost.name, "")
        near = (group for group in groups if profiles.get(group[0].name, "") == profile and _same(group[0], cost))
        found = next(near, None)
        if found is None:
            groups.append([cost])
        else:
            found.append(cost)
    equal: dict[str, DeviceCost] = {}
    for group in groups:
        middle = _middle(group)
        equal |= {cost.name: replace(middle, name=cost.name, held=cost.held) for cost in group}
    return tuple(equal[cost.name] for cost in costs)


def _figures(cost: DeviceCost) -> tuple[object, ...]:
    return (math.fsum(cost.shard_seconds), *cost.shard_seconds, cost.link, cost.memory_bytes, cost.flash_bytes)


def _same(one: DeviceCost, other: DeviceCost) -> bool:
    totals = sorted((math.fsum(one.shard_seconds), math.fsum(other.shard_seconds)))
    if one.runtime != other.runtime:
        return False
    if one.source != other.source or len(one.shard_seconds) != len(other.shard_seconds):
        return False
    if totals[1] > totals[0] * _SAME_TIMES:
        return False
    ratios = (
        (one.link.up_bytes_per_second, other.link.up_bytes_per_second),
        (one.link.down_bytes_per_second, other.link.down_bytes_per_second),
        (one.message_seconds_per_byte, other.message_seconds_per_byte),
        (one.memory_bytes, other.memory_bytes),
        (one.flash_bytes, other.flash_bytes),
        (one.busy_watts, other.busy_watts),
    )
    seconds = (
        (one.link.latency_seconds, other.link.latency_seconds),
        (one.message_seconds, other.message_seconds),
        (one.session_seconds, other.session_seconds),
    )
    return all(max(pair) <= min(pair) * _SAME_OTHERS for pair in ratios) and all(
        max(pair) <= max(min(pair) * _SAME_OTHERS, min(pair) + _SAME_SECONDS) for pair in seconds
    )


def _middle(group: Sequence[DeviceCost]) -> DeviceCost:
    if len(group) == 1:
        return group[0]
    return replace(
        group[0],
        shard_seconds=tuple(_mean(column) for column in zip(*(cost.shard_seconds for cost in group), strict=True)),
        link=LinkCost(
            up_bytes_per_second=_mean(cost.link.up_bytes_per_second for cost in group),
            down_bytes_per_second=_mean(cost.link.down_bytes_per_second for cost in group),
            latency_seconds=_mean(cost.link.latency_seconds for cost in group),
        ),
        memory_bytes=min(cost.memory_bytes for cost in group),
        flash_bytes=min(cost.flash_bytes for cost in group),
        session_bytes=max(cost.session_bytes for cost in group),
        session_seconds=_mean(cost.session_seconds for cost in group),
        message_seconds=_mean(cost.message_seconds for cost in group),
        message_seconds_per_byte=_mean(cost.message_seconds_per_byte for cost in group),
        deflate_seconds_per_byte=_mean(cost.deflate_seconds_per_byte for cost in group),
        inflate_seconds_per_byte=_mean(cost.inflate_seconds_per_byte for cost in group),
        busy_watts=_mean(cost.busy_watts for cost in group),
    )


def _mean(values: Iterable[float]) -> float:
    # An exact sum, so that the order does not matter.
    found = tuple(values)
    return found[0] if len(set(found)) == 1 else math.fsum(found) / len(found)


def roofline_seconds(
    manifest: Manifest, *, macs_per_second: float, memory_bytes_per_second: float
) -> tuple[float, ...]:
    """Return the time of each shard by the roofline model, the sum over its layers of the larger of both times.

    Williams, Waterman, Patterson: "Roofline", CACM 52(4), 2009.
    """
    # What is alive at the peak was written and is read again: the best bound on activation traffic that is known.
    layers = [
        max(layer.macs / macs_per_second, (layer.weight_bytes + layer.peak_activation_bytes) / memory_bytes_per_second)
        for layer in manifest.layers
    ]
    return tuple(sum(layers[shard.first_layer : shard.stop_layer]) for shard in manifest.shards)


def missing_runtime(about: About, manifest: Manifest) -> str | None:
    """Say in one line why a device cannot run a bundle, or None when it has a runtime that can."""
    offers = {offer.name: offer.version for offer in about.runtimes}
    if not manifest.needs or any(_serves(offers.get(need.name), need) for need in manifest.needs):
        return None
    needed = " or ".join(f"{need.name} {need.least_version}" for need in manifest.needs)
    has = ", ".join(f"{name} {version}" for name, version in offers.items()) or "no runtime"
    return f"{about.node} has {has}, the bundle needs {needed} or newer"


def _serves(version: str | None, need: RuntimeNeed) -> bool:
    return version is not None and _numbers(version) >= _numbers(need.least_version)


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version; what is no number counts as 0."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
