"""Which blobs of what serves have one holder only, and who that is. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from edge.formats.plan import Holding, Plan, Takes
from edge.protocol.builds import planned_format


def at_risk(plan: Plan, holdings: Iterable[Holding], online: Collection[str]) -> tuple[str, ...]:
    """Return the nodes that alone hold some shard of what serves, sorted.

    A device of the plan holds the shards of its stages, as it could not run them otherwise. A keeper holds them once it
    said so, which its holding tells. Where runtimes take shards of several formats, those of another format than that
    of who runs a stage are no copy of it, unless their holder has the stage loaded.

    Args:
        plan: that serves.
        holdings: who is known to hold what, coordinators that stay among them.
        online: nodes that are there.
    """
    shards = range(max(stage.stop_shard for stage in plan.stages))
    loaded: list[set[str]] = [set() for _ in shards]
    run: list[set[Takes]] = [set() for _ in shards]
    for stage in plan.stages:
        for shard in range(stage.first_shard, stage.stop_shard):
            loaded[shard].update(name for name in stage.devices if name in online)
            run[shard].update(planned_format(plan, name) for name in stage.runners)
    held: dict[Takes, list[set[str]]] = {form: [set() for _ in shards] for forms in run for form in forms}
    for holding in holdings:
        for form in held if holding.node in online else ():
            if form == "" or holding.shard_format in ("", form):
                for nodes in held[form][holding.first_shard : holding.stop_shard]:
                    nodes.add(holding.node)
    copies = (held[form][shard] | loaded[shard] for shard in shards for form in run[shard])
    return tuple(sorted({next(iter(nodes)) for nodes in copies if len(nodes) == 1}))
