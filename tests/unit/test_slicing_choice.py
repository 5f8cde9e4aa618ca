"""What is too large is sliced, into as few slices as fit; what cannot be is refused by name."""

from __future__ import annotations

import zlib
from itertools import pairwise

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge.formats.tensor import Array
from host.errors import PartitionError
from host.model import Model
from host.partition.build import Partition, partition
from host.passes.normalise import normalise
from tests.graphs import model_of

FLOAT = TensorProto.FLOAT
GENERATOR = np.random.default_rng(11)


def _floats(*shape: int) -> Array:
    drawn: Array = (GENERATOR.standard_normal(shape) * 0.3).astype(np.float32)
    return drawn


def _chain(*widths: int) -> tuple[Model, Array]:
    """Gemm after Gemm, each with a Relu behind it but the last; `fc0`, `relu0`, `fc1`."""
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, Array] = {}
    source = "x"
    for index, (taken, given) in enumerate(pairwise(widths)):
        constants |= {f"w{index}": _floats(given, taken), f"b{index}": _floats(given)}
        last = index == len(widths) - 2
        made = "y" if last else f"h{index}"
        nodes.append(helper.make_node("Gemm", [source, f"w{index}", f"b{index}"], [made], f"fc{index}", transB=1))
        if not last:
            nodes.append(helper.make_node("Relu", [made], [f"a{index}"], f"relu{index}"))
        source = f"a{index}"
    x = _floats(1, widths[0])
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", FLOAT, [1, widths[0]])],
        [helper.make_tensor_value_info("y", FLOAT, [1, widths[-1]])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return normalise(model_of(proto)), x


def _parts(model: Model, x: Array, limit: int, *, above: int | None = None, most: int = 128) -> Partition:
    return partition(model, [{"x": x}], max_shard_bytes=limit, max_shards=most, slice_above_bytes=above)


def _operators(parts: Partition) -> list[str]:
    return [operator for layer in parts.layers for operator in layer.operators]


def test_only_what_exceeds_the_limit_is_sliced_into_as_few_slices_as_fit() -> None:
    model, x = _chain(32, 64, 256, 16)

    parts = _parts(model, x, 30_000)

    assert _operators(parts) == ["Gemm", "Relu", "Gemm", "Gemm", "Gemm", "Concat", "Relu", "Gemm"]
    assert [layer.weight_bytes for layer in parts.layers[2:5]] == [88 * 65 * 4, 88 * 65 * 4, 80 * 65 * 4]
    assert all(shard.size_bytes <= 30_000 for shard in parts.shards)


def test_around_the_slices_only_the_input_and_the_parts_of_the_output_are_alive() -> None:
    model, x = _chain(32, 64, 256, 16)

    cuts = _parts(model, x, 30_000).cuts

    assert cuts[2] == ("a0",)
    assert cuts[5] == ("h1/slice_0", "h1/slice_1", "h1/slice_2")
    assert cuts[6] == ("h1",)


def test_slices_of_the_first_layer_come_after_an_identity_and_those_of_the_last_before_the_join() -> None:
    model, x = _chain(64, 256)

    parts = _parts(model, x, 40_000)

    assert _operators(parts) == ["Identity", "Gemm", "Gemm", "Concat"]
    assert (parts.cuts[0], parts.cuts[-1]) == (("x",), ("y",))


def test_a_user_may_ask_for_slices_of_what_would_fit() -> None:
    model, x = _chain(32, 64, 256, 16)

    parts = _parts(model, x, 10_000_000, above=40_000)

    assert _operators(parts) == ["Gemm", "Relu", "Gemm", "Gemm", "Concat", "Relu", "Gemm"]


def test_slices_that_nobody_needs_keep_eight_channels() -> None:
    model, x = _chain(512, 64, 16, 8)

    parts = _parts(model, x, 10_000_000, above=2_000)

    assert _operators(parts).count("Gemm") == 1 + 1 + 1
    with pytest.raises(PartitionError, match=r"64 slices of it would still be too large"):
        _parts(model, x, 1_500)


def test_what_is_too_large_and_cannot_be_sliced_is_refused_with_its_size_and_why() -> None:
    x = _floats(1, 32)
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "w"], ["y"], "scale")],
        "net",
        [helper.make_tensor_value_info("x", FLOAT, [1, 32])],
        [helper.make_tensor_value_info("y", FLOAT, [500, 32])],
        [numpy_helper.from_array(_floats(500, 32), "w")],
    )
    model = normalise(model_of(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)))

    assert len(_parts(model, x, 70_000).shards) == 1
    with pytest.raises(PartitionError, match=r"'scale' \(Mul, 64\d\d\d bytes: Mul cannot be sliced\); choose a larger"):
        _parts(model, x, 60_000)


def test_slices_stay_apart_however_few_shards_are_wanted() -> None:
    model, x = _chain(*[16] * 20, 128, 16)

    parts = _parts(model, x, 6_000, most=12)

    names = [[layer.name for layer in parts.layers[shard.first_layer : shard.stop_layer]] for shard in parts.shards]
    assert len(names) < len(parts.layers)
    assert [name for name in names if "/slice_" in name[0]] == [
        [f"fc{layer}/slice_{part}"] for layer in (19, 20) for part in (0, 1)
    ]


def test_layers_name_their_nodes_and_tensors_between_shards_say_how_far_they_deflate() -> None:
    model, _ = _chain(32, 64, 256, 16)
    zeros = np.zeros((1, 32), np.float32)

    parts = _parts(model, zeros, 30_000)

    assert [layer.nodes for layer in parts.layers[:4]] == [("fc0",), ("relu0",), ("fc1/slice_0",), ("fc1/slice_1",)]
    deflated = {tensor.spec.name: tensor.deflated_bytes for tensor in parts.tensors}
    assert deflated["x"] == len(zlib.compress(bytes(128), 1))
    assert min(deflated.values()) > 0


def test_a_sliced_model_has_the_same_bytes_every_time() -> None:
    model, x = _chain(32, 64, 256, 16)

    assert _parts(model, x, 30_000) == _parts(model, x, 30_000)
