"""What a simulated device would find if it measured itself: the truth that the simulation works with."""

from __future__ import annotations

from edge.formats.message import Speed
from edge.formats.speed import LinkSpeed, ModelSpeed
from host.planning.costs import DeviceCost
from host.simulate.bundle import SimulatedBundle


def measured(cost: DeviceCost, bundle: SimulatedBundle, profile: str, *, factor: float = 1.0) -> Speed:
    """Return what a device would find if it measured itself on a bundle: its cost, made slower by `factor`."""
    needs = [need for need in bundle.manifest.needs if not cost.runtime or need.name == cost.runtime]
    need = next(iter(needs), None)
    model = ModelSpeed(
        manifest=bundle.manifest_blob.digest,
        mode="default",
        threads=1,
        runtime=f"{need.name} {need.least_version}" if need is not None else "",
        shard_seconds=tuple(seconds * factor for seconds in cost.shard_seconds),
        session_seconds=cost.session_seconds * factor,
    )
    link = cost.link
    return Speed(
        node=cost.name,
        profile=profile,
        message_seconds=cost.message_seconds * factor,
        message_seconds_per_byte=cost.message_seconds_per_byte * factor,
        link=LinkSpeed(
            bytes_per_second=min(link.up_bytes_per_second, link.down_bytes_per_second),
            latency_seconds=link.latency_seconds,
        ),
        models=(model,),
    )
