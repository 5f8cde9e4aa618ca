"""A plan in a few words: rates that keep their digits, reasons once, names in the order in which people count."""

from __future__ import annotations

import msgspec
import pytest

from edge.formats.plan import LeftOut, Loss, Plan
from host.cli.plan_words import (
    MAX_LEFT_OUT,
    bound_text,
    digits_text,
    left_out_lines,
    names_text,
    range_text,
    rate_text,
    safety_lines,
    summary_lines,
)
from tests.plans import plan, stage

_NO_HELP = "it would not help: the plan would still answer 5 requests/s"


def made(*left: tuple[str, str], binds: str = "compute of a", gap: float = 0.0) -> Plan:
    found = plan(stage(0, "a", 0.01, received=1, sent=1), period=0.01, latency=0.04, binds=binds)
    return msgspec.structs.replace(
        found, left_out=tuple(LeftOut(device=name, reason=reason) for name, reason in left), gap=gap
    )


@pytest.mark.parametrize(
    ("value", "text"), [(107.14, "107.1"), (12.44, "12.4"), (2.063, "2.06"), (0.04211, "0.0421"), (0.0, "0.0")]
)
def test_a_small_number_keeps_its_digits(value: float, text: str) -> None:
    assert digits_text(value) == text


def test_a_rate_is_that_of_the_time_between_two() -> None:
    assert (rate_text(0.01), rate_text(400.0), rate_text(0.0)) == ("100.0", "0.0025", "?")


def test_one_shard_is_one_number() -> None:
    assert (range_text(62, 63), range_text(0, 62)) == ("62", "0–61")


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["pi-10", "pi-2"], "pi-2 and pi-10"),
        (["pi-10", "pi-9", "pi-8", "cam"], "cam and pi-8 to pi-10"),
        (["a", "b", "c"], "a, b and c"),
        (["pi-01", "pi-02", "pi-03"], "pi-01, pi-02 and pi-03"),
        ([f"pi-{number}" for number in range(1, 41)], "pi-1 to pi-40"),
        ([f"n{number}" for number in range(0, 16, 2)], "n0, n2, n4, n6 and 4 more"),
    ],
)
def test_names_are_told_as_people_count(names: list[str], text: str) -> None:
    assert names_text(names) == text


def test_devices_with_one_reason_are_one_line_and_what_is_unusual_comes_first() -> None:
    many = [(f"pi-{number}", _NO_HELP) for number in (1, 10, 2, 3)]
    lines = list(left_out_lines(made(*many, ("old", "does not fit: it has 1 MiB"))))
    assert lines == ["left out: old: does not fit: it has 1 MiB", f"left out: pi-1 to pi-3 and pi-10: {_NO_HELP}"]


def test_a_thousand_reasons_are_a_few_lines() -> None:
    many = [(f"d{n}", f"with it the plan would answer {n} instead of 5000 requests/s") for n in range(1000)]
    assert list(left_out_lines(made(*many))) == ["left out: d0 to d999: no plan with it is better"]
    other = [(f"d{n}", f"does not fit: it has {n} MiB") for n in range(20)]
    lines = list(left_out_lines(made(*other)))
    assert (len(lines), lines[-1]) == (MAX_LEFT_OUT + 1, "left out: 12 more")


def test_what_binds_is_the_window_where_it_is_and_an_assumption_is_called_one() -> None:
    assert bound_text(made(), 8) == "compute of a"
    assert bound_text(made(), 2) == "the window of 2: a request takes 40.0 ms; 4 would be enough"
    client = made(binds="uplink of client")
    assert bound_text(client, 8) == "uplink of client (assumed: 941 Mbit/s)"
    assert bound_text(client, 8, client_known=True) == "uplink of client"


def test_what_is_promised_is_what_the_window_lets_through() -> None:
    first, second = list(summary_lines(made(gap=0.0001234), 2))
    assert first.startswith("predicted: 50.0 requests/s, 40.0 ms a request, ")
    assert second.endswith("4 would be enough; at most 0.012 % worse than the best plan")


def test_what_a_plan_survives_is_told_in_few_words() -> None:
    first = msgspec.structs.replace(
        stage(0, "a", 0.01, received=1, sent=1), standbys=("b",), keepers=("c",), swaps=("a", "b")
    )
    found = plan(first, stage(1, "cam", 0.01, received=1, sent=1), period=0.01, latency=0.04)
    losses = (Loss(device="a", then="standby"), Loss(device="cam", then="stops", reason="layers are pinned to it"))
    assert list(safety_lines(msgspec.structs.replace(found, losses=losses, pause_seconds=1.44))) == [
        "stands by for stage 0: b",
        "keeps the blobs of stage 0: c",
        "no standby has room for stage 1, or may have it",
        "a and b must stop first: a pause of 1.4 s",
        "survives the loss of a: a standby goes on at once",
        "does not survive the loss of cam: layers are pinned to it",
    ]
    moves = (*(Loss(device=f"pi-{n}", then="replan") for n in range(1, 4)), Loss(device="gw", then="move"))
    assert list(safety_lines(msgspec.structs.replace(made(), losses=moves))) == [
        "survives the loss of pi-1 to pi-3: with another plan, for which nothing moves",
        "survives the loss of gw: with another plan, once blobs have moved",
    ]
