"""Which blobs of what serves have one holder only, and who that is. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from edge.formats.plan import Holding, Plan


def at_risk(plan: Plan, holdings: Iterable[Holding], online: Collection[str]) -> tuple[str, ...]:
    """Return the nodes that alone hold some shard of what serves, sorted.

    A device of the plan holds the shards of its stages, as it could not run them otherwise. A keeper holds them once it
    said so, which its holding tells.

    Args:
        plan: that serves.
        holdings: who is known to hold what, coordinators that stay among them.
        online: nodes that are there.
    """
    holders: list[set[str]] = [set() for _ in range(max(stage.stop_shard for stage in plan.stages))]
    known = [(holding.node, holding.first_shard, holding.stop_shard) for holding in holdings]
    known += [(name, stage.first_shard, stage.stop_shard) for stage in plan.stages for name in stage.devices]
    for node, first, stop in known:
        if node in online:
            for shard in holders[first:stop]:
                shard.add(node)
    return tuple(sorted({next(iter(nodes)) for nodes in holders if len(nodes) == 1}))
