"""What the commands share on the terminal: consoles, units, and reading inputs."""

import json
import sys
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from edge.errors import InvalidInput
from edge.formats.bundle import Manifest
from edge.formats.tensor import Array
from edge.preprocess import prepare_image

_PIPE_WIDTH = 160
_ANY_WIDTH = 10_000

out = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
"""Results."""

err = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else _PIPE_WIDTH)
"""Progress and notes."""

MAX_INPUT_BYTES = 1 << 30
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


def read_inputs(path: Path, manifest: Manifest) -> dict[str, Array]:
    """Read one request from a file: an `.npz` of tensors by input name, or a photo where the bundle says how.

    Raises:
        InvalidInput: the file is missing, not readable, or the bundle takes no photos.
    """
    try:
        if path.stat().st_size > MAX_INPUT_BYTES:
            raise InvalidInput(f"{path}: {path.stat().st_size} bytes are more than {MAX_INPUT_BYTES}")
        if path.suffix == ".npz":
            return _read_arrays(path)
        data = path.read_bytes()
    except (OSError, ValueError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "no .npz of plain arrays"
        raise InvalidInput(f"{path}: cannot be read ({reason})") from error
    if manifest.preprocess is None:
        names = ", ".join(spec.name for spec in manifest.inputs)
        raise InvalidInput(f"{path}: model {manifest.name!r} takes no photos; give an .npz with the arrays {names}")
    return {manifest.preprocess.input: prepare_image(manifest.preprocess, data, where=str(path))}


def _read_arrays(path: Path) -> dict[str, Array]:
    with zipfile.ZipFile(path) as archive:
        size_bytes = sum(entry.file_size for entry in archive.infolist())
    if size_bytes > MAX_INPUT_BYTES:
        raise InvalidInput(f"{path}: unpacks to {size_bytes} bytes, more than {MAX_INPUT_BYTES}")
    with np.load(path, allow_pickle=False) as arrays:  # noqa: TID251  # pickle is refused here
        return {name: arrays[name] for name in arrays.files}
