"""Plans, devices and workloads made by hand."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from edge.formats.plan import Objective, Plan, Stage
from host.planning.costs import DeviceCost, LinkCost, ShardCost, Workload

MBIT = 125_000.0


def link(mbit: float = 800, *, latency: float = 0.0) -> LinkCost:
    """A link that is equally fast both ways."""
    return LinkCost(up_bytes_per_second=mbit * MBIT, down_bytes_per_second=mbit * MBIT, latency_seconds=latency)


def device(
    name: str,
    *seconds: float,
    mbit: float = 800,
    latency: float = 0.0,
    memory_bytes: int = 1 << 30,
    watts: float = 5.0,
) -> DeviceCost:
    """A device that takes so many seconds for each shard, and nothing for messages."""
    return DeviceCost(
        name=name,
        shard_seconds=seconds,
        link=link(mbit, latency=latency),
        memory_bytes=memory_bytes,
        flash_bytes=1 << 40,
        busy_watts=watts,
    )


def workload(*cuts: int, weight_bytes: int = 1000) -> Workload:
    """Shards between cuts of so many bytes."""
    return Workload(
        shards=tuple(
            ShardCost(blobs={f"shard {index}": weight_bytes}, received_bytes=received, sent_bytes=sent)
            for index, (received, sent) in enumerate(itertools.pairwise(cuts))
        )
    )


def stage(index: int, device: str, seconds: float, *, received: int, sent: int, replicas: Sequence[str] = ()) -> Stage:
    """A stage of one shard."""
    return Stage(
        index=index,
        device=device,
        first_shard=index,
        stop_shard=index + 1,
        replicas=tuple(replicas),
        predicted_seconds=seconds,
        memory_bytes=1000,
        received_bytes=received,
        sent_bytes=sent,
    )


def plan(*stages: Stage, period: float, latency: float, binds: str = "", objective: Objective = "throughput") -> Plan:
    """A plan of stages with its promises."""
    return Plan(
        objective=objective,
        stages=stages,
        bottleneck_seconds=period,
        latency_seconds=latency,
        binds=binds or f"compute of {stages[0].device}",
    )
