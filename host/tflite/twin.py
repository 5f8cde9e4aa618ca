"""One bundle for two runtimes: an ONNX model and its TFLite twin, cut at the same places into the same shards.

The twin holds the same weights and was made by a converter, so that names, layouts and operators differ. Tensors are
matched by value (`host.tflite.twin_match`), cuts are those that both models have (`host.tflite.twin_cuts`), and every
layer between two cuts is run by both with equal inputs before it is believed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from edge.formats.bundle import Build, Form
from edge.formats.tensor import Array
from edge.forms import convert, same_form
from host.errors import PackageError
from host.model import Model, Tensors
from host.partition.build import Divided, Partition, build, divide
from host.partition.layers import joined
from host.partition.shards import MAX_SHARDS
from host.reference import Reference
from host.tflite.build import TfliteCuts, partition_tflite, runtimes_of
from host.tflite.build import divide as divide_tflite
from host.tflite.model import TfliteModel
from host.tflite.reference import load_interpreter, run_interpreter
from host.tflite.submodel import SubModel, extract
from host.tflite.twin_cuts import SharedCut, common_cuts, with_equal_reads, without
from host.tflite.twin_match import CLOSE, QUANTIZED_CLOSE, Pair, distance, match_values
from host.tflite.twin_runs import Meeting, meet, shuffled, twin_form


@dataclass(frozen=True, kw_only=True, slots=True)
class Twins:
    """A model in shards for two runtimes.

    Attributes:
        partition: the first model's, with the layers that both have; its blobs include those of `build`.
        build: the twin's.
        quantized: whether the twin computes with fewer bits than the model.
        error: of the twin's answers, max|a-b| / max|b| against the model's.
        description: what is known of the twin, in a few words.
        left_out: cuts of the first model that the twin does not have.
    """

    partition: Partition
    build: Build
    quantized: bool
    error: float
    description: str
    left_out: int


def partition_twins(
    model: Model,
    twin: TfliteModel,
    samples: Sequence[Tensors],
    *,
    more: Sequence[Tensors] = (),
    max_shard_bytes: int,
    max_shards: int = MAX_SHARDS,
) -> Twins:
    """Cut a model and its twin into the same shards. No layer is sliced.

    Args:
        model: normalised, optimised and fused; not quantized.
        twin: of the same weights, in floats or quantized.
        samples: inputs to observe and match with.
        more: further ones, to check with, and to match what is quantized.
        max_shard_bytes: the profile's limit, kept by the shards of both.
        max_shards: how many shards are wanted at most.

    Raises:
        PackageError: sizes are open, or the models do not answer alike.
        PartitionError: a layer alone exceeds the limit.
        UnsupportedModelError: an input or output cannot travel.
        RuntimeRefusedError: a runtime cannot run its model.
    """
    _check_static(model, twin)
    divided = divide(model, samples)
    given = [samples[0], shuffled(samples[0])]
    real = [samples[0], *more[-1:]]
    runs = _runs(model, [*given, *real, shuffled(samples[0], 1)])
    inputs = [str(value.name) for value in model.ir.graph.inputs]
    outputs = [str(value.name) for value in model.ir.graph.outputs]
    meeting = meet(runs[:2], runs[2 : 2 + len(real)], inputs, outputs, twin)
    found = divide_tflite(twin, [meeting.given])
    checks = runs[2 : 2 + len(real)] if meeting.quantized else runs[:2] + runs[-1:]
    both = _Both(own=divided, other=found, quantized=meeting.quantized, error=meeting.error, checks=checks)
    commons = both.proven(common_cuts(divided.layers.cuts, found.layers.cuts, _pairs(divided, meeting)))
    return _twins(both, commons, samples, meeting.given, max_shard_bytes=max_shard_bytes, max_shards=max_shards)


def _check_static(model: Model, twin: TfliteModel) -> None:
    for value in model.ir.graph.inputs:
        if value.shape is None or not value.shape.is_static():
            raise PackageError(
                f"input {value.name!r} has open sizes, and a twin is of one size: bind them with --shape NAME=SIZE"
            )
    for index in twin.graph.inputs:
        tensor = twin.graph.tensors[index]
        if tensor.is_dynamic:
            raise PackageError(
                f"{twin.origin.description or twin.name}: input {tensor.name!r} has open sizes: convert the model with "
                "fixed ones"
            )


def _runs(model: Model, inputs: Sequence[Tensors]) -> list[dict[str, Array]]:
    graph = model.ir.graph
    outputs = {value.name for value in graph.outputs}
    inner = [str(value.name) for node in graph for value in node.outputs if value.name and value.name not in outputs]
    reference = Reference(model, extra_outputs=inner)
    return [{**sample, **reference.run(sample)} for sample in inputs]


def _pairs(divided: Divided, meeting: Meeting) -> tuple[Pair, ...]:
    """Match all tensors; those of inputs and outputs are settled."""
    settled = {pair.own for pair in meeting.ends}, {pair.other for pair in meeting.ends}

    def inner(tensors: Mapping[str, Sequence[Array]], ends: Collection[str]) -> dict[str, Sequence[Array]]:
        return {name: values for name, values in tensors.items() if name not in ends}

    own = {
        name: values
        for name, values in inner(meeting.own, settled[0]).items()
        if divided.observed[name].can_travel and None not in divided.observed[name].dims
    }
    return (*meeting.ends, *match_values(own, inner(meeting.other, settled[1]), quantized=meeting.quantized))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Both:
    """Both models, divided at every cut of their own.

    Attributes:
        own, other: the first model, and its twin.
        quantized: whether the twin computes with fewer bits.
        error: of the twin's answers.
        checks: all tensors of the first model, in the runs that layers are checked with.
    """

    own: Divided
    other: TfliteCuts
    quantized: bool
    error: float
    checks: Sequence[Tensors]

    def proven(self, commons: Sequence[SharedCut]) -> tuple[SharedCut, ...]:
        """Leave out places until every layer between two of them does the same in both models."""
        name = self.other.model.name
        if len(commons) < 2:
            raise PackageError(f"twin {name}: its inputs and outputs are not those of the model")
        right: set[tuple[int, int]] = set()
        while True:
            kept = with_equal_reads(commons, self._own_reads, self._other_reads)
            spans = list(pairwise(kept))
            wrong = [
                index
                for index, (first, stop) in enumerate(spans)
                if (first.own, stop.own) not in right and not self._agrees(first, stop)
            ]
            if not wrong:
                return kept
            if len(spans) == 1:
                raise PackageError(f"twin {name}: it does not answer like the model on other inputs")
            right |= {(f.own, s.own) for index, (f, s) in enumerate(spans) if index not in wrong}
            commons = without(kept, wrong)

    def sub_model(self, first: SharedCut, stop: SharedCut) -> SubModel:
        """Return the twin's operators between two places as a model of their own."""
        layers = self.other.layers
        operators = range(layers.bounds[first.other], layers.bounds[stop.other])
        return extract(self.other.model, operators, working=layers.working, observed=self.other.observed)

    def own_form(self, name: str) -> Form:
        """Return how the first model holds a tensor."""
        return Form(name=name, dtype=self.own.observed[name].dtype)

    def other_form(self, pair: Pair) -> Form:
        """Return how the twin holds the partner of a tensor."""
        model = self.other.model
        return twin_form(model, model.graph.tensor(pair.other), pair.own, pair.axes)

    def _own_reads(self, first: int, stop: int) -> frozenset[str]:
        return frozenset(joined(self.own.layers, [first, stop]).layers[0].reads)

    def _other_reads(self, first: int, stop: int) -> frozenset[str]:
        graph, layers = self.other.model.graph, self.other.layers
        operators = layers.working.operators[layers.bounds[first] : layers.bounds[stop]]
        read = {graph.tensors[index].name for each in operators for index in layers.working.reads(each, graph)}
        return frozenset(read.intersection(layers.cuts[first]))

    def _agrees(self, first: SharedCut, stop: SharedCut) -> bool:
        """Whether the twin's layer makes of the model's tensors what the model made of them."""
        sub = self.sub_model(first, stop)
        enters = {pair.other: pair for pair in first.partners.values()}
        leaves = {pair.other: pair for pair in stop.partners.values()}
        interpreter = load_interpreter(sub.data)
        limit = QUANTIZED_CLOSE if self.quantized else CLOSE
        for run in self.checks:
            pairs = [enters[name] for name in sub.inputs]
            given = [convert(run[pair.own], self.own_form(pair.own), self.other_form(pair)) for pair in pairs]
            for name, made in zip(sub.outputs, run_interpreter(interpreter, given), strict=True):
                pair = leaves[name]
                value = convert(made, self.other_form(pair), self.own_form(pair.own))
                if distance(run[pair.own], value, quantized=self.quantized) > limit:
                    return False
        return True


def _twins(
    both: _Both,
    commons: Sequence[SharedCut],
    samples: Sequence[Tensors],
    given: Tensors,
    *,
    max_shard_bytes: int,
    max_shards: int,
) -> Twins:
    """Make the shards of both."""
    subs = [both.sub_model(first, stop) for first, stop in pairwise(commons)]
    sizes = [len(sub.data) + sub.made_bytes for sub in subs]
    layers = joined(both.own.layers, [place.own for place in commons])
    partition = build(
        Divided(model=both.own.model, observed=both.own.observed, layers=layers, slices=frozenset(), why={}),
        samples,
        max_shard_bytes=max_shard_bytes,
        max_shards=max_shards,
        least_bytes=lambda first, stop: sum(sizes[first:stop]),
    )
    pairs = {name: pair for place in commons for name, pair in place.partners.items()}
    other = partition_tflite(
        both.other.model,
        [given],
        max_shard_bytes=max_shard_bytes,
        cuts=[both.other.layers.bounds[place.other] for place in commons],
        ranges=[(shard.first_layer, shard.stop_layer) for shard in partition.shards],
        names={pair.other: name for name, pair in pairs.items()},
    )
    origin = both.other.model.origin
    forms = [both.other_form(pairs[name]) for name in sorted(pairs)]
    return Twins(
        partition=replace(partition, blobs={**partition.blobs, **other.blobs}),
        build=Build(
            runtimes=runtimes_of(both.other.model.graph),
            operators=other.operators,
            shards=other.shards,
            forms=tuple(form for form in forms if not same_form(form, both.own_form(form.name))),
        ),
        quantized=both.quantized,
        error=both.error,
        description=f"TFLite twin {origin.description} {origin.digest}",
        left_out=len(both.own.layers.cuts) - len(commons),
    )
