"""Devices of equal cost are of one kind: the search counts them instead of telling them apart."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from edge.formats.plan import Constraints
from host.errors import PlanError
from host.planning.costs import DeviceCost, Network, ShardCost, Workload

CLIENT = "client"
"""Name of the one who sends requests, in media and in what binds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kinds:
    """Devices in groups of equal ones; the groups in an order that does not depend on their names.

    Attributes:
        devices: one of each kind.
        names: of all of each kind, sorted; those that must take part come first.
        forbidden: shards that each kind does not take.
        paired: whether a kind is one device with links of its own to single others.
        media: indexes of the media that each kind shares.
        least: how many of each kind must take part.
        limits: how many of each kind a plan can use at most; 0 where no shard has room.
    """

    devices: tuple[DeviceCost, ...]
    names: tuple[tuple[str, ...], ...]
    forbidden: tuple[frozenset[int], ...]
    paired: tuple[bool, ...]
    media: tuple[frozenset[int], ...]
    least: tuple[int, ...]
    limits: tuple[int, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """How many devices of each kind a plan may use."""
        return tuple(min(len(names), limit) for names, limit in zip(self.names, self.limits, strict=True))

    @property
    def states(self) -> int:
        """How many sets of used devices the exact search tells apart."""
        return math.prod(count + 1 for count in self.counts)


def available(devices: Sequence[DeviceCost], constraints: Constraints) -> list[DeviceCost]:
    """Return the devices that may take part."""
    named = set(constraints.devices)
    return [
        device for device in devices if (not named or device.name in named) and device.name not in constraints.without
    ]


def check_pins(shards: int, devices: Collection[str], constraints: Constraints) -> None:
    """Check that every pin can be kept.

    Raises:
        PlanError: a shard that is not there, or a pin that contradicts another or names a device that takes no part.
    """
    for pin in (*constraints.pins, *constraints.forbidden):
        if not 0 <= pin.layer < shards:
            raise PlanError(f"shard {pin.layer} is pinned to {pin.device}, and there are {shards} shards")
    where: dict[int, str] = {}
    forbidden = {(pin.layer, pin.device) for pin in constraints.forbidden}
    for pin in constraints.pins:
        if pin.device not in devices:
            raise PlanError(f"shard {pin.layer} is pinned to {pin.device}, which takes no part: add it, or unpin")
        if where.setdefault(pin.layer, pin.device) != pin.device:
            raise PlanError(f"shard {pin.layer} is pinned to {where[pin.layer]} and to {pin.device}: choose one")
        if (pin.layer, pin.device) in forbidden:
            raise PlanError(f"shard {pin.layer} is pinned to {pin.device} and forbidden there: choose one")


def kinds_of(
    workload: Workload,
    devices: Sequence[DeviceCost],
    network: Network,
    constraints: Constraints,
    *,
    most: int,
    must_use: Collection[str] = (),
) -> Kinds:
    """Return devices in groups of equal ones.

    Args:
        workload: whose shards they may run.
        devices: all that may take part.
        network: a device that occurs in a pair is a kind of its own.
        constraints: what a pin forbids to others makes them differ too.
        most: devices of a kind that a plan can use at most.
        must_use: devices that must take part.
    """
    in_pairs = {name for pair in network.pairs for name in pair}
    groups: dict[tuple[object, ...], list[DeviceCost]] = {}
    for device in devices:
        key = (
            cost_key(device),
            tuple(sorted(_forbidden(device.name, constraints))),
            tuple(sorted(_media(device.name, network))),
            device.name if device.name in in_pairs else "",
        )
        groups.setdefault(key, []).append(device)
    members = [sorted(groups[key], key=lambda device: device.name) for key in sorted(groups, key=repr)]
    firsts = [group[0] for group in members]
    must = [sum(device.name in must_use for device in group) for group in members]
    return Kinds(
        devices=tuple(firsts),
        names=tuple(
            tuple(sorted((device.name for device in group), key=lambda name: (name not in must_use, name)))
            for group in members
        ),
        forbidden=tuple(_forbidden(device.name, constraints) for device in firsts),
        paired=tuple(device.name in in_pairs for device in firsts),
        media=tuple(_media(device.name, network) for device in firsts),
        least=tuple(len(group) if constraints.use_all else count for group, count in zip(members, must, strict=True)),
        limits=tuple(
            most
            if _has_room(workload.of(device.shard_format).shards, device, _forbidden(device.name, constraints))
            else 0
            for device in firsts
        ),
    )


def cost_key(device: DeviceCost) -> tuple[object, ...]:
    """Return all of a device that the planner reckons with, without its name."""
    return (
        device.shard_seconds,
        device.link,
        device.memory_bytes,
        device.flash_bytes,
        device.session_bytes,
        device.session_seconds,
        device.message_seconds,
        device.message_seconds_per_byte,
        device.deflate_seconds_per_byte,
        device.inflate_seconds_per_byte,
        device.busy_watts,
        device.runtime,
    )


def _has_room(shards: Sequence[ShardCost], device: DeviceCost, forbidden: frozenset[int]) -> bool:
    """Whether any shard alone fits, queues aside: without that no stage does."""
    for index, shard in enumerate(shards):
        stored = sum(shard.blobs.values())
        needed = stored + shard.extra_bytes + shard.peak_activation_bytes + device.session_bytes
        if index not in forbidden and needed <= device.memory_bytes and stored <= device.flash_bytes:
            return True
    return False


def _forbidden(name: str, constraints: Constraints) -> frozenset[int]:
    elsewhere = {pin.layer for pin in constraints.pins if pin.device != name}
    return frozenset(elsewhere | {pin.layer for pin in constraints.forbidden if pin.device == name})


def _media(name: str, network: Network) -> frozenset[int]:
    return frozenset(index for index, medium in enumerate(network.media) if name in medium.nodes)
