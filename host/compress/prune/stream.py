"""Run a model piece by piece over samples, so that a layer can be changed before what follows it runs.

Each node runs once a sample; between the pieces only the tensors stay that are still needed.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnx_ir as ir

from edge.formats.tensor import Array
from host.model import Graph, Tensors
from host.reference import Reference
from host.work import node_reads


class Stream:
    """Samples on their way through a graph, all at the same node.

    Args:
        graph: Of a normalised model. Constants are read when their node runs, so they may change until then.
        samples: Inputs.
    """

    def __init__(self, graph: Graph, samples: Sequence[Tensors]) -> None:
        self._graph = graph
        self._nodes = list(graph.graph)
        self._position = {str(node.name): index for index, node in enumerate(self._nodes)}
        self._last_use = {name: index for index, node in enumerate(self._nodes) for name in node_reads(node)}
        self._next = 0
        self.alive: list[dict[str, Array]] = [dict(sample) for sample in samples]

    def run_before(self, name: str) -> None:
        """Run everything in front of a node, in graph order.

        Raises:
            RuntimeRefusedError: If onnxruntime refuses a piece.
        """
        self._run(self._position[name])

    def run_through(self, name: str) -> None:
        """Run everything up to a node, in graph order; its first output stays for now."""
        self._run(self._position[name] + 1)

    def alive_bytes(self) -> int:
        """Bytes of the tensors of all samples that are still needed."""
        return sum(array.nbytes for tensors in self.alive for array in tensors.values())

    def _run(self, stop: int) -> None:
        piece = self._nodes[self._next : stop]
        if not piece:
            return
        self._next = stop
        made = {str(value.name): None for node in piece for value in node.outputs if value.name}
        # The last node's output is what the caller came for, even if nothing else takes it.
        last = str(piece[-1].outputs[0].name)
        outputs = [name for name in made if self._last_use.get(name, -1) >= stop or name == last]
        taken = dict.fromkeys(name for node in piece for name in node_reads(node) if name not in made)
        for index, tensors in enumerate(self.alive):
            if index == 0:
                inputs = [name for name in taken if name in tensors]
                reference = Reference(self._message(piece, {name: tensors[name] for name in inputs}, outputs))
            tensors.update(reference.run({name: tensors[name] for name in inputs}, outputs))
            for name in [name for name in tensors if self._last_use.get(name, -1) < stop and name != last]:
                del tensors[name]

    def _message(self, piece: Sequence[ir.Node], inputs: Tensors, outputs: Sequence[str]) -> bytes:
        constants = self._graph.graph.initializers
        needed = dict.fromkeys(name for node in piece for name in node_reads(node) if name in constants)
        graph = onnx.GraphProto(name="piece")
        graph.node.extend(ir.serde.serialize_node(node) for node in piece)
        for name in needed:
            tensor = constants[name].const_value
            if tensor is not None:
                message = ir.serde.serialize_tensor(tensor)
                message.name = name
                graph.initializer.append(message)
        for name, array in inputs.items():
            kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
            # The rank is fixed, the sizes are not: samples may differ.
            graph.input.append(onnx.helper.make_tensor_value_info(name, kind, [None] * array.ndim))
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
        imports = [onnx.helper.make_opsetid(*entry) for entry in sorted(self._graph.opset_imports.items())]
        model = onnx.ModelProto(ir_version=self._graph.ir_version, graph=graph, opset_import=imports)
        data: bytes = model.SerializeToString(deterministic=True)
        return data
