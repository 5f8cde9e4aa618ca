"""Small bundles and devices for simulated fleets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.chain import chain_manifest
from edge.formats.plan import Plan, Stage
from host.planning.costs import DeviceCost, LinkCost, Network
from host.planning.workload import workload_of
from host.simulate.bundle import SimulatedBundle, simulated_bundle
from host.simulate.fleet import Deployed

FAST_LINK = LinkCost(up_bytes_per_second=100e6, down_bytes_per_second=100e6, latency_seconds=0.0005)


def chain_bundle(cut_bytes: Sequence[int], *, weight_bytes: int = 1000) -> SimulatedBundle:
    """The stand-in for a chain of shards."""
    return simulated_bundle(chain_manifest(cut_bytes, weight_bytes=weight_bytes))


def device(name: str, shard_seconds: Sequence[float], *, link: LinkCost = FAST_LINK) -> DeviceCost:
    """A device with room for everything."""
    return DeviceCost(
        name=name,
        shard_seconds=tuple(shard_seconds),
        link=link,
        memory_bytes=1 << 30,
        flash_bytes=1 << 30,
        session_seconds=0.0001,
        message_seconds=0.0003,
        message_seconds_per_byte=1e-9,
    )


def planned(
    bundle: SimulatedBundle,
    devices: Sequence[DeviceCost],
    stages: Sequence[tuple[int, int, Sequence[str]]],
    *,
    network: Network | None = None,
) -> Plan:
    """A plan of stages `(first shard, stop shard, runners)`, with what it costs."""
    workload = workload_of(bundle.manifest)
    made = tuple(
        Stage(
            index=index,
            device=runners[0],
            replicas=tuple(runners[1:]),
            first_shard=first,
            stop_shard=stop,
            memory_bytes=1000,
            received_bytes=workload.shards[first].received_bytes,
            sent_bytes=workload.shards[stop - 1].sent_bytes,
        )
        for index, (first, stop, runners) in enumerate(stages)
    )
    costs = {cost.name: cost for cost in devices}
    expected = expectation(made, costs, network or Network())
    return Plan(
        objective="throughput",
        stages=made,
        bottleneck_seconds=expected[0],
        latency_seconds=expected[1],
        binds="",
    )


def expectation(stages: Sequence[Stage], costs: Mapping[str, DeviceCost], network: Network) -> tuple[float, float]:
    """The largest load and the latency of stages one after another, as section 8 of the design has them."""
    loads: list[float] = []
    latency = 0.0
    ends: list[tuple[LinkCost, int]] = [(network.client, 1)]
    for stage in stages:
        cost, count = costs[stage.device], len(stage.runners)
        seconds = (
            cost.session_seconds
            + sum(cost.shard_seconds[stage.first_shard : stage.stop_shard])
            + 2 * cost.message_seconds
            + (stage.received_bytes + stage.sent_bytes) * cost.message_seconds_per_byte
        )
        loads.append(seconds / count)
        latency += seconds
        ends.append((cost.link, count))
    ends.append((network.client, 1))
    hops = [stages[0].received_bytes, *(stage.sent_bytes for stage in stages)]
    for size, (sender, senders), (receiver, receivers) in zip(hops, ends, ends[1:], strict=False):
        up, down = sender.up_bytes_per_second, receiver.down_bytes_per_second
        loads += [size / up / senders, size / down / receivers]
        latency += sender.latency_seconds + receiver.latency_seconds
        latency += size / min(up, down) + min(size, 128 * 1024) / max(up, down)
    loads.append(sum(hops) / network.broker_bytes_per_second)
    return max(loads), latency


def deployed(bundle: SimulatedBundle, plan: Plan, *, name: str = "net", window: int = 8) -> Deployed:
    """A deployment that serves from the beginning."""
    return Deployed(name=name, bundle=bundle, plan=plan, window=window)
