"""Read an ONNX file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx.external_data_helper import ExternalDataInfo, load_external_data_for_model, uses_external_data

from edge.formats.tensor import Array
from host.errors import IngestError, RuntimeRefusedError, UnsupportedModelError
from host.ingest.inputs import InputSpec, input_specs, load_inputs, synthetic_candidates
from host.model import (
    PROTOBUF_LIMIT_BYTES,
    Golden,
    Ingested,
    Model,
    Origin,
    Tensors,
    copied,
    distinct_sizes,
    from_proto,
    model_name,
    to_bytes,
)
from host.passes.bind_shapes import Binding, bind_shapes, open_dimensions
from host.passes.densify import densify
from host.passes.lift_constants import own_outputs
from host.passes.purity import refuse_impure
from host.reference import Reference, first_line

_SYNTHETIC_NOTE = (
    "inputs are made up (seeded random numbers): pass --inputs file.npz to verify and calibrate with real ones"
)


def ingest_onnx(path: Path, *, shapes: Mapping[str, Binding], inputs: str | None) -> Ingested:
    """Read an ONNX file and find out what it answers.

    Args:
        path: The ``.onnx`` file; external data must lie in its folder.
        shapes: Sizes for dynamic dimensions, see `host.passes.bind_shapes`.
        inputs: ``file.npz`` or ``package.module:callable``; made-up inputs when None.

    Raises:
        IngestError: If the file or the inputs cannot be read or do not fit.
        UnsupportedModelError: If stages could not run the model.
    """
    proto, digest = _read(path)
    densify(proto)
    origin = Origin(format="onnx", digest=digest, licence=_licence(proto), description=path.name)
    _refuse_no_tensors(proto, path)
    name = model_name(path.stem)
    try:
        # Before anything reads the graph in detail: the runtime is the strictest judge of a damaged one.
        Reference(proto.SerializeToString())
    except RuntimeRefusedError as error:
        raise IngestError(f"model {name!r}: {error}") from error
    try:
        graph = from_proto(proto)
        to_bytes(graph)
    except Exception as error:
        raise IngestError(f"{path}: the graph cannot be read: {first_line(error)}") from error
    model = Model(name=name, ir=graph, origin=origin)
    return from_model(model, shapes=shapes, inputs=inputs)


def from_model(
    model: Model,
    *,
    shapes: Mapping[str, Binding],
    inputs: str | None,
    given: Sequence[Array] | None = None,
) -> Ingested:
    """Bind shapes, collect samples and ask the model, as it is, for its golden outputs.

    Args:
        model: As it was read.
        shapes: Sizes for dynamic dimensions.
        inputs: Where samples come from; None for ``given`` or made-up ones.
        given: One sample, in the order of the graph's inputs.

    Raises:
        IngestError: If the inputs do not fit, or onnxruntime refuses the model.
        UnsupportedModelError: If stages could not run the model.
    """
    model = with_bound_shapes(model, shapes)
    specs = input_specs(model.ir)
    if not specs or not model.ir.graph.outputs:
        raise IngestError(f"model {model.name!r} has no {'inputs' if not specs else 'outputs'}: nothing to run")
    try:
        source = Reference(model, mode="exact")
    except RuntimeRefusedError as error:
        raise IngestError(f"model {model.name!r}: {error}") from error
    owned = with_own_outputs(model)
    names = tuple(value.name or "" for value in owned.ir.graph.outputs)
    notes: tuple[str, ...] = ()
    if given is not None:
        samples: tuple[Tensors, ...] = (dict(zip((spec.name for spec in specs), map(np.asarray, given), strict=True)),)
    elif inputs is not None:
        samples = load_inputs(inputs, specs)
    else:
        samples, notes = _made_up(source, specs, model.name), (_SYNTHETIC_NOTE,)
    golden = tuple(_golden(source, sample, names, model.name) for sample in distinct_sizes(samples))
    return Ingested(model=owned, samples=samples, golden=golden, notes=notes)


def with_bound_shapes(model: Model, shapes: Mapping[str, Binding]) -> Model:
    """The model with its input shapes bound as asked.

    Raises:
        IngestError: If a binding does not fit.
        UnsupportedModelError: If the model is impure.
    """
    refuse_impure(model)
    open_dimensions(model.ir)
    return bind_shapes(model, shapes)


def with_own_outputs(model: Model) -> Model:
    """The model with a node of its own behind every output."""
    graph = copied(model.ir)
    own_outputs(graph)
    return model.with_ir(graph)


def _read(path: Path) -> tuple[onnx.ModelProto, str]:
    try:
        size_bytes = path.stat().st_size
        if size_bytes > PROTOBUF_LIMIT_BYTES:
            raise IngestError(f"{path}: {size_bytes} bytes are more than an ONNX file can have")
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise IngestError(f"{path}: no such file") from error
    except OSError as error:
        raise IngestError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        proto = onnx.load_model_from_string(data)
    except Exception as error:
        # Protobuf's DecodeError is no ValueError, and which one comes depends on its implementation.
        raise IngestError(f"{path}: not an ONNX file, or a damaged one") from error
    if not proto.graph.node or not proto.opset_import:
        raise IngestError(f"{path}: not an ONNX file, or a damaged one: it holds no nodes or no opset")
    digest = hashlib.sha256(data)
    _load_external(proto, path, digest)
    return proto, f"sha256:{digest.hexdigest()}"


def _load_external(proto: onnx.ModelProto, path: Path, digest: hashlib._Hash) -> None:
    locations = sorted({ExternalDataInfo(tensor).location for tensor in _tensors(proto) if uses_external_data(tensor)})
    if not locations:
        return
    folder = path.resolve().parent
    total = 0
    for location in locations:
        file = (folder / location).resolve()
        if not file.is_relative_to(folder):
            raise IngestError(f"{path}: external data {location!r} lies outside the folder of the model")
        if not file.is_file():
            raise IngestError(f"{path}: external data {location!r} is missing beside it")
        total += file.stat().st_size
        if total > PROTOBUF_LIMIT_BYTES:
            raise IngestError(f"{path}: {total} bytes of weights are more than the {PROTOBUF_LIMIT_BYTES} supported")
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    try:
        load_external_data_for_model(proto, str(folder))
    except Exception as error:
        raise IngestError(f"{path}: external data cannot be read: {error}") from error


def _tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from _graph_tensors(proto.graph)
    for function in proto.functions:
        yield from _node_tensors(function.node)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("g"):
                yield from _graph_tensors(attribute.g)
            for graph in attribute.graphs:
                yield from _graph_tensors(graph)


def _refuse_no_tensors(proto: onnx.ModelProto, path: Path) -> None:
    for kind, values in (("input", proto.graph.input), ("output", proto.graph.output)):
        for value in values:
            held = value.type.WhichOneof("value")
            if held not in (None, "tensor_type"):
                raise UnsupportedModelError(
                    f"{path}: {kind} {value.name!r} is a {held.removesuffix('_type').replace('_', ' ')}, not a dense "
                    "tensor: it cannot travel between devices"
                )


def _licence(proto: onnx.ModelProto) -> str:
    for entry in proto.metadata_props:
        if entry.key.lower() in ("license", "licence") and entry.value.strip():
            return str(entry.value).strip().splitlines()[0][:100]
    return "unknown"


def _made_up(source: Reference, specs: tuple[InputSpec, ...], name: str) -> tuple[Tensors, ...]:
    samples: list[Tensors] = []
    reason = ""
    dynamic = any(spec.is_dynamic for spec in specs)
    for second in (False, True) if dynamic else (False,):
        for sample in synthetic_candidates(specs, second=second):
            try:
                source.run(sample)
            except RuntimeRefusedError as error:
                reason = str(error)
                continue
            samples.append(sample)
            break
        if not samples:
            wanted = ", ".join(f"{spec.name} {spec}" for spec in specs)
            raise IngestError(f"model {name!r} runs on no made-up input ({wanted}): {reason}; pass --inputs")
    return tuple(samples)


def _golden(source: Reference, sample: Tensors, names: tuple[str, ...], name: str) -> Golden:
    try:
        answers = source.run(sample)
    except RuntimeRefusedError as error:
        raise IngestError(f"model {name!r} does not run on its inputs: {error}") from error
    return Golden(inputs=sample, outputs=dict(zip(names, answers.values(), strict=True)))
