"""What a search asks of a model that it tries to compress, whatever the model is made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from edge.formats.profile import DeviceProfile
from host.compress.data.dataset import Dataset
from host.compress.judge.evaluate import Runner
from host.compress.pipeline import Say, Training
from host.compress.quantize.sensitivity import NodeSensitivity
from host.compress.recipe import Quantize, Recipe, Recover
from host.compress.search.candidates import Family
from host.compress.search.front import Objective
from host.compress.search.trial import Costs, Made
from host.model import Tensors


@dataclass(frozen=True, kw_only=True, slots=True)
class Material:
    """What candidates are made from and judged on.

    Attributes:
        dataset: To judge on; calibration and training never see it.
        calibration: Inputs that decisions look at.
        training: What recovery after pruning looks at.
    """

    dataset: Dataset
    calibration: Sequence[Tensors]
    training: Training


class Workpiece(Protocol):
    """One model of one format, ready for any recipe."""

    @property
    def name(self) -> str:
        """Of the model."""

    @property
    def source_digest(self) -> str:
        """``sha256:…`` of what it was read from."""

    @property
    def samples(self) -> Sequence[Tensors]:
        """Inputs that came with it."""

    @property
    def sample(self) -> Tensors:
        """The input that it is timed on."""

    @property
    def key(self) -> tuple[str, ...]:
        """Digests of all that candidates are made from beside material and recipe, versions of packages included."""

    def original(self) -> Runner:
        """Load the model that answers are compared with."""

    def original_costs(self, profile: DeviceProfile) -> Costs:
        """Measure what it asks of the device as it came."""

    def make(self, recipe: Recipe, material: Material, profile: DeviceProfile, *, say: Say) -> Made:
        """Make the candidate that a recipe describes.

        Raises:
            UserError: The model does not allow it.
            RuntimeRefusedError: The runtime does not take what came of it.
        """

    def families(
        self, profile: DeviceProfile, *, ratios: Iterable[float], recover: tuple[Recover, ...], objective: Objective
    ) -> tuple[Family, ...]:
        """What is worth trying, in order; see `host.compress.search.candidates.families`."""

    def sensitivity(self, plan: Quantize, samples: Sequence[Tensors], *, say: Say) -> tuple[NodeSensitivity, ...]:
        """Rank the nodes that a plan quantizes, the worst first.

        Raises:
            UserError: There is nothing to rank.
        """
