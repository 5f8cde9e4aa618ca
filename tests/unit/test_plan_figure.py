"""The picture of a schedule: what is busy is a line, the bottleneck is marked, equal plans give equal bytes."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from edge.formats.plan import Plan
from host.cli.plan_figure import MAX_ROWS, draw_schedule, requests_of, rows_of, view_of
from host.planning.costs import Network
from host.planning.schedule import Resource, Schedule, loads_of, timetable
from tests.plans import device, link, plan, stage

_PNG = b"\x89PNG\r\n\x1a\n"


def drawn(*names: str) -> tuple[Plan, Schedule, dict[Resource, float]]:
    stages = [stage(index, name, 0.01 * (index + 1), received=5000, sent=5000) for index, name in enumerate(names)]
    made = plan(*stages, period=0.01 * len(names), latency=0.06, binds=f"compute of {names[-1]}")
    devices = {name: device(name, mbit=80) for name in names}
    network = Network(client=link(80))
    schedule = timetable(
        made, devices, network, requests=requests_of(made, 8), window=8, period_seconds=made.bottleneck_seconds
    )
    return made, schedule, loads_of(made, devices, network)


def test_lines_are_in_the_order_of_the_way_and_below_each_other() -> None:
    made, _, loads = drawn("a", "b")
    rows = rows_of(made, loads)
    assert [str(row.resource) for row in rows] == [
        "uplink of client",
        "downlink of a",
        "compute of a",
        "uplink of a",
        "downlink of b",
        "compute of b",
        "uplink of b",
        "downlink of client",
    ]
    tops = [row.place - row.height / 2 for row in rows]
    ends = [row.place + row.height / 2 for row in rows]
    assert tops[1:] == pytest.approx(ends[:-1])


def test_of_too_many_lines_the_busiest_are_kept() -> None:
    names = [f"d{number}" for number in range(40)]
    made, _, loads = drawn(*names)
    rows = rows_of(made, loads)
    assert len(rows) == MAX_ROWS
    assert Resource(kind="compute", name="d39") in {row.resource for row in rows}


def test_a_picture_says_what_is_promised_and_what_binds(tmp_path: Path) -> None:
    made, schedule, loads = drawn("a", "b")
    draw_schedule(tmp_path / "plan.svg", made, schedule, loads, 8)
    text = (tmp_path / "plan.svg").read_text(encoding="utf-8")
    for word in (
        "50.0 requests/s",
        "a result every 20.0 ms",
        "bound by compute of b",
        "100% binds",
        "a, stage 0",
        "client sends",
    ):
        assert word in text


def test_what_is_drawn_is_a_pipeline_that_is_full() -> None:
    made, schedule, _ = drawn("a", "b")
    view = view_of(made, schedule, 8)
    # One that is alone before it, and one that nothing holds up behind it, would show another time between results.
    shown = [at for at in schedule.answered if view.start <= at <= view.end * (1 + 1e-9)]
    assert shown[0] > schedule.answered[0]
    assert shown[-1] < schedule.answered[-1]
    assert [later - earlier for earlier, later in pairwise(shown)] == pytest.approx([0.02] * (len(shown) - 1))
    assert (view.results, view.period) == (1, 0.02)
    assert view.last - view.first == pytest.approx(0.02)


def test_devices_that_take_turns_are_all_in_the_time_that_is_shown() -> None:
    made = plan(
        stage(0, "a", 0.03, received=1, sent=1, replicas=["b", "c"]),
        stage(1, "d", 0.01, received=1, sent=1, replicas=["e"]),
        period=0.01,
        latency=0.04,
    )
    devices = {name: device(name, mbit=80) for name in "abcde"}
    schedule = timetable(made, devices, Network(), requests=requests_of(made, 8), window=8, period_seconds=0.01)
    view = view_of(made, schedule, 8)
    assert view.results == 6
    assert view.last - view.first == pytest.approx(0.06)
    assert view.start <= view.first


def test_a_window_that_binds_is_what_the_picture_says(tmp_path: Path) -> None:
    made, _, loads = drawn("a", "b")
    devices = {name: device(name, mbit=80) for name in "ab"}
    schedule = timetable(made, devices, Network(), requests=requests_of(made, 1), window=1, period_seconds=0.06)
    draw_schedule(tmp_path / "plan.svg", made, schedule, loads, 1)
    text = (tmp_path / "plan.svg").read_text(encoding="utf-8")
    for word in ("16.7 requests/s", "bound by the window of 1", "a result every 60.0 ms"):
        assert word in text
    assert "100% binds" not in text


def test_equal_plans_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("one.svg", "two.svg"):
        draw_schedule(tmp_path / name, *drawn("a", "b"), 8)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_a_picture_may_be_pixels(tmp_path: Path) -> None:
    draw_schedule(tmp_path / "plan.png", *drawn("a", "b", "c"), 8)
    assert (tmp_path / "plan.png").read_bytes().startswith(_PNG)
