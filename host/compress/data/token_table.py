"""Samples from a CSV file of token ids: one row is one sample, ids stand in a cell with spaces between them."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge.formats.tensor import DTYPES, Array
from host.compress.data.samples import MAX_SAMPLES, Held, Sample, TensorNeed, fitted
from host.errors import DatasetError

MAX_TABLE_BYTES = 256 << 20

_PAD = 0
_LABELS = ("label", "labels")
_GROUPS = ("group", "groups")
_ANY_IDS = ("ids", "tokens", "token_ids")

_Row = tuple[int, list[str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenTable(Held):
    """Rows of a table, in memory.

    Attributes:
        path: The file.
        lines: Line of the file that each row ends in, from 1.
    """

    path: Path
    lines: tuple[int, ...]

    def where(self, index: int) -> str:
        """File and line."""
        return f"{self.path}:{self.lines[index]}"


def load(path: Path, needs: Sequence[TensorNeed]) -> TokenTable:
    """Read a table of token ids.

    The first line names the columns: inputs of the model, and optionally ``label`` and ``group``. Without such a line
    the file has one column, the ids. Rows are cut or padded with 0 to the length that the model fixes. An input
    that has no column is made: ones for tokens and zeros for padding where its name holds ``mask``, zeros where it
    holds ``type``, 0, 1, 2, … where it holds ``position``.

    Raises:
        DatasetError: If the file cannot be read, a cell is no row of ids, or the model wants more than that.
    """
    rows = _read(path)
    if not rows:
        raise DatasetError(f"{path}: holds no sample")
    names = {need.name for need in needs}
    columns, rows = _header(path, rows, needs)
    samples: list[Sample] = []
    groups: list[str] = []
    for line, cells in rows:
        where = f"{path}:{line}"
        if len(cells) != len(columns):
            raise DatasetError(f"{where}: {len(cells)} columns, expected {len(columns)}: {', '.join(columns)}")
        row = dict(zip(columns, cells, strict=True))
        ids = {name: _ids(cell, where, name) for name, cell in row.items() if name in names}
        label = next((_label(row[key], where) for key in _LABELS if key in row and key not in names), None)
        groups += [row[key] for key in _GROUPS if key in row and key not in names][:1]
        samples.append(Sample(inputs=fitted(_filled(ids, needs, where), needs, where), label=label))
    return TokenTable(
        name=path.name,
        samples=tuple(samples),
        groups=tuple(groups) if groups else None,
        path=path,
        lines=tuple(line for line, _ in rows),
    )


def _read(path: Path) -> list[_Row]:
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_TABLE_BYTES + 1)
        if len(content) > MAX_TABLE_BYTES:
            raise DatasetError(f"{path}: more than {MAX_TABLE_BYTES} bytes")
        reader = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        rows = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(map(str.strip, cells))]
    except FileNotFoundError as error:
        raise DatasetError(f"{path}: no such file") from error
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: not UTF-8 text") from error
    except csv.Error as error:
        raise DatasetError(f"{path}:{reader.line_num}: not CSV: {error}") from error
    if len(rows) > MAX_SAMPLES:
        raise DatasetError(f"{path}: {len(rows)} rows are more than {MAX_SAMPLES}")
    return rows


def _header(path: Path, rows: list[_Row], needs: Sequence[TensorNeed]) -> tuple[list[str], list[_Row]]:
    """Names of the columns, and the rows that hold samples."""
    first = rows[0][1]
    has_header = not any(cell and all(word.isdecimal() for word in cell.split()) for cell in first)
    if not has_header and len(first) > 1:
        raise DatasetError(f"{path}:{rows[0][0]}: {len(first)} columns without names: name them in the first line")
    columns = [_main(path, needs)] if not has_header else first
    # A file from a tokenizer need not know what this model calls its ids.
    columns = [_main(path, needs) if name.lower() in _ANY_IDS else name for name in columns]
    names = [need.name for need in needs]
    if unknown := [name for name in columns if name not in (*names, *_LABELS, *_GROUPS)]:
        raise DatasetError(
            f"{path}:{rows[0][0]}: column {unknown[0][:40]!r} is no input of the model; "
            f"it takes {', '.join(names)}; label and group may stand beside them"
        )
    if len(set(columns)) < len(columns):
        raise DatasetError(f"{path}:{rows[0][0]}: a column is named twice: {', '.join(columns)}")
    return columns, rows[1:] if has_header else rows


def _main(path: Path, needs: Sequence[TensorNeed]) -> str:
    """The input that the ids are for."""
    made = [need.name for need in needs if _is_made(need)]
    main = [need.name for need in needs if need.name not in made]
    if len(main) != 1:
        raise DatasetError(f"{path}: which column is for which of {', '.join(main)}? name them in the first line")
    return main[0]


def _is_made(need: TensorNeed) -> bool:
    return any(word in need.name.lower() for word in ("mask", "type", "position"))


def _ids(cell: str, where: str, name: str) -> list[int]:
    try:
        return [int(word) for word in cell.split()]
    except ValueError as error:
        raise DatasetError(
            f"{where}: column {name!r}: {cell[:40]!r} is no row of token ids, as in 101 2023 102"
        ) from error


def _label(cell: str, where: str) -> int | None:
    if not cell:
        return None
    try:
        return int(cell)
    except ValueError as error:
        raise DatasetError(f"{where}: label {cell[:40]!r} is no number of a class") from error


def _filled(ids: dict[str, list[int]], needs: Sequence[TensorNeed], where: str) -> dict[str, Array]:
    lengths = {len(row) for row in ids.values()}
    if lengths <= {0}:
        raise DatasetError(f"{where}: holds no token id")
    if len(lengths) != 1:
        raise DatasetError(f"{where}: the columns hold different numbers of ids: {sorted(lengths)}")
    (count,) = lengths
    return {
        need.name: _row(ids.get(need.name), count, need, where) for need in needs if need.name in ids or _is_made(need)
    }


def _row(ids: list[int] | None, count: int, need: TensorNeed, where: str) -> Array:
    """One input ``[1, L]``, or ``[L]`` where the model has no batch axis."""
    if DTYPES[need.dtype].kind not in "iub" and not _is_made(need):
        raise DatasetError(f"{where}: input {need.name!r} is {need.dtype}, no token ids: give an .npz file")
    last = need.shape[-1] if need.shape else None
    length = last if isinstance(last, int) else count
    if ids is None and "mask" in need.name.lower():
        ids = [1] * count
    elif ids is None and "position" in need.name.lower():
        ids = list(range(length))
    elif ids is None:
        ids = [0] * count
    padded = (ids + [_PAD] * length)[:length]
    try:
        row = np.array(padded, dtype=DTYPES[need.dtype])
    except OverflowError as error:
        raise DatasetError(f"{where}: an id of {need.name!r} does not fit {need.dtype}") from error
    return row if need.shape is not None and len(need.shape) == 1 else row[None]
