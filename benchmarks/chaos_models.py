"""Make the bundles of `make chaos`: the CIFAR-10 network of `benchmarks.nets`, and one with other weights.

The second has every weight and bias changed by a few percent, seeded: equal shapes, other answers. Two more serve
single faults: `large` is of over 150 blocks, `poison` takes as many MiB as the first number of its input says.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edge.formats.tensor import Array
from host.bundle import OpenBundle, open_bundle
from host.package import PackageRequest, package

SOURCE = Path(__file__).parent / "models" / "cifar10.onnx"
NAMES = ("first", "second")
PROFILE = "rpi4"
_CHANGE = 0.05
_LARGE_LAYERS = 8
_LARGE_WIDTH = 832
_POISON_WIDTH = 8
_FLOATS_OF_MIB = (1 << 20) // 4

__all__ = ["NAMES", "large_bundle", "make_bundles", "poison_bundle"]


def make_bundles(folder: Path) -> tuple[OpenBundle, OpenBundle]:
    """Write both bundles into a folder, or open those that are there.

    Args:
        folder: Made when it does not exist.
    """
    folder.mkdir(parents=True, exist_ok=True)
    first, second = (_bundle(folder, name) for name in NAMES)
    return first, second


def _bundle(folder: Path, name: str) -> OpenBundle:
    target = folder / name
    if target.exists():
        return open_bundle(target)
    source = SOURCE if name == NAMES[0] else _changed(folder / f"{name}.onnx")
    request = PackageRequest(
        source=str(source), profile=PROFILE, target=target, quantize="none", shapes={"batch": 1}, name="chaos"
    )
    return package(request).bundle


def _changed(target: Path) -> Path:
    """Write the network with other weights."""
    model = onnx.load(SOURCE)
    draw = np.random.default_rng(7)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32:
            changed = values * (1 + _CHANGE * draw.standard_normal(values.shape)).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
    onnx.save(model, target)
    return target


def large_bundle(folder: Path) -> OpenBundle:
    """Write a bundle of 22 MB into a folder, or open the one that is there: `y = relu(relu(x · w0) · w1) · …`."""
    draw = np.random.default_rng(5)
    size = _LARGE_WIDTH
    weights = [
        numpy_helper.from_array((draw.standard_normal((size, size)) / size**0.5).astype(np.float32), f"w{layer}")
        for layer in range(_LARGE_LAYERS)
    ]
    names = ["x", *(f"t{layer}" for layer in range(1, _LARGE_LAYERS)), "y"]
    nodes = []
    for layer in range(_LARGE_LAYERS):
        # Products alone would be folded into one.
        nodes.append(helper.make_node("MatMul", [names[layer], f"w{layer}"], [f"p{layer}"]))
        nodes.append(helper.make_node("Relu", [f"p{layer}"], [names[layer + 1]]))
    return _made(folder, "large", nodes, weights, width=size, outputs=size)


def poison_bundle(folder: Path) -> OpenBundle:
    """Write the bundle that can be told to take memory into a folder, or open the one that is there.

    It answers `x · w` plus the sum of so many mebibytes of ones as `x[0, 0]` says, none below 1.
    """
    draw = np.random.default_rng(3)
    constants: dict[str, Array] = {
        "from": np.array([0], np.int64),
        "to": np.array([1], np.int64),
        "axis": np.array([1], np.int64),
        "flat": np.array([-1], np.int64),
        "mebi": np.array([_FLOATS_OF_MIB], np.int64),
        "w": draw.standard_normal((_POISON_WIDTH, 4)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Slice", ["x", "from", "to", "axis"], ["first"]),
        helper.make_node("Relu", ["first"], ["least"]),
        helper.make_node("Cast", ["least"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["whole", "flat"], ["count"]),
        helper.make_node("Mul", ["count", "mebi"], ["shape"]),
        helper.make_node("ConstantOfShape", ["shape"], ["ones"], value=numpy_helper.from_array(np.ones(1, np.float32))),
        helper.make_node("ReduceSum", ["ones"], ["sum"], keepdims=0),
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node("Add", ["product", "sum"], ["y"]),
    ]
    weights = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    return _made(folder, "poison", nodes, weights, width=_POISON_WIDTH, outputs=4)


def _made(
    folder: Path,
    name: str,
    nodes: list[onnx.NodeProto],
    weights: list[onnx.TensorProto],
    *,
    width: int,
    outputs: int,
) -> OpenBundle:
    target = folder / name
    if target.exists():
        return open_bundle(target)
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, outputs])],
        weights,
    )
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / f"{name}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), source)
    return package(
        PackageRequest(source=str(source), profile=PROFILE, target=target, quantize="none", name=name)
    ).bundle


def main() -> None:
    """Make them where the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    make_bundles(folder)
    large_bundle(folder)
    poison_bundle(folder)


if __name__ == "__main__":
    main()
