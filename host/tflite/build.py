"""From a TFLite model to the shard part of a manifest and its blobs."""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from edge.formats.bundle import BoundaryTensor, Layer, OperatorUse, RuntimeNeed, Shard, TflitePart, encode_graph_part
from edge.formats.tensor import TensorSpec
from host.bundle import blob_of
from host.model import Tensors
from host.observe import Observed, total_bytes
from host.partition.build import Partition
from host.partition.shards import MAX_SHARDS, LayerSize, group_layers
from host.tflite.cost import operator_macs, peak_activation_bytes, weight_bytes
from host.tflite.graph import TfliteGraph
from host.tflite.layers import TfliteLayers, find_layers
from host.tflite.model import TfliteModel
from host.tflite.observe import observe_tflite
from host.tflite.submodel import SubModel, extract
from host.tflite.versions import runs_on_tflite_runtime

LEAST_BLOB_BYTES = 1024
"""Constants from here on are blobs of their own."""

BUILTIN_DOMAIN = "tflite"
"""`OperatorUse.domain` of operators of the schema."""

CUSTOM_DOMAIN = "tflite.custom"
"""`OperatorUse.domain` of operators that only some runtimes know."""

_NO_NAMES: Mapping[str, str] = {}


@dataclass(frozen=True, kw_only=True, slots=True)
class TfliteCuts:
    """A model divided at every legal cut, or at some of them.

    Attributes:
        model: the whole.
        layers: its layers.
        observed: its tensors as they were seen, by name.
        values: of the first sample, inner tensors included, by name.
    """

    model: TfliteModel
    layers: TfliteLayers
    observed: Mapping[str, Observed]
    values: Tensors


def divide(model: TfliteModel, samples: Sequence[Tensors], *, cuts: Collection[int] | None = None) -> TfliteCuts:
    """Find the layers of a model.

    Args:
        model: any.
        samples: inputs to observe; two of different size where the model is dynamic.
        cuts: the only places to divide it at, each as the number of working operators before it, as in
            `TfliteLayers.bounds`; None for every legal one.

    Raises:
        IngestError: LiteRT cannot run the model on a sample.
        PartitionError: one of `cuts` is not legal.
        UnsupportedModelError: an input or output cannot travel.
    """
    observed, values = observe_tflite(model, samples)
    return TfliteCuts(
        model=model, layers=find_layers(model.graph, observed, cuts=cuts), observed=observed, values=values
    )


def partition_tflite(
    model: TfliteModel,
    samples: Sequence[Tensors],
    *,
    max_shard_bytes: int,
    max_shards: int = MAX_SHARDS,
    cuts: Collection[int] | None = None,
    ranges: Sequence[tuple[int, int]] | None = None,
    names: Mapping[str, str] = _NO_NAMES,
) -> Partition:
    """Cut a TFLite model into layers and group them into shards, each a complete sub-model.

    Args:
        model: any.
        samples: inputs to observe; two of different size where the model is dynamic.
        max_shard_bytes: the profile's limit.
        max_shards: how many shards are wanted at most.
        cuts: the only places to divide it at, as for `divide`; None for every legal one.
        ranges: the layers of each shard, where that is decided already.
        names: other names for tensors of cuts, where a twin of the model calls them so.

    Raises:
        IngestError: LiteRT cannot run the model on a sample.
        PartitionError: a layer alone exceeds the limit, or one of `cuts` is not legal.
        UnsupportedModelError: an input or output cannot travel.
    """
    divided = divide(model, samples, cuts=cuts)
    layers, observed, graph = divided.layers, divided.observed, model.graph
    builder = _Builder(divided=divided, names=names)
    described = _describe_layers(divided)
    chosen = ranges or group_layers(
        [
            LayerSize(
                name=layer.name,
                operators=layer.operators,
                macs=layer.macs,
                cut_bytes=total_bytes(layers.cuts[index + 1], observed),
                why="TFLite operators are not sliced",
            )
            for index, layer in enumerate(described)
        ],
        builder.size,
        max_shard_bytes=max_shard_bytes,
        max_shards=max_shards,
    )
    blobs: dict[str, bytes] = {}
    shards = tuple(builder.shard(first, stop, blobs) for first, stop in chosen)
    borders = [*(first for first, _ in chosen), len(described)]
    return Partition(
        header=b"",
        inputs=_specs(graph.names(graph.inputs), divided, names),
        outputs=_specs(graph.names(graph.outputs), divided, names),
        tensors=_boundary_tensors(divided, borders, names),
        cuts=tuple(tuple(names.get(name, name) for name in cut) for cut in layers.cuts),
        layers=described,
        shards=shards,
        operators=operators_used(graph),
        blobs=blobs,
        parameter_count=_parameters(model),
    )


def operators_used(graph: TfliteGraph) -> tuple[OperatorUse, ...]:
    """Return every operator of a model, subgraphs included, sorted."""
    return tuple(
        sorted(
            OperatorUse(domain=CUSTOM_DOMAIN if custom else BUILTIN_DOMAIN, name=kind, version=version)
            for kind, version, custom in graph.used
        )
    )


def runtimes_of(graph: TfliteGraph) -> tuple[RuntimeNeed, ...]:
    """Return the runtimes that can run a model, the preferred one first."""
    needs = [RuntimeNeed(name="litert", least_version="1.0")]
    if runs_on_tflite_runtime(graph):
        needs.append(RuntimeNeed(name="tflite-runtime", least_version="2.14"))
    return tuple(needs)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Builder:
    """Makes shards of runs of layers, and remembers how large they are."""

    divided: TfliteCuts
    names: Mapping[str, str]
    sizes: dict[tuple[int, int], int] = field(default_factory=dict)

    def submodel(self, first: int, stop: int) -> SubModel:
        """Write the layers `[first, stop)`."""
        layers = self.divided.layers
        return extract(
            self.divided.model,
            range(layers.bounds[first], layers.bounds[stop]),
            working=layers.working,
            observed=self.divided.observed,
            names=self.names,
        )

    def size(self, first: int, stop: int) -> int:
        """Return the size of a shard of these layers: its file, and what constant-only operators make of it."""
        if (first, stop) not in self.sizes:
            made = self.submodel(first, stop)
            self.sizes[first, stop] = len(made.data) + made.made_bytes
        return self.sizes[first, stop]

    def shard(self, first: int, stop: int, blobs: dict[str, bytes]) -> Shard:
        """Write a shard and put its blobs beside the others."""
        made = self.submodel(first, stop)
        part, weights = _pieces(made)
        data = encode_graph_part(part)
        graph = blob_of(data)
        blobs[graph.digest] = data
        described = [blob_of(weight) for weight in weights]
        blobs.update((blob.digest, weight) for blob, weight in zip(described, weights, strict=True))
        return Shard(
            first_layer=first,
            stop_layer=stop,
            graph=graph,
            weights=tuple(described),
            reads=made.inputs,
            size_bytes=len(made.data) + made.made_bytes,
        )


def _pieces(made: SubModel) -> tuple[TflitePart, tuple[bytes, ...]]:
    """Divide a file into its large constants and what is between them; equal constants are one blob."""
    places: dict[bytes, int] = {}
    pieces: list[bytes | int] = []
    done = 0
    for start, stop in made.weights:
        if stop - start < LEAST_BLOB_BYTES:
            continue
        pieces += [made.data[done:start], places.setdefault(made.data[start:stop], len(places))]
        done = stop
    pieces.append(made.data[done:])
    part = TflitePart(inputs=made.inputs, outputs=made.outputs, pieces=tuple(pieces))
    return part, tuple(places)


def _describe_layers(divided: TfliteCuts) -> tuple[Layer, ...]:
    model, layers, observed = divided.model, divided.layers, divided.observed
    return tuple(
        Layer(
            name=operators[0].name,
            operators=tuple(operator.kind for operator in operators),
            nodes=tuple(operator.name for operator in operators),
            macs=sum(operator_macs(model, operator, observed) for operator in operators),
            weight_bytes=weight_bytes(model, layers.working, operators),
            peak_activation_bytes=peak_activation_bytes(model, operators, cut, observed),
        )
        for operators, cut in zip(layers.layers, layers.cuts, strict=False)
    )


def _specs(wanted: Sequence[str], divided: TfliteCuts, names: Mapping[str, str]) -> tuple[TensorSpec, ...]:
    return tuple(_spec(name, divided.observed[name], names) for name in wanted)


def _spec(name: str, tensor: Observed, names: Mapping[str, str]) -> TensorSpec:
    return TensorSpec(name=names.get(name, name), dtype=tensor.dtype, shape=tensor.dims)


def _boundary_tensors(
    divided: TfliteCuts, borders: Sequence[int], names: Mapping[str, str]
) -> tuple[BoundaryTensor, ...]:
    """Describe what is alive at any cut; how far it deflates, only where shards meet: that is what may travel."""
    meeting = {name for border in borders for name in divided.layers.cuts[border]}
    return tuple(
        BoundaryTensor(
            spec=_spec(name, divided.observed[name], names),
            size_bytes=divided.observed[name].size_bytes,
            deflated_bytes=len(zlib.compress(divided.values[name].tobytes(), 1)) if name in meeting else 0,
            as_input=b"",
            as_output=b"",
        )
        for name in dict.fromkeys(name for cut in divided.layers.cuts for name in cut)
    )


def _parameters(model: TfliteModel) -> int:
    """Elements of all constants, each buffer once."""
    found: dict[int, int] = {}
    for tensor, record in zip(model.graph.tensors, model.tree.subgraphs[0].tensors, strict=True):
        if tensor.constant and tensor.size_bytes:
            found[record.buffer] = math.prod(tensor.shape)
    return sum(found.values())
