"""The page needs nothing but itself, shows what the report says, and takes every name for what it is: text."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import matplotlib as mpl
import msgspec
import pytest

from host.compress.judge.score import Score
from host.compress.report.page import MAX_RECIPE_CHARACTERS, html_report, write_html_report
from host.compress.report.plots import MAX_BARS, layer_plot, pareto_plots, sensitivity_plot
from host.compress.report.records import Candidate, NodeSensitivity, Report, ReportError
from tests.architecture.sources import ROOT
from tests.example_report import example_report

pytestmark = pytest.mark.slow

RECIPE = 'format = "1.1"\n[quantize]\nmode = "int8"\nexclude = ["<script>alert(2)</script>"]\n'
EVIL = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7*7 }} {% raw %}",
    "$\\frac{a}{b}$ $x$",
    "]]></svg><style>*{display:none}</style>",
    "\x1b[31mred\x00\x08 \u202ereversed",
    "网络/卷积 😀 \ud800",
    "",
)


class _Page(HTMLParser):
    """What a browser would see of a page: elements, attributes, text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def attributes(self) -> Iterator[tuple[str, str]]:
        for _, attributes in self.elements:
            yield from ((key, value or "") for key, value in attributes.items())


@pytest.fixture(scope="module")
def page() -> str:
    return html_report(example_report(layers=12), recipe=RECIPE)


def _evil_report() -> Report:
    """An example whose every text is an attack; figures and statuses stay."""

    def poisoned(value: object, number: int) -> object:
        if isinstance(value, msgspec.Struct):
            fields = {}
            for at, name in enumerate(value.__struct_fields__):
                if name not in ("status", "kind", "format"):
                    fields[name] = poisoned(getattr(value, name), number + at)
            return msgspec.structs.replace(value, **fields)
        if isinstance(value, tuple):
            return tuple(poisoned(item, number + at) for at, item in enumerate(value))
        return EVIL[number % len(EVIL)] if isinstance(value, str) else value

    report = poisoned(example_report(layers=len(EVIL)), 0)
    assert isinstance(report, Report)
    return report


def _ids(page: _Page) -> list[str]:
    return [value for key, value in page.attributes() if key == "id"]


def test_the_page_asks_for_nothing_else(page: str) -> None:
    seen = _Page(page)
    for key, value in seen.attributes():
        assert key not in ("src", "srcset", "action", "data", "xlink:href"), key
        if key == "href":
            assert value.startswith("#")
    assert not re.search(r"url\((?!#)", page)
    assert "@import" not in page
    assert not {tag for tag, _ in seen.elements} & {
        "script",
        "link",
        "iframe",
        "img",
        "object",
        "embed",
        "base",
        "form",
    }


def test_a_strict_policy_allows_the_one_style_and_nothing_more(page: str) -> None:
    seen = _Page(page)
    (policy,) = [attributes["content"] for _, attributes in seen.elements if "http-equiv" in attributes]
    styles = re.findall(r"<style>(.*?)</style>", page, flags=re.DOTALL)
    assert len(styles) == 1
    digest = base64.b64encode(hashlib.sha256(styles[0].encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert not [key for key, _ in seen.attributes() if key == "style" or key.startswith("on")]


def test_the_page_begins_as_a_page(page: str) -> None:
    assert page.lstrip().startswith("<!doctype html>\n<html lang=")
    assert page.index("charset") < page.index("Content-Security-Policy") < page.index("<title>")
    assert 'name="viewport"' in page
    assert "prefers-color-scheme: dark" in page


def test_ids_are_unique_and_references_lead_somewhere(page: str) -> None:
    seen = _Page(page)
    ids = _ids(seen)
    assert len(ids) == len(set(ids))
    wanted = {value[1:] for key, value in seen.attributes() if key == "href"}
    wanted |= set(re.findall(r"url\(#([^)]+)\)", page))
    assert wanted <= set(ids)


def test_pictures_take_their_colours_from_the_style_sheet(page: str) -> None:
    drawings = re.findall(r'<svg class="plot".*?</svg>', page, flags=re.DOTALL)
    assert len(drawings) == 3 + 1 + 2 + 4
    for drawing in drawings:
        assert not re.search(r'(fill|stroke)="#', drawing)
        assert 'role="img" aria-label="' in drawing
        assert "<text" in drawing
        assert "#0a0b" not in drawing
    classes = set(re.findall(r"\b[fs]-[a-z]+\b", " ".join(drawings)))
    assert classes <= set(re.findall(r"\.([fs]-[a-z]+)", page))


def test_the_page_shows_what_the_report_says(page: str) -> None:
    report, text = example_report(layers=12), _Page(page).text
    assert report.outcome in text
    assert str(report.budget) in text
    for said in (*report.notes, *(row.name for row in report.passes), "left out: values differ"):
        assert said in text
    assert "Nothing to do for fold-batch-norm." in text
    for candidate in report.candidates:
        assert candidate.name in text
        assert candidate.judgement in text
    for evaluation in report.evaluations:
        assert evaluation.where in text
    assert "0.9610 to 0.9790" in text
    assert "4.5 MiB" in text
    assert report.machine.processor in text
    assert {each.node for each in report.sensitivity} <= set(text.split())


def test_the_recipe_is_shown_as_text(page: str) -> None:
    assert 'exclude = ["<script>alert(2)</script>"]' in _Page(page).text
    assert "<script" not in page


def test_a_long_recipe_is_cut_and_says_so() -> None:
    long = html_report(Report(model="net"), recipe="#" * (MAX_RECIPE_CHARACTERS + 7))
    assert "The last 7 characters are left out here." in long
    assert len(long) < MAX_RECIPE_CHARACTERS + 30_000


def test_whatever_names_hold_they_stay_text(page: str) -> None:
    evil = html_report(_evil_report(), recipe="\n".join(EVIL))
    seen = _Page(evil)
    assert {tag for tag, _ in seen.elements} <= {tag for tag, _ in _Page(page).elements}
    assert {key for key, _ in seen.attributes()} <= {key for key, _ in _Page(page).attributes()}
    assert "<script>alert(1)</script>" in seen.text
    assert "{{ 7*7 }}" in seen.text
    assert all(each.isprintable() or each == "\n" for each in evil)
    evil.encode("utf-8")


def test_equal_reports_give_equal_pages(page: str) -> None:
    assert html_report(example_report(layers=12), recipe=RECIPE) == page


def test_the_users_own_matplotlib_settings_change_nothing() -> None:
    report = example_report(layers=3)
    plain = sensitivity_plot(report)
    with mpl.rc_context({"axes.facecolor": "red", "svg.fonttype": "path", "font.size": 30, "text.usetex": True}):
        assert sensitivity_plot(report) == plain


@pytest.mark.slow
def test_the_page_does_not_depend_on_the_order_of_hashes() -> None:
    program = (
        "import hashlib; from tests.example_report import example_report; "
        "from host.compress.report.page import html_report; "
        "print(hashlib.sha256(html_report(example_report(layers=1)).encode()).hexdigest())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


def test_an_empty_report_is_a_page_too() -> None:
    seen = _Page(html_report(Report()))
    assert "model" in seen.text
    assert not [tag for tag, _ in seen.elements if tag in ("svg", "table")]


@pytest.mark.parametrize(("package", "module"), [("matplotlib", "host.compress.report.plots"), ("jinja2", "jinja2")])
def test_a_missing_package_is_one_line_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, package: str, module: str
) -> None:
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ReportError) as caught:
        html_report(Report())
    assert str(caught.value) == (
        f"the HTML report needs {package}, which is not installed: pip install 'shardwire[report]'"
    )


def test_a_page_is_written_with_the_folders_to_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    write_html_report(Report(model="net"), path)
    assert path.read_text(encoding="utf-8") == html_report(Report(model="net"))


def test_a_page_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="cannot write the report"):
        write_html_report(Report(), tmp_path)


def test_long_lists_of_nodes_are_cut_in_the_picture_and_say_so() -> None:
    report = example_report(layers=50)
    plots = sensitivity_plot(report), layer_plot(report)
    assert [plot.caption for plot in plots if plot is not None] == [
        f"The {MAX_BARS} most sensitive of 50 nodes; short bars hurt most.",
        f"The {MAX_BARS} slowest of 50 layers.",
    ]


@pytest.mark.parametrize(("chosen", "tone"), [(True, "held"), (False, "broken")])
def test_the_outcome_is_coloured_by_what_became_of_the_budget(chosen: bool, tone: str) -> None:
    tried = Candidate(name="a", summary="", status="held", chosen=chosen)
    page = html_report(Report(budget="cosine>=0.99", outcome="so it ended", candidates=(tried,)))
    assert f'<div class="outcome {tone}">' in page


def test_an_infinite_ratio_is_left_out_of_the_picture() -> None:
    perfect = NodeSensitivity(node="a", operator="Conv", snr_db=float("inf"), precision="int8")
    assert sensitivity_plot(Report(sensitivity=(perfect,))) is None
    assert "∞" in _Page(html_report(Report(sensitivity=(perfect,)))).text


def test_pareto_pictures_need_two_candidates_with_figures() -> None:
    score = Score(metric="agreement", value=0.9, low=0.8, high=1.0, count=10)
    one = Candidate(name="a", summary="", size_bytes=10, scores=(score,), status="proven")
    two = msgspec.structs.replace(one, name="b", latency_seconds=0.1)
    assert pareto_plots(Report(candidates=(one,))) == ()
    assert [plot.name for plot in pareto_plots(Report(candidates=(one, two)))] == ["pareto-size"]


def test_the_budget_is_a_line_in_the_picture() -> None:
    candidates = tuple(
        msgspec.structs.replace(each, latency_seconds=None, predicted_seconds=None)
        for each in example_report(layers=1).candidates
    )
    (limited,) = pareto_plots(Report(candidates=candidates, budget="top1-drop<=0.5%"))
    (free,) = pareto_plots(Report(candidates=candidates))
    assert "budget 0.005" in limited.svg
    assert "budget" not in free.svg
