"""What the commands share on the terminal: consoles, units, tables."""

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

_PIPE_WIDTH = 160
_ANY_WIDTH = 10_000

out = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
"""Results."""

err = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else _PIPE_WIDTH)
"""Progress and notes."""

_UNITS = ("B", "KiB", "MiB", "GiB")


def size_text(size_bytes: float) -> str:
    """Return a size for people, e.g. `4.7 MiB`."""
    size = float(size_bytes)
    for unit in _UNITS[:-1]:
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} {_UNITS[-1]}"


def print_json(value: Any) -> None:
    """Print one JSON document on stdout, with no colour and no wrapping."""
    json.dump(value, sys.stdout, indent=2)
    sys.stdout.write("\n")


def table(*columns: str, title: str | None = None) -> Table:
    """Return an empty table; a column whose name starts with `>` is right-aligned."""
    result = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        right = column.startswith(">")
        # A figure that is broken in two is another figure; text goes on in the next line, if it can between words.
        result.add_column(column.lstrip(">"), justify="right" if right else "left", no_wrap=right, overflow="fold")
    return result


def fitted(columns: Sequence[str], rows: Iterable[Sequence[str]], *, without: Sequence[str] = ()) -> Table:
    """Return a table that is no wider than the terminal, as far as leaving out columns can make it so.

    Args:
        columns: headers, as for `table`.
        rows: a cell for each column.
        without: the columns that a narrow terminal does without, the first to go first.
    """
    kept, content = list(columns), [list(row) for row in rows]
    leaving = [column for column in without if column in columns]
    while True:
        places = [place for place, column in enumerate(columns) if column in kept]
        result = table(*kept)
        for row in content:
            result.add_row(*(row[place] for place in places))
        if not leaving or Measurement.get(out, out.options.update(max_width=_ANY_WIDTH), result).maximum <= out.width:
            return result
        kept.remove(leaving.pop(0))
