"""Every pass over real models with real inputs: what comes out answers like the source."""

from __future__ import annotations

import pytest

from host.compare import relative_error
from host.ingest import ingest
from host.model import all_nodes, node_count, to_bytes, weight_bytes
from host.passes import fuse, normalise, optimize
from host.reference import Reference
from tests.zoo import ZOO, ZooModel, zoo_model

NO_TORCH = [model for model in ZOO if not model.is_torch]
REAL = [model for model in NO_TORCH if not model.is_topology]
TOPOLOGIES = [
    # The others take long and show nothing that these do not.
    model
    for model in NO_TORCH
    if model.is_topology and model.name in ("squeezenet", "shufflenet", "alexnet")
]


@pytest.mark.slow
@pytest.mark.parametrize("entry", [*REAL, *TOPOLOGIES], ids=str)
def test_passes_keep_what_the_source_answers(entry: ZooModel) -> None:
    found = ingest(entry.source, inputs=entry.inputs)
    assert len(found.golden) == entry.sizes
    model = normalise(found.model)
    optimised, _ = optimize(model, found.samples)
    fused, _ = fuse(optimised, found.samples)
    assert node_count(fused.ir) < node_count(found.model.ir)
    assert weight_bytes(fused.ir) <= 1.02 * weight_bytes(model.ir)
    assert not [node for node in all_nodes(fused.ir) if node.op_type == "Constant"]
    assert to_bytes(normalise(fused).ir) == to_bytes(fused.ir)
    reference = Reference(fused, mode="exact")
    for golden in found.golden:
        answers = reference.run(golden.inputs)
        assert list(answers) == list(golden.outputs)
        for name, want in golden.outputs.items():
            assert answers[name].shape == want.shape
            assert relative_error(answers[name], want) <= 5e-5


def test_a_pass_that_breaks_silero_is_dropped_by_name_and_the_others_are_kept() -> None:
    entry = zoo_model("silero-vad")
    found = ingest(entry.source, inputs=entry.inputs)
    model = normalise(found.model)
    optimised, outcomes = optimize(model, found.samples)
    dropped = {outcome.name for outcome in outcomes if not outcome.kept and outcome.reason != "nothing to do"}
    assert dropped == {"eliminate-identities"}
    assert node_count(optimised.ir) < 0.7 * node_count(model.ir)


def test_the_weights_inside_an_if_of_silero_are_found() -> None:
    found = ingest(zoo_model("silero-vad").source, inputs=zoo_model("silero-vad").inputs)
    assert (
        sum(value.const_value.nbytes for value in found.model.ir.graph.initializers.values() if value.const_value) == 0
    )
    main = normalise(found.model).ir.graph.initializers.values()
    assert sum(value.const_value.nbytes for value in main if value.const_value is not None) > 2_000_000
