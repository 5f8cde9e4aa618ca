"""One call of an operator, as the functions of `host.compress.torch.operators` see it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from host.compress.recover import RecoverError


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Call:
    """What a node says beside its inputs.

    Attributes:
        op_type: Name of the operator.
        node: Name of the node, for messages.
        opset: Version of the default operator set.
        outputs: How many outputs the node has.
        attributes: Value by name: numbers, texts (str), tuples of them, tensors.
    """

    op_type: str
    node: str
    opset: int
    outputs: int
    attributes: Mapping[str, Any]

    def integer(self, name: str, default: int) -> int:
        """An attribute that is a whole number."""
        return int(self.attributes.get(name, default))

    def number(self, name: str, default: float) -> float:
        """An attribute that is a number."""
        return float(self.attributes.get(name, default))

    def text(self, name: str, default: str) -> str:
        """An attribute that is a text."""
        return str(self.attributes.get(name, default))

    def integers(self, name: str) -> tuple[int, ...] | None:
        """An attribute that is a list of whole numbers; None where the node does not give it."""
        value = self.attributes.get(name)
        return None if value is None else tuple(int(item) for item in value)

    def refused(self, what: str) -> RecoverError:
        """The error for a variant of an operator that cannot be trained here."""
        return RecoverError(
            f"node {self.node!r}: {self.op_type} with {what} cannot be trained; use a method that needs no training "
            "(batch-norm or reconstruct)"
        )


Inputs = Sequence[Tensor | None]
Operator = Callable[[Inputs, Call], Sequence[Tensor]]


def given(inputs: Inputs, index: int) -> Tensor:
    """An input that the operator's definition demands."""
    value = inputs[index]
    if value is None:
        raise RecoverError(f"a node leaves out its input {index}, which its operator needs")
    return value


def optional(inputs: Inputs, index: int) -> Tensor | None:
    """An input that may be left out."""
    return inputs[index] if index < len(inputs) else None


def listed(value: Tensor | None) -> list[int] | None:
    """The whole numbers of a one-dimensional input; None where it is left out."""
    return None if value is None else [int(item) for item in value.reshape(-1).tolist()]
