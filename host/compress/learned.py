"""Weights that data changed, as a safetensors file beside the recipe that names it by digest.

Keys are ``weight/<initializer>`` for values of the optimised and pruned graph, and ``bias/<initializer>`` for biases
that are set after equalization, just before the graph is quantized.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir
import safetensors
import safetensors.numpy

from edge.formats.bundle import digest_of
from edge.formats.tensor import Array
from host.errors import RecipeError
from host.model import Model, copied

MAX_LEARNED_BYTES = 2**31 - 1
SUFFIX = ".safetensors"

_WEIGHT = "weight/"
_BIAS = "bias/"


@dataclass(frozen=True, kw_only=True, slots=True)
class Learned:
    """Values by initializer name.

    Attributes:
        weights: After pruning and recovery, before equalization.
        biases: After bias correction.
    """

    weights: Mapping[str, Array] = field(default_factory=dict)
    biases: Mapping[str, Array] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.weights or self.biases)


def encode_learned(learned: Learned) -> bytes:
    """Write safetensors; equal values give equal bytes, nothing gives none."""
    if not learned:
        return b""
    named = {f"{_WEIGHT}{name}": array for name, array in learned.weights.items()}
    named |= {f"{_BIAS}{name}": array for name, array in learned.biases.items()}
    return safetensors.numpy.save({name: np.asarray(named[name], order="C") for name in sorted(named)})


def decode_learned(data: bytes, *, digest: str, where: str) -> Learned:
    """Read safetensors.

    Args:
        data: The file.
        digest: What the recipe says of it.
        where: Name for messages.

    Raises:
        RecipeError: It is another file than the recipe names, or a damaged one.
    """
    found = digest_of(data)
    if found != digest:
        raise RecipeError(f"{where}: has digest {found}, the recipe names {digest}: take the file that came with it")
    try:
        named = safetensors.numpy.load(data)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise RecipeError(f"{where}: not a safetensors file of plain arrays: {error}") from error
    if strange := sorted(name for name in named if not name.startswith((_WEIGHT, _BIAS))):
        raise RecipeError(f"{where}: holds {strange[0]!r}; names begin with {_WEIGHT} or {_BIAS}")
    return Learned(
        weights={name.removeprefix(_WEIGHT): named[name] for name in sorted(named) if name.startswith(_WEIGHT)},
        biases={name.removeprefix(_BIAS): named[name] for name in sorted(named) if name.startswith(_BIAS)},
    )


def learned_path(recipe: Path) -> Path:
    """Where the learned weights of a recipe file lie: beside it, with the suffix ``.safetensors``."""
    return recipe.with_suffix(SUFFIX)


def load_learned(recipe: Path, digest: str) -> Learned:
    """Read the learned weights of a recipe file; nothing when the recipe names none.

    They lie beside it under its own name, or, as in a bundle, under their digest.

    Raises:
        RecipeError: The file is missing, too large, another one, or damaged.
    """
    if not digest:
        return Learned()
    in_bundle = recipe.with_name(digest.removeprefix("sha256:"))
    path = in_bundle if in_bundle.is_file() else learned_path(recipe)
    try:
        if path.stat().st_size > MAX_LEARNED_BYTES:
            raise RecipeError(f"{path}: more than {MAX_LEARNED_BYTES} bytes")
        data = path.read_bytes()
    except OSError as error:
        raise RecipeError(
            f"{path}: cannot read the weights that {recipe.name} names: {error.strerror}; they belong beside it"
        ) from error
    return decode_learned(data, digest=digest, where=str(path))


def changed_weights(before: Model, after: Model) -> dict[str, Array]:
    """Initializers of ``after`` whose bytes differ from those of ``before``."""
    old = before.ir.graph.initializers
    return {
        name: value.const_value.numpy()
        for name, value in after.ir.graph.initializers.items()
        if value.const_value is not None and not _same(old.get(name), value.const_value)
    }


def with_weights(model: Model, weights: Mapping[str, Array]) -> Model:
    """The model with other values for some initializers.

    Raises:
        RecipeError: It has no such initializer, or one of another shape or type.
    """
    if not weights:
        return model
    graph = copied(model.ir)
    for name, array in weights.items():
        value = graph.graph.initializers.get(name)
        if value is None or value.const_value is None:
            raise RecipeError(f"the learned weights hold {name!r}, which model {model.name!r} does not have")
        held = value.const_value
        if tuple(held.shape.numpy()) != array.shape or held.dtype.numpy() != array.dtype:
            raise RecipeError(
                f"the learned weights hold {name!r} as {array.dtype}{list(array.shape)}, model {model.name!r} has "
                f"{held.dtype.numpy()}{list(held.shape.numpy())}"
            )
        value.const_value = ir.tensor(array, dtype=held.dtype, name=name)
    return model.with_ir(graph)


def _same(value: ir.Value | None, tensor: ir.TensorProtocol) -> bool:
    held = value.const_value if value is not None else None
    return (
        held is not None
        and held.dtype == tensor.dtype
        and tuple(held.shape) == tuple(tensor.shape)
        and held.tobytes() == tensor.tobytes()
    )
