"""Times come by node, by operator and by model; what they are is the machine's business."""

from __future__ import annotations

import numpy as np
import pytest

from host.errors import RuntimeRefusedError
from host.model import to_bytes
from host.timing import CpuTime, NodeTime, cpu_times, node_times, operator_times
from tests.graphs import conv_net, model_of, photos
from tests.one_pass import model_with, random_input

LOOP = """main (float[2, 3] x, int64 count) => (float[] y) {
    y = Loop (count, go, x) <body = step (int64 i, bool c, float[] s) => (bool d, float[] t)
        { d = Identity (c) t = MatMul (s, w) }>
}"""


@pytest.mark.parametrize("serialised", [False, True])
def test_in_the_exact_mode_every_node_has_its_time(serialised: bool) -> None:
    model = model_of(conv_net())
    times = node_times(to_bytes(model.ir) if serialised else model, photos(2), runs=3, mode="exact")
    assert [time.name for time in times] == ["conv1", "relu1", "conv2", "add", "pool", "flatten", "gemm"]
    assert all(time.seconds >= 0 for time in times)


def test_in_the_default_mode_nodes_are_those_of_the_optimiser() -> None:
    times = node_times(model_of(conv_net()), photos(1), runs=2)
    operators = [time.operator for time in times]
    # A Relu goes into the Conv before it, whatever the processor's memory layout calls the result.
    assert "Relu" not in operators
    assert "Gemm" in operators


def test_a_node_in_a_loop_is_there_once() -> None:
    model = model_with(LOOP, {"w": (3, 3), "go": np.array(True)})
    times = node_times(model, [{**random_input(2, 3), "count": np.array(5)}], runs=2, mode="exact")
    assert sorted(time.operator for time in times) == ["Identity", "Loop", "MatMul"]


def test_times_are_summed_by_operator_the_largest_first() -> None:
    times = [
        NodeTime(name="a", operator="Relu", seconds=1.0),
        NodeTime(name="b", operator="Conv", seconds=2.0),
        NodeTime(name="c", operator="Relu", seconds=3.0),
        NodeTime(name="d", operator="Add", seconds=2.0),
    ]
    assert list(operator_times(times).items()) == [("Relu", 4.0), ("Add", 2.0), ("Conv", 2.0)]


def test_models_are_measured_side_by_side_against_the_first() -> None:
    small, large = model_of(conv_net()), model_of(conv_net(side=8, seed=1))
    base, other = cpu_times({"small": small, "other": large}, photos(2), rounds=5)
    assert (base.name, base.ratio) == ("small", 1.0)
    assert other.name == "other"
    assert min(base.seconds, other.seconds, other.ratio) > 0


def test_each_round_runs_every_model_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # A clock that ticks once a call: every run takes one tick, whatever the order.
    ticks = iter(range(1000))
    monkeypatch.setattr("host.timing.time.process_time", lambda: float(next(ticks)))
    net = model_of(conv_net())
    found = cpu_times({"a": net, "b": net}, photos(1), rounds=4)
    assert found == (CpuTime(name="a", seconds=1.0, ratio=1.0), CpuTime(name="b", seconds=1.0, ratio=1.0))
    assert next(ticks) == 2 * 2 * 4


def test_a_sample_that_a_model_does_not_take_is_an_error() -> None:
    with pytest.raises(RuntimeRefusedError, match="could not run"):
        cpu_times({"net": model_of(conv_net())}, [{"x": np.zeros((1, 1, 1, 1), np.float32)}])
