"""A pass is kept only if the runtime accepts its result and the answers stay."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from host.errors import PassError
from host.figures import GraphFigures
from host.model import Model, to_bytes
from host.passes.normalise import normalise
from host.passes.transaction import NOTHING, PassOutcome, Transactions
from tests.graphs import conv_net, model_of, photos

DYNAMIC = "main (float[n,3] x) => (float[n,3] y) { t = Neg (x)\n y = Neg (t) }"


def rows(count: int) -> dict[str, np.ndarray]:
    return {"x": np.arange(count * 3, dtype=np.float32).reshape(count, 3)}


def add_to_bias(amount: float) -> object:
    def graph_pass(graph: ir.Model) -> ir.Model:
        bias = graph.graph.initializers["b3"]
        assert bias.const_value is not None
        bias.const_value = ir.tensor(bias.const_value.numpy() + np.float32(amount), name="b3")
        return graph

    return graph_pass


def rename_operator(name: str) -> object:
    def graph_pass(graph: ir.Model) -> ir.Model:
        next(iter(graph.graph)).op_type = name
        return graph

    return graph_pass


@pytest.fixture
def transactions() -> Transactions:
    return Transactions(normalise(model_of(conv_net())), photos(2))


def test_a_pass_that_keeps_the_answers_is_kept(transactions: Transactions) -> None:
    before = to_bytes(transactions.model.ir)
    outcome = transactions.attempt("tiny", add_to_bias(1e-7))  # type: ignore[arg-type]
    assert outcome.kept
    assert to_bytes(transactions.model.ir) != before


def test_a_pass_that_changes_values_is_dropped_by_name_and_the_next_goes_on(transactions: Transactions) -> None:
    before = to_bytes(transactions.model.ir)
    outcome = transactions.attempt("wrong", add_to_bias(0.01))  # type: ignore[arg-type]
    assert (outcome.name, outcome.kept) == ("wrong", False)
    assert outcome.reason.startswith("output 'y' has relative error ")
    assert outcome.reason.endswith(", above 5e-05")
    assert to_bytes(transactions.model.ir) == before
    assert transactions.attempt("right", add_to_bias(1e-7)).kept  # type: ignore[arg-type]
    assert [(o.name, o.kept) for o in transactions.outcomes] == [("wrong", False), ("right", True)]


def test_errors_do_not_add_up_over_passes(transactions: Transactions) -> None:
    kept = [transactions.attempt("drift", add_to_bias(1.5e-5)).kept for _ in range(10)]  # type: ignore[arg-type]
    assert kept[0]
    assert not kept[-1]


def test_a_pass_that_the_runtime_refuses_is_dropped(transactions: Transactions) -> None:
    outcome = transactions.attempt("unknown operator", rename_operator("NoSuchOperator"))  # type: ignore[arg-type]
    assert not outcome.kept
    assert outcome.reason.startswith("onnxruntime refuses the model: ")


def test_a_pass_that_raises_after_changing_its_copy_leaves_the_model_alone(transactions: Transactions) -> None:
    before = to_bytes(transactions.model.ir)

    def graph_pass(graph: ir.Model) -> ir.Model:
        rename_operator("NoSuchOperator")(graph)  # type: ignore[operator]
        raise KeyError("lost")

    outcome = transactions.attempt("raises", graph_pass)
    assert outcome.reason == "failed: KeyError: 'lost'"
    assert transactions.attempt("next", lambda graph: graph).reason == NOTHING
    assert to_bytes(transactions.model.ir) == before


def test_a_pass_that_answers_impurely_is_dropped() -> None:
    checked = Transactions(normalise(model_of(DYNAMIC)), [rows(2)])
    outcome = checked.attempt("random", rename_operator("RandomNormalLike"))  # type: ignore[arg-type]
    assert "is RandomNormalLike" in outcome.reason


def test_a_pass_that_is_right_for_one_size_only_is_dropped() -> None:
    def freeze_rows(graph: ir.Model) -> ir.Model:
        constant = ir.Value(
            name="zeros",
            type=ir.TensorType(ir.DataType.FLOAT),
            shape=ir.Shape([2, 3]),
            const_value=ir.tensor(np.zeros((2, 3), np.float32), name="zeros"),
        )
        graph.graph.register_initializer(constant)
        last = list(graph.graph)[-1]
        node = ir.node("Add", inputs=[graph.graph.inputs[0], constant])
        node.outputs[0].name = "frozen"
        graph.graph.append(node)
        last.outputs[0].name, node.outputs[0].name = "old", "y"
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        graph.graph.outputs[0] = node.outputs[0]
        return graph

    model = normalise(model_of(DYNAMIC))
    assert Transactions(model, [rows(2)]).attempt("freeze", freeze_rows).kept
    outcome = Transactions(model, [rows(2), rows(1)]).attempt("freeze", freeze_rows)
    assert outcome.reason == "output 'y' is float32[2, 3], expected float32[1, 3]"
    outcome = Transactions(model, [rows(2), rows(4)]).attempt("freeze", freeze_rows)
    assert outcome.reason.startswith("onnxruntime could not run the model: ")


def test_a_pass_that_blows_the_weights_up_is_dropped(transactions: Transactions) -> None:
    def blow_up(graph: ir.Model) -> ir.Model:
        big = np.zeros((4, 100_000), np.float32)
        value = ir.Value(
            name="big", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(big.shape), const_value=ir.tensor(big)
        )
        graph.graph.register_initializer(value)
        node = ir.node("ReduceSum", inputs=[value], attributes={"keepdims": 0})
        bias = graph.graph.outputs[0].producer()
        assert bias is not None
        added = ir.node("Add", inputs=[bias.outputs[0], node.outputs[0]])
        graph.graph.extend([node, added])
        bias.outputs[0].name, added.outputs[0].name = "before", "y"
        added.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        graph.graph.outputs[0] = added.outputs[0]
        return graph

    outcome = transactions.attempt("grow", blow_up)
    assert not outcome.kept
    before = outcome.weight_bytes_before
    assert outcome.reason == f"grows the weights from {before} to {before + 1_600_000} bytes"
    assert outcome.weight_bytes_after == before


def test_each_outcome_is_told_as_it_happens() -> None:
    told: list[PassOutcome] = []
    checked = Transactions(normalise(model_of(conv_net())), photos(1), on_pass=told.append)
    checked.attempt("nothing", lambda graph: None)
    assert [(outcome.name, outcome.reason) for outcome in told] == [("nothing", "nothing to do")]


def test_figures_are_taken_on_demand_and_once_for_each_kept_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []

    def count(model: Model, sample: object, *, timed: bool) -> GraphFigures:
        measured.append(len(measured))
        return GraphFigures(nodes=len(measured), macs=0, weight_bytes=0, peak_activation_bytes=0)

    monkeypatch.setattr("host.passes.transaction.measure", count)
    checked = Transactions(normalise(model_of(conv_net())), photos(2), measured=True)
    steps = (add_to_bias(1e-7), add_to_bias(0.01), lambda graph: None, add_to_bias(1e-7))
    outcomes = [checked.attempt(str(number), step) for number, step in enumerate(steps)]  # type: ignore[arg-type]
    figures = [(outcome.before, outcome.after) for outcome in outcomes]
    assert [(before.nodes, after.nodes) for before, after in figures if before and after] == [
        (1, 2),  # kept
        (2, 2),  # wrong
        (2, 2),  # nothing to do
        (2, 3),  # kept
    ]


def test_no_figures_unless_asked_for(transactions: Transactions) -> None:
    outcome = transactions.attempt("tiny", add_to_bias(1e-7))  # type: ignore[arg-type]
    assert (outcome.before, outcome.after) == (None, None)


def test_a_model_that_does_not_run_to_begin_with_is_no_fault_of_a_pass() -> None:
    with pytest.raises(PassError, match="model 'small' does not run before any pass: "):
        Transactions(normalise(model_of(conv_net())), [{"x": np.zeros((1, 3, 9, 9), np.float32)}])
