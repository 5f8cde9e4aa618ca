"""What a quantization gives back, and the checks that all modes share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx

from edge.formats.tensor import Array
from host.compare import compare
from host.compress.recipe import Quantize
from host.errors import QuantizeError, RecipeError, RuntimeRefusedError
from host.model import Model, Tensors, distinct_sizes, from_proto, to_bytes, to_proto
from host.passes.normalise import normalise
from host.passes.transaction import TOLERANCE_FP32
from host.reference import Reference, first_line

Say = Callable[[str], None]


def silent(line: str) -> None:
    """Say nothing."""
    del line


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Quantized:
    """A quantized model and how to make it again without data.

    Attributes:
        model: Normalised, its quantize-dequantize pairs not yet fused.
        plan: Decided: with the ranges that were used, where the mode has any.
        biases: Corrected biases by initializer name, in the model after its structural changes; they belong in a file
            beside the recipe. Empty where none were corrected.
    """

    model: Model
    plan: Quantize
    biases: Mapping[str, Array] = field(default_factory=dict)


def digest_of_model(model: Model) -> str:
    """``sha256:…`` of the serialised model."""
    return f"sha256:{hashlib.sha256(to_bytes(model.ir)).hexdigest()}"


def check_nodes(model: Model, names: Iterable[str], *, where: str) -> None:
    """Refuse names of nodes that the model does not have.

    Raises:
        RecipeError: With the first that is missing.
    """
    nodes = {node.name for node in model.ir.graph}
    if unknown := [name for name in names if name not in nodes]:
        raise RecipeError(f"{where}: the model has no node {unknown[0]!r}")


def at_least_opset(model: Model, least: int, samples: Sequence[Tensors], *, mode: str) -> Model:
    """The model in an opset of ``least`` or later, checked on samples if it had to be converted.

    Args:
        model: A normalised model.
        least: Smallest opset that the mode needs.
        samples: Inputs for the check; without any, the conversion is only loaded.
        mode: For messages.

    Raises:
        QuantizeError: If it cannot be converted.
    """
    if model.ir.opset_imports.get("", least) >= least:
        return model
    try:
        converted = onnx.version_converter.convert_version(to_proto(model.ir), least)
        candidate = normalise(model.with_ir(from_proto(converted)))
        after = Reference(candidate)
    except RuntimeRefusedError as error:
        raise _cannot_convert(model, least, mode, str(error)) from error
    except Exception as error:
        raise _cannot_convert(model, least, mode, first_line(error)) from error
    before = Reference(model)
    for sample in distinct_sizes(samples):
        if fault := compare(after.run(sample), before.run(sample), tolerance=TOLERANCE_FP32):
            raise _cannot_convert(model, least, mode, fault)
    return candidate


def _cannot_convert(model: Model, least: int, mode: str, reason: str) -> QuantizeError:
    return QuantizeError(
        f"model {model.name!r} has opset {model.ir.opset_imports.get('')}, {mode} needs {least}, and it cannot be "
        f"converted ({reason}): export it again with opset {least} or later, or use --quantize none"
    )


def nothing_to_quantize(model: Model, mode: str) -> QuantizeError:
    """The error for a model in which a mode finds nothing to do."""
    return QuantizeError(f"model {model.name!r} has no operator that {mode} can hold: use --quantize none")
