"""Real networks: every group that can be pruned is pruned, and what is left runs."""

from __future__ import annotations

import numpy as np
import pytest

from host.compare import relative_error
from host.compress.constants import add_constant, constant_of, taken_names
from host.compress.prune.channels import decide, prunable, structure
from host.compress.recipe import PruneChannels
from host.ingest import ingest
from host.model import Model, Tensors, copied, to_bytes, weight_bytes
from host.passes.normalise import normalise
from host.passes.optimise import optimize
from host.reference import Reference
from tests.channel_nets import without_readers
from tests.zoo import zoo_model


def silent(_: str) -> None:
    return None


def loaded(name: str) -> tuple[Model, Tensors]:
    """A model of the zoo and an input; the weights of a topology, which it computes from one number, become random."""
    source = zoo_model(name)
    found = ingest(source.source, inputs=source.inputs)
    graph = copied(normalise(found.model).ir)
    taken, rng = taken_names(graph), np.random.default_rng(0)
    for node in list(graph.graph) if source.is_topology else ():
        shape = constant_of(node.inputs[0]) if node.op_type == "ConstantOfShape" else None
        if shape is not None:
            fan_in = int(np.prod(shape[1:])) or 1
            array = rng.uniform(-1, 1, shape.tolist()) / fan_in**0.5 if len(shape) > 1 else rng.uniform(0.5, 1, shape)
            made = add_constant(graph, f"{node.outputs[0].name}_random", array.astype(np.float32), taken)
            node.outputs[0].replace_all_uses_with(made)
            graph.graph.remove(node)
    model = normalise(found.model.with_ir(graph))
    return optimize(model, found.samples[:1])[0], found.samples[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "least_groups"),
    [
        ("efficientnet-lite0", 23), ("mobilenet-v2", 25), ("mtcnn-o", 4), ("ppocr-det", 35), ("ppocr-rec", 20),
        ("ppocr-cls", 24), ("silero-vad-lstm", 3), ("alexnet", 2), ("densenet121", 120), ("inception-v1", 51),
        ("inception-v2", 69), ("resnet50", 37), ("squeezenet", 25), ("zfnet512", 5),
    ],
)  # fmt: skip
def test_all_that_can_be_pruned_is_pruned_and_runs(name: str, least_groups: int) -> None:
    model, sample = loaded(name)
    assert len(prunable(model)) >= least_groups
    step = decide(model, PruneChannels(ratio=0.3, criterion="l2", multiple=4), [], say=silent)
    unread = without_readers(model, step.groups)
    pruned = structure(unread, step)
    assert to_bytes(structure(unread, step).ir) == to_bytes(pruned.ir)
    assert weight_bytes(pruned.ir) < weight_bytes(model.ir)
    expected, found = Reference(unread).run(sample), Reference(pruned).run(sample)
    for output, array in expected.items():
        assert relative_error(found[output], array) < 1e-3


@pytest.mark.slow
def test_a_net_of_grouped_and_shuffled_convolutions_stays_as_it_is() -> None:
    model, _ = loaded("shufflenet")
    assert prunable(model) == ()
