"""What a plan that is there costs on the devices as they are now. Pure.

A device may be slower by now than it was when the plan was made, and a replica may be away.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from edge.formats.plan import Objective, Plan, Stage
from host.planning.costs import DeviceCost, Network, Workload
from host.planning.price import memory_of, price_plan


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """What a plan costs now.

    Attributes:
        bottleneck_seconds: time between two results at full load.
        latency_seconds: time of one request alone.
        energy_joules: of one request.
        memory_share: largest used part of a device's memory.
    """

    bottleneck_seconds: float
    latency_seconds: float
    energy_joules: float
    memory_share: float

    def of(self, objective: Objective) -> float:
        """Return what an objective minimises."""
        return {
            "throughput": self.bottleneck_seconds,
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
    now = price_plan(workload, list(devices.values()), stages, objective=plan.objective, window=window, network=network)
    shares = [
        needed / max(1, devices[name].memory_bytes + (in_use or {}).get(name, 0))
        for name, needed in memory_of(now.stages).items()
    ]
    return Standing(
        bottleneck_seconds=now.bottleneck_seconds,
        latency_seconds=now.latency_seconds,
        energy_joules=now.energy_joules,
        memory_share=max(shares),
    )


def runners_here(stage: Stage, devices: Mapping[str, object]) -> tuple[str, ...]:
    """Return the devices that run a stage now: those of them that are here, else its first standby that is."""
    here = tuple(name for name in stage.runners if name in devices)
    return here or tuple(name for name in stage.standbys if name in devices)[:1]


def run_seconds(stage: Stage, device: DeviceCost) -> float:
    """Return the predicted time of a stage inside its runtime: what `StageLoad.run_seconds` measures."""
    return device.session_seconds + sum(device.shard_seconds[stage.first_shard : stage.stop_shard])
