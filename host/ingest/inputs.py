"""Inputs for verification and calibration: from a file, from a callable, or made up."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edge.formats.tensor import DTYPES, Array, as_tensor
from host.dotted import DOTTED, resolve
from host.errors import IngestError, UnsupportedModelError
from host.model import Tensors

MAX_INPUTS_BYTES = 2 << 30
MAX_SAMPLES = 4096

_SEED = 0x5EED
_WORDS = ("the", "quick", "brown", "fox", "")
_NO_NUMPY = frozenset({ir.DataType.UNDEFINED, ir.DataType.STRING})
# Sizes for (batch, other dynamic dimensions), tried until the model accepts them; convolutional models want
# multiples of 32, recurrent ones short sequences.
_FIRST_SIZES = ((1, 64), (1, 32), (1, 16), (1, 8), (1, 4), (1, 2), (1, 1), (1, 224), (1, 320), (2, 64))
_SECOND_SIZES = ((2, 96), (1, 96), (2, 48), (1, 48), (2, 24), (1, 24), (2, 12), (2, 6), (2, 3), (2, 1), (1, 256))


@dataclass(frozen=True, kw_only=True, slots=True)
class InputSpec:
    """One input of a model.

    Attributes:
        name: Name in the graph.
        dtype: Key of `edge.formats.tensor.DTYPES`.
        shape: A number, a symbol or None (unnamed) for each dimension; None if the model does not even give the rank.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None

    @property
    def is_dynamic(self) -> bool:
        """Whether some dimension is open."""
        return self.shape is None or any(not isinstance(dim, int) for dim in self.shape)

    def __str__(self) -> str:
        dims = "[...]" if self.shape is None else "[" + ", ".join(str(dim or "?") for dim in self.shape) + "]"
        return f"{self.dtype}{dims}"


def input_specs(model: ir.Model) -> tuple[InputSpec, ...]:
    """Read the inputs of a model.

    Raises:
        UnsupportedModelError: If an input or output is not a dense tensor of a dtype that can travel.
    """
    for kind, values in (("input", model.graph.inputs), ("output", model.graph.outputs)):
        for value in values:
            if value.is_initializer():
                continue
            if value.type is not None and not isinstance(value.type, ir.TensorType):
                raise UnsupportedModelError(
                    f"{kind} {value.name!r} is a {type(value.type).__name__}, not a dense tensor: "
                    "it cannot travel between devices"
                )
            if value.type is not None and _dtype_name(value) not in DTYPES:
                raise UnsupportedModelError(
                    f"{kind} {value.name!r} has dtype {_dtype_name(value)}, which cannot travel between devices; "
                    f"allowed: {', '.join(DTYPES)}"
                )
    return tuple(_spec(value) for value in model.graph.inputs if not value.is_initializer())


def load_inputs(source: str, specs: tuple[InputSpec, ...] | None) -> tuple[Tensors, ...]:
    """Read samples from ``file.npz`` or ``package.module:callable``.

    The keys of the file are input names. An array with one axis more than its input holds several samples; all
    arrays then do, and as many. The callable takes nothing and returns a mapping or an iterable of mappings.

    Args:
        source: Where to read.
        specs: Inputs of the model, for checking; None if they are not known yet.

    Raises:
        IngestError: If the source cannot be read or an array does not fit its input.
    """
    if source.endswith(".npz"):
        samples = _from_npz(Path(source), specs or ())
    elif DOTTED.fullmatch(source):
        samples = _from_callable(source)
    else:
        raise IngestError(f"--inputs {source!r}: give a file that ends in .npz, or package.module:callable")
    if not samples:
        raise IngestError(f"--inputs {source}: holds no sample")
    if specs is None:
        return tuple(samples)
    return tuple(_checked(sample, specs, f"--inputs {source}: sample {i}") for i, sample in enumerate(samples))


def synthetic_candidates(specs: tuple[InputSpec, ...], *, second: bool) -> Iterable[Tensors]:
    """Made-up inputs of several sizes, for the caller to try on the model.

    Floats are standard normal, integers 0 or 1, text a few words, all from a fixed seed.

    Args:
        specs: Inputs of the model; each must have a rank.
        second: Give sizes other than those of the first call, for a second verification size.
    """
    sizes: tuple[tuple[int, int], ...] = _SECOND_SIZES if second else _FIRST_SIZES
    if not any(spec.is_dynamic for spec in specs):
        sizes = sizes[:1]
    for batch, other in sizes:
        yield synthetic(specs, batch=batch, other=other)


def synthetic(specs: tuple[InputSpec, ...], *, batch: int, other: int, seed: int = _SEED) -> Tensors:
    """One made-up input.

    Args:
        specs: Inputs of the model.
        batch: Size of dynamic first dimensions, and of dimensions elsewhere that share their symbol.
        other: Size of the other dynamic dimensions.
        seed: Of the random numbers.
    """
    symbols = {spec.shape[0] for spec in specs if spec.shape and isinstance(spec.shape[0], str)}
    rng = np.random.default_rng(seed)
    sample: dict[str, Array] = {}
    for spec in specs:
        if spec.shape is None:
            raise IngestError(f"input {spec.name!r} has no declared shape: bind it with --shape or pass --inputs")
        shape = tuple(
            dim if isinstance(dim, int) else batch if dim in symbols or (dim is None and axis == 0) else other
            for axis, dim in enumerate(spec.shape)
        )
        sample[spec.name] = _random(rng, shape, DTYPES[spec.dtype])
    return sample


def _from_npz(path: Path, specs: tuple[InputSpec, ...]) -> list[Tensors]:
    try:
        with zipfile.ZipFile(path) as archive:
            size_bytes = sum(entry.file_size for entry in archive.infolist())
        if size_bytes > MAX_INPUTS_BYTES:
            raise IngestError(f"--inputs {path}: {size_bytes} bytes are more than {MAX_INPUTS_BYTES}")
        # The one place that reads arrays from outside; without pickle.
        with np.load(path, allow_pickle=False) as stored:  # noqa: TID251
            arrays = {name: as_tensor(stored[name]) for name in stored.files}
    except FileNotFoundError as error:
        raise IngestError(f"--inputs {path}: no such file") from error
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, MemoryError) as error:
        raise IngestError(f"--inputs {path}: not a readable .npz file: {error}") from error
    ranks = {spec.name: len(spec.shape) for spec in specs if spec.shape is not None}
    stacked = {name for name, array in arrays.items() if name in ranks and array.ndim == ranks[name] + 1}
    if not stacked:
        return [arrays]
    counts = {name: array.shape[0] if name in stacked else None for name, array in arrays.items()}
    if len(set(counts.values())) != 1:
        raise IngestError(f"--inputs {path}: the arrays hold different numbers of samples: {counts}")
    count = arrays[next(iter(stacked))].shape[0]
    # ascontiguousarray would make a scalar rank one; asarray keeps it.
    return [{name: np.asarray(array[index]) for name, array in arrays.items()} for index in range(count)]


def _from_callable(source: str) -> list[Tensors]:
    function = resolve(source, fault=IngestError, option="--inputs")
    try:
        result = function()
        found = [result] if isinstance(result, Mapping) else list(result)
        return [{str(name): as_tensor(array) for name, array in sample.items()} for sample in found[:MAX_SAMPLES]]
    except Exception as error:
        raise IngestError(
            f"--inputs {source}: {type(error).__name__}: {error}; it must take nothing and return a mapping of "
            "input name to array, or an iterable of them"
        ) from error


def _checked(sample: Tensors, specs: tuple[InputSpec, ...], where: str) -> Tensors:
    names = {spec.name for spec in specs}
    if missing := sorted(names - sample.keys()):
        raise IngestError(f"{where} lacks input {missing[0]!r}; the model takes {', '.join(sorted(names))}")
    if unknown := sorted(sample.keys() - names):
        raise IngestError(f"{where} has {unknown[0]!r}, but the model takes only {', '.join(sorted(names))}")
    for spec in specs:
        array = sample[spec.name]
        fits = spec.shape is None or (
            array.ndim == len(spec.shape)
            and all(
                not isinstance(want, int) or want == have for want, have in zip(spec.shape, array.shape, strict=True)
            )
        )
        if array.dtype != DTYPES[spec.dtype] or not fits:
            raise IngestError(f"{where}: input {spec.name!r} is {array.dtype}{list(array.shape)}, expected {spec}")
    return {spec.name: sample[spec.name] for spec in specs}


def _spec(value: ir.Value) -> InputSpec:
    if value.type is None:
        raise UnsupportedModelError(f"input {value.name!r} has no declared type")
    dims = None if value.shape is None else tuple(d if isinstance(d, int) else d.value for d in value.shape)
    return InputSpec(name=value.name or "", dtype=_dtype_name(value), shape=dims)


def _dtype_name(value: ir.Value) -> str:
    dtype = value.dtype or ir.DataType.UNDEFINED
    return str(dtype.numpy().name) if dtype not in _NO_NUMPY else dtype.name.lower()


def _random(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    if dtype.kind == "f":
        return np.asarray(rng.standard_normal(shape)).astype(dtype)
    if dtype.kind == "O":
        return np.asarray(np.array(_WORDS, object)[rng.integers(0, len(_WORDS), shape)], object).reshape(shape)
    return np.asarray(rng.integers(0, 2, shape)).astype(dtype)
