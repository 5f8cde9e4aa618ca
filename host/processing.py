"""`shardwire package --processing steps.toml`: recipes as people write them, with files and rules, made to records.

The TOML has the fields of the records (docs/processing.md). Beside them a step may say `file = "tokenizer.json"`, a
path beside the TOML file whose content goes into the bundle; `names_file = "labels.txt"` for `names`, one a line; and
`when = "label == person and score > 0.8"` for a rule.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from edge.errors import BundleError
from edge.formats.bundle import Blob
from edge.formats.processing import NO_PROCESSING, Processing, check_processing
from edge.formats.steps import MAX_TOKENIZER_BYTES
from edge.formats.tensor import TensorSpec
from host.bundle import blob_of
from host.errors import PackageError
from host.rules import parse_rule

MAX_PROCESSING_BYTES = 16 * 1024 * 1024

_FORM = "1.0"
_KINDS = (("input", "inputs"), ("answer", "answers"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Declared:
    """What is done before and after a model, and the files for it.

    Attributes:
        processing: the recipes.
        files: content by digest.
    """

    processing: Processing = NO_PROCESSING
    files: Mapping[str, bytes]


def read_processing(path: Path) -> Declared:
    """Read a TOML file of recipes.

    Raises:
        PackageError: it, or a file that it names, cannot be read, or is malformed; names the file and the place in it.
    """
    data = _content(path, MAX_PROCESSING_BYTES)
    try:
        tree = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PackageError(f"{path}: no TOML: {error}") from error
    if unknown := sorted(tree.keys() - {"format", *(kind for kind, _ in _KINDS)}):
        raise PackageError(f"{path}: {unknown[0][:80]!r} is not known here; allowed: format, [[input]], [[answer]]")
    if tree.get("format", _FORM) != _FORM:
        raise PackageError(f"{path}: format {str(tree['format'])[:20]!r}; this release reads {_FORM}")
    files: dict[str, bytes] = {}
    told: dict[str, Any] = {}
    for kind, field in _KINDS:
        recipes = tree.get(kind, [])
        told[field] = recipes
        for place, recipe in enumerate(recipes if isinstance(recipes, list) else []):
            steps = recipe.get("steps", []) if isinstance(recipe, dict) else []
            for index, step in enumerate(steps if isinstance(steps, list) else []):
                if isinstance(step, dict):
                    _fill(step, path, f"{kind}[{place}].steps[{index}]", files)
    try:
        processing = msgspec.convert(told, Processing)
    except msgspec.ValidationError as error:
        raise PackageError(f"{path}: {_in_toml(str(error))}") from error
    return Declared(processing=processing, files=files)


def processing_for(
    path: Path | None, known: Processing, *, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
) -> Declared:
    """Return what a file declares, after a look at whether it fits a model; without a file what is known.

    Raises:
        PackageError: it names inputs or outputs that the model does not have, or its steps do not follow from each
            other, or as `read_processing`.
    """
    if path is None:
        return Declared(processing=known, files={})
    declared = read_processing(path)
    try:
        check_processing(declared.processing, inputs=inputs, outputs=outputs, where=str(path))
    except BundleError as error:
        names = f"inputs {', '.join(spec.name for spec in inputs)}; outputs {', '.join(spec.name for spec in outputs)}"
        raise PackageError(f"{_in_toml(str(error))} (the model has {names[:400]})") from error
    return declared


def _fill(step: dict[str, Any], path: Path, place: str, files: dict[str, bytes]) -> None:
    """Replace what people write by what the record has."""
    if isinstance(file := step.get("file"), str):
        blob = _stored(path.parent / file, files)
        step["file"] = msgspec.to_builtins(blob)
    if isinstance(file := step.pop("names_file", None), str):
        if "names" in step:
            raise PackageError(f"{path}: {place}: names and names_file: give one of them")
        step["names"] = _names(path.parent / file)
    if isinstance(rule := step.get("when"), str):
        try:
            step["when"] = msgspec.to_builtins(parse_rule(rule))
        except PackageError as error:
            raise PackageError(f"{path}: {place}.when: {error}") from error


def _stored(path: Path, files: dict[str, bytes]) -> Blob:
    data = _content(path, MAX_TOKENIZER_BYTES)
    blob = blob_of(data)
    files[blob.digest] = data
    return blob


def _names(path: Path) -> list[str]:
    """Return the lines of a file; a line of one space is the space, as a charset has it."""
    try:
        text = _content(path, MAX_PROCESSING_BYTES).decode()
    except UnicodeDecodeError as error:
        raise PackageError(f"{path}: not a text in UTF-8") from error
    # Not `splitlines`, which breaks at letters that a charset may hold.
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines[:-1] if lines[-1] == "" else lines


def _content(path: Path, limit_bytes: int) -> bytes:
    try:
        with path.open("rb") as stream:
            data = stream.read(limit_bytes + 1)
    except OSError as error:
        raise PackageError(f"{path}: cannot be read ({error.strerror})") from error
    if len(data) > limit_bytes:
        raise PackageError(f"{path}: has more than the {limit_bytes} bytes that are allowed")
    return data


def _in_toml(text: str) -> str:
    """Return a message whose place is named as the TOML has it."""
    for kind, field in _KINDS:
        text = text.replace(f"$.{field}", kind).replace(f"processing.{field}", kind)
    return text
