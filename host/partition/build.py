"""From an optimised model to the shard part of a manifest and its blobs."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from edge.formats.bundle import BoundaryTensor, Layer, OperatorUse, Shard, encode_graph_part
from edge.formats.tensor import TensorSpec, pack
from host.bundle import blob_of
from host.model import Model, Tensors, all_nodes
from host.observe import Observed, observe, total_bytes
from host.partition.cost import constant_bytes, constant_closure, layer_macs, peak_activation_bytes
from host.partition.fragments import boundary_fragments, header_fragment, shard_files
from host.partition.layers import Layers, find_layers
from host.partition.reordering import depth_first
from host.partition.shards import MAX_SHARDS, LayerSize, SizeOf, group_layers
from host.partition.slicing import choose_cuts, with_slices
from host.planning.branches import Unit, find_branches, units_of
from host.reference import Reference

_SLICING_ROUNDS = 4
_NO_LIMIT_BYTES = 1 << 62


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
    model: Model,
    samples: Sequence[Tensors],
    *,
    max_shard_bytes: int,
    max_shards: int = MAX_SHARDS,
    slice_above_bytes: int | None = None,
) -> Partition:
    """Cut a model into layers at every legal cut and group them into shards.

    Args:
        model: normalised, optimised and fused.
        samples: inputs to observe; two of different size where the model is dynamic.
        max_shard_bytes: the profile's limit.
        max_shards: how many shards are wanted at most.
        slice_above_bytes: layers above this are sliced too, so that a planner may run their slices side by side; None
            for no more than the limit asks for.

    Raises:
        PartitionError: a layer alone exceeds the limit and cannot be sliced.
        UnsupportedModelError: an input or output cannot travel.
        RuntimeRefusedError: onnxruntime cannot run the model.
    """
    divided = divide(model, samples, max_shard_bytes=max_shard_bytes, slice_above_bytes=slice_above_bytes)
    return build(divided, samples, max_shard_bytes=max_shard_bytes, max_shards=max_shards)


def build(
    divided: Divided,
    samples: Sequence[Tensors],
    *,
    max_shard_bytes: int,
    max_shards: int = MAX_SHARDS,
    least_bytes: SizeOf | None = None,
) -> Partition:
    """Group the layers of a divided model into shards.

    Args:
        divided: the model.
        samples: as it was divided with.
        max_shard_bytes: the profile's limit.
        max_shards: how many shards are wanted at most.
        least_bytes: what a shard of some layers counts at least, such as its size in another format.

    Raises:
        PartitionError: a layer alone exceeds the limit.
    """
    layers, graph, observed = divided.layers, divided.model.ir.graph, divided.observed

    def size_of(first: int, stop: int) -> int:
        size = _run_bytes(layers, graph, first, stop)
        return size if least_bytes is None else max(size, least_bytes(first, stop))

    described = _describe_layers(layers, graph, observed)
    ranges = group_layers(
        [
            LayerSize(
                name=layer.name,
                operators=layer.operators,
                macs=layer.macs,
                cut_bytes=total_bytes(layers.cuts[index + 1], observed),
                why=divided.why.get(index, ""),
            )
            for index, layer in enumerate(described)
        ],
        size_of,
        max_shard_bytes=max_shard_bytes,
        max_shards=max_shards,
        borders=_borders(divided),
    )
    blobs: dict[str, bytes] = {}
    shards = tuple(_shard(layers, graph, first, stop, blobs) for first, stop in ranges)
    return Partition(
        header=header_fragment(divided.model.ir),
        inputs=_specs(graph.inputs, observed),
        outputs=_specs(graph.outputs, observed),
        tensors=_boundary_tensors(divided, [*(first for first, _ in ranges), len(described)], samples[0]),
        cuts=layers.cuts,
        layers=described,
        shards=shards,
        operators=_operators(divided.model.ir),
        blobs=blobs,
        parameter_count=sum(v.const_value.size for v in graph.initializers.values() if v.const_value is not None),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Divided:
    """A model in layers, after slicing.

    Attributes:
        model: its nodes in the order of the layers.
        observed: every tensor of it.
        layers: what it is divided into.
        slices: names of the nodes that slices are made of.
        why: why a layer that is too large was not sliced, by its index.
    """

    model: Model
    observed: Mapping[str, Observed]
    layers: Layers
    slices: frozenset[str]
    why: Mapping[int, str]


def divide(
    model: Model,
    samples: Sequence[Tensors],
    *,
    max_shard_bytes: int | None = None,
    slice_above_bytes: int | None = None,
) -> Divided:
    """Order the nodes by branches where that pays, slice what is too large, and find the layers.

    Args:
        model: normalised, optimised and fused.
        samples: inputs to observe; two of different size where the model is dynamic.
        max_shard_bytes: layers above this are sliced; None slices none.
        slice_above_bytes: slice those above this too.

    Raises:
        UnsupportedModelError: an input or output cannot travel.
        RuntimeRefusedError: onnxruntime cannot run the model.
    """
    observed = observe(model, samples)
    layers = find_layers(model, observed)
    ordered = depth_first(model)
    if ordered is not None:
        found = find_layers(ordered, observed)
        if _worth(found, ordered.ir.graph, observed) > _worth(layers, model.ir.graph, observed):
            model, layers = ordered, found
    slices: frozenset[str] = frozenset()
    # Slices of one node of a layer may leave another node of it too large.
    for _ in range(_SLICING_ROUNDS):
        graph = model.ir.graph
        sizes = [_run_bytes(layers, graph, index, index + 1) for index in range(len(layers.layers))]
        chosen = choose_cuts(
            layers,
            graph,
            observed,
            sizes,
            max_shard_bytes=_NO_LIMIT_BYTES if max_shard_bytes is None else max_shard_bytes,
            slice_above_bytes=slice_above_bytes,
            whole=slices,
        )
        if not chosen.cuts:
            break
        model, made = with_slices(model, chosen.cuts, observed)
        slices |= made
        observed = observe(model, samples)
        layers = find_layers(model, observed)
    return Divided(model=model, observed=observed, layers=layers, slices=slices, why=chosen.why)


def _worth(layers: Layers, graph: ir.Graph, observed: Mapping[str, Observed]) -> tuple[int, int]:
    """Return what running branches side by side is worth; of equal orders, that with fewer joins is worth more."""
    found = find_branches(_units(layers, graph, observed))
    return found.worth, -len(found.sections)


def _units(layers: Layers, graph: ir.Graph, observed: Mapping[str, Observed]) -> tuple[Unit, ...]:
    return units_of(
        layers.cuts,
        [layer.reads for layer in layers.layers],
        [layer_macs(layer, graph, observed) for layer in layers.layers],
        [constant_bytes(constant_closure(layer.constants, layers), graph, layers) for layer in layers.layers],
    )


def _borders(divided: Divided) -> dict[int, int]:
    """Return the cuts that keep branches apart: 2 beside slices, 1 elsewhere."""
    layers = divided.layers.layers
    sliced = [any(node.name in divided.slices for node in layer.nodes) for layer in layers]
    return {
        bound: 2 if sliced[bound - 1] or sliced[bound] else 1
        for bounds in find_branches(_units(divided.layers, divided.model.ir.graph, divided.observed)).sections
        for bound in bounds
    }


def _specs(values: Sequence[ir.Value], observed: Mapping[str, Observed]) -> tuple[TensorSpec, ...]:
    return tuple(_spec(str(value.name), observed[str(value.name)]) for value in values)


def _spec(name: str, tensor: Observed) -> TensorSpec:
    return TensorSpec(name=name, dtype=tensor.dtype, shape=tensor.dims)


def _describe_layers(layers: Layers, graph: ir.Graph, observed: Mapping[str, Observed]) -> tuple[Layer, ...]:
    return tuple(
        Layer(
            name=str(layer.nodes[0].name),
            operators=tuple(node.op_type for node in layer.nodes),
            nodes=tuple(str(node.name) for node in layer.nodes),
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


def _boundary_tensors(divided: Divided, borders: Sequence[int], sample: Tensors) -> tuple[BoundaryTensor, ...]:
    """Describe what is alive at any cut; how far it deflates, only where shards meet: that is what may travel."""
    observed = divided.observed
    names = dict.fromkeys(name for cut in divided.layers.cuts for name in cut)
    deflated = _deflated(divided.model, {name for border in borders for name in divided.layers.cuts[border]}, sample)
    tensors = []
    for name in names:
        as_input, as_output = boundary_fragments(name, observed[name])
        tensors.append(
            BoundaryTensor(
                spec=_spec(name, observed[name]),
                size_bytes=observed[name].size_bytes,
                deflated_bytes=deflated.get(name, 0),
                as_input=as_input,
                as_output=as_output,
            )
        )
    return tuple(tensors)


def _deflated(model: Model, names: Collection[str], sample: Tensors) -> dict[str, int]:
    """Return the size of the first golden value of each tensor after zlib level 1."""
    given = {str(value.name) for value in model.ir.graph.inputs}
    outputs = {str(value.name) for value in model.ir.graph.outputs}
    made = sorted(name for name in names if name not in given)
    found = Reference(model, extra_outputs=[name for name in made if name not in outputs]).run(sample, made)
    return {name: len(zlib.compress(pack(name, (found if name in found else sample)[name]), 1)) for name in names}


def _operators(model: ir.Model) -> tuple[OperatorUse, ...]:
    used = {(node.domain, node.op_type) for node in all_nodes(model)}
    versions = model.opset_imports
    return tuple(sorted(OperatorUse(domain=d, name=n, version=versions.get(d, 1)) for d, n in used))
