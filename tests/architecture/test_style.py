"""The rules of the house that no linter knows."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import pairwise

import pytest

from tests.architecture.sources import ROOT, Module, modules

_MODULE_LINES = 400
_FUNCTION_LINES = 60
_OURS = ("edge", "host", "firmware_profiles")
_EMPTY_NAMES = frozenset({"manager", "helper", "helpers", "utils", "util", "common", "info", "handler", "misc"})


def _all_modules(*packages: str) -> list[Module]:
    return [module for package in packages for module in modules(package)]


def _words(name: str) -> set[str]:
    """The words of a snake_case or CamelCase name, in lower case."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])", name)}


@pytest.mark.parametrize("module", _all_modules(*_OURS, "tests"), ids=lambda module: module.path)
def test_a_module_is_short(module: Module) -> None:
    assert len(module.lines) <= _MODULE_LINES, f"{module.path} has {len(module.lines)} lines: find the missing module"


@pytest.mark.parametrize("module", _all_modules(*_OURS, "tests"), ids=lambda module: module.path)
def test_a_function_is_short(module: Module) -> None:
    long = [
        f"{module.path}:{node.lineno} {node.name} has {length} lines"
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or node.lineno) - node.lineno + 1) > _FUNCTION_LINES
    ]
    assert not long, "; ".join(long)


def test_a_module_or_class_is_named_by_what_it_is() -> None:
    for module in _all_modules(*_OURS):
        classes = [node.name for node in ast.walk(module.tree) if isinstance(node, ast.ClassDef)]
        for name in (module.name.rpartition(".")[2], *classes):
            assert not _words(name) & _EMPTY_NAMES, f"{module.path}: {name} says nothing"


def test_every_module_says_what_it_is_for() -> None:
    for module in _all_modules(*_OURS, "tests"):
        if module.path.endswith("__init__.py") and not module.lines:
            continue
        assert ast.get_docstring(module.tree), f"{module.path} has no docstring"


def test_public_records_are_frozen_and_keyword_only() -> None:
    for module in _all_modules("edge", "host"):
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and not _acts(node):
                for kind, said in _record_kinds(node):
                    assert "kw_only=True" in said, f"{module.path}: {kind} {node.name} is not keyword-only"
                    assert "frozen=True" in said, f"{module.path}: {kind} {node.name} is not frozen"


def _acts(node: ast.ClassDef) -> bool:
    """Whether a class does things to itself, as an in-memory broker does, rather than say what is."""
    return any(
        isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self"
        for part in ast.walk(node)
        if isinstance(part, ast.Assign | ast.AugAssign)
        for target in (part.targets if isinstance(part, ast.Assign) else [part.target])
    ) or any(
        isinstance(part, ast.FunctionDef)
        and not part.name.startswith("_")
        and part.returns is not None
        and ast.unparse(part.returns) == "None"
        for part in node.body
    )


def _record_kinds(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    """The ways in which a class is declared a record, each with the arguments it gives."""
    for decorator in node.decorator_list:
        said = ast.unparse(decorator)
        if said.partition("(")[0] in ("dataclass", "dataclasses.dataclass"):
            yield "dataclass", said
    if any(ast.unparse(base) in ("Struct", "msgspec.Struct") for base in node.bases):
        yield "struct", ", ".join(ast.unparse(keyword) for keyword in node.keywords)


def test_nothing_is_left_for_later() -> None:
    unfinished = re.compile(
        r"\b(TODO|FIXME|XXX|HACK)\b|raise NotImplementedError|pytest\.(skip|xfail)|mark\.(skip|xfail)"
    )
    here = ROOT / "tests" / "architecture" / "test_style.py"
    for module in _all_modules(*_OURS, "tests"):
        if ROOT / module.path == here:
            continue
        for number, line in enumerate(module.lines, start=1):
            assert not unfinished.search(line), f"{module.path}:{number}: {line.strip()}"


def test_no_test_sleeps() -> None:
    for module in _all_modules("tests"):
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in ("time.sleep", "sleep"), f"{module.path}:{node.lineno} sleeps"


def test_every_linter_exception_says_why() -> None:
    reasoned = re.compile(r"#\s*noqa: [A-Z0-9, ]+\s+(-|#) \w")
    for module in _all_modules(*_OURS, "tests"):
        for before, line in pairwise(("", *module.lines)):
            if re.search(r"#\s*noqa\b", line) and "re." not in line:
                # In the same line, or in a comment above it.
                assert reasoned.search(line) or before.strip().startswith("#"), f"{module.path}: {line.strip()}"
