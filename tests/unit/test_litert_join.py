"""Sub-models of one stage are joined to one model, which gives the same bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import flatbuffers  # type: ignore[import-untyped]  # it ships no types
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from edge.formats.tensor import Array
from edge.runtimes.base import ModelPart
from edge.runtimes.litert_join import MAX_JOINED_BYTES, join_parts
from host.model import Origin
from host.tflite.file import BUFFER_ALIGNMENT, pack, unpack
from host.tflite.model import TfliteModel, tflite_model
from host.tflite.reference import TfliteMode, TfliteReference, chain, load_interpreter
from host.tflite.submodel import extract
from tests.tflite_nets import Net, any_batch, counting, doubling, ladder, nibbles, recurrent


def _model(net: Net) -> TfliteModel:
    return tflite_model(net.data, name="net", origin=Origin(format="tflite", digest=""))


def _parts(model: TfliteModel, bounds: Sequence[int]) -> tuple[ModelPart, ...]:
    made = [extract(model, range(first, stop)) for first, stop in pairwise(bounds)]
    return tuple(
        ModelPart(model=each.data, inputs=each.inputs, outputs=each.outputs, where=f"shard {index}")
        for index, each in enumerate(made)
    )


def _joined(parts: Sequence[ModelPart], outputs: Sequence[str]) -> tuple[ModelPart, ...]:
    return join_parts(parts, outputs, schema=schema, builder=flatbuffers.Builder)


def _run(parts: Sequence[ModelPart], inputs: dict[str, Array], mode: TfliteMode) -> dict[str, Array]:
    return chain([(load_interpreter(part.model, mode=mode), part.inputs, part.outputs) for part in parts], inputs)


@pytest.mark.parametrize("mode", ["exact", "default"])
def test_all_sub_models_become_one_with_the_bits_of_the_whole(mode: TfliteMode) -> None:
    model = _model(ladder())
    joined = _joined(_parts(model, range(13)), ["s3"])
    assert [(part.inputs, part.outputs, part.where) for part in joined] == [(("x",), ("s3",), "shard 0 to shard 11")]
    inputs = {"x": np.linspace(-1, 1, 32, dtype=np.float32)[None]}
    whole = TfliteReference(model, mode=mode).run(inputs)
    assert _run(joined, inputs, mode)["s3"].tobytes() == whole["s3"].tobytes()


def test_what_a_later_stage_needs_is_given_too() -> None:
    parts = _parts(_model(ladder()), range(13))
    (joined,) = _joined(parts[3:7], ["r1", "y2"])
    assert joined.inputs == ("s0", "r0")
    assert joined.outputs == ("r1", "y2")


def test_weights_are_held_once_and_where_kernels_want_them() -> None:
    model = _model(ladder())
    twice = tflite_model(_same_weights(model), name="net", origin=model.origin)
    (joined,) = _joined(_parts(twice, range(13)), ["s3"])
    packed = pack(unpack(joined.model, where="joined"))
    assert [stop - start for start, stop in packed.weights] == [4096]
    place = joined.model.index(packed.data[slice(*packed.weights[0])])
    assert place % BUFFER_ALIGNMENT == 0


def _same_weights(model: TfliteModel) -> bytes:
    tree = unpack(model.data, where="net")
    for buffer in tree.buffers:
        if buffer.data is not None:
            buffer.data = np.arange(1024, dtype=np.float32).view(np.uint8)
    return pack(tree).data


@pytest.mark.parametrize(
    ("net", "outputs", "alone"),
    [(doubling(), ["made"], 3), (counting(), ["active"], 2), (recurrent(), ["active"], 2)],
    ids=["loop", "variable", "state"],
)
def test_loops_and_states_stand_alone(net: Net, outputs: list[str], alone: int) -> None:
    parts = _parts(_model(net), range(4)) if alone == 3 else _parts(_model(net), _state_bounds(net))
    assert _joined(parts, outputs) == parts


def _state_bounds(net: Net) -> list[int]:
    count = len(net.tree.subgraphs[0].operators)
    return [0, count - 1, count]


def test_neighbours_of_a_loop_are_joined_on_both_sides() -> None:
    before, loop, after = (
        _parts(_model(net), range(stop)) for net, stop in ((ladder(), 4), (doubling(), 4), (ladder(), 4))
    )
    joined = _joined([*before, loop[1], *after], ["s0"])
    assert [part.where for part in joined] == ["shard 0 to shard 2", "shard 1", "shard 0 to shard 2"]


def test_operators_on_constants_go_along() -> None:
    model = _model(nibbles())
    assert _joined(_parts(model, [0, 1]), ["y"]) == _parts(model, [0, 1])


def test_an_open_dimension_stays_open() -> None:
    model = _model(any_batch())
    (joined,) = _joined(_parts(model, range(3)), ["z"])
    inputs: dict[str, Any] = {"x": np.ones((3, 4), np.float32)}
    assert _run([joined], inputs, "default")["z"].shape == (3, 4)


def test_a_stage_that_is_too_large_is_left_as_it_is() -> None:
    parts = _parts(_model(ladder()), range(3))
    large = (replace(parts[0], model=parts[0].model + bytes(MAX_JOINED_BYTES)), parts[1])
    assert _joined(large, ["r0"]) == large
