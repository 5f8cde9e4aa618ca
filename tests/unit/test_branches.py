"""Parts of real nets that may run side by side: fire modules, inception blocks, shortcuts, sliced layers."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import onnx
from onnx import helper

from edge.formats.bundle import Compression, Manifest, Origin, RuntimeNeed, digest_of
from edge.formats.tensor import Array
from host.model import Model
from host.partition.build import Partition, partition
from host.partition.reordering import depth_first
from host.planning.branches import sections_of
from host.planning.costs import Section
from host.planning.workload import wire_bytes, workload_of
from host.reference import Reference
from tests.dag_bundle import INPUT, manifest_of_reads
from tests.wide_graphs import graph_of, weights


class Net:
    """A small net of convolutions of 8 channels, written node after node; `x` is `[1, 8, 6, 6]`."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}
        self._rng = np.random.default_rng(5)

    def conv(self, source: str, name: str, *, taken: int = 8, given: int = 8) -> str:
        """Add a pointwise convolution."""
        self.constants[f"w_{name}"] = weights(self._rng, given, taken, 1, 1)
        self.nodes.append(helper.make_node("Conv", [source, f"w_{name}"], [name], name))
        return name

    def join(self, operator: str, sources: list[str], name: str) -> str:
        """Add a node without weights."""
        attributes: dict[str, Any] = {"axis": 1} if operator == "Concat" else {}
        self.nodes.append(helper.make_node(operator, sources, [name], name, **attributes))
        return name

    def model(self) -> Model:
        """The net so far, its last tensor the output."""
        return graph_of(self.nodes, self.constants, shape=[1, 8, 6, 6], outputs=[self.nodes[-1].output[0]])


X = {"x": np.random.default_rng(2).standard_normal((1, 8, 6, 6)).astype(np.float32)}


def _parts(model: Model, *, limit: int = 1 << 20, most: int = 128) -> Partition:
    return partition(model, [X], max_shard_bytes=limit, max_shards=most)


def _manifest(parts: Partition) -> Manifest:
    return Manifest(
        name="net",
        version="1.0.0",
        origin=Origin(format="onnx", digest=digest_of(b""), licence="unknown", description="a net"),
        profile="rpi4",
        max_shard_bytes=1 << 30,
        compression=Compression(quantize="none"),
        operators=parts.operators,
        runtimes=(RuntimeNeed(name="onnxruntime", least_version="1.22.0"),),
        header=parts.header,
        inputs=parts.inputs,
        outputs=parts.outputs,
        tensors=parts.tensors,
        cuts=parts.cuts,
        layers=parts.layers,
        shards=parts.shards,
        golden=(),
        tolerance=1e-4,
        least_cosine=0.999,
    )


def _branches(parts: Partition) -> list[list[list[str]]]:
    """The names of the layers of every branch of every section."""
    manifest = _manifest(parts)
    return [
        [
            [
                layer.name
                for shard in manifest.shards[first:stop]
                for layer in manifest.layers[shard.first_layer : shard.stop_layer]
            ]
            for first, stop in pairwise(section.bounds)
        ]
        for section in workload_of(manifest).sections
    ]


def test_the_two_halves_of_a_fire_module_are_branches() -> None:
    net = Net()
    squeezed = net.conv("x", "squeeze")
    both = net.join("Concat", [net.conv(squeezed, "expand1"), net.conv(squeezed, "expand3")], "concat")
    net.conv(both, "last", taken=16)

    assert _branches(_parts(net.model())) == [[["expand1"], ["expand3"]]]


def test_a_residual_block_and_the_convolution_on_its_shortcut_are_branches() -> None:
    net = Net()
    entered = net.conv("x", "first")
    inner = net.conv(net.join("Relu", [net.conv(entered, "a")], "relu"), "b")
    net.conv(net.join("Add", [inner, net.conv(entered, "shortcut")], "add"), "last")

    assert _branches(_parts(net.model())) == [[["a", "relu", "b"], ["shortcut"]]]


def test_a_block_whose_shortcut_is_its_input_has_no_branches() -> None:
    net = Net()
    entered = net.conv("x", "first")
    net.conv(net.join("Add", [net.conv(net.conv(entered, "a"), "b"), entered], "add"), "last")

    assert _branches(_parts(net.model())) == []


def _inception(*, mixed: bool) -> Net:
    """Three branches of one, two and three convolutions, in the order of the branches or level by level."""
    net = Net()
    entered = net.conv("x", "first")
    steps = [("a0", entered), ("b0", entered), ("b1", "b0"), ("c0", entered), ("c1", "c0"), ("c2", "c1")]
    if mixed:
        steps.sort(key=lambda step: step[0][1])
    for name, source in steps:
        net.conv(source, name)
    net.conv(net.join("Concat", ["a0", "b1", "c2"], "concat"), "last", taken=24)
    return net


def test_an_inception_block_has_a_branch_for_each_of_its_towers() -> None:
    assert _branches(_parts(_inception(mixed=False).model())) == [[["a0"], ["b0", "b1"], ["c0", "c1", "c2"]]]


def test_towers_that_the_file_mixes_are_sorted_and_answer_the_same() -> None:
    model = _inception(mixed=True).model()

    assert _branches(_parts(model)) == [[["a0"], ["b0", "b1"], ["c0", "c1", "c2"]]]
    ordered = depth_first(model)
    assert ordered is not None
    name = model.ir.graph.outputs[0].name
    np.testing.assert_array_equal(Reference(ordered).run(X)[str(name)], Reference(model).run(X)[str(name)])


def test_a_model_in_branches_already_keeps_its_order() -> None:
    net = _inception(mixed=False)

    assert depth_first(net.model()) is None
    assert [layer.name for layer in _parts(net.model()).layers] == [node.name for node in net.nodes]


def test_the_slices_of_a_layer_are_branches() -> None:
    net = Net()
    net.join("Relu", [net.conv(net.conv("x", "first"), "wide", given=400)], "relu")

    found = _branches(_parts(net.model(), limit=8_000))

    assert found == [[["wide/slice_0"], ["wide/slice_1"]]]


def test_few_shards_still_leave_the_branches_apart() -> None:
    net = Net()
    source = "x"
    for index in range(30):
        source = net.join("Relu", [source], f"relu{index}")
    net.join("Add", [net.conv(net.conv(source, "a"), "b"), net.conv(source, "shortcut")], "add")
    net.join("Relu", ["add"], "last")

    parts = _parts(net.model(), most=10)

    assert len(parts.shards) < len(parts.layers)
    assert _branches(parts) == [[["a", "b"], ["shortcut"]]]


def test_two_blocks_in_a_row_are_two_sections() -> None:
    # 0 forks to 1 and 2, which 3 joins; 3 forks to 4-5 and 6, which 7 joins.
    reads = [[INPUT], [0], [0], [1, 2], [3], [4], [3], [5, 6]]
    manifest = manifest_of_reads(reads)

    first, second = sections_of(manifest, wire_bytes(manifest))

    assert (first.bounds, second.bounds) == ((1, 2, 3), (4, 6, 7))


def test_what_goes_past_a_section_is_forwarded_by_the_first_branch_that_reads_it() -> None:
    # 3 joins 1 and 2 with what 0 made, which only 2 reads as well; the input goes past to 3 unread.
    manifest = manifest_of_reads([[INPUT], [INPUT], [0], [INPUT, 0, 1, 2]])
    sizes = {"x": 1, "t0": 10, "t1": 100, "t2": 1000, "t3": 10000}

    (section,) = sections_of(manifest, sizes)

    assert section == Section(
        bounds=(1, 2, 3),
        received=((0, 1, 11), (0, 0, 10)),
        sent=((0, 101, 1111), (0, 0, 1010)),
    )


def test_a_side_branch_of_next_to_no_work_is_no_section() -> None:
    reads = [[INPUT], [0], [0], [1, 2]]
    heavy = manifest_of_reads(reads, [1, 1, 1_000_000, 1])

    assert sections_of(heavy, wire_bytes(heavy)) == ()
