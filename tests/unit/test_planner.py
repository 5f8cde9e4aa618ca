"""What the planner does on problems small enough to work out by hand, and what it says of them."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from edge.formats.plan import Constraints, Objective, Pin, Plan, Stage
from host.errors import PlanError
from host.planning.costs import DeviceCost, LinkCost, Medium, Network, PairLink, Section, ShardCost, Workload
from host.planning.planner import plan_pipeline, predicted_rps, wanted_window
from host.planning.price import plan_loads, price_plan

_MIB = 1 << 20
_FAST = LinkCost(up_bytes_per_second=1e12, down_bytes_per_second=1e12, latency_seconds=0.0)
_NEAR = Network(client=_FAST)
_ALONE = Constraints(most_replicas=1)


def _work(count: int, *, cut: int = 0, blobs: Sequence[int] | None = None, blob_bytes: int = 10 * _MIB) -> Workload:
    shards = tuple(
        ShardCost(blobs={str((blobs or range(count))[n]): blob_bytes}, received_bytes=cut, sent_bytes=cut)
        for n in range(count)
    )
    return Workload(shards=shards)


def _device(
    name: str,
    *seconds: float,
    memory: int = 64 * _MIB,
    flash: int = 64 * _MIB,
    link: LinkCost = _FAST,
    watts: float = 0.0,
) -> DeviceCost:
    return DeviceCost(
        name=name, shard_seconds=seconds, link=link, memory_bytes=memory, flash_bytes=flash, busy_watts=watts
    )


def _said(plan: Plan) -> list[tuple[tuple[str, ...], int, int]]:
    return [(stage.runners, stage.first_shard, stage.stop_shard) for stage in plan.stages]


def _reasons(plan: Plan) -> dict[str, str]:
    return {out.device: out.reason for out in plan.left_out}


def test_a_blob_that_two_shards_share_counts_once_a_device() -> None:
    plan = plan_pipeline(_work(2, blobs=[1, 1]), [_device("a", 1, 1, memory=10 * _MIB)])
    assert plan.stages[0].memory_bytes == 10 * _MIB


def test_equal_shares_go_to_equal_devices_and_the_bottleneck_is_named() -> None:
    plan = plan_pipeline(
        _work(4), [_device("b", 1, 1, 1, 1), _device("a", 1, 1, 1, 1)], network=_NEAR, constraints=_ALONE
    )
    assert _said(plan) == [(("a",), 0, 2), (("b",), 2, 4)]
    assert (plan.bottleneck_seconds, plan.latency_seconds) == (2, 4)
    assert plan.binds == "compute of a"


def test_a_device_slow_enough_to_gate_the_rest_is_left_out_and_the_plan_says_so() -> None:
    quick, slow = [0.01] * 4, [1.0] * 4
    devices = [_device("pi-1", *quick), _device("pi-2", *quick), _device("slow", *slow)]
    plan = plan_pipeline(_work(4), devices)
    assert {name for stage in plan.stages for name in stage.runners} == {"pi-1", "pi-2"}
    assert _reasons(plan) == {"slow": "with it the plan would answer 1 instead of 50 requests/s"}


def test_all_devices_take_part_where_that_is_asked_for() -> None:
    devices = [_device("fast", *[0.1] * 4), _device("slow", *[10] * 4)]
    assert len(plan_pipeline(_work(4), devices, constraints=Constraints(use_all=True)).stages) == 2
    assert len(plan_pipeline(_work(4), devices, must_use=["slow"]).stages) == 2
    assert plan_pipeline(_work(4), devices, must_use=["fast"]).stages[0].device == "fast"


@pytest.mark.parametrize(
    ("objective", "reason"),
    [
        ("latency", "with it a result would take 11 instead of 2 ms"),
        ("energy", "with it a request would take 0.021 instead of 0.002 J"),
        ("memory", "with it the fullest device would use 100.0% instead of 20.0% of its memory"),
    ],
)
def test_a_device_is_left_out_for_what_the_plan_is_for(objective: Objective, reason: str) -> None:
    used = _device("used", 0.001, 0.001, memory=100 * _MIB, watts=1)
    spare = _device("spare", 0.01, 0.01, memory=10 * _MIB, watts=2)
    assert _reasons(plan_pipeline(_work(2), [used, spare], objective=objective, network=_NEAR)) == {"spare": reason}


def test_a_device_that_changes_nothing_is_left_out_with_that_reason() -> None:
    devices = [_device("a", 1, 9), _device("b", 1, 9), _device("c", 1, 9)]
    plan = plan_pipeline(_work(2), devices, constraints=_ALONE)
    assert _reasons(plan) == {"c": "no stage is left for it beside its like"}
    many = [_device(f"d{n}", 1) for n in range(3)]
    narrow = Network(client=LinkCost(up_bytes_per_second=1, down_bytes_per_second=1, latency_seconds=0))
    plan = plan_pipeline(_work(1, cut=2), many, network=narrow)
    assert plan.binds == "uplink of client"
    assert set(_reasons(plan).values()) == {"it would not help: the plan would still answer 0.5 requests/s"}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"memory": 8 * _MIB}, "does not fit: the smallest stage needs 10.0 MiB of memory, it has 8.0 MiB"),
        ({"flash": 9 * _MIB}, "does not fit: the smallest stage needs 10.0 MiB of flash, it has 9.0 MiB"),
    ],
)
def test_a_device_without_room_for_any_stage_is_left_out_with_what_it_lacks(
    fields: dict[str, int], reason: str
) -> None:
    small = _device("small", 1, 1, memory=fields.get("memory", 64 * _MIB), flash=fields.get("flash", 64 * _MIB))
    assert _reasons(plan_pipeline(_work(2), [_device("big", 1, 1), small])) == {"small": reason}


def test_equal_devices_share_the_stage_that_binds() -> None:
    devices = [_device(name, 1, 6, 1) for name in ("a", "b", "c", "d", "e")]
    plan = plan_pipeline(_work(3, blob_bytes=60 * _MIB), devices, network=_NEAR)
    assert _said(plan) == [(("a",), 0, 1), (("b", "c", "d"), 1, 2), (("e",), 2, 3)]
    assert (plan.bottleneck_seconds, plan.latency_seconds) == (2, 8)
    assert plan_pipeline(_work(3), devices, constraints=Constraints(most_replicas=2)).bottleneck_seconds == 3


def test_only_devices_of_equal_cost_share_a_stage_and_only_for_throughput() -> None:
    plan = plan_pipeline(_work(1), [_device("a", 1.0), _device("b", 1.1)])
    assert _said(plan) == [(("a",), 0, 1)]
    twins = [_device("a", 1.0), _device("b", 1.0)]
    assert plan_pipeline(_work(1), twins).bottleneck_seconds == 0.5
    assert not plan_pipeline(_work(1), twins, objective="latency").stages[0].replicas


_BRANCHED = Workload(
    shards=_work(4).shards,
    sections=(Section(bounds=(1, 2, 3), received=((0, 0, 0),) * 3, sent=((0, 0, 0),) * 3),),
)


@pytest.mark.parametrize("objective", ["throughput", "latency"])
def test_branches_run_side_by_side_where_that_is_faster(objective: Objective) -> None:
    devices = [_device(name, 1, 5, 5, 1) for name in ("a", "b", "c")]
    four = [*devices, _device("d", 1, 5, 5, 1)]
    plan = plan_pipeline(_BRANCHED, four, objective=objective, network=_NEAR, constraints=_ALONE)
    assert [stage.beside for stage in plan.stages] == [False, False, True, False]
    assert [len(step) for step in plan.steps()] == [1, 2, 1]
    assert (plan.bottleneck_seconds, plan.latency_seconds) == (5, 7)
    together = Constraints(most_replicas=1, side_by_side=False)
    plan = plan_pipeline(_BRANCHED, devices, objective=objective, network=_NEAR, constraints=together)
    assert not any(stage.beside for stage in plan.stages)
    assert plan.latency_seconds == 12


def test_a_pinned_shard_stays_where_it_is_and_a_forbidden_one_goes_elsewhere() -> None:
    devices = [_device("cam", 9, 9, 9), _device("pi-1", 1, 1, 1), _device("pi-2", 1, 1, 1)]
    pinned = Constraints(pins=(Pin(layer=0, device="cam"),))
    assert _said(plan_pipeline(_work(3), devices, constraints=pinned))[0] == (("cam",), 0, 1)
    without = Constraints(forbidden=tuple(Pin(layer=n, device="pi-1") for n in range(3)), most_replicas=1)
    plan = plan_pipeline(_work(3), devices, constraints=without)
    assert _said(plan) == [(("pi-2",), 0, 3)]
    assert _reasons(plan)["pi-1"] == "it may not run any shard"


def test_only_the_devices_that_may_take_part_do() -> None:
    devices = [_device(name, 1) for name in ("a", "b", "c")]
    assert plan_pipeline(_work(1), devices, constraints=Constraints(devices=("b",))).stages[0].device == "b"
    plan = plan_pipeline(_work(1), devices, constraints=Constraints(without=("a", "b")))
    assert _said(plan) == [(("c",), 0, 1)]
    assert plan.left_out == ()


@pytest.mark.parametrize(
    ("constraints", "text"),
    [
        (Constraints(pins=(Pin(layer=7, device="a"),)), "shard 7 is pinned to a, and there are 2 shards"),
        (
            Constraints(pins=(Pin(layer=0, device="x"),)),
            "shard 0 is pinned to x, which takes no part: add it, or unpin",
        ),
        (
            Constraints(pins=(Pin(layer=0, device="a"), Pin(layer=0, device="b"))),
            "shard 0 is pinned to a and to b: choose one",
        ),
        (
            Constraints(pins=(Pin(layer=0, device="a"),), forbidden=(Pin(layer=0, device="a"),)),
            "shard 0 is pinned to a and forbidden there: choose one",
        ),
        (
            Constraints(forbidden=(Pin(layer=0, device="a"), Pin(layer=0, device="b"))),
            "no plan of 2 shards keeps to what is asked of a, b: loosen a pin, allow a device, or name more devices",
        ),
        (Constraints(without=("a", "b")), "no plan for 2 shards on 0 devices: both need at least one"),
    ],
)
def test_constraints_that_cannot_be_kept_are_said_in_one_line(constraints: Constraints, text: str) -> None:
    with pytest.raises(PlanError) as caught:
        plan_pipeline(_work(2), [_device("a", 1, 1), _device("b", 1, 1)], constraints=constraints)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("devices", "constraints", "text"),
    [
        ([], Constraints(), "no plan for 2 shards on 0 devices: both need at least one"),
        (["a", "a"], Constraints(), "device 'a' is given twice"),
        (
            ["a", "b", "c"],
            Constraints(use_all=True, most_replicas=1),
            (
                "3 devices shall all take part, and at most 2 can: the bundle has 2 shards, "
                "and a stage takes 1 at most (--replicas); name fewer devices, or allow more replicas"
            ),
        ),
    ],
)
def test_what_cannot_be_planned_is_said_in_one_line(devices: list[str], constraints: Constraints, text: str) -> None:
    with pytest.raises(PlanError) as caught:
        plan_pipeline(_work(2), [_device(name, 1, 1) for name in devices], constraints=constraints)
    assert str(caught.value) == text


def test_a_device_must_have_a_time_for_every_shard() -> None:
    with pytest.raises(PlanError, match=r"^a has times for 1 shards of 2: take those of this bundle$"):
        plan_pipeline(_work(2), [_device("a", 1)])


def test_a_device_that_must_take_part_must_be_there() -> None:
    with pytest.raises(PlanError, match=r"^device 'b' must take part and is not there$"):
        plan_pipeline(_work(1), [_device("a", 1)], must_use=["b"])


@pytest.mark.parametrize(
    ("memory", "flash", "text"),
    [
        (8 * _MIB, 64 * _MIB, "devices have memory: a 8.0 MiB; 12.0 MiB more on each would do"),
        (64 * _MIB, 15 * _MIB, "devices have flash: a 15.0 MiB; 5.0 MiB more on each would do"),
    ],
)
def test_an_infeasible_plan_says_what_binds_and_by_how_much(memory: int, flash: int, text: str) -> None:
    with pytest.raises(PlanError) as caught:
        plan_pipeline(_work(2), [_device("a", 1, 1, memory=memory, flash=flash)])
    assert str(caught.value).startswith("no plan fits: the shards need 20.0 MiB of weights")
    assert text in str(caught.value)


def test_thirty_devices_of_three_kinds_are_planned_exactly() -> None:
    devices = [_device(f"d{n:02}", *[60 / (1 + n % 3)] * 10) for n in range(30)]
    plan = plan_pipeline(_work(10), devices, constraints=_ALONE)
    assert (plan.bottleneck_seconds, len(plan.stages), plan.gap) == (20, 10, 0)


def test_a_fleet_too_large_for_the_exact_search_is_planned_with_its_gap() -> None:
    devices = [_device(f"d{n:02}", *[60 / (n + 1)] * 6) for n in range(20)]
    plan = plan_pipeline(_work(6), devices, seconds=1.0)
    best = max(60 / (n + 1) for n in range(14, 20))
    assert best <= plan.bottleneck_seconds <= best * (1 + plan.gap) * (1 + 1e-9)
    assert plan.gap < 0.2
    with pytest.raises(PlanError, match=r"too many to say which must take part"):
        plan_pipeline(_work(6), devices, must_use=["d00"])


def test_devices_without_room_do_not_make_a_fleet_too_large() -> None:
    small = [_device(f"small-{n:02}", 1 / (100 + n), memory=_MIB) for n in range(14)]
    plan = plan_pipeline(_work(1), [*small, _device("roomy", 1)])
    assert (plan.stages[0].device, plan.gap) == ("roomy", 0)
    assert _reasons(plan)["small-00"].startswith("does not fit: the smallest stage needs 10.0 MiB")
    with pytest.raises(PlanError, match=r"^no plan was found: the shards need 10.0 MiB of weights, "):
        plan_pipeline(_work(1), small)


_SLOW = LinkCost(up_bytes_per_second=10, down_bytes_per_second=20, latency_seconds=0)


@pytest.mark.parametrize(
    ("devices", "network", "binds", "seconds"),
    [
        ([_device("a", 1, 1, link=_SLOW)], _NEAR, "uplink of a", 10),
        ([_device("a", 1, 1)], Network(client=_SLOW), "uplink of client", 10),
        ([_device("a", 1, 1)], Network(client=_FAST, broker_bytes_per_second=50), "the broker", 4),
        (
            [_device("a", 1, 1)],
            Network(client=_FAST, media=(Medium(name="Wi-Fi cell", bytes_per_second=25, nodes=frozenset(["a"])),)),
            "Wi-Fi cell",
            8,
        ),
        (
            [_device("a", 1, 1, memory=15 * _MIB), _device("b", 1, 1, memory=15 * _MIB)],
            Network(
                client=_FAST,
                pairs={
                    ("a", "b"): PairLink(bytes_per_second=4, latency_seconds=0),
                    ("b", "a"): PairLink(bytes_per_second=2, latency_seconds=0),
                },
            ),
            "from a to b",
            25,
        ),
    ],
)
def test_what_binds_is_named(devices: list[DeviceCost], network: Network, binds: str, seconds: float) -> None:
    plan = plan_pipeline(_work(2, cut=100), devices, network=network, window=16)
    assert (plan.binds, plan.bottleneck_seconds) == (binds, seconds)
    assert plan_loads(plan, _work(2, cut=100), devices, network)[0].what == binds


def test_the_fullest_memory_binds_a_plan_for_memory_balance() -> None:
    devices = [_device("a", 1, 1, 1, memory=40 * _MIB), _device("b", 1, 1, 1, memory=20 * _MIB)]
    plan = plan_pipeline(_work(3), devices, objective="memory")
    assert {stage.device: stage.memory_bytes // _MIB for stage in plan.stages} == {"a": 20, "b": 10}
    assert plan.binds in ("memory of a", "memory of b")


def test_the_broker_takes_every_byte_and_one_stage_less_may_be_more() -> None:
    devices = [_device("a", 1, 1), _device("b", 1, 1)]
    plan = plan_pipeline(_work(2, cut=60), devices, network=_NEAR, constraints=_ALONE)
    assert (len(plan.stages), plan.network_bytes) == (2, 180)
    tight = Network(client=_FAST, broker_bytes_per_second=60)
    plan = plan_pipeline(_work(2, cut=60), devices, network=tight, constraints=_ALONE)
    assert (len(plan.stages), plan.network_bytes, plan.bottleneck_seconds) == (1, 120, 2)


def test_energy_is_saved_before_time() -> None:
    devices = [_device("hungry", 1, 1, watts=10), _device("frugal", 3, 3, watts=2)]
    plan = plan_pipeline(_work(2), devices, objective="energy")
    assert _said(plan) == [(("frugal",), 0, 2)]
    assert plan.energy_joules == 12


def test_among_plans_of_equal_energy_the_quickest_is_chosen() -> None:
    devices = [_device("slow", 3, 3, watts=2), _device("quick", 2, 2, watts=3), _device("middle", 2.4, 2.4, watts=2.5)]
    for order in (devices, devices[::-1]):
        assert _said(plan_pipeline(_work(2), order, objective="energy")) == [(("quick",), 0, 2)]
    idle = [_device("slow", 3, 3), _device("quick", 2, 2)]
    assert _said(plan_pipeline(_work(2), idle, objective="energy")) == [(("quick",), 0, 2)]


def test_too_few_requests_in_flight_limit_the_rate() -> None:
    plan = msgspec.structs.replace(
        plan_pipeline(_work(1), [_device("a", 2.0)]), bottleneck_seconds=2.0, latency_seconds=7.0
    )
    assert (predicted_rps(plan, 2), predicted_rps(plan, 4)) == (2 / 7, 0.5)
    assert wanted_window(plan) == 4


def test_a_plan_can_be_priced_for_costs_that_it_was_not_made_for() -> None:
    work = _work(2, cut=8)
    plan = plan_pipeline(work, [_device("a", 1, 1), _device("b", 1, 1)], constraints=_ALONE)
    slower = [_device("a", 1, 1), _device("b", 4, 4), _device("c", 1, 1)]
    priced = price_plan(work, slower, plan.stages)
    assert (priced.bottleneck_seconds, priced.binds) == (4, "compute of b")
    shared = [msgspec.structs.replace(plan.stages[0], replicas=("c",)), plan.stages[1]]
    assert price_plan(work, slower, shared).stages[0].runners == ("a", "c")


@pytest.mark.parametrize(
    ("stages", "text"),
    [
        ([Stage(index=0, device="x", first_shard=0, stop_shard=2)], "stage 0 is on x, whose costs are not known"),
        (
            [
                Stage(index=0, device="a", first_shard=0, stop_shard=1),
                Stage(index=1, device="b", first_shard=1, stop_shard=2, beside=True),
            ],
            "the stages of shards 0 to 1 run side by side, and are not the branches of a section",
        ),
    ],
)
def test_stages_that_have_no_price_are_refused(stages: list[Stage], text: str) -> None:
    with pytest.raises(PlanError) as caught:
        price_plan(_work(2), [_device("a", 1, 1), _device("b", 1, 1)], stages)
    assert str(caught.value) == text
