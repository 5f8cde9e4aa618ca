"""Read a TFLite file."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge.formats.processing import NO_PROCESSING, Processing
from edge.formats.tensor import DTYPES
from host.errors import IngestError, RuntimeRefusedError, UnsupportedModelError
from host.ingest.inputs import InputSpec, load_inputs, synthetic_candidates
from host.model import Golden, Tensors, distinct_sizes
from host.passes.bind_shapes import Binding
from host.tflite.file import pack
from host.tflite.graph import TfliteGraph, read_graph
from host.tflite.layers import find_working
from host.tflite.model import TfliteModel, read_tflite
from host.tflite.reference import UNRESOLVED, TfliteReference
from host.tflite.submodel import extract
from host.tflite.trial import try_out

_SYNTHETIC_NOTE = (
    "inputs are made up (seeded random numbers): pass --inputs file.npz to verify and calibrate with real ones"
)
_STATE_NOTE = (
    "the model keeps a state inside from one request to the next: on a device its answers depend on the requests before"
)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class IngestedTflite:
    """What ingest learnt from a TFLite file; see `host.model.Ingested`.

    Attributes:
        model: The model as it was found, shapes bound as asked.
        samples: Inputs for verification and calibration.
        golden: What the whole model answers in LiteRT as people run it, or what the source of a conversion answers.
        processing: How inputs are made and answers are read, as far as it is known.
        holdout: Inputs that calibration never sees.
        holdout_groups: What each of those was taken from.
        notes: Things the user should hear.
    """

    model: TfliteModel
    samples: tuple[Tensors, ...]
    golden: tuple[Golden, ...]
    processing: Processing = NO_PROCESSING
    holdout: tuple[Tensors, ...] = ()
    holdout_groups: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def ingest_tflite(path: Path, *, shapes: Mapping[str, Binding], inputs: str | None) -> IngestedTflite:
    """Read a TFLite file and find out what it answers.

    Args:
        path: The ``.tflite`` file.
        shapes: Sizes for dynamic dimensions, by input name; its dimensions have no names.
        inputs: ``file.npz`` or ``package.module:callable``; made-up inputs when None.

    Raises:
        IngestError: If the file or the inputs cannot be read or do not fit.
        UnsupportedModelError: If stages could not run the model, for example since LiteRT lacks its custom operators.
    """
    model = with_shapes(read_tflite(path), shapes)
    specs = tflite_specs(model.graph, where=str(path))
    refuse_unknown(model, where=str(path))
    try:
        source = TfliteReference(model, mode="default")
    except RuntimeRefusedError as error:
        raise IngestError(f"{path}: {error}") from error
    notes: tuple[str, ...] = ()
    if inputs is not None:
        samples = load_inputs(inputs, specs)
    else:
        samples, notes = _made_up(source, specs, model.name), (_SYNTHETIC_NOTE,)
    if any(operator.resources for operator in model.graph.operators) or any(t.variable for t in model.graph.tensors):
        notes = (*notes, _STATE_NOTE)
    golden = tuple(_golden(source, sample, model.name) for sample in distinct_sizes(samples))
    return IngestedTflite(model=model, samples=samples, golden=golden, notes=notes)


def tflite_specs(graph: TfliteGraph, *, where: str) -> tuple[InputSpec, ...]:
    """Return the inputs of a model.

    Raises:
        IngestError: It has no inputs or no outputs.
        UnsupportedModelError: An input or output is not a dense tensor of a dtype that can travel.
    """
    if not graph.inputs or not graph.outputs:
        raise IngestError(f"{where}: the model has no {'outputs' if graph.inputs else 'inputs'}: nothing to run")
    for kind, indices in (("input", graph.inputs), ("output", graph.outputs)):
        for tensor in (graph.tensors[index] for index in indices):
            if not tensor.dtype:
                raise UnsupportedModelError(
                    f"{where}: {kind} {tensor.name!r} is of type {tensor.type}, which cannot travel between shards; "
                    f"allowed: {', '.join(name for name in DTYPES if name != 'string')}"
                )
    tensors = [graph.tensors[index] for index in graph.inputs]
    return tuple(InputSpec(name=t.name, dtype=t.dtype, shape=t.dims) for t in tensors)


def refuse_unknown(model: TfliteModel, *, where: str) -> None:
    """Try the model out, and name every custom operator that LiteRT lacks.

    Raises:
        IngestError: LiteRT dies of the file.
        UnsupportedModelError: Operators are missing.
    """
    reason = try_out(model.data, where=where)
    if not _is_unresolved(reason):
        return
    working = find_working(model.graph)
    first: dict[str, int] = {}
    for place, operator in enumerate(working.operators):
        if operator.custom:
            first.setdefault(operator.kind, place)
    missing = [
        kind
        for kind, place in sorted(first.items())
        if _is_unresolved(try_out(extract(model, range(place, place + 1), working=working).data, where=where))
    ]
    # A custom operator in the body of a loop is named by LiteRT alone.
    names = ", ".join(missing) or reason
    raise UnsupportedModelError(
        f"{where}: LiteRT has no custom operator {names}: export the model without it, or cut it off before it"
    )


def _is_unresolved(reason: str) -> bool:
    return any(text in reason for text in UNRESOLVED)


def with_shapes(model: TfliteModel, shapes: Mapping[str, Binding]) -> TfliteModel:
    """The model with its input shapes bound as asked.

    Raises:
        IngestError: A binding names no input, or does not fit it.
    """
    graph = model.graph
    by_name = {graph.tensors[index].name: graph.tensors[index] for index in graph.inputs}
    if unknown := sorted(shapes.keys() - by_name.keys()):
        raise IngestError(
            f"--shape {unknown[0]}: TFLite dimensions have no names: give an input, of {', '.join(sorted(by_name))}"
        )
    if not shapes:
        return model
    main = copy.copy(model.tree.subgraphs[0])
    main.tensors = list(main.tensors)
    for name, binding in sorted(shapes.items()):
        tensor = by_name[name]
        sizes = (binding,) if isinstance(binding, int) else binding
        fits = len(sizes) == len(tensor.dims) and all(
            want in (None, have) for want, have in zip(tensor.dims, sizes, strict=True)
        )
        if not fits:
            raise IngestError(f"--shape {name}: {list(sizes)} does not fit {[d or '?' for d in tensor.dims]}")
        record = copy.copy(main.tensors[tensor.index])
        record.shape, record.shapeSignature = np.array(sizes, np.int32), None
        main.tensors[tensor.index] = record
    tree = copy.copy(model.tree)
    tree.subgraphs = [main, *model.tree.subgraphs[1:]]
    return TfliteModel(
        name=model.name,
        data=pack(tree).data,
        tree=tree,
        graph=read_graph(tree, where=model.name),
        origin=model.origin,
    )


def _made_up(source: TfliteReference, specs: tuple[InputSpec, ...], name: str) -> tuple[Tensors, ...]:
    samples: list[Tensors] = []
    reason = ""
    for second in (False, True) if any(spec.is_dynamic for spec in specs) else (False,):
        found, reason = _first_that_runs(source, synthetic_candidates(specs, second=second), reason)
        samples += found
        if not samples:
            wanted = ", ".join(f"{spec.name} {spec}" for spec in specs)
            raise IngestError(f"model {name!r} runs on no made-up input ({wanted}): {reason}; pass --inputs")
    return tuple(samples)


def _first_that_runs(source: TfliteReference, candidates: Iterable[Tensors], reason: str) -> tuple[list[Tensors], str]:
    for sample in candidates:
        try:
            source.run(sample)
        except RuntimeRefusedError as error:
            reason = str(error)
        else:
            return [sample], reason
    return [], reason


def _golden(source: TfliteReference, sample: Tensors, name: str) -> Golden:
    try:
        return Golden(inputs=sample, outputs=source.run(sample))
    except RuntimeRefusedError as error:
        raise IngestError(f"model {name!r} does not run on its inputs: {error}") from error
