"""Who holds which blobs of a bundle, as far as a coordinator knows. No IO and no clock; blobs are only asked for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from edge.formats.bundle import Manifest, ShardFormat
from edge.formats.message import Dropped, Kept, Ready
from edge.formats.plan import MAX_HOLDINGS, Deployment, Holding, Plan, Takes
from edge.protocol.builds import blobs_in, planned_format

MAX_KNOWN = 512
"""Of so many epochs it is remembered who said to hold them."""


class KnownHolders:
    """What devices said: which stages of which epochs they hold."""

    def __init__(self) -> None:
        self._stages: dict[tuple[str, str], dict[str, set[int]]] = {}
        self._golden: dict[tuple[str, str], set[str]] = {}

    def hear(self, device: str, event: Ready | Kept | Dropped) -> None:
        """Take what a device says of an epoch; what it drops it may hold all the same, until it says otherwise."""
        key = (event.deployment, event.epoch)
        if isinstance(event, Dropped):
            return
        stages = self._stages.pop(key, {})
        self._stages[key] = stages  # the newest last
        stages.setdefault(device, set()).update({event.stage} if isinstance(event, Ready) else event.stages)
        if isinstance(event, Kept) and event.golden:
            self._golden.setdefault(key, set()).add(device)
        while len(self._stages) > MAX_KNOWN:
            oldest = next(iter(self._stages))
            del self._stages[oldest]
            self._golden.pop(oldest, None)

    def stages(self, name: str, epoch: str) -> Mapping[str, frozenset[int]]:
        """Return the stages of an epoch that devices said to hold, loaded or not."""
        return {device: frozenset(found) for device, found in self._stages.get((name, epoch), {}).items()}

    def golden(self, name: str, epoch: str) -> frozenset[str]:
        """Return the devices that said to hold the golden inputs of an epoch."""
        return frozenset(self._golden.get((name, epoch), ()))

    def forget(self, device: str) -> None:
        """A device is gone for good."""
        for stages in self._stages.values():
            stages.pop(device, None)
        for devices in self._golden.values():
            devices.discard(device)


def own_holdings(node: str, manifest: Manifest, has: Callable[[str], bool]) -> list[Holding]:
    """Return what a coordinator itself holds of a bundle: runs of shards, the golden inputs with the first of them.

    Where it does not hold the same shards of every build, each build has its own.

    Args:
        node: its name.
        manifest: of the bundle.
        has: tells whether it holds a blob, by digest.
    """
    golden = all(has(blob.digest) for pair in manifest.golden for blob in (pair.inputs, pair.whole))
    golden = golden and all(has(blob.digest) for blob in manifest.processing.blobs)
    of_builds: dict[Takes, list[tuple[int, int]]] = {each: _runs(manifest, each, has) for each in manifest.formats}
    first_runs = of_builds[manifest.shard_format]
    if all(runs == first_runs for runs in of_builds.values()):
        of_builds = {"": first_runs}
    found = [(each, *run) for each, runs in of_builds.items() for run in runs]
    if golden and not found:
        found = [("", 0, 0)]  # no shard, and the golden inputs
    return [
        Holding(node=node, first_shard=first, stop_shard=stop, golden=golden and place == 0, shard_format=each)
        for place, (each, first, stop) in enumerate(found)
    ]


def _runs(manifest: Manifest, wanted: ShardFormat, has: Callable[[str], bool]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for index in range(len(manifest.shards)):
        if not all(has(blob.digest) for blob in blobs_in(manifest, (wanted,), index, index + 1)):
            continue
        if runs and runs[-1][1] == index:
            runs[-1] = (runs[-1][0], index + 1)
        else:
            runs.append((index, index + 1))
    return runs


def said_holdings(plan: Plan, said: Mapping[str, frozenset[int]], golden: Collection[str] = ()) -> list[Holding]:
    """Return what devices say to hold of the stages of a plan; each holds them for its runtime.

    A device whose runtime is not named, in a plan that names those of others, is passed over: which build it has is
    not known.

    Args:
        plan: of the epoch.
        said: stages of it by device, also such as it does not have.
        golden: devices that hold the golden inputs, too.
    """
    stages = {stage.index: stage for stage in plan.stages}
    return [
        Holding(
            node=name,
            first_shard=stages[index].first_shard,
            stop_shard=stages[index].stop_shard,
            golden=name in golden and place == 0,
            shard_format=planned_format(plan, name),
        )
        for name, held in sorted(said.items())
        for place, index in enumerate(sorted(held))
        if index in stages and _is_known(plan, name)
    ]


def _is_known(plan: Plan, name: str) -> bool:
    return not plan.runtimes or name in plan.runtimes


def planned_holdings(plan: Plan) -> Iterator[Holding]:
    """Yield what the devices of a plan hold once it serves: those that load a stage first, then its keepers.

    The devices of stage 0 and its keepers are also those that keep the golden inputs.
    """
    loaded = [(stage, name) for stage in plan.stages for name in stage.devices]
    kept = [(stage, name) for stage in plan.stages for name in stage.keepers]
    for stage, name in (*loaded, *kept):
        if _is_known(plan, name):
            yield Holding(
                node=name,
                first_shard=stage.first_shard,
                stop_shard=stage.stop_shard,
                golden=stage.index == 0,
                shard_format=planned_format(plan, name),
            )


def known_holdings(
    value: Deployment | None, manifest: Manifest, known: KnownHolders, online: Callable[[str], bool]
) -> list[Holding]:
    """Return who held a bundle before a change of its plan: first who is here and said so, then who should.

    Args:
        value: the deployment of the same bundle that serves, None when there is none.
        manifest: of the bundle.
        known: what devices said.
        online: tells whether a device is here.
    """
    if value is None or value.plan is None:
        return []
    golden = known.golden(value.name, value.epoch)
    said = said_holdings(value.plan, known.stages(value.name, value.epoch), golden)
    shards = len(manifest.shards)
    others = [held for held in value.holdings if held.stop_shard <= shards]
    found = merged([*said, *planned_holdings(value.plan), *others])
    return sorted(found, key=lambda held: not online(held.node))


def merged(holdings: Sequence[Holding]) -> list[Holding]:
    """Return holdings without those that say what an earlier one says already."""
    kept: list[Holding] = []
    of_node: dict[str, list[Holding]] = {}
    for held in holdings:
        before = of_node.setdefault(held.node, [])
        if any(_covers(other, held) for other in before):
            continue
        before.append(held)
        kept.append(held)
    return kept[:MAX_HOLDINGS]


def _covers(held: Holding, other: Holding) -> bool:
    within = held.first_shard <= other.first_shard and other.stop_shard <= held.stop_shard
    return within and (held.golden or not other.golden) and held.shard_format in ("", other.shard_format)
