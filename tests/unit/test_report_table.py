"""The terminal shows the same report: costs, passes, accuracy with its place, candidates with the front marked."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from host.cli import report_table
from host.cli.report_table import print_report, report_parts
from host.compress.judge.score import Score
from host.compress.report.records import Candidate, PassRow, Report
from tests.example_report import example_report


def _printed(report: Report, width: int = 200) -> str:
    target = io.StringIO()
    console = Console(file=target, width=width, highlight=False, color_system=None)
    for part in report_parts(report):
        console.print(part)
    return target.getvalue()


def _line(text: str, beginning: str) -> str:
    return next(line for line in text.splitlines() if line.lstrip(" →*").startswith(beginning))


def test_the_budget_and_what_came_of_it_come_first() -> None:
    lines = _printed(example_report()).splitlines()
    assert lines[0] == "efficientnet-lite0 for rpi4, budget top1-drop<=0.005"
    assert lines[1] == example_report().outcome


def test_the_cost_before_and_after() -> None:
    text = _printed(example_report())
    assert _line(text, "weights").split() == ["weights", "17.7", "MiB", "4.5", "MiB", "25", "%"]
    assert "16.2 ms" in _line(text, "latency")


def test_each_pass_says_what_it_changed() -> None:
    text = _printed(example_report())
    assert "186 → 151" in _line(text, "fold-constants")
    assert "4.6 MiB → 1.1 MiB" in _line(text, "fuse")
    assert "15.8 ms → 10.8 ms" in _line(text, "fuse")
    assert "left out: values differ" in _line(text, "merge-pool-conv")


def test_passes_that_found_nothing_are_one_line() -> None:
    lines = _printed(example_report()).splitlines()
    assert "1 pass found nothing to do" in lines
    assert "fold-batch-norm" not in "".join(lines)


def test_figures_that_no_pass_changed_have_no_column() -> None:
    figures = example_report().original
    rows = [PassRow(name="a", kept=True, reason="-1 nodes", before=figures, after=figures)]
    assert _line(_printed(Report(passes=tuple(rows))), "pass").split() == ["pass"]


def test_the_front_and_the_chosen_one_are_marked() -> None:
    text = _printed(example_report())
    found = {
        name: next(line for line in text.splitlines() if f" {name} " in line[:40])[:2]
        for name in ("fp32", "int8-dynamic", "prune-25+int8", "prune-50+int8")
    }
    assert found == {"fp32": " *", "int8-dynamic": "  ", "prune-25+int8": "→*", "prune-50+int8": " *"}


def test_a_candidate_shows_its_costs_and_accuracy() -> None:
    text = _printed(example_report())
    line = next(line for line in text.splitlines() if line.startswith("→*"))
    for said in ("proven", "4.5 MiB", "10.8 ms", "0.67", "45.4 ms", "top1-drop 0.0021 [-0.0002, 0.0044]"):
        assert said in line


def test_a_single_metric_is_the_name_of_its_column() -> None:
    score = Score(metric="agreement", value=0.97, low=0.96, high=0.98, count=1000)
    one = Report(profile="rpi4", candidates=(Candidate(name="a", summary="", status="held", scores=(score,)),))
    assert _line(_printed(one), "candidate").split()[-3:] == ["on", "rpi4", "agreement"]
    assert _line(_printed(one), "a ").split()[-3:] == ["0.9700", "[0.9600,", "0.9800]"]


def test_what_failed_says_why() -> None:
    assert "no MatMul to quantize" in _line(_printed(example_report()), "int4")


def test_candidates_and_passes_fit_into_a_hundred_columns() -> None:
    text = _printed(example_report(), width=100)
    for name in ("fold-constants", "fuse", "fp32", "int8-entropy", "prune-50+int8", "int4"):
        assert _line(text, name)
    assert len([line for line in text.splitlines() if " top1-drop " in line and "[" in line]) == 8


def test_only_statuses_that_occur_are_explained() -> None:
    one = Report(candidates=(Candidate(name="a", summary="", status="held"),))
    assert "held: the measured figure" in _printed(one)
    assert "proven:" not in _printed(one)


def test_accuracy_says_where_it_was_measured_and_how_sure_it_is() -> None:
    line = _line(_printed(example_report()), "aarch64, emulated")
    for said in ("top1-drop", "0.0021", "-0.0002 to 0.0044", "1200", "60 labelled photos"):
        assert said in line
    assert "95 % interval" in _line(_printed(example_report()), "measured")


def test_notes_are_said() -> None:
    text = " ".join(_printed(example_report()).split())
    assert "note: Unstructured sparsity saves transfer only" in text


def test_an_empty_report_has_no_table() -> None:
    assert _printed(Report()) == "model\n"


def test_names_are_text_and_never_markup_or_control_characters() -> None:
    evil = "[red]x[/red] \x1b[2J[link=http://a]"
    report = Report(
        model=evil,
        budget=evil,
        outcome=evil,
        passes=(PassRow(name=evil, kept=True, reason=evil),),
        candidates=(Candidate(name=evil, summary=evil, judgement=evil, status="failed"),),
        notes=(evil,),
    )
    text = _printed(report, width=400)
    assert "\x1b" not in text
    assert text.count("[red]x[/red]") == 8


def test_it_is_printed_to_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    target = io.StringIO()
    monkeypatch.setattr(report_table, "out", Console(file=target, width=160, highlight=False))
    print_report(example_report())
    assert "Unstructured sparsity" in target.getvalue()
