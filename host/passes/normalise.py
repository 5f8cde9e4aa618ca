"""Bring a model into the one form that the later steps rely on, without changing what it computes.

In order: initializers leave the graph inputs; functions are inlined; impure nodes are refused; texts go; constants are
lifted to the main graph; unused nodes, constants and opsets go; shapes of computed tensors are forgotten; names become
unique; accidental order becomes canonical. Running it twice changes nothing.
"""

from __future__ import annotations

from onnx_ir.passes import common

from host.model import Model, copied
from host.passes.forget import canonical_order, forget_shapes, forget_texts
from host.passes.lift_constants import lift_constants
from host.passes.purity import refuse_impure
from host.passes.unique_names import unique_names


def normalise(model: Model) -> Model:
    """Normalise a model.

    Args:
        model: Any model that `host.ingest` returned or a pass made.

    Returns:
        A new model that computes the same.

    Raises:
        UnsupportedModelError: If a node answers the same input differently from run to run.
    """
    graph = copied(model.ir)
    # Before 4, the format wants every initializer to be a graph input as well.
    graph.ir_version = max(graph.ir_version, 4)
    common.RemoveInitializersFromInputsPass()(graph)
    common.InlinePass()(graph)
    refuse_impure(model.with_ir(graph))
    forget_texts(graph)
    lift_constants(graph)
    common.RemoveUnusedNodesPass()(graph)
    common.RemoveUnusedOpsetsPass()(graph)
    forget_shapes(graph)
    unique_names(graph)
    canonical_order(graph)
    return model.with_ir(graph)
