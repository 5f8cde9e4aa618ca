"""Running a model and its twin on the same inputs, and finding which input of the one is which of the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, permutations, product
from typing import Any

import numpy as np

from edge.formats.builds import Form
from edge.formats.tensor import Array
from edge.forms import convert
from host.compare import relative_error
from host.errors import PackageError
from host.model import Tensors
from host.tflite.graph import TfliteTensor
from host.tflite.model import TfliteModel
from host.tflite.reference import TfliteReference
from host.tflite.twin_match import Pair, distance, orders, paired
from host.tflite.vectors import items_of

_MOST_ATTEMPTS = 64
_SEED = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class Meeting:
    """Both models on the same inputs.

    Attributes:
        own: every tensor of the first model, a value for each run.
        other: of the twin, real values in its order of axes.
        given: inputs of the twin in the first run, as it holds them.
        ends: the partners of the inputs and outputs.
        quantized: whether the twin computes with fewer bits, so that values are only near.
        error: of its answers, max|a-b| / max|b|, the largest of all runs.
    """

    own: Mapping[str, Sequence[Array]]
    other: Mapping[str, Sequence[Array]]
    given: Tensors
    ends: tuple[Pair, ...]
    quantized: bool
    error: float


def twin_form(twin: TfliteModel, tensor: TfliteTensor, name: str, axes: tuple[int, ...]) -> Form:
    """Return how the twin holds a tensor that is called `name` elsewhere, with its order of axes."""
    scale, zero_point = _number(twin, tensor)
    return Form(name=name, dtype=tensor.dtype, axes=axes, scale=scale, zero_point=zero_point)


def real(twin: TfliteModel, tensor: TfliteTensor, value: Array) -> Array:
    """Return what a value of the twin stands for: dequantized where it holds integers for floats."""
    form = twin_form(twin, tensor, tensor.name, ())
    return convert(value, form, Form(name=tensor.name, dtype="float32")) if form.scale else value


def meet(
    runs: Sequence[Tensors],
    few: Sequence[Tensors],
    inputs: Sequence[str],
    outputs: Sequence[str],
    twin: TfliteModel,
) -> Meeting:
    """Run the twin as the model was run, with every way to give it the inputs, until it answers alike.

    Args:
        runs: all tensors of the first model, of each run.
        few: the same, of runs with real inputs only: how a quantized twin is judged.
        inputs: of the first model.
        outputs: of the first model.
        twin: the other.

    Raises:
        PackageError: it answers alike in no way, so its weights are others.
        RuntimeRefusedError: LiteRT cannot run it.
    """
    reference = TfliteReference(twin, inner=True)
    nearest = float("inf")
    ways = [(False, runs), (True, few)] if _computes_with_fewer_bits(twin) else [(False, runs)]
    for quantized, chosen in ways:
        for entries in islice(_assignments({name: chosen[0][name] for name in inputs}, twin), _MOST_ATTEMPTS):
            other = [_run(reference, twin, run, entries) for run in chosen]
            own = {name: [run[name] for run in chosen] for name in chosen[0]}
            theirs = {name: [run[name] for run in other] for name in other[0]}
            ends = _answers(own, theirs, outputs, twin, quantized=quantized)
            if ends is not None:
                given = tuple(_entry_pair(name, form, tensor) for name, (tensor, form) in entries.items())
                return Meeting(
                    own=own,
                    other=theirs,
                    given=_given(chosen[0], entries),
                    ends=(*given, *ends),
                    quantized=quantized,
                    error=_error(ends, own, theirs),
                )
            nearest = min(nearest, _nearest(own, theirs, outputs, twin))
    how = f"it differs by {nearest:.2g} of the answer at the least" if nearest < float("inf") else "in another shape"
    raise PackageError(
        f"{twin.origin.description or twin.name}: it does not answer like the model ({how}): a twin has the same "
        "inputs, outputs and weights"
    )


def shuffled(sample: Tensors, number: int = 0) -> dict[str, Array]:
    """Return a sample with the elements of each tensor in another order: other values, all of them allowed."""
    rng = np.random.default_rng((_SEED, number))
    return {name: rng.permutation(array.ravel()).reshape(array.shape) for name, array in sorted(sample.items())}


def _computes_with_fewer_bits(twin: TfliteModel) -> bool:
    """Whether it holds numbers that stand for floats: activations or weights in 16 bits or fewer."""
    halves = any(tensor.type in ("FLOAT16", "BFLOAT16") for tensor in twin.graph.tensors)
    return halves or any(_scaled(record) for record in _records(twin))


def _records(twin: TfliteModel) -> Sequence[Any]:
    records: Sequence[Any] = twin.tree.subgraphs[0].tensors
    return records


def _scaled(record: Any) -> bool:
    quantization = record.quantization
    return quantization is not None and (len(items_of(quantization.scale)) > 0 or quantization.details is not None)


def _number(twin: TfliteModel, tensor: TfliteTensor) -> tuple[float, int]:
    """Return scale and zero point of a tensor, (0, 0) for floats and whole numbers that stand for themselves."""
    quantization = _records(twin)[tensor.index].quantization
    if quantization is None or tensor.dtype not in ("int8", "uint8", "int16"):
        return 0.0, 0
    scales, zeros = items_of(quantization.scale), items_of(quantization.zeroPoint)
    if len(scales) != 1 or not float(scales[0]) > 0:
        return 0.0, 0
    return float(scales[0]), int(zeros[0]) if len(zeros) else 0


_Entries = Mapping[str, tuple[TfliteTensor, Form]]


def _assignments(inputs: Mapping[str, Array], twin: TfliteModel) -> Iterator[_Entries]:
    """Yield the ways to give the twin the inputs of the model; those that keep the order of inputs and axes first."""
    tensors = [twin.graph.tensors[index] for index in twin.graph.inputs]
    if len(tensors) != len(inputs):
        raise PackageError(
            f"{twin.origin.description or twin.name}: it has {len(tensors)} inputs, the model {len(inputs)}: a twin "
            "has the same inputs, outputs and weights"
        )
    for order in permutations(tensors):
        ways = [
            _entry_forms(name, array, tensor, twin) for (name, array), tensor in zip(inputs.items(), order, strict=True)
        ]
        for forms in product(*ways):
            yield {name: (tensor, form) for name, tensor, form in zip(inputs, order, forms, strict=True)}


def _entry_forms(name: str, array: Array, tensor: TfliteTensor, twin: TfliteModel) -> list[Form]:
    found = []
    for axes in orders(array.shape, tensor.shape):
        form = twin_form(twin, tensor, name, () if axes == tuple(range(len(axes))) else axes)
        kind = "f" if form.scale else np.dtype(tensor.dtype).kind.replace("u", "i") if tensor.dtype else ""
        if kind == array.dtype.kind.replace("u", "i"):
            found.append(form)
    return found


def _entry_pair(name: str, form: Form, tensor: TfliteTensor) -> Pair:
    return Pair(own=name, other=tensor.name, axes=form.axes, error=0.0)


def _given(own: Tensors, entries: _Entries) -> dict[str, Array]:
    return {
        tensor.name: convert(own[name], Form(name=name, dtype=own[name].dtype.name), form)
        for name, (tensor, form) in entries.items()
    }


def _run(reference: TfliteReference, twin: TfliteModel, own: Tensors, entries: _Entries) -> dict[str, Array]:
    given = _given(own, entries)
    found = given | reference.run_all(given)
    return {name: real(twin, twin.graph.tensor(name), array) for name, array in found.items()}


def _answers(
    own: Mapping[str, Sequence[Array]],
    other: Mapping[str, Sequence[Array]],
    outputs: Sequence[str],
    twin: TfliteModel,
    *,
    quantized: bool,
) -> tuple[Pair, ...] | None:
    """Pair the outputs, the nearest first; None where one has no partner, or a tensor is missing."""
    theirs = twin.graph.names(twin.graph.outputs)
    found = [
        pair
        for name in outputs
        for candidate in theirs
        if (pair := paired(name, own[name], candidate, other[candidate], quantized=quantized)) is not None
    ]
    chosen: dict[str, Pair] = {}
    for pair in sorted(found, key=lambda pair: pair.error):
        if pair.own not in chosen and pair.other not in {taken.other for taken in chosen.values()}:
            chosen[pair.own] = pair
    return tuple(chosen[name] for name in outputs) if len(chosen) == len(outputs) == len(theirs) else None


def _error(ends: Sequence[Pair], own: Mapping[str, Sequence[Array]], other: Mapping[str, Sequence[Array]]) -> float:
    return max(
        relative_error(found, np.transpose(expected, pair.axes) if pair.axes else expected)
        for pair in ends
        for expected, found in zip(own[pair.own], other[pair.other], strict=True)
    )


def _nearest(
    own: Mapping[str, Sequence[Array]],
    other: Mapping[str, Sequence[Array]],
    outputs: Sequence[str],
    twin: TfliteModel,
) -> float:
    """How near the first output comes to one of the twin's, for the message."""
    found = [
        distance(np.transpose(own[outputs[0]][0], axes), other[name][0], quantized=True)
        for name in twin.graph.names(twin.graph.outputs)
        for axes in orders(own[outputs[0]][0].shape, other[name][0].shape)
    ]
    return min(found, default=float("inf"))
