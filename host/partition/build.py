"""From an optimised model to the shard part of a manifest and its blobs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from edge.formats.bundle import BoundaryTensor, Layer, OperatorUse, Shard, encode_graph_part
from edge.formats.tensor import TensorSpec
from host.bundle import blob_of
from host.model import Model, Tensors, all_nodes
from host.observe import Observed, observe, total_bytes
from host.partition.cost import constant_bytes, constant_closure, layer_macs, peak_activation_bytes
from host.partition.fragments import boundary_fragments, header_fragment, shard_files
from host.partition.layers import Layers, find_layers
from host.partition.shards import MAX_SHARDS, LayerSize, group_layers


@dataclass(frozen=True, kw_only=True, slots=True)
class Partition:
    """A model in shards: what the manifest says of them, and their blobs.

    Attributes:
        blobs: graph parts and weights by digest.
        parameter_count: elements of all initializers.
    """

    header: bytes
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    tensors: tuple[BoundaryTensor, ...]
    cuts: tuple[tuple[str, ...], ...]
    layers: tuple[Layer, ...]
    shards: tuple[Shard, ...]
    operators: tuple[OperatorUse, ...]
    blobs: Mapping[str, bytes]
    parameter_count: int


def partition(
    model: Model, samples: Sequence[Tensors], *, max_shard_bytes: int, max_shards: int = MAX_SHARDS
) -> Partition:
    """Cut a model into layers at every legal cut and group them into shards.

    Args:
        model: normalised, optimised and fused.
        samples: inputs to observe; two of different size where the model is dynamic.
        max_shard_bytes: the profile's limit.
        max_shards: how many shards are wanted at most.

    Raises:
        PartitionError: a layer alone exceeds the limit.
        UnsupportedModelError: an input or output cannot travel.
        RuntimeRefusedError: onnxruntime cannot run the model.
    """
    graph = model.ir.graph
    observed = observe(model, samples)
    layers = find_layers(model, observed)
    described = _describe_layers(layers, graph, observed)
    ranges = group_layers(
        [
            LayerSize(name=layer.name, operators=layer.operators, macs=layer.macs, cut_bytes=total_bytes(cut, observed))
            for layer, cut in zip(described, layers.cuts[1:], strict=True)
        ],
        lambda first, stop: _run_bytes(layers, graph, first, stop),
        max_shard_bytes=max_shard_bytes,
        max_shards=max_shards,
    )
    blobs: dict[str, bytes] = {}
    shards = tuple(_shard(layers, graph, first, stop, blobs) for first, stop in ranges)
    return Partition(
        header=header_fragment(model.ir),
        inputs=_specs(graph.inputs, observed),
        outputs=_specs(graph.outputs, observed),
        tensors=_boundary_tensors(layers, observed),
        cuts=layers.cuts,
        layers=described,
        shards=shards,
        operators=_operators(model.ir),
        blobs=blobs,
        parameter_count=sum(v.const_value.size for v in graph.initializers.values() if v.const_value is not None),
    )


def _specs(values: Sequence[ir.Value], observed: Mapping[str, Observed]) -> tuple[TensorSpec, ...]:
    return tuple(_spec(str(value.name), observed[str(value.name)]) for value in values)


def _spec(name: str, tensor: Observed) -> TensorSpec:
    return TensorSpec(name=name, dtype=tensor.dtype, shape=tensor.dims)


def _describe_layers(layers: Layers, graph: ir.Graph, observed: Mapping[str, Observed]) -> tuple[Layer, ...]:
    return tuple(
        Layer(
            name=str(layer.nodes[0].name),
            operators=tuple(node.op_type for node in layer.nodes),
            macs=layer_macs(layer, graph, observed),
            weight_bytes=constant_bytes(constant_closure(layer.constants, layers), graph, layers),
            peak_activation_bytes=peak_activation_bytes(layer, cut, observed),
        )
        for layer, cut in zip(layers.layers, layers.cuts, strict=False)
    )


def _run_bytes(layers: Layers, graph: ir.Graph, first: int, stop: int) -> int:
    """Return the size of a shard of these layers: its files, and what constant-only nodes make of them."""
    files = shard_files(layers, layers.layers[first:stop], graph)
    names = constant_closure((name for layer in layers.layers[first:stop] for name in layer.constants), layers)
    made = {id(layers.constant_nodes[n]): layers.constant_nodes[n] for n in names if n in layers.constant_nodes}
    size = len(encode_graph_part(files.graph)) + sum(len(data) for data in files.weights.values())
    return size + sum(node.size_bytes for node in made.values())


def _shard(layers: Layers, graph: ir.Graph, first: int, stop: int, blobs: dict[str, bytes]) -> Shard:
    chosen = layers.layers[first:stop]
    files = shard_files(layers, chosen, graph)
    data = encode_graph_part(files.graph)
    described = blob_of(data)
    blobs[described.digest] = data
    blobs.update(files.weights)
    made = {str(value.name) for layer in chosen for node in layer.nodes for value in node.outputs}
    return Shard(
        first_layer=first,
        stop_layer=stop,
        graph=described,
        weights=tuple(blob_of(weight) for weight in files.weights.values()),
        reads=tuple(dict.fromkeys(name for layer in chosen for name in layer.reads if name not in made)),
        size_bytes=_run_bytes(layers, graph, first, stop),
    )


def _boundary_tensors(layers: Layers, observed: Mapping[str, Observed]) -> tuple[BoundaryTensor, ...]:
    names = dict.fromkeys(name for cut in layers.cuts for name in cut)
    tensors = []
    for name in names:
        as_input, as_output = boundary_fragments(name, observed[name])
        tensors.append(
            BoundaryTensor(
                spec=_spec(name, observed[name]),
                size_bytes=observed[name].size_bytes,
                as_input=as_input,
                as_output=as_output,
            )
        )
    return tuple(tensors)


def _operators(model: ir.Model) -> tuple[OperatorUse, ...]:
    used = {(node.domain, node.op_type) for node in all_nodes(model)}
    versions = model.opset_imports
    return tuple(sorted(OperatorUse(domain=d, name=n, version=versions.get(d, 1)) for d, n in used))
