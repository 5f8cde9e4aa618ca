"""Onnxruntime's profile is read into runs of nodes."""

from __future__ import annotations

import numpy as np
import pytest

from host.errors import RuntimeRefusedError
from host.trace import NodeRun, SeenTensor, parse_profile, traced
from tests.graphs import conv_net, model_of, photos
from tests.one_pass import model_with, random_input

NODE = (
    '{"cat": "Node", "ts": %d, "dur": %d, "name": "%s_kernel_time", "args": {"op_name": "%s", "node_index": "0",'
    ' "input_type_shape": [{"float": [2, 3]}], "output_type_shape": [{"string": []}]}}'
)
RUN = '{"cat": "Session", "ts": 0, "dur": 99, "name": "model_run", "args": {}}'


def test_runs_are_told_apart_and_other_events_ignored() -> None:
    other = '{"cat": "Session", "ts": 1, "dur": 2, "name": "session_initialization", "args": {}}'
    text = f"[{other}, {NODE % (10, 5, 'a', 'Relu')}, {RUN}, {NODE % (20, 7, 'a', 'Relu')}, {RUN}]"
    first, second = parse_profile(text.encode())
    seen = (SeenTensor(shape=(2, 3), item_bytes=4),)
    text_seen = (SeenTensor(shape=(), item_bytes=0),)
    assert first == (NodeRun(name="a", operator="Relu", seconds=5e-6, inputs=seen, outputs=text_seen),)
    assert [node.seconds for node in second] == [pytest.approx(7e-6)]


def test_the_time_of_a_node_is_without_the_nodes_in_its_bodies() -> None:
    inner = ", ".join(NODE % (ts, 10, "body", "Relu") for ts in (105, 120))
    text = f"[{NODE % (90, 4, 'before', 'Neg')}, {inner}, {NODE % (100, 50, 'loop', 'Loop')}, {RUN}]"
    (run,) = parse_profile(text.encode())
    assert {node.name: round(node.seconds * 1e6) for node in run} == {"before": 4, "body": 10, "loop": 30}


def test_what_is_no_profile_is_refused() -> None:
    with pytest.raises(RuntimeRefusedError, match="onnxruntime's profile cannot be read: "):
        parse_profile(b'[{"cat": ')


def test_every_node_is_seen_with_its_shapes() -> None:
    runs = traced(model_of(conv_net()), photos(2))
    assert len(runs) == 2
    assert [(node.name, node.operator, node.outputs[0].shape) for node in runs[1]] == [
        ("conv1", "Conv", (1, 8, 8, 8)),
        ("relu1", "Relu", (1, 8, 8, 8)),
        ("conv2", "Conv", (1, 8, 8, 8)),
        ("add", "Add", (1, 8, 8, 8)),
        ("pool", "GlobalAveragePool", (1, 8, 1, 1)),
        ("flatten", "Flatten", (1, 8)),
        ("gemm", "Gemm", (1, 4)),
    ]


def test_a_run_that_fails_is_an_error_and_leaves_no_profile_behind() -> None:
    model = model_with("main (float[n, 3] x) => (float[] y) { y = MatMul (x, w) }", {"w": (3, 2)})
    with pytest.raises(RuntimeRefusedError, match="could not run"):
        traced(model, [random_input(1, 3), {"x": np.zeros((1, 4), np.float32)}])
