"""What a plan that is there costs on the devices as they are now. Pure.

A device may be slower by now than it was when the plan was made, and a replica may be away.

Devices that take turns with a stage and are alike have equal shares of it. Where one of them is slower by now, whoever
sends to them gives each request to the one with the fewest that it has not taken yet, so that each takes as many as it
can: the rate of a stage is the sum of its runners' rates, and their shares are as their rates are. A runner's rate is
what its processor and its link let it have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from edge.formats.plan import Objective, Plan, Stage
from host.planning.costs import DeviceCost, Network, Workload
from host.planning.left_out import effective_period
from host.planning.price import memory_of, price_plan


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """What a plan costs now.

    Attributes:
        bottleneck_seconds: time between two results at full load.
        period_seconds: the same with no more requests in flight than the window: what a user sees.
        latency_seconds: time of one request alone.
        energy_joules: of one request.
        memory_share: largest used part of a device's memory.
    """

    bottleneck_seconds: float
    period_seconds: float
    latency_seconds: float
    energy_joules: float
    memory_share: float

    def of(self, objective: Objective) -> float:
        """Return what an objective minimises."""
        return {
            "throughput": self.period_seconds,
            "latency": self.latency_seconds,
            "energy": self.energy_joules,
            "memory": self.memory_share,
        }[objective]


def standing_of(
    plan: Plan,
    workload: Workload,
    devices: Mapping[str, DeviceCost],
    *,
    window: int,
    network: Network | None = None,
    in_use: Mapping[str, int] | None = None,
) -> Standing | None:
    """Return what a plan costs, None when a stage has none of its devices.

    Args:
        plan: of this workload.
        workload: one request.
        devices: those that are here, by name.
        window: requests in flight.
        network: between them; every link to one broker when left out.
        in_use: memory of a device that a running stage has and would give back, by name.

    Raises:
        PlanError: the plan is not of this workload.
    """
    stages: list[Stage] = []
    for stage in plan.stages:
        here = runners_here(stage, devices)
        if not here:
            return None
        stages.append(msgspec.structs.replace(stage, device=here[0], replicas=here[1:], standbys=()))

    def priced(costs: Mapping[str, DeviceCost], runs: Sequence[Stage] = stages) -> Plan:
        return price_plan(
            workload, list(costs.values()), runs, objective=plan.objective, window=window, network=network
        )

    unequal = [stage for stage in stages if _is_unequal(stage, stages, devices)]
    shared, typical = devices, devices
    if unequal:
        shared, typical = _with_shares(unequal, devices, lambda runs: priced(devices, runs).stages, stages)
    now = priced(shared)
    if unequal:
        now = msgspec.structs.replace(now, latency_seconds=priced(typical).latency_seconds)
    shares = [
        needed / max(1, devices[name].memory_bytes + (in_use or {}).get(name, 0))
        for name, needed in memory_of(now.stages).items()
    ]
    return Standing(
        bottleneck_seconds=now.bottleneck_seconds,
        period_seconds=effective_period(now, window),
        latency_seconds=now.latency_seconds,
        energy_joules=now.energy_joules,
        memory_share=max(shares),
    )


def slowed(device: DeviceCost, factor: float) -> DeviceCost:
    """Return a device whose processor takes `factor` times as long for everything: stages, messages and packing."""
    if factor == 1.0:
        return device
    return replace(
        device,
        shard_seconds=tuple(seconds * factor for seconds in device.shard_seconds),
        others=tuple((name, tuple(each * factor for each in seconds)) for name, seconds in device.others),
        session_seconds=device.session_seconds * factor,
        message_seconds=device.message_seconds * factor,
        message_seconds_per_byte=device.message_seconds_per_byte * factor,
        deflate_seconds_per_byte=device.deflate_seconds_per_byte * factor,
        inflate_seconds_per_byte=device.inflate_seconds_per_byte * factor,
    )


def _is_unequal(stage: Stage, stages: Sequence[Stage], devices: Mapping[str, DeviceCost]) -> bool:
    """Whether devices with this stage and no other differ in what a request costs there."""
    alike = {
        replace(devices[name], name="", source="profile", memory_bytes=0, flash_bytes=0, held=frozenset(), others=())
        for name in stage.runners
    }
    return len(alike) > 1 and not any(
        set(other.runners) & set(stage.runners) for other in stages if other.index != stage.index
    )


def _with_shares(
    unequal: Sequence[Stage],
    devices: Mapping[str, DeviceCost],
    timed: Callable[[Sequence[Stage]], Sequence[Stage]],
    stages: Sequence[Stage],
) -> tuple[Mapping[str, DeviceCost], Mapping[str, DeviceCost]]:
    """Return devices that cost in equal turns what these cost with their shares, and such as a request meets.

    Pricing gives each of r runners every r-th request; who gets `share` of them is priced as `share · r` times slower.

    Args:
        unequal: stages with runners that differ.
        devices: by name.
        timed: returns stages with sizes, and with the time that they take on their first runner.
        stages: all.
    """
    found: dict[str, tuple[float, float]] = {}  # of each runner: processor time, and time between two requests
    for turn in range(max(len(stage.runners) for stage in unequal)):
        for stage in timed([_turned(stage, turn) if stage in unequal else stage for stage in stages]):
            link = devices[stage.device].link
            carried = (stage.sent_bytes / link.up_bytes_per_second, stage.received_bytes / link.down_bytes_per_second)
            found[stage.device] = (stage.predicted_seconds, max(stage.predicted_seconds, *carried))
    shared, typical = dict(devices), dict(devices)
    for stage in unequal:
        # Who costs nothing would get everything: those who cost as good as nothing share it.
        rates = {name: 1 / max(found[name][1], 1e-12) for name in stage.runners}
        total, count = math.fsum(rates.values()), len(rates)
        mean = math.fsum(found[name][0] * rate / total for name, rate in rates.items())
        for name, rate in rates.items():
            factor, link = rate / total * count, devices[name].link
            slower = replace(
                link,
                up_bytes_per_second=link.up_bytes_per_second / factor,
                down_bytes_per_second=link.down_bytes_per_second / factor,
            )
            shared[name] = replace(slowed(devices[name], factor), link=slower)
            typical[name] = slowed(devices[name], mean / max(found[name][0], 1e-12))
    return shared, typical


def _turned(stage: Stage, count: int) -> Stage:
    """The same stage with its runners in another order."""
    names = stage.runners
    turned = names[count % len(names) :] + names[: count % len(names)]
    return msgspec.structs.replace(stage, device=turned[0], replicas=turned[1:])


def runners_here(stage: Stage, devices: Mapping[str, object]) -> tuple[str, ...]:
    """Return the devices that run a stage now: those of them that are here, else its first standby that is."""
    here = tuple(name for name in stage.runners if name in devices)
    return here or tuple(name for name in stage.standbys if name in devices)[:1]


def run_seconds(stage: Stage, device: DeviceCost) -> float:
    """Return the predicted time of a stage inside its runtime: what `StageLoad.run_seconds` measures."""
    return device.session_seconds + sum(device.shard_seconds[stage.first_shard : stage.stop_shard])
