"""What a runtime offers to the agent."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from edge.formats.message import RuntimeOffer
from edge.formats.tensor import Array


@dataclass(frozen=True, kw_only=True, slots=True)
class StageModel:
    """A composed stage, ready to load.

    Attributes:
        model: the joined fragments.
        weights_folder: holds the weight blobs as real files named by their hex digest.
        inputs, outputs: tensors the session takes and gives, in order.
    """

    model: bytes
    weights_folder: Path
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class StageOptions:
    """How a device runs its stages.

    Attributes:
        threads: of one operator.
        mode: `exact` runs the graph unoptimised; `default` lets the runtime pick its memory layout.
        providers: execution providers in order of preference; those that are absent are passed over.
    """

    threads: int = 1
    mode: Literal["default", "exact"] = "default"
    providers: tuple[str, ...] = ("CPUExecutionProvider",)


class StageSession(Protocol):
    """A loaded stage."""

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once.

        Raises:
            StageError: the runtime refused the input or failed.
        """

    def close(self) -> None:
        """Free what the session holds; running it afterwards is a bug."""


class Runtime(Protocol):
    """A framework that can load stages."""

    def offer(self) -> RuntimeOffer:
        """Say what is installed."""

    def load(self, stage: StageModel, options: StageOptions) -> StageSession:
        """Load a stage.

        Raises:
            UnsupportedOperator: an operator or version is missing; the text names it.
            OutOfMemory: it does not fit.
            StageError: anything else that the runtime refuses.
        """
