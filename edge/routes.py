"""Which tensors go from which stage to which, worked out alike by everyone from a manifest and a plan; pure.

Stages form *steps*: one stage, or several that run side by side (`Stage.beside`). A step covers consecutive shards; the
cut sets before and after it are `before` and `after`. Each tensor of `before` has one *carrier* in the step: the first
stage that reads it, else the first stage. Of them,

- a stage receives those that its shards read, and those that it carries;
- a stage sends those tensors of `after` that its shards make, and those of `before` that it carries.

So a stage that is alone in its step takes the whole cut set before it and gives the whole cut set after it.

To each stage of the next step a stage hands what that receives and this sends; where that is nothing, no frame goes
that way. The stages that do hand something are the *parts* of a join, numbered in their order. Who would get nothing
from anyone gets an empty frame from the first stage of the step before. The first and the last step have one stage, so
that a request is admitted in one place and answered from one place.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from edge.errors import BundleError, FormatError
from edge.formats.bundle import Manifest
from edge.formats.plan import Plan, Stage


@dataclass(frozen=True, kw_only=True, slots=True)
class Hand:
    """What one stage hands to another.

    Attributes:
        stage: index of the receiver.
        names: tensors of the frame, in the order of the cut set.
        part, parts: which of how many frames the receiver joins.
    """

    stage: int
    names: tuple[str, ...]
    part: int = 0
    parts: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """The tensors of one stage.

    Attributes:
        received: all it receives, of all parts together.
        arriving: names of each part, in order.
        sent: all it makes or forwards that someone after it needs.
        hands: frames for the next step; empty for the last stage, whose `sent` is the result.
    """

    received: tuple[str, ...]
    arriving: tuple[tuple[str, ...], ...]
    sent: tuple[str, ...]
    hands: tuple[Hand, ...]


def routes(manifest: Manifest, plan: Plan) -> tuple[Route, ...]:
    """Return the route of every stage, by index.

    Raises:
        FormatError: the plan does not cover the shards of the manifest, its first or last step has several stages, or
            stages that run side by side read from each other, or one of them makes nothing that is needed.
        BundleError: the manifest is not sound.
    """
    stages, steps = plan.stages, plan.steps()
    if not steps or stages[0].first_shard != 0 or stages[-1].stop_shard != len(manifest.shards):
        raise FormatError(f"plan: stages do not cover the {len(manifest.shards)} shards of {manifest.name!r}")
    if len(steps[0]) > 1 or len(steps[-1]) > 1:
        raise FormatError("plan: the first and the last step must have one stage each")
    received: dict[int, tuple[str, ...]] = {}
    sent: dict[int, tuple[str, ...]] = {}
    for step in steps:
        for stage, (takes, gives) in zip(step, _step(manifest, step), strict=True):
            received[stage.index], sent[stage.index] = takes, gives
    hands: dict[int, list[Hand]] = {stage.index: [] for stage in stages}
    arriving: dict[int, list[tuple[str, ...]]] = {stage.index: [] for stage in stages}
    arriving[0] = [received[0]]
    for step, following in pairwise(steps):
        for stage in following:
            wanted = set(received[stage.index])
            ways = [(sender.index, tuple(name for name in sent[sender.index] if name in wanted)) for sender in step]
            ways = [(sender, names) for sender, names in ways if names] or [(step[0].index, ())]
            for part, (sender, names) in enumerate(ways):
                hands[sender].append(Hand(stage=stage.index, names=names, part=part, parts=len(ways)))
                arriving[stage.index].append(names)
            if lacking := wanted.difference(*arriving[stage.index]):
                raise FormatError(f"plan: nobody sends {min(lacking)[:80]!r} to stage {stage.index}")
        if idle := [stage.index for stage in step if not hands[stage.index]]:
            raise FormatError(f"plan: stage {idle[0]} makes nothing that a stage after it needs")
    return tuple(
        Route(
            received=received[stage.index],
            arriving=tuple(arriving[stage.index]),
            sent=sent[stage.index],
            hands=tuple(hands[stage.index]),
        )
        for stage in stages
    )


def route_alone(manifest: Manifest, first_shard: int, stop_shard: int) -> Route:
    """Return the route of the shards `[first_shard, stop_shard)` as a stage that is alone in its step, without hands.

    Raises:
        BundleError: the range is not one of the manifest's, or the manifest is not sound.
    """
    if not 0 <= first_shard < stop_shard <= len(manifest.shards):
        raise BundleError(f"stage [{first_shard}, {stop_shard}) is not within {len(manifest.shards)} shards")
    stage = Stage(index=0, device="", first_shard=first_shard, stop_shard=stop_shard)
    ((received, sent),) = _step(manifest, (stage,))
    return Route(received=received, arriving=(received,), sent=sent, hands=())


def stage_reads(manifest: Manifest, first_shard: int, stop_shard: int) -> frozenset[str]:
    """Return the non-constant tensors that shards `[first_shard, stop_shard)` read, made inside or before."""
    return frozenset(name for shard in manifest.shards[first_shard:stop_shard] for name in shard.reads)


def _step(manifest: Manifest, step: Sequence[Stage]) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Return what each stage of a step receives and sends."""
    before = manifest.cut_before(step[0].first_shard)
    after = manifest.cut_before(step[-1].stop_shard)
    reads = [stage_reads(manifest, stage.first_shard, stage.stop_shard) for stage in step]
    made = [_made(manifest, stage) for stage in step]
    maker = {name: place for place, names in enumerate(made) for name in names}
    carrier = {name: next((place for place, names in enumerate(reads) if name in names), 0) for name in before}
    crossing: list[tuple[tuple[str, ...], tuple[str, ...]]] = []
    for place, stage in enumerate(step):
        if foreign := sorted(name for name in reads[place] if maker.get(name, place) != place):
            raise FormatError(f"plan: stage {stage.index} reads {foreign[0][:80]!r}, which runs beside it")
        received = tuple(name for name in before if name in reads[place] or carrier[name] == place)
        sent = tuple(name for name in after if name in made[place] or carrier.get(name) == place)
        crossing.append((received, sent))
    return crossing


def _made(manifest: Manifest, stage: Stage) -> frozenset[str]:
    """Return the boundary tensors that the shards of a stage make."""
    made: set[str] = set()
    for shard in range(stage.first_shard, stage.stop_shard):
        made.update(set(manifest.cut_before(shard + 1)) - set(manifest.cut_before(shard)))
    return frozenset(made)
