"""The project's own modules, as text and as syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True, slots=True)
class Module:
    """One file of the project: its dotted name, its path below the root, its lines and its syntax tree."""

    name: str
    path: str
    lines: tuple[str, ...]
    tree: ast.Module


@cache
def modules(package: str) -> tuple[Module, ...]:
    """Every module below a top folder, by name."""
    found = []
    for file in sorted((ROOT / package).rglob("*.py")):
        path = file.relative_to(ROOT)
        parts = path.with_suffix("").parts
        text = file.read_text(encoding="utf-8")
        found.append(
            Module(
                name=".".join(parts[:-1] if parts[-1] == "__init__" else parts),
                path=str(path),
                lines=tuple(text.splitlines()),
                tree=ast.parse(text),
            )
        )
    assert found, f"no module below {package}/"
    return tuple(found)


def imported_names(tree: ast.Module) -> Iterator[str]:
    """The dotted names that a module imports anywhere in it: at its top, in a function, for types only.

    For `from a.b import c` both `a.b` and `a.b.c`, since c may be a module.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
