"""The picture of a schedule: what is busy is a line, the bottleneck is marked, equal plans give equal bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.formats.plan import Plan
from host.cli.plan_figure import MAX_ROWS, draw_schedule, rows_of
from host.planning.costs import Network
from host.planning.schedule import Resource, Schedule, loads_of, timetable
from tests.plans import device, link, plan, stage

_PNG = b"\x89PNG\r\n\x1a\n"


def drawn(*names: str) -> tuple[Plan, Schedule, dict[Resource, float]]:
    stages = [stage(index, name, 0.01 * (index + 1), received=5000, sent=5000) for index, name in enumerate(names)]
    made = plan(*stages, period=0.01 * len(names), latency=0.06, binds=f"compute of {names[-1]}")
    devices = {name: device(name, mbit=80) for name in names}
    network = Network(client=link(80))
    schedule = timetable(made, devices, network, requests=6, window=8, period_seconds=made.bottleneck_seconds)
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
    draw_schedule(tmp_path / "plan.svg", made, schedule, loads)
    text = (tmp_path / "plan.svg").read_text(encoding="utf-8")
    for word in ("50.0 requests/s", "bound by compute of b", "100% binds", "a, stage 0", "client sends"):
        assert word in text


def test_equal_plans_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("one.svg", "two.svg"):
        draw_schedule(tmp_path / name, *drawn("a", "b"))
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_a_picture_may_be_pixels(tmp_path: Path) -> None:
    draw_schedule(tmp_path / "plan.png", *drawn("a", "b", "c"))
    assert (tmp_path / "plan.png").read_bytes().startswith(_PNG)
