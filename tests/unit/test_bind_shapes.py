"""Binding dynamic dimensions to numbers."""

from __future__ import annotations

import pytest

from host.errors import IngestError
from host.model import Model
from host.passes.bind_shapes import Binding, bind_shapes, open_dimensions
from tests.graphs import model_of, parsed


def two_inputs() -> Model:
    return model_of("main (float[batch,3,h,w] x, int64[batch,seq] ids) => (float[batch,3,h,w] y) { y = Neg (x) }")


def shapes(model: Model) -> dict[str, list[int | str | None]]:
    return {
        value.name or "": [dim if isinstance(dim, int) else dim.value for dim in value.shape or ()]
        for value in model.ir.graph.inputs
    }


@pytest.mark.parametrize(
    ("bindings", "expected"),
    [
        ({"batch": 2}, {"x": [2, 3, "h", "w"], "ids": [2, "seq"]}),
        ({"x": (1, 3, 32, 64)}, {"x": [1, 3, 32, 64], "ids": [1, "seq"]}),
        ({"x": (-1, 3, 32, -1)}, {"x": ["batch", 3, 32, "w"], "ids": ["batch", "seq"]}),
        ({"ids": (1, 16), "h": 8}, {"x": [1, 3, 8, "w"], "ids": [1, 16]}),
    ],
    ids=["a symbol everywhere", "an input", "in part", "both"],
)
def test_binding(bindings: dict[str, Binding], expected: dict[str, list[int | str | None]]) -> None:
    assert shapes(bind_shapes(two_inputs(), bindings)) == expected


@pytest.mark.parametrize(
    ("bindings", "message"),
    [
        (
            {"z": 1},
            "--shape z: the model has no such input or dimension; it has x[batch, 3, h, w], ids[batch, seq]",
        ),
        ({"x": (1, 4, 8, 8)}, "--shape x: got [1, 4, 8, 8], but the input has [batch, 3, h, w]"),
        ({"x": (1, 3)}, "--shape x: got 2 sizes, but the input has [batch, 3, h, w]"),
        ({"x": (0, 3, 8, 8)}, "--shape x: sizes must be positive, got 0"),
        ({"batch": 0}, "--shape batch: a dimension takes one positive size, got [0]"),
        ({"batch": (1, 2)}, "--shape batch: a dimension takes one positive size, got [1, 2]"),
        ({"x": (1, 3, 8, 8), "ids": (2, 4)}, "--shape ids: dimension 'batch' is bound to 1 and 2"),
    ],
)
def test_a_binding_that_does_not_fit_is_refused(bindings: dict[str, Binding], message: str) -> None:
    with pytest.raises(IngestError) as caught:
        bind_shapes(two_inputs(), bindings)
    assert str(caught.value) == message


def test_the_model_that_came_in_stays_as_it_was() -> None:
    model = two_inputs()
    bind_shapes(model, {"batch": 4})
    assert shapes(model)["x"][0] == "batch"


def test_dimensions_declared_below_one_are_dynamic() -> None:
    proto = parsed("main (float[1,3] x) => (float[1,3] y) { y = Neg (x) }")
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    model = model_of(proto)
    open_dimensions(model.ir)
    assert shapes(model) == {"x": [None, 3]}
