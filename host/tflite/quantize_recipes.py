"""What the quantizer is told: its own form of a recipe, from ours.

Its recipe is a list of rules, each for the operators whose first output's name a pattern matches; the last rule that
fits an operator decides. The rules that spare operators stand behind the rule for all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from host.compress.recipe import Quantize
from host.errors import RecipeError
from host.tflite.graph import TfliteGraph

Rule = dict[str, Any]

WEIGHTED = frozenset(
    {"BATCH_MATMUL", "CONV_2D", "DEPTHWISE_CONV_2D", "EMBEDDING_LOOKUP", "FULLY_CONNECTED", "TRANSPOSE_CONV"}
)
"""Operators whose weights the quantizer makes smaller."""

COMPUTING = WEIGHTED | {
    "ADD",
    "AVERAGE_POOL_2D",
    "DIV",
    "GELU",
    "HARD_SWISH",
    "LOGISTIC",
    "MEAN",
    "MUL",
    "RESIZE_BILINEAR",
    "SOFTMAX",
    "SQUARED_DIFFERENCE",
    "SUB",
    "SUM",
    "TANH",
}
"""Operators that lose something by static quantization and that the quantizer knows."""

_MIN_MAX = "min_max_uniform_quantize"
_LEFT_ALONE = "no_quantize"
_HALF = "float_casting"


def rules(plan: Quantize, graph: TfliteGraph, *, outputs: Mapping[int, int], halves: bool) -> list[Rule]:
    """Write a plan as rules of the quantizer.

    Args:
        plan: Its mode is none of ``none``.
        graph: Of the model; the quantizer sees its tensors as ``t<index>``.
        outputs: The tensor that an operator makes there, by its first one in the model, where that is another.
        halves: Whether its weights are in half precision; those that are not quantized then stay so.

    Raises:
        RecipeError: The plan names operators that the model does not have.
    """
    spared = [_pattern(graph, outputs, name, "quantize.exclude") for name in plan.exclude]
    wider = [_pattern(graph, outputs, name, "quantize.wider") for name in plan.wider]
    found = [_rule(".*", _HALF, _weights(16, "FLOAT"))] if halves or plan.mode == "float16" else []
    # The quantizer takes a second rule under the same pattern for a correction of the first.
    found += [_rule(f"(?:{pattern})", _MIN_MAX, config) for pattern, config in _for_all(plan)]
    found += [_rule(f"(?:{pattern})", _MIN_MAX, _weights(8)) for pattern in wider]
    for pattern in spared:
        found.append(_rule(pattern, _LEFT_ALONE, {}))
        if halves:
            found.append(_rule(f"(?:{pattern})", _HALF, _weights(16, "FLOAT")))
    # What goes in and comes out stays in fp32, as in an ONNX model; bodies of control flow have no ranges.
    found.append(_rule("^s[0-9]+t", _LEFT_ALONE, {}))
    return found + [_rule("(?:.*)(?:)", _LEFT_ALONE, {}, operation=end) for end in ("INPUT", "OUTPUT")]


def _for_all(plan: Quantize) -> Iterable[tuple[str, Mapping[str, Any]]]:
    if plan.mode == "int8":
        yield ".*", _weights(8, computes="INTEGER") | {"activation_tensor_config": _tensor(8, symmetric=False)}
    elif plan.mode == "int8-dynamic":
        yield ".*", _weights(8, computes="INTEGER")
    elif plan.mode == "float16":
        return
    else:
        yield ".*", _weights(8)
        if plan.mode == "int4":
            # Depthwise filters have no 4-bit kernels: the rule before stays in force for them.
            yield ".*?", _weights(4)


def _weights(bits: int, dtype: str = "INT", *, computes: str = "FLOAT") -> dict[str, Any]:
    return {
        "weight_tensor_config": _tensor(bits, dtype=dtype, granularity="CHANNELWISE"),
        "compute_precision": computes,
        "explicit_dequantize": computes == "FLOAT",
    }


def _tensor(
    bits: int, *, symmetric: bool = True, dtype: str = "INT", granularity: str = "TENSORWISE"
) -> dict[str, Any]:
    return {"num_bits": bits, "symmetric": symmetric, "granularity": granularity, "dtype": dtype}


def _rule(pattern: str, algorithm: str, config: Mapping[str, Any], *, operation: str = "*") -> Rule:
    return {"regex": pattern, "operation": operation, "algorithm_key": algorithm, "op_config": dict(config)}


def _pattern(graph: TfliteGraph, outputs: Mapping[int, int], name: str, where: str) -> str:
    """Match the one operator of that name."""
    for operator in graph.operators:
        if operator.name == name and operator.makes:
            return f"^t{outputs.get(operator.makes[0], operator.makes[0])};"
    raise RecipeError(f"{where}: the model has no operator {name!r}")
