"""Running a TFLite model on the host: golden outputs, observation, verification. Loads LiteRT.

The interpreter's own kernels give the same bits wherever a model is cut (`exact`). Its XNNPACK delegate, which it uses
unless told otherwise (`default`), is faster and fuses neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from edge.formats.tensor import Array
from host.errors import RuntimeRefusedError
from host.model import Origin, Tensors
from host.tflite.graph import TfliteGraph
from host.tflite.layers import find_working
from host.tflite.model import TfliteModel, tflite_model
from host.tflite.submodel import with_outputs

TfliteMode = Literal["exact", "default"]

UNRESOLVED = ("unresolved custom op", "Select TensorFlow op")
"""What LiteRT says of a custom operator that it does not have."""

DELEGATE_ALONE = frozenset(("Convolution2DTransposeBias", "MaxPoolingWithArgmax2D", "MaxUnpooling2D"))
"""Custom operators that only the XNNPACK delegate knows."""


class TfliteReference:
    """A model loaded in LiteRT, on one thread, so that the same inputs always give the same bits.

    A model that keeps a state begins anew with each run.

    Args:
        model: A model, or the bytes of a `.tflite` file.
        threads: Of one operator.
        mode: ``"exact"``: the interpreter's own kernels, except for models with one of `DELEGATE_ALONE`.
            ``"default"``: the XNNPACK delegate wherever it can, as a device runs it.
        inner: Whether inner tensors can be asked for; they keep the delegate from fusing across them.

    Raises:
        RuntimeRefusedError: If LiteRT refuses the model.
    """

    def __init__(
        self, model: TfliteModel | bytes, *, threads: int = 1, mode: TfliteMode = "exact", inner: bool = False
    ) -> None:
        if isinstance(model, bytes):
            model = tflite_model(model, name="model", origin=Origin(format="tflite", digest=""))
        graph = model.graph
        given = list(graph.outputs)
        if inner:
            made = [i for operator in find_working(graph).operators for i in operator.makes]
            given += [i for i in dict.fromkeys(made) if graph.tensors[i].dtype and i not in graph.outputs]
        self._data = with_outputs(model, given)
        self._inputs = graph.names(graph.inputs)
        self._given = graph.names(given)
        self._outputs = graph.names(graph.outputs)
        self._threads = threads
        self._mode = mode = mode_for(graph, mode)
        self._keeps_state = any(operator.resources for operator in graph.operators) or any(
            tensor.variable for tensor in graph.tensors
        )
        self._interpreter: Any = load_interpreter(self._data, threads=threads, mode=mode)

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of what can be asked for beside the inputs."""
        return self._given

    def run(self, inputs: Tensors, wanted: Sequence[str] | None = None) -> dict[str, Array]:
        """Run the model.

        Args:
            inputs: Array by input name.
            wanted: Names of outputs, or of inner tensors; None for the outputs of the model.

        Raises:
            RuntimeRefusedError: If LiteRT refuses the inputs or fails.
        """
        if self._interpreter is None:
            self._interpreter = load_interpreter(self._data, threads=self._threads, mode=self._mode)
        names = self._outputs if wanted is None else tuple(wanted)
        try:
            found = run_interpreter(self._interpreter, [inputs[name] for name in self._inputs])
        finally:
            if self._keeps_state:
                self._interpreter = None
        by_name = dict(zip(self._given, found, strict=True))
        return {name: by_name[name] if name in by_name else np.asarray(inputs[name]) for name in names}

    def run_all(self, inputs: Tensors) -> dict[str, Array]:
        """Run the model and return everything that can be asked for."""
        return self.run(inputs, self._given)


def mode_for(graph: TfliteGraph, mode: TfliteMode) -> TfliteMode:
    """Return the mode in which a model and all its sub-models run where `mode` is asked for.

    A model with one of `DELEGATE_ALONE` runs in the default mode altogether: else other operators of it would run by
    other kernels in a sub-model without that one.
    """
    return "default" if any(custom and kind in DELEGATE_ALONE for kind, _, custom in graph.used) else mode


def load_interpreter(data: bytes, *, threads: int = 1, mode: TfliteMode = "exact") -> Any:
    """Load a `.tflite` file that was written here, its tensors allocated.

    Raises:
        RuntimeRefusedError: LiteRT refuses it.
    """
    kinds = OpResolverType
    try:
        interpreter = Interpreter(
            model_content=data,
            num_threads=threads,
            experimental_op_resolver_type=kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES if mode == "exact" else kinds.AUTO,
        )
        interpreter.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        raise RuntimeRefusedError(f"LiteRT cannot run the model: {' '.join(str(error).split())[:400]}") from error
    return interpreter


def run_interpreter(interpreter: Any, inputs: Sequence[Array]) -> list[Array]:
    """Run a loaded file once.

    Args:
        interpreter: from `load_interpreter`.
        inputs: in the order of its subgraph.

    Returns:
        Its outputs, in the order of its subgraph.

    Raises:
        RuntimeRefusedError: LiteRT refuses the inputs or fails.
    """
    try:
        details = interpreter.get_input_details()
        resized = [d for d, array in zip(details, inputs, strict=True) if tuple(d["shape"]) != array.shape]
        for detail, array in zip(details, inputs, strict=True):
            if tuple(detail["shape"]) != array.shape:
                interpreter.resize_tensor_input(detail["index"], array.shape)
        if resized:
            interpreter.allocate_tensors()
        for detail, array in zip(details, inputs, strict=True):
            interpreter.set_tensor(detail["index"], np.ascontiguousarray(array).reshape(array.shape))
        interpreter.invoke()
        return [np.array(interpreter.get_tensor(d["index"])) for d in interpreter.get_output_details()]
    except (RuntimeError, ValueError) as error:
        raise RuntimeRefusedError(
            f"LiteRT failed while running the model: {' '.join(str(error).split())[:400]}"
        ) from error


def chain(parts: Sequence[tuple[Any, Sequence[str], Sequence[str]]], inputs: Tensors) -> dict[str, Array]:
    """Run loaded sub-models one after another: `(interpreter, names it takes, names it gives)` each."""
    tensors: dict[str, Array] = {name: np.asarray(array) for name, array in inputs.items()}
    for interpreter, takes, gives in parts:
        made = run_interpreter(interpreter, [tensors[name] for name in takes])
        tensors.update(zip(gives, made, strict=True))
    return tensors
