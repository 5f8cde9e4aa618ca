"""Refuse what would make a stage answer differently each time it runs the same input.

1. Random operators, seeded or not: a seed starts a generator that goes on from run to run.
2. Dropout in training mode, or with a training flag that is computed.

Subgraphs and functions are searched too.
"""

from __future__ import annotations

import onnx_ir as ir

from host.errors import UnsupportedModelError
from host.model import Model, all_nodes

_RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
)
_TRAINING_MODE_INPUT = 2
# Before opset 7 a Dropout without `is_test` trains.
_FIRST_OPSET_OF_INFERENCE_DROPOUT = 7


def refuse_impure(model: Model) -> None:
    """Refuse a model whose answer depends on more than its inputs.

    Raises:
        UnsupportedModelError: With the names of all nodes at fault.
    """
    faults = [fault for node in all_nodes(model.ir) if (fault := _fault(node, model.ir))]
    if faults:
        raise UnsupportedModelError(
            f"model {model.name!r} does not answer the same input the same way twice: {'; '.join(faults)}; "
            "export it in evaluation mode, or make the random values an input"
        )


def _fault(node: ir.Node, model: ir.Model) -> str | None:
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type in _RANDOM:
        return f"node {node.name!r} is {node.op_type}"
    if node.op_type == "Dropout" and _trains(node, model):
        return f"node {node.name!r} is a Dropout in training mode"
    return None


def _trains(node: ir.Node, model: ir.Model) -> bool:
    if model.opset_imports.get("", _FIRST_OPSET_OF_INFERENCE_DROPOUT) < _FIRST_OPSET_OF_INFERENCE_DROPOUT:
        flag = node.attributes.get("is_test")
        return flag is None or flag.as_int() == 0
    if len(node.inputs) <= _TRAINING_MODE_INPUT:
        return False
    training = node.inputs[_TRAINING_MODE_INPUT]
    if training is None:
        return False
    constant = ir.convenience.get_const_tensor(training)
    return constant is None or bool(constant.numpy().any())
