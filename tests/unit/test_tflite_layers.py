"""Where a TFLite model may be cut, what its sub-models hold, and what its layers cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import pytest

from edge.formats.bundle import decode_tflite_part
from edge.formats.tensor import Array
from host.errors import PartitionError, UnsupportedModelError
from host.model import Origin
from host.partition.build import Partition
from host.tflite.build import TfliteCuts, divide, partition_tflite, runtimes_of
from host.tflite.file import unpack
from host.tflite.model import TfliteModel, tflite_model
from host.tflite.reference import TfliteMode, TfliteReference, chain, load_interpreter
from host.tflite.submodel import extract
from tests.tflite_nets import Net, Op, Type, add, any_batch, counting, dense, doubling, ladder, nibbles, recurrent

NO_LIMIT = 1 << 30
_NETS = {"ladder": ladder, "counting": counting, "doubling": doubling, "recurrent": recurrent, "nibbles": nibbles}


def _model(net: Net) -> TfliteModel:
    return tflite_model(net.data, name="net", origin=Origin(format="tflite", digest=""))


def _sample(model: TfliteModel, *, rows: int = 1, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {
        tensor.name: rng.standard_normal([rows if dim is None else dim for dim in tensor.dims]).astype(np.float32)
        for tensor in (model.graph.tensors[index] for index in model.graph.inputs)
    }


def _divided(net: Net) -> TfliteCuts:
    model = _model(net)
    return divide(model, [_sample(model)])


def _kinds(divided: TfliteCuts) -> list[list[str]]:
    return [[operator.kind for operator in layer] for layer in divided.layers.layers]


def _chained(divided: TfliteCuts, bounds: Sequence[int], inputs: Mapping[str, Array], mode: TfliteMode) -> list[bytes]:
    made = [extract(divided.model, range(first, stop), observed=divided.observed) for first, stop in pairwise(bounds)]
    found = chain([(load_interpreter(each.data, mode=mode), each.inputs, each.outputs) for each in made], inputs)
    return [found[name].tobytes() for name in divided.model.graph.names(divided.model.graph.outputs)]


@pytest.mark.parametrize("mode", ["exact", "default"])
@pytest.mark.parametrize("name", sorted(_NETS))
def test_all_layers_one_after_another_give_the_bits_of_the_whole(name: str, mode: TfliteMode) -> None:
    divided = _divided(_NETS[name]())
    inputs = _sample(divided.model, seed=1)
    whole = TfliteReference(divided.model, mode=mode).run(inputs)
    assert _chained(divided, divided.layers.bounds, inputs, mode) == [array.tobytes() for array in whole.values()]


def test_what_skips_a_layer_is_alive_at_its_cuts() -> None:
    assert _divided(ladder(rungs=2)).layers.cuts == (
        ("x",),
        ("x", "y0"),
        ("x", "r0"),
        ("r0", "s0"),
        ("r0", "y1"),
        ("r0", "r1"),
        ("s1",),
    )


def test_operators_on_one_variable_stay_together_with_what_sets_it_up() -> None:
    assert _kinds(_divided(counting())) == [
        ["CALL_ONCE", "VAR_HANDLE", "READ_VARIABLE", "ADD", "ASSIGN_VARIABLE"],
        ["RELU"],
    ]


def test_a_state_of_an_operator_goes_along_with_it() -> None:
    divided = _divided(recurrent())
    assert _kinds(divided) == [["UNIDIRECTIONAL_SEQUENCE_LSTM"], ["RELU"]]
    tensors = unpack(extract(divided.model, range(1)).data, where="part").subgraphs[0].tensors
    assert sorted(tensor.name for tensor in tensors if tensor.isVariable) == [b"cell", b"hidden"]


def test_a_model_with_a_state_begins_anew_in_each_run_of_the_reference() -> None:
    model = _model(counting())
    reference, inputs = TfliteReference(model), _sample(model)
    assert reference.run(inputs)["active"].tobytes() == reference.run(inputs)["active"].tobytes()


def test_bodies_of_loops_go_along_with_their_operator_and_others_stay_behind() -> None:
    divided = _divided(doubling())
    assert _kinds(divided) == [["ADD"], ["WHILE"], ["ADD"]]
    names = [[g.name for g in unpack(extract(divided.model, range(i, i + 1)).data, where="").subgraphs] for i in (0, 1)]
    assert names == [[b"main"], [b"main", b"body", b"condition"]]


def test_operators_that_read_constants_only_are_no_layer_and_go_with_their_reader() -> None:
    divided = _divided(nibbles())
    assert _kinds(divided) == [["FULLY_CONNECTED"]]
    tree = unpack(extract(divided.model, range(1)).data, where="part")
    assert len(tree.subgraphs[0].operators) == 2
    # 16 bytes of int4, and the 4x8 floats that are made of them.
    assert partition_of(nibbles()).layers[0].weight_bytes == 16 + 4 * 8 * 4


def test_a_constant_that_two_layers_read_goes_with_both() -> None:
    net = Net()
    graph = net.graph()
    given, shared = graph.tensor("x", [1, 4]), graph.constant("w", np.ones((4, 4), np.float32))
    made, again = graph.tensor("y", [1, 4]), graph.tensor("z", [1, 4])
    dense(graph, given, shared, made)
    dense(graph, made, shared, again)
    graph.ends([given], [again])
    assert [layer.weight_bytes for layer in partition_of(net).layers] == [64, 64]


def test_operators_that_nobody_needs_are_left_out() -> None:
    net = ladder(rungs=1)
    graph = net.tree.subgraphs[0]
    assert _kinds(_divided(net)) == [["FULLY_CONNECTED"], ["RELU"], ["ADD"]]
    graph.outputs = np.array([2], np.int32)
    assert _kinds(_divided(net)) == [["FULLY_CONNECTED"]]


def test_an_output_that_is_a_constant_is_refused() -> None:
    net = ladder(rungs=1)
    net.tree.subgraphs[0].outputs = np.array([4, 1], np.int32)
    with pytest.raises(UnsupportedModelError, match="output 'w0' is a constant: remove it from the outputs"):
        _divided(net)


def test_there_is_no_cut_where_a_live_tensor_cannot_travel() -> None:
    net = Net()
    graph = net.graph()
    given, made = graph.tensor("x", [1, 4]), graph.tensor("y", [1, 4])
    pair = graph.tensor("pair", [1, 4], Type.COMPLEX64)
    graph.operator(Op.CAST, [given], [pair])
    graph.operator(Op.REAL, [pair], [made])
    graph.ends([given], [made])
    assert _kinds(_divided(net)) == [["CAST", "REAL"]]


def test_only_the_cuts_that_are_asked_for_are_made() -> None:
    model = _model(ladder())
    divided = divide(model, [_sample(model)], cuts=[3, 6])
    assert divided.layers.bounds == (0, 3, 6, 12)
    with pytest.raises(PartitionError, match="cannot be divided before working operator 13"):
        divide(model, [_sample(model)], cuts=[13])


def test_an_open_dimension_stays_open_in_every_sub_model() -> None:
    model = _model(any_batch())
    samples = [_sample(model, rows=rows) for rows in (1, 3)]
    divided = divide(model, samples)
    parts = partition_tflite(model, samples, max_shard_bytes=NO_LIMIT)
    assert [tensor.spec.shape for tensor in parts.tensors] == [(None, 4)] * 3
    for sample in samples:
        whole = TfliteReference(model).run(sample)["z"]
        assert whole.shape == sample["x"].shape
        assert _chained(divided, divided.layers.bounds, sample, "exact") == [whole.tobytes()]


def partition_of(net: Net, *, max_shard_bytes: int = NO_LIMIT, max_shards: int = 128) -> Partition:
    """Cut a net into shards."""
    model = _model(net)
    return partition_tflite(model, [_sample(model)], max_shard_bytes=max_shard_bytes, max_shards=max_shards)


def _file(parts: Partition, index: int) -> bytes:
    shard = parts.shards[index]
    part = decode_tflite_part(parts.blobs[shard.graph.digest], weights=len(shard.weights), where="shard")
    return b"".join(
        piece if isinstance(piece, bytes) else parts.blobs[shard.weights[piece].digest] for piece in part.pieces
    )


def test_the_pieces_of_a_shard_are_a_file_and_its_weights_blobs_of_their_own() -> None:
    parts = partition_of(ladder())
    for index, shard in enumerate(parts.shards):
        data = _file(parts, index)
        assert data[4:8] == b"TFL3"
        load_interpreter(data)
        assert [weight.size_bytes for weight in shard.weights] == [4096] * (index % 3 == 0)
        assert shard.size_bytes == len(data)


def test_a_layer_that_changes_moves_alone() -> None:
    before, changed = partition_of(ladder()), ladder()
    held = [buffer for buffer in changed.tree.buffers if buffer.data is not None]
    held[1].data = np.full(32 * 32, 0.5, np.float32).view(np.uint8)
    after = partition_of(changed)
    moved = after.blobs.keys() - before.blobs.keys()
    assert moved == {after.shards[3].weights[0].digest}


def test_equal_layers_are_stored_once_wherever_they_stand() -> None:
    net = Net()
    graph = net.graph()
    weights = np.ones((32, 32), np.float32)
    last = first = graph.tensor("x", [1, 32])
    for index in range(3):
        made = graph.tensor(f"y{index}", [1, 32])
        dense(graph, last, graph.constant(f"w{index}", weights), made)
        last = made
    graph.ends([first], [last])
    assert len({weight.digest for shard in partition_of(net).shards for weight in shard.weights}) == 1


def test_small_layers_are_joined_to_as_many_shards_as_are_wanted() -> None:
    net = Net()
    graph = net.graph()
    last = first = graph.tensor("x", [1, 8])
    ones = graph.constant("ones", np.ones((1, 8), np.float32))
    for index in range(40):
        made = graph.tensor(f"y{index}", [1, 8])
        add(graph, last, ones, made)
        last = made
    graph.ends([first], [last])
    parts = partition_of(net, max_shards=20)
    assert len(parts.layers) == 40
    assert len(parts.shards) == 20


def test_a_layer_above_the_limit_is_refused_by_name() -> None:
    with pytest.raises(PartitionError, match=r"'y0' \(FULLY_CONNECTED, \d+ bytes: TFLite operators are not sliced\)"):
        partition_of(ladder(), max_shard_bytes=4096)


def test_work_is_counted_from_the_shapes_of_weights() -> None:
    assert [layer.macs for layer in partition_of(ladder(width=16, rungs=1)).layers] == [256, 16, 16]
    # 3 steps, each gate a 4x4 matrix for the input and one for the state; a ReLU of 12 elements.
    assert [layer.macs for layer in partition_of(recurrent()).layers] == [3 * 8 * 16, 12]


def test_int4_is_nothing_for_tflite_runtime() -> None:
    assert [need.name for need in runtimes_of(_model(ladder()).graph)] == ["litert", "tflite-runtime"]
    assert [need.name for need in runtimes_of(_model(nibbles()).graph)] == ["litert"]
