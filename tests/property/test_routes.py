"""Routes: whatever the model and the plan, every stage gets what it reads and the last one gives the outputs."""

from dataclasses import dataclass

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.errors import BundleError, FormatError
from edge.formats.bundle import BoundaryTensor, Manifest
from edge.formats.plan import Plan, Stage
from edge.formats.tensor import TensorSpec
from edge.routes import Hand, Route, route_alone, routes, stage_reads
from tests.tiny_bundle import make_diamond_bundle

DIAMOND = make_diamond_bundle().manifest


def make_manifest(reads: tuple[tuple[str, ...], ...], outputs: tuple[str, ...], inputs: tuple[str, ...]) -> Manifest:
    """A model whose shard `i` reads what it says and makes `t<i>`."""
    made = [f"t{index}" for index in range(len(reads))]
    cuts = [inputs]
    for stop in range(1, len(reads)):
        later = {name for names in reads[stop:] for name in names} | set(outputs)
        cuts.append(tuple(name for name in (*inputs, *made[:stop]) if name in later))
    cuts.append(outputs)
    shards = tuple(
        msgspec.structs.replace(DIAMOND.shards[0], first_layer=index, stop_layer=index + 1, reads=names)
        for index, names in enumerate(reads)
    )
    tensors = {
        name: BoundaryTensor(
            spec=TensorSpec(name=name, dtype="float32", shape=(1,)), size_bytes=4, as_input=b"", as_output=b""
        )
        for name in (*inputs, *made)
    }
    return msgspec.structs.replace(
        DIAMOND,
        layers=DIAMOND.layers[:1] * len(reads),
        shards=shards,
        cuts=tuple(cuts),
        tensors=tuple(tensors.values()),
        inputs=tuple(tensors[name].spec for name in inputs),
        outputs=tuple(tensors[name].spec for name in outputs),
    )


def make_plan(stops: tuple[int, ...], beside: tuple[int, ...] = ()) -> Plan:
    starts = (0, *stops[:-1])
    stages = tuple(
        Stage(index=index, device=f"d{index}", first_shard=first, stop_shard=stop, beside=index in beside)
        for index, (first, stop) in enumerate(zip(starts, stops, strict=True))
    )
    return Plan(objective="throughput", stages=stages, bottleneck_seconds=1.0, latency_seconds=1.0, binds="")


@dataclass(frozen=True, kw_only=True)
class Case:
    manifest: Manifest
    plan: Plan


@st.composite
def cases(draw: st.DrawFn) -> Case:
    count = draw(st.integers(2, 9))
    reads = tuple(
        tuple(sorted(draw(st.sets(st.sampled_from(["x", "z", *(f"t{i}" for i in range(index))]), max_size=3))))
        for index in range(count)
    )
    unread = [f"t{index}" for index in range(count) if not any(f"t{index}" in names for names in reads)]
    extra = draw(st.sets(st.sampled_from(["x", *(f"t{index}" for index in range(count))]), max_size=2))
    outputs = tuple(name for name in ["x", *(f"t{i}" for i in range(count))] if name in extra or name in unread)
    stops = (*sorted(draw(st.sets(st.integers(1, count - 1)))), count)
    inner = range(2, len(stops) - 1)
    beside = draw(st.sets(st.sampled_from(inner))) if inner else set()
    return Case(manifest=make_manifest(reads, outputs, ("x", "z")), plan=make_plan(stops, tuple(sorted(beside))))


def flows(manifest: Manifest, plan: Plan, ways: tuple[Route, ...]) -> set[str]:
    """Play all stages in order; return what the last one gives."""
    arrived: dict[int, list[tuple[int, tuple[str, ...]]]] = {0: [(0, ways[0].received)]}
    given_by_last: set[str] = set()
    for stage, route in zip(plan.stages, ways, strict=True):
        parts = [names for _, names in sorted(arrived[stage.index])]
        assert tuple(parts) == route.arriving
        names = [name for part in parts for name in part]
        assert len(names) == len(set(names)), "no tensor comes twice"
        assert set(names) == set(route.received)
        made = {f"t{shard}" for shard in range(stage.first_shard, stage.stop_shard)}
        assert stage_reads(manifest, stage.first_shard, stage.stop_shard) <= set(names) | made
        assert set(route.sent) <= set(names) | made
        for hand in route.hands:
            assert set(hand.names) <= set(route.sent)
            arrived.setdefault(hand.stage, []).append((hand.part, hand.names))
            assert hand.parts == len(ways[hand.stage].arriving)
        given_by_last = set(route.sent)
    return given_by_last


def reads_beside(case: Case) -> bool:
    """Whether a stage reads what one beside it makes."""
    for step in case.plan.steps():
        inside = {f"t{shard}" for shard in range(step[0].first_shard, step[-1].stop_shard)}
        for stage in step:
            made = {f"t{shard}" for shard in range(stage.first_shard, stage.stop_shard)}
            if stage_reads(case.manifest, stage.first_shard, stage.stop_shard) & (inside - made):
                return True
    return False


def is_useless(case: Case) -> bool:
    """Whether a stage beside others makes nothing that is needed after its step."""
    return any(
        not set(case.manifest.cut_before(step[-1].stop_shard))
        & {f"t{shard}" for shard in range(stage.first_shard, stage.stop_shard)}
        for step in case.plan.steps()
        for stage in step
    )


@settings(deadline=None, max_examples=120)
@given(case=cases())
def test_every_stage_gets_what_it_reads_and_the_last_gives_the_outputs(case: Case) -> None:
    fault = ""
    ways: tuple[Route, ...] = ()
    try:
        ways = routes(case.manifest, case.plan)
    except FormatError as error:
        fault = str(error)
    if reads_beside(case):
        assert "runs beside it" in fault
    elif fault:
        assert "makes nothing that a stage after it needs" in fault
        assert is_useless(case)
    else:
        assert flows(case.manifest, case.plan, ways) == set(case.manifest.cuts[-1])


@settings(deadline=None, max_examples=80)
@given(case=cases())
def test_a_stage_alone_in_its_step_takes_one_cut_set_and_gives_another(case: Case) -> None:
    row = make_plan(tuple(stage.stop_shard for stage in case.plan.stages))
    for stage, route in zip(row.stages, routes(case.manifest, row), strict=True):
        alone = route_alone(case.manifest, stage.first_shard, stage.stop_shard)
        assert route.received == alone.received == case.manifest.cut_before(stage.first_shard)
        assert route.sent == alone.sent == case.manifest.cut_before(stage.stop_shard)
        assert len(route.arriving) == 1


def test_a_diamond_is_a_fan_out_and_a_join() -> None:
    first, left, right, last = routes(DIAMOND, make_plan((1, 2, 3, 4), beside=(2,)))
    assert first.hands == (Hand(stage=1, names=("a",)), Hand(stage=2, names=("a",)))
    assert left.hands == (Hand(stage=3, names=("b",), part=0, parts=2),)
    assert right.hands == (Hand(stage=3, names=("c",), part=1, parts=2),)
    assert last == Route(received=("b", "c"), arriving=(("b",), ("c",)), sent=("y",), hands=())


def test_what_is_needed_after_the_join_goes_once_with_the_first_that_reads_it() -> None:
    manifest = make_manifest((("x",), ("x",), ("t0",), ("t0", "t1"), ("t0", "t2", "t3")), ("t4",), ("x",))
    _, left, right, last = routes(manifest, make_plan((2, 3, 4, 5), beside=(2,)))
    assert (left.received, left.sent) == (("t0",), ("t0", "t2"))
    assert (right.received, right.sent) == (("t0", "t1"), ("t3",))
    assert last.arriving == (("t0", "t2"), ("t3",))


def test_a_side_that_reads_nothing_still_gets_a_frame() -> None:
    manifest = make_manifest((("x",), ("t0",), (), ("t1", "t2")), ("t3",), ("x",))
    first, _, right, _ = routes(manifest, make_plan((1, 2, 3, 4), beside=(2,)))
    assert first.hands == (Hand(stage=1, names=("t0",)), Hand(stage=2, names=()))
    assert right.arriving == ((),)


@pytest.mark.parametrize(
    ("plan", "text"),
    [
        (make_plan((1, 2, 3)), "plan: stages do not cover the 4 shards of 'diamond'"),
        (make_plan((2, 4), beside=(1,)), "plan: the first and the last step must have one stage each"),
        (make_plan((1, 3, 4), beside=(2,)), "plan: the first and the last step must have one stage each"),
        (make_plan((1, 2, 4), beside=(1,)), "plan: the first and the last step must have one stage each"),
    ],
    ids=["short", "all", "last", "first"],
)
def test_a_plan_that_cannot_be_is_refused(plan: Plan, text: str) -> None:
    with pytest.raises(FormatError) as caught:
        routes(DIAMOND, plan)
    assert str(caught.value) == text


def test_sides_that_read_from_each_other_are_refused() -> None:
    manifest = make_manifest((("x",), ("t0",), ("t1",), ("t2",)), ("t3",), ("x",))
    with pytest.raises(FormatError) as caught:
        routes(manifest, make_plan((1, 2, 3, 4), beside=(2,)))
    assert str(caught.value) == "plan: stage 2 reads 't1', which runs beside it"


def test_a_side_that_is_of_no_use_is_refused() -> None:
    manifest = make_manifest((("x",), ("t0",), ("t0",), ("t1",)), ("t3",), ("x",))
    with pytest.raises(FormatError) as caught:
        routes(manifest, make_plan((1, 2, 3, 4), beside=(2,)))
    assert str(caught.value) == "plan: stage 2 makes nothing that a stage after it needs"


@pytest.mark.parametrize(("first", "stop"), [(-1, 1), (0, 5), (2, 2)])
def test_a_range_that_is_not_there_is_refused(first: int, stop: int) -> None:
    with pytest.raises(BundleError) as caught:
        route_alone(DIAMOND, first, stop)
    assert str(caught.value) == f"stage [{first}, {stop}) is not within 4 shards"
