"""What converters of models to TFLite give: a file that was proved to answer as its source does.

`to_tflite` picks the converter: litert-torch for a PyTorch factory and the default model, onnx2tf for an ONNX
file, and for the one that a TensorFlow model becomes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from edge.formats.tensor import Array
from host.compare import compare
from host.dotted import DOTTED
from host.errors import IngestError, RuntimeRefusedError, UnsupportedModelError
from host.ingest import ingest, is_tensorflow
from host.ingest.tflite import IngestedTflite, refuse_unknown
from host.model import Golden, Ingested, Origin, Tensors
from host.passes.bind_shapes import Binding
from host.tflite.file import pack, unpack
from host.tflite.model import tflite_model
from host.tflite.reference import TfliteReference
from host.tflite.signature import signature

# Runtimes differ by the order of sums; a wrong conversion differs by orders of magnitude more.
_TOLERANCE = 1e-3


def to_tflite(source: str, *, shapes: Mapping[str, Binding], inputs: str | None) -> IngestedTflite:
    """Convert a model to TFLite.

    Args:
        source: A path that ends in ``.onnx``, or of a TensorFlow model, which goes through ONNX;
            ``package.module:factory`` of a torch module; or ``efficientnet-lite0`` (also when empty), the default.
        shapes: Sizes for dynamic dimensions of an ONNX or TensorFlow model; all must be bound.
        inputs: ``file.npz`` or ``package.module:callable`` with inputs in the layout of the source.

    Raises:
        IngestError: The source cannot be read, the converter is missing or fails, or the file that it makes answers
            differently.
        UnsupportedModelError: Nothing converts such a source.
    """
    if source in ("", "efficientnet-lite0"):
        if shapes or inputs is not None:
            raise IngestError("the default model brings its own inputs and shapes: leave out --shape and --inputs")
        return _default_model()
    path = Path(source)
    if path.suffix.lower() == ".onnx" or is_tensorflow(path):
        from host.ingest.onnx2tf import tflite_from_onnx

        return tflite_from_onnx(ingest(source, shapes=shapes, inputs=inputs), source)
    if DOTTED.fullmatch(source):
        if shapes:
            raise IngestError(f"{source}: the example inputs give the shapes of a PyTorch model: leave out --shape")
        from host.ingest.litert_torch import tflite_from_factory

        return tflite_from_factory(source, inputs=inputs)
    raise UnsupportedModelError(
        f"{source!r} cannot be converted to TFLite: give a path that ends in .onnx, a TensorFlow model, "
        "package.module:factory, or efficientnet-lite0"
    )


def _default_model() -> IngestedTflite:
    from host.ingest import litert_torch, onnx2tf
    from host.ingest.zoo import ingest_efficientnet_lite0

    if litert_torch.is_installed():
        return litert_torch.tflite_from_default(ingest_efficientnet_lite0())
    try:
        onnx2tf.find_program()
    except IngestError as error:
        raise IngestError(
            f"EfficientNet-Lite0 to TFLite needs litert-torch, {litert_torch.INSTALL}; or onnx2tf: {onnx2tf.INSTALL}"
        ) from error
    return onnx2tf.tflite_from_onnx(ingest_efficientnet_lite0(), "efficientnet-lite0")


def adopt(
    data: bytes,
    *,
    name: str,
    origin: Origin,
    samples: Sequence[Tensors],
    golden: Sequence[Golden],
    source: Ingested | None = None,
) -> IngestedTflite:
    """Read a converted file, give its inputs and outputs the names of the source, and compare the answers of both.

    Args:
        data: The file.
        name: Of the model.
        origin: Of the source.
        samples: By input name of the source.
        golden: At least one, by input and output name of the source, the outputs in its order.
        source: What else is known about it: processing, holdout, notes.

    Returns:
        The model; its golden outputs are those of the source, in the layout of the file.

    Raises:
        IngestError: The file cannot be read, has other inputs or outputs than its source, or answers differently.
        UnsupportedModelError: It is sound, but holds what stages cannot run.
    """
    model = tflite_model(_with_names(data, golden[0], name), name=name, origin=origin)
    refuse_unknown(model, where=name)
    try:
        reference = TfliteReference(model)
        own = tuple(_judged(reference, pair, name) for pair in golden)
    except RuntimeRefusedError as error:
        raise IngestError(f"model {name!r}: {error}") from error
    found = IngestedTflite(model=model, samples=tuple(samples), golden=own)
    if source is None:
        return found
    return dataclasses.replace(
        found,
        processing=source.processing,
        holdout=source.holdout,
        holdout_groups=source.holdout_groups,
        notes=source.notes,
    )


def _with_names(data: bytes, golden: Golden, name: str) -> bytes:
    """The file with the source's names for its inputs and outputs."""
    tree = unpack(data, where=name)
    graph = tflite_model(data, name=name, origin=Origin(format="tflite", digest="")).graph
    tensors = tree.subgraphs[0].tensors
    signed_inputs, signed_outputs = signature(data, where=name)
    named: dict[int, str] = {}
    for kind, wanted, indices, signed in (
        ("inputs", tuple(golden.inputs), graph.inputs, signed_inputs),
        ("outputs", tuple(golden.outputs), graph.outputs, signed_outputs),
    ):
        places = {**{graph.tensors[index].name: index for index in indices}, **signed}
        found = [indices[0]] if len(indices) == 1 == len(wanted) else [places.get(word, -1) for word in wanted]
        if sorted(found) != sorted(indices):
            raise IngestError(
                f"model {name!r}: the {kind} of its conversion to TFLite, {', '.join(graph.names(indices))}, are not "
                f"those of the source, {', '.join(wanted)}"
            )
        named.update(zip(found, wanted, strict=True))
    taken = {word.encode() for word in named.values()}
    for index, tensor in enumerate(tensors):
        if index in named:
            tensor.name = named[index].encode()
        elif tensor.name in taken:
            tensor.name = bytes(tensor.name) + b";inner"
    return pack(tree).data


def _judged(reference: TfliteReference, pair: Golden, name: str) -> Golden:
    answer = reference.run(pair.inputs)
    outputs: dict[str, Array] = {}
    for output, array in pair.outputs.items():
        expected, shape = np.asarray(array), answer[output].shape
        # A converter may leave an output in NHWC.
        if expected.shape != shape and expected.ndim > 2 and np.moveaxis(expected, 1, -1).shape == shape:
            expected = np.ascontiguousarray(np.moveaxis(expected, 1, -1))
        outputs[output] = expected
    if fault := compare(answer, outputs, tolerance=_TOLERANCE):
        raise IngestError(f"model {name!r}: its conversion to TFLite answers differently from the source: {fault}")
    return Golden(inputs=pair.inputs, outputs=outputs)
