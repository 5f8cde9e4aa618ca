"""A small net in the manner of VGG: convolutions, then fully connected layers that hold nearly all of the weights."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

ROOT = Path(__file__).resolve().parents[1]


def vgg_net(*, seed: int = 0, side: int = 16, hidden: int = 512, channels: int = 16) -> onnx.ModelProto:
    """Two convolutions with pooling, and three fully connected layers: `[1, 3, side, side]` to `[1, 10]`."""
    rng = np.random.default_rng(seed)
    flat = channels * (side // 4) ** 2

    def weights(name: str, *shape: int) -> onnx.TensorProto:
        scale = np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 1 else 0.1
        return numpy_helper.from_array((rng.standard_normal(shape) * scale).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("MaxPool", ["r1"], ["p1"], "pool1", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p1", "w2", "b2"], ["c2"], "conv2", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"], "relu2"),
        helper.make_node("MaxPool", ["r2"], ["p2"], "pool2", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["p2"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "w6", "b6"], ["h6"], "fc6", transB=1),
        helper.make_node("Relu", ["h6"], ["r6"], "relu6"),
        helper.make_node("Gemm", ["r6", "w7", "b7"], ["h7"], "fc7", transB=1),
        helper.make_node("Relu", ["h7"], ["r7"], "relu7"),
        helper.make_node("Gemm", ["r7", "w8", "b8"], ["y"], "fc8", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "vgg",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3, side, side])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 10])],
        [
            *(weights("w1", 8, 3, 3, 3), weights("b1", 8)),
            *(weights("w2", channels, 8, 3, 3), weights("b2", channels)),
            *(weights("w6", hidden, flat), weights("b6", hidden)),
            *(weights("w7", hidden, hidden), weights("b7", hidden)),
            *(weights("w8", 10, hidden), weights("b8", 10)),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def small_profile(folder: Path, *, max_shard_bytes: int) -> Path:
    """Write the profile of a Raspberry Pi 4 that takes no larger shards."""
    text = (ROOT / "firmware_profiles" / "rpi4.toml").read_text(encoding="utf-8")
    text = re.sub(r"(?m)^max_shard_bytes = .*\n", "", text)
    text = text.replace("\n[system]", f"\nmax_shard_bytes = {max_shard_bytes}\n\n[system]", 1)
    text = text.replace("\n[sources]\n", '\n[sources]\nmax_shard_bytes = "chosen: below the largest layer"\n', 1)
    path = folder / "small.toml"
    path.write_text(text.replace('id = "rpi4"', 'id = "small"'), encoding="utf-8")
    return path
