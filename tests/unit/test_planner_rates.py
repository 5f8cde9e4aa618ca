"""What the planner makes of what lies between devices, of the window, and of devices that hardly help."""

from __future__ import annotations

import pytest

from edge.formats.plan import Constraints, Pin, Plan
from host.planning.costs import DeviceCost, LinkCost, Medium, Network, ShardCost, Workload
from host.planning.planner import WORTH, plan_pipeline, predicted_rps

_FAST = LinkCost(up_bytes_per_second=1e12, down_bytes_per_second=1e12, latency_seconds=0.0)
_NEAR = Network(client=_FAST)
_ALONE = Constraints(most_replicas=1)


def _work(count: int, *, cut: int = 0) -> Workload:
    return Workload(shards=(ShardCost(blobs={}, received_bytes=cut, sent_bytes=cut),) * count)


def _device(name: str, *seconds: float, link: LinkCost = _FAST) -> DeviceCost:
    return DeviceCost(name=name, shard_seconds=seconds, link=link, memory_bytes=1 << 30, flash_bytes=1 << 30)


def _said(plan: Plan) -> list[tuple[tuple[str, ...], int, int]]:
    return [(stage.runners, stage.first_shard, stage.stop_shard) for stage in plan.stages]


def _reasons(plan: Plan) -> dict[str, str]:
    return {out.device: out.reason for out in plan.left_out}


@pytest.mark.parametrize(
    ("network", "seconds"),
    [
        (_NEAR, 1),
        (Network(client=_FAST, broker_bytes_per_second=50), 1 + 2 + 2),
        (Network(client=_FAST, media=(Medium(name="cell", bytes_per_second=25, nodes=frozenset(["a"])),)), 1 + 4 + 4),
        (
            Network(client=_FAST, media=(Medium(name="cell", bytes_per_second=25, nodes=frozenset(["a", "client"])),)),
            1 + 8 + 8,
        ),
        (
            Network(
                client=_FAST,
                broker_bytes_per_second=50,
                media=(Medium(name="cell", bytes_per_second=25, nodes=frozenset(["a"])),),
            ),
            1 + 2 * (4 + 2),
        ),
    ],
)
def test_a_request_alone_waits_for_all_that_is_on_its_way(network: Network, seconds: float) -> None:
    plan = plan_pipeline(_work(1, cut=100), [_device("a", 1)], network=network, objective="latency")
    assert plan.latency_seconds == pytest.approx(seconds)


def test_a_device_behind_a_slow_cell_is_not_taken_for_a_fast_one() -> None:
    cell = Medium(name="cell", bytes_per_second=25, nodes=frozenset(["wireless"]))
    devices = [_device("wireless", 1), _device("wired", 3)]
    plan = plan_pipeline(_work(1, cut=100), devices, network=Network(client=_FAST, media=(cell,)), objective="latency")
    assert _said(plan) == [(("wired",), 0, 1)]


def test_the_window_decides_how_many_devices_a_plan_takes() -> None:
    link = LinkCost(up_bytes_per_second=1e12, down_bytes_per_second=1e12, latency_seconds=1)
    devices = [_device(name, 1, 1, 1, link=link) for name in ("a", "b", "c")]
    few = plan_pipeline(_work(3), devices, network=_NEAR, window=1)
    assert (_said(few), few.binds, few.gap) == ([(("a",), 0, 3)], "window of 1", 0)
    assert (few.bottleneck_seconds, few.latency_seconds, predicted_rps(few, 1)) == (3, 5, 1 / 5)
    many = plan_pipeline(_work(3), devices, network=_NEAR, window=16)
    assert len(_said(many)) == 1
    assert many.stages[0].runners == ("a", "b", "c")
    assert (many.bottleneck_seconds, predicted_rps(many, 16)) == (1, 1)
    assert many.binds == "compute of a"


def test_a_device_that_adds_next_to_nothing_is_left_out_where_it_must_be_worth_it() -> None:
    devices = [_device("a", 200, 1), _device("b", 300, 1)]
    assert len(plan_pipeline(_work(2), devices, network=_NEAR, constraints=_ALONE).stages) == 2
    plan = plan_pipeline(_work(2), devices, network=_NEAR, constraints=_ALONE, worth=WORTH)
    assert (_said(plan), plan.gap) == ([(("a",), 0, 2)], 0)
    assert _reasons(plan) == {"b": "it would add 0.5%: less than 1% is not worth a device"}


@pytest.mark.parametrize("pinned", [(0, 2), (0, 1, 2)])
def test_a_device_to_which_the_pins_leave_nothing_is_told_so(pinned: tuple[int, ...]) -> None:
    pins = Constraints(pins=tuple(Pin(layer=layer, device="a") for layer in pinned))
    plan = plan_pipeline(_work(3), [_device("a", 1, 1, 1), _device("b", 1, 1, 1)], constraints=pins)
    assert _reasons(plan) == {"b": "the pins leave it nothing"}
