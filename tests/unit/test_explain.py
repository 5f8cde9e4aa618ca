"""What would be otherwise is found by planning again, once for devices that are alike, and never without end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import get_args

import msgspec
import pytest

from edge.formats.plan import Constraints, Objective, Pin, Plan
from host.errors import PlanError
from host.planning.costs import DeviceCost, Medium, Network, PairLink, Workload
from host.planning.explain import Question, alike, explain, figures_of, what_binds, window_of
from host.planning.planner import plan_pipeline
from tests.plans import device, plan, stage, workload

_SLOW = [device(f"slow-{number}", 0.02, 0.02, 0.02, 0.02) for number in (1, 2)]
_OBJECTIVE_OF: dict[str, Objective] = {
    "latency_seconds": "latency",
    "energy_joules": "energy",
    "memory_share": "memory",
}
_FAST = device("fast", 0.01, 0.01, 0.01, 0.01, watts=20.0)


def question(*devices: DeviceCost, network: Network | None = None, constraints: Constraints | None = None) -> Question:
    return Question(
        workload=workload(100, 100, 100, 100, 100),
        devices=devices,
        network=network or Network(),
        constraints=constraints or Constraints(most_replicas=1),
        objective="throughput",
        window=8,
    )


def answer(asked: Question) -> Plan:
    return plan_pipeline(
        asked.workload,
        asked.devices,
        objective=asked.objective,
        window=asked.window,
        network=asked.network,
        constraints=asked.constraints,
    )


@dataclass
class Recorder:
    """A planner that keeps what it was asked, and knows one plan."""

    asked: list[tuple[tuple[str, ...], Objective, Network, Constraints]] = field(default_factory=list)

    def __call__(
        self,
        workload: Workload,
        devices: Sequence[DeviceCost],
        *,
        objective: Objective,
        window: int,
        network: Network,
        constraints: Constraints,
    ) -> Plan:
        self.asked.append((tuple(each.name for each in devices), objective, network, constraints))
        if not devices:
            raise PlanError("no devices")
        return plan(stage(0, devices[0].name, 0.01, received=1, sent=1), period=0.01, latency=0.02, objective=objective)


def test_it_says_what_each_device_that_works_is_worth() -> None:
    asked = question(*_SLOW, _FAST)
    found = explain(asked, answer(asked), plan_pipeline)
    rates = {change.devices: change.figures.requests_per_second for change in found.without if change.figures}
    assert set(rates) == {("fast",), ("slow-1", "slow-2")}
    assert rates["fast",] < rates["slow-1", "slow-2"] < found.figures.requests_per_second


def test_a_device_more_is_one_like_those_that_are_there() -> None:
    asked = question(*_SLOW, _FAST)
    found = explain(asked, answer(asked), plan_pipeline)
    rates = {change.devices: change.figures.requests_per_second for change in found.more if change.figures}
    assert set(rates) == {("fast",), ("slow-1", "slow-2")}
    assert all(rate >= found.figures.requests_per_second for rate in rates.values())
    assert rates["fast",] >= rates["slow-1", "slow-2"]


def test_every_objective_is_tried_and_none_beats_it_at_what_it_is_for() -> None:
    asked = question(*_SLOW, _FAST)
    found = explain(asked, answer(asked), plan_pipeline)
    figures = {choice.objective: choice.figures for choice in found.objectives}
    assert tuple(figures) == get_args(Objective)
    made = [each for each in figures.values() if each is not None]
    assert len(made) == 4
    assert figures["throughput"] == found.figures
    assert found.figures.requests_per_second == max(each.requests_per_second for each in made)
    for objective in ("latency_seconds", "energy_joules", "memory_share"):
        best = figures[_OBJECTIVE_OF[objective]]
        assert best is not None
        assert getattr(best, objective) == min(getattr(each, objective) for each in made)


def test_where_nothing_fits_without_a_device_it_says_why() -> None:
    asked = question(_FAST)
    (change,) = explain(asked, answer(asked), plan_pipeline).without
    assert change.figures is None
    assert change.reason


def test_devices_that_are_alike_are_asked_about_once() -> None:
    planner = Recorder()
    devices = [device(f"d{number}", 0.01) for number in range(100)]
    asked = question(*devices)
    explain(asked, plan(stage(0, "d7", 0.01, received=1, sent=1), period=0.01, latency=0.02), planner)
    assert len(planner.asked) == 3 + 1 + 1
    fewer, more = planner.asked[3][0], planner.asked[4][0]
    assert set(fewer) == {each.name for each in devices} - {"d7"}
    assert len(more) == 101


def test_it_makes_no_more_plans_than_allowed_and_says_what_it_left_out() -> None:
    planner = Recorder()
    devices = [device(f"d{number}", 0.01 * (number + 1)) for number in range(30)]
    asked = question(*devices)
    made = plan(*(stage(i, f"d{i}", 0.01, received=1, sent=1) for i in range(30)), period=0.01, latency=0.3)
    found = explain(asked, made, planner, most_plans=20)
    assert len(planner.asked) == 20
    assert found.untried == 3 + 30 + 30 - 20
    assert (len(found.without), len(found.more)) == (17, 0)


def test_what_is_alike_in_itself_is_not_alike_on_another_network_or_under_a_pin() -> None:
    one, two, three = (device(name, 0.01) for name in ("a", "b", "c"))
    assert alike(question(one, two, three)) == (("a", "b", "c"),)
    cell = Medium(name="hall", bytes_per_second=1e6, nodes=frozenset({"b"}))
    assert alike(question(one, two, three, network=Network(media=(cell,)))) == (("a", "c"), ("b",))
    pair = {("a", "c"): PairLink(bytes_per_second=1e6, latency_seconds=0.0)}
    assert alike(question(one, two, three, network=Network(pairs=pair))) == (("a",), ("b",), ("c",))
    pinned = Constraints(pins=(Pin(layer=0, device="c"),))
    assert alike(question(one, two, three, constraints=pinned)) == (("a", "b"), ("c",))


def test_what_may_not_take_part_is_not_asked_about() -> None:
    one, two, three = (device(name, 0.01) for name in ("a", "b", "c"))
    assert alike(question(one, two, three, constraints=Constraints(without=("b",)))) == (("a", "c"),)
    assert alike(question(one, two, three, constraints=Constraints(devices=("b",)))) == (("b",),)


def test_a_twin_shares_the_medium_and_the_permission_of_its_model() -> None:
    planner = Recorder()
    cell = Medium(name="hall", bytes_per_second=1e6, nodes=frozenset({"a"}))
    asked = question(
        device("a", 0.01), network=Network(media=(cell,)), constraints=Constraints(devices=("a",), most_replicas=2)
    )
    explain(asked, plan(stage(0, "a", 0.01, received=1, sent=1), period=0.01, latency=0.02), planner)
    names, _, network, constraints = planner.asked[-1]
    twin = names[-1]
    assert twin not in ("a", "")
    assert network.media[0].nodes == {"a", twin}
    assert constraints == msgspec.structs.replace(asked.constraints, devices=("a", twin))


def test_the_answer_does_not_depend_on_the_order_of_the_devices() -> None:
    asked = question(*_SLOW, _FAST)
    turned = replace(asked, devices=tuple(reversed(asked.devices)))
    assert explain(asked, answer(asked), plan_pipeline) == explain(turned, answer(turned), plan_pipeline)


@pytest.mark.parametrize(("window", "rate"), [(1, 10.0), (2, 20.0), (3, 25.0), (8, 25.0)])
def test_a_window_lets_no_more_through_than_it_holds(window: int, rate: float) -> None:
    made = plan(stage(0, "a", 0.04, received=1, sent=1), period=0.04, latency=0.1)
    found, needed = window_of(made, window)
    assert found == pytest.approx(rate)
    assert needed == 3
    assert what_binds(made, window) == ("compute of a" if window > 2 else f"window of {window}")


def test_figures_take_the_fullest_device() -> None:
    made = plan(
        stage(0, "a", 0.04, received=1, sent=1, replicas=["b"]),
        stage(1, "c", 0.01, received=1, sent=1),
        period=0.02,
        latency=0.05,
    )
    devices = {
        name: device(name, 0.01, memory_bytes=memory) for name, memory in (("a", 4000), ("b", 2000), ("c", 9000))
    }
    found = figures_of(made, devices, 8)
    assert (found.memory_share, found.devices, found.requests_per_second) == (0.5, 3, 50.0)
