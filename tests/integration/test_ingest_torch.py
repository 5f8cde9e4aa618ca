"""Reading torch modules through their factories; this module holds the factories too."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from host.errors import IngestError, UnsupportedModelError
from host.ingest import ingest
from host.model import to_bytes
from host.passes.normalise import normalise
from host.reference import Reference

HERE = "tests.integration.test_ingest_torch"


class Net(torch.nn.Module):
    """Two inputs, two outputs, dropout and a batch norm that would answer differently in training mode."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Linear(4, 8)
        self.norm = torch.nn.BatchNorm1d(8)
        self.drop = torch.nn.Dropout(0.5)
        self.last = torch.nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, shift: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.drop(torch.relu(self.norm(self.first(x))))
        return {"scores": self.last(hidden) + shift, "hidden": hidden}


class Noisy(torch.nn.Module):
    """Dropout that trains always."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.dropout(x, 0.5, training=True)


class Looping(torch.nn.Module):
    """Control flow that depends on values."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        while float(x.sum()) < 10:
            x = x + 1
        return x


EXAMPLE = (torch.ones(2, 4), torch.zeros(2, 3))


def net_with_inputs() -> tuple[torch.nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    print("loading weights, 3 % done")
    return Net(), EXAMPLE


def net_by_name() -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    return Net(), {"shift": EXAMPLE[1], "x": EXAMPLE[0]}


def bare_net() -> torch.nn.Module:
    return Net()


def one_input() -> tuple[torch.nn.Module, torch.Tensor]:
    return torch.nn.Sequential(torch.nn.Linear(4, 2)), torch.ones(1, 4)


def inputs() -> list[dict[str, np.ndarray]]:
    return [{"shift": np.full((1, 3), row, np.float32), "x": np.full((1, 4), row, np.float32)} for row in (1, 2, 3)]


def too_many() -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    return Net(), (*EXAMPLE, torch.ones(1))


def no_module() -> str:
    return "a string"


def failing() -> None:
    raise OSError("weights are gone")


def noisy() -> tuple[torch.nn.Module, torch.Tensor]:
    return Noisy(), torch.ones(1, 64)


def looping() -> tuple[torch.nn.Module, torch.Tensor]:
    return Looping(), torch.ones(1, 4)


@pytest.mark.parametrize("factory", ["net_with_inputs", "net_by_name"])
def test_a_factory_becomes_a_model_that_answers_like_torch(factory: str, capfd: pytest.CaptureFixture[str]) -> None:
    found = ingest(f"{HERE}:{factory}")
    assert found.model.name == factory.replace("_", "-")
    assert found.model.origin.format == "torch"
    (golden,) = found.golden
    assert list(golden.inputs) == ["x", "shift"]
    with torch.no_grad():
        expected = Net().eval()(*EXAMPLE)
    scores, hidden = golden.outputs.values()
    assert np.allclose(scores, expected["scores"], atol=1e-6)
    assert np.allclose(hidden, expected["hidden"], atol=1e-6)
    answers = Reference(normalise(found.model)).run(golden.inputs)
    assert all(np.allclose(answers[name], want, atol=1e-6) for name, want in golden.outputs.items())
    assert capfd.readouterr() == ("", "")


def test_one_tensor_is_enough_of_an_example() -> None:
    assert [array.shape for array in ingest(f"{HERE}:one_input").golden[0].outputs.values()] == [(1, 2)]


def test_inputs_of_the_user_stand_in_for_an_example() -> None:
    found = ingest(f"{HERE}:bare_net", inputs=f"{HERE}:inputs")
    assert len(found.samples) == 3
    assert found.notes == ()


def test_the_same_weights_give_the_same_digest_and_bytes() -> None:
    first, second = (ingest(f"{HERE}:net_with_inputs").model for _ in range(2))
    assert first.origin.digest == second.origin.digest
    assert to_bytes(normalise(first).ir) == to_bytes(normalise(second).ir)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (
            "bare_net",
            (
                "returns no example inputs: return (module, inputs), or pass --inputs with one array for each "
                "argument of its forward"
            ),
        ),
        ("no_module", "returned a str; it must return a torch.nn.Module, or one and example inputs"),
    ],
)
def test_factories_that_return_too_little(factory: str, message: str) -> None:
    with pytest.raises(IngestError) as caught:
        ingest(f"{HERE}:{factory}")
    assert str(caught.value) == f"{HERE}:{factory} {message}"


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("failing", "the factory failed: OSError: weights are gone"),
        ("too_many", "3 example inputs, but forward takes x, shift"),
    ],
)
def test_factories_that_fail(factory: str, message: str) -> None:
    with pytest.raises(IngestError) as caught:
        ingest(f"{HERE}:{factory}")
    assert str(caught.value) == f"{HERE}:{factory}: {message}"


def test_a_module_that_cannot_be_exported_is_refused_in_one_line() -> None:
    with pytest.raises(IngestError) as caught:
        ingest(f"{HERE}:looping")
    assert str(caught.value).startswith(f"{HERE}:looping: torch cannot export it to ONNX: ")
    assert "\n" not in str(caught.value)


def test_a_module_that_answers_at_random_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="does not answer the same input the same way twice"):
        ingest(f"{HERE}:noisy")


def test_a_factory_needs_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    real: Callable[..., object] = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "torch" else real(name, *rest))
    with pytest.raises(IngestError) as caught:
        ingest(f"{HERE}:net_with_inputs")
    assert str(caught.value) == "a PyTorch model needs torch: pip install 'shardwire[torch]'"
