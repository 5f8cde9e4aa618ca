"""The documentation names what the code has: fields, topics, bounds, commands, options, links."""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import typer

from edge.errors import REQUEST_ERRORS
from edge.formats import (
    builds,
    bundle,
    command,
    constraints,
    frame,
    message,
    node,
    plan,
    profile,
    shard,
    speed,
    streams,
    tensor,
)
from edge.formats.topics import Topics
from host import figures, oci
from host.cli import main as host_cli
from host.compress import recipe
from host.compress.judge import score
from host.compress.report import records as report
from host.planning import fleet_entries

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
_FORMATS = (
    *(builds, bundle, command, constraints, frame, message, node, plan, profile, shard, speed, streams, tensor),
    *(recipe, report, score, figures, fleet_entries),
)
# Not on a disk or a wire under this name: a decoded frame in memory.
_IN_MEMORY = {frame.Frame}


def _text(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def _sections(name: str) -> dict[str, str]:
    """Text below each heading, up to the next heading of any level."""
    parts = re.split(r"^#+ +(.*)$", _text(name), flags=re.MULTILINE)
    headings = parts[1::2]
    assert len(headings) == len(set(headings)), f"docs/{name} has a heading twice"
    return dict(zip(headings, parts[2::2], strict=True))


def _first_cells(section: str) -> list[str]:
    """What stands in the first column of the section's tables, without the backticks."""
    return re.findall(r"^\| `([^`]+)` \|", section, flags=re.MULTILINE)


def _structs() -> Iterator[type[msgspec.Struct]]:
    yield oci.Signature
    for module in _FORMATS:
        for name, found in inspect.getmembers(module, inspect.isclass):
            if name.startswith("_") or found in _IN_MEMORY or found.__module__ != module.__name__:
                continue
            if issubclass(found, msgspec.Struct):
                yield found


@pytest.mark.parametrize("struct", list(_structs()), ids=lambda struct: struct.__name__)
def test_formats_lists_the_fields_of_every_record_in_their_order(struct: type[msgspec.Struct]) -> None:
    section = _sections("formats.md")[f"`{struct.__name__}`"]
    assert _first_cells(section) == list(struct.__struct_fields__)


@pytest.mark.parametrize("struct", list(_structs()), ids=lambda struct: struct.__name__)
def test_formats_says_the_tag_of_every_tagged_record(struct: type[msgspec.Struct]) -> None:
    tag = struct.__struct_config__.tag
    if tag is not None:
        assert f"Tag `{tag}`" in _sections("formats.md")[f"`{struct.__name__}`"]


def test_formats_lists_every_topic() -> None:
    rows = _first_cells(_sections("formats.md")["Topics"])
    topics = Topics(fleet="fleet")
    single = {
        name: getattr(topics, name)
        for name, _ in inspect.getmembers(Topics, inspect.isfunction)
        if not name.startswith(("_", "any_")) and name != "parse"
    }
    shown = {"client": "<client>", "holder": "<holder>", "device": "<device>"}
    expected = set()
    for method in single.values():
        names = inspect.signature(method).parameters
        expected.add(method(*(shown.get(name, f"<{name}>") for name in names)).removeprefix("shardwire/fleet/"))
    assert set(rows) == expected


def test_formats_lists_every_filter() -> None:
    text = _sections("formats.md")["Topics"]
    topics = Topics(fleet="fleet")
    for found in (topics.any_device("<kind>"), topics.any_deployment("<kind>"), topics.any_run("<device>")):
        assert f"`{found.removeprefix('shardwire/fleet/')}`" in text


def test_security_states_every_bound_as_the_code_has_it() -> None:
    rows = re.findall(r"^\| `((?:edge|host)\.[\w.]+)` \| ([^|]+) \|", _text("security.md"), flags=re.MULTILINE)
    assert len(rows) > 25, "the table of bounds is gone"
    for dotted, shown in rows:
        module, _, name = dotted.rpartition(".")
        actual = getattr(importlib.import_module(module), name)
        assert float(shown.replace(",", "").split()[0]) == actual, f"docs/security.md: {dotted} is {actual}"


def test_security_lists_every_bound_of_the_formats() -> None:
    text = _text("security.md")
    for module in _FORMATS:
        for name in vars(module):
            if name.startswith("MAX_") and getattr(module, name).__class__ is int:
                homes = [other for other in _FORMATS if f"`{other.__name__}.{name}`" in text]
                assert homes, f"docs/security.md: {module.__name__}.{name} is not listed"


def test_operations_has_a_section_for_every_command() -> None:
    headings = set(_sections("operations.md"))
    assert {f"`shardwire {name}`" for name in host_cli._COMMANDS} | {"`shardwire-agent`"} <= headings


@pytest.mark.parametrize("name", sorted(host_cli._COMMANDS))
def test_operations_names_every_option_of_a_command(name: str) -> None:
    app = typer.Typer(add_completion=False)
    app.command(name)(importlib.import_module(f"host.cli.{name}").command)
    command = typer.main.get_command(app)
    section = _sections("operations.md")[f"`shardwire {name}`"]
    for parameter in command.params:
        for option in parameter.opts:
            if option.startswith("--") and option != "--help":
                assert f"`{option}" in section, f"{option} of shardwire {name} is not described"


def test_operations_names_every_option_of_the_agent() -> None:
    section = _sections("operations.md")["`shardwire-agent`"]
    parser = importlib.import_module("edge.cli")._parser()
    assert isinstance(parser, argparse.ArgumentParser)
    for action in parser._actions:
        for option in action.option_strings:
            if option.startswith("--") and option != "--help":
                assert f"`{option}" in section, f"{option} of shardwire-agent is not described"


def test_operations_lists_every_error_of_a_request_and_whether_it_is_final() -> None:
    section = _sections("operations.md")["Errors of a request"]
    rows = dict(re.findall(r"^\| `([a-z-]+)` \| `\w+` \| (final|retryable) \|", section, flags=re.MULTILINE))
    assert rows == {code: "retryable" if error.retryable else "final" for code, error in REQUEST_ERRORS.items()}


def _links() -> Iterator[tuple[str, str]]:
    for page in (*sorted(DOCS.glob("*.md")), ROOT / "README.md", ROOT / "CHANGELOG.md"):
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                yield str(page.relative_to(ROOT)), target


@pytest.mark.parametrize(("page", "target"), sorted(set(_links())))
def test_every_relative_link_resolves(page: str, target: str) -> None:
    path, _, anchor = target.partition("#")
    file = (ROOT / page).parent / path if path else ROOT / page
    assert file.exists(), f"{page} links to {target}"
    if anchor:
        headings = re.findall(r"^#+ +(.*)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert anchor in {_anchor(heading) for heading in headings}, f"{page} links to {target}"


def _anchor(heading: str) -> str:
    """The anchor that GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
