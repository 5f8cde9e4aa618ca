"""What a runtime offers to the agent."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from edge.errors import StageError
from edge.formats.message import RuntimeOffer
from edge.formats.tensor import Array


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelPart:
    """One model file of a stage.

    Attributes:
        model: the file.
        inputs, outputs: tensors that it takes and gives, in its own order.
        where: what it was made of, for messages.
    """

    model: bytes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    where: str = "stage"


@dataclass(frozen=True, kw_only=True, slots=True)
class StageModel:
    """A composed stage, ready to load.

    Attributes:
        parts: run one after another, tensors passed on by name: one for ONNX, one a shard for TFLite.
        weights_folder: holds the weight blobs as real files named by their hex digest.
        inputs, outputs: tensors the session takes and gives, in order.
        operators: names of those of the whole bundle: what depends on them is the same for all of its stages.
    """

    parts: tuple[ModelPart, ...]
    weights_folder: Path
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    operators: frozenset[str] = frozenset()

    @property
    def model(self) -> bytes:
        """The file of a stage that is one model.

        Raises:
            StageError: it is several.
        """
        if len(self.parts) != 1:
            raise StageError(f"the stage is {len(self.parts)} models, not one")
        return self.parts[0].model


@dataclass(frozen=True, kw_only=True, slots=True)
class StageOptions:
    """How a device runs its stages.

    Attributes:
        threads: of one operator.
        mode: `exact` runs the graph unoptimised; `default` lets the runtime pick its memory layout and kernels.
        providers: execution providers in order of preference; those that are absent, or another runtime's, are passed
            over.
    """

    threads: int = 1
    mode: Literal["default", "exact"] = "default"
    providers: tuple[str, ...] = ("CPUExecutionProvider",)


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelRun:
    """One run of one kernel.

    Attributes:
        name: as the runtime's optimiser calls it: of a node, or of a tensor that it makes, with additions.
        seconds: wall time inside it, without the kernels in its bodies.
    """

    name: str
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ProfiledRun:
    """One run of a session under the profiler.

    Attributes:
        kernels: in the order in which they ended.
        executor_seconds: from the first kernel to the last, with what lies between them.
    """

    kernels: tuple[KernelRun, ...]
    executor_seconds: float


class StageSession(Protocol):
    """A loaded stage."""

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once and return the outputs of the stage by name.

        Raises:
            StageError: the runtime refused the input or failed.
        """

    def close(self) -> None:
        """Free what the session holds; running it afterwards is a bug."""


class ProfiledSession(StageSession, Protocol):
    """A loaded stage whose kernels are timed until `end_profile`, and which runs as any other afterwards."""

    def end_profile(self) -> tuple[ProfiledRun, ...]:
        """Return the times of every run so far, and stop timing.

        Raises:
            StageError: the runtime wrote nothing that can be read.
        """


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


@runtime_checkable
class ProfilingRuntime(Runtime, Protocol):
    """A framework that can tell how long its kernels take."""

    def load_profiled(self, stage: StageModel, options: StageOptions, folder: Path) -> ProfiledSession:
        """Load a stage as `load` does, and time its kernels.

        Args:
            stage: what to load.
            options: as for `load`.
            folder: a private one, for what the profiler writes.
        """
