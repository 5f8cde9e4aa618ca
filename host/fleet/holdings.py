"""Who holds which blobs of a bundle, as far as a coordinator knows. No IO and no clock; blobs are only asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from edge.formats.bundle import Manifest
from edge.formats.message import Dropped, Kept, Ready
from edge.formats.plan import MAX_HOLDINGS, Deployment, Holding, Plan

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

    Args:
        node: its name.
        manifest: of the bundle.
        has: tells whether it holds a blob, by digest.
    """
    golden = all(has(blob.digest) for pair in manifest.golden for blob in (pair.inputs, pair.whole))
    runs: list[tuple[int, int]] = []
    for index in range(len(manifest.shards)):
        if not all(has(blob.digest) for blob in manifest.blobs(index, index + 1)):
            continue
        if runs and runs[-1][1] == index:
            runs[-1] = (runs[-1][0], index + 1)
        else:
            runs.append((index, index + 1))
    if golden and not runs:
        runs = [(0, 0)]  # no shard, and the golden inputs
    return [
        Holding(node=node, first_shard=first, stop_shard=stop, golden=golden and place == 0)
        for place, (first, stop) in enumerate(runs)
    ]


def planned_holdings(plan: Plan) -> Iterator[Holding]:
    """Yield what the devices of a plan hold once it serves: those that load a stage first, then its keepers.

    The devices of stage 0 and its keepers are also those that keep the golden inputs.
    """
    for stage in plan.stages:
        for name in stage.devices:
            yield Holding(
                node=name, first_shard=stage.first_shard, stop_shard=stage.stop_shard, golden=stage.index == 0
            )
    for stage in plan.stages:
        for name in stage.keepers:
            yield Holding(
                node=name, first_shard=stage.first_shard, stop_shard=stage.stop_shard, golden=stage.index == 0
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
    stages = {stage.index: stage for stage in value.plan.stages}
    golden = known.golden(value.name, value.epoch)
    said = [
        Holding(
            node=name,
            first_shard=stages[index].first_shard,
            stop_shard=stages[index].stop_shard,
            golden=name in golden and place == 0,
        )
        for name, held in sorted(known.stages(value.name, value.epoch).items())
        for place, index in enumerate(sorted(held))
        if index in stages
    ]
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
    return within and (held.golden or not other.golden)
