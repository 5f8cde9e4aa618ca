"""One graph pass over one small graph, checked as every pass is."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import numpy_helper

from edge.formats.tensor import Array
from host.model import Model, Tensors
from host.passes.normalise import normalise
from host.passes.transaction import NOTHING, GraphPass, Transactions
from tests.graphs import HEADER, model_of, parsed

Constants = Mapping[str, Array | tuple[int, ...]]


def model_with(text: str, constants: Constants | None = None, *, header: str = HEADER) -> Model:
    """A normalised model from text, and constants by name: arrays, or shapes to be filled with random numbers."""
    rng = np.random.default_rng(0)
    proto = parsed(text, header=header)
    for name, given in (constants or {}).items():
        array = rng.standard_normal(given).astype(np.float32) if isinstance(given, tuple) else given
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return normalise(model_of(proto))


def random_input(*shape: int, name: str = "x", seed: int = 1) -> dict[str, Array]:
    """A sample of one random input."""
    return {name: np.random.default_rng(seed).standard_normal(shape).astype(np.float32)}


def changed_by(graph_pass: GraphPass, model: Model, *samples: Tensors) -> Model:
    """What a pass makes of a model; the answers on the samples are those of before."""
    transactions = Transactions(model, samples)
    outcome = transactions.attempt("pass", graph_pass)
    assert outcome.kept, outcome.reason
    return transactions.model


def leaves_alone(graph_pass: GraphPass, model: Model, *samples: Tensors) -> bool:
    """Whether a pass finds nothing to do; the model runs."""
    return Transactions(model, samples).attempt("pass", graph_pass).reason == NOTHING


def operators(model: Model) -> list[str]:
    """Operator types of the main graph, in order."""
    return [node.op_type for node in model.ir.graph]
