"""What `shardwire compress` is asked for."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from host import staging
from host.compress.judge.budget import Budget
from host.compress.search.candidates import PRUNE_RATIOS
from host.compress.search.front import Objective
from host.errors import PackageError

RECIPE = "recipe.toml"
"""Of a compression; marks its folder as one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CompressRequest:
    """What to compress, how, and where to.

    Attributes:
        source: As for `host.package.PackageRequest`; a TFLite model is quantized only.
        profile: Profile id or path.
        target: Folder of the compression.
        budget: What must be kept; None applies the recipe as it is.
        recipe: Recipe file; None with a budget.
        quantize: Mode, where there is neither budget nor recipe; what the profile prefers when None.
        data: Dataset to judge on; the model's own samples when None.
        training: Dataset to recover on after pruning; None leaves training out of a search.
        inputs: Samples to calibrate with.
        shapes: Sizes for dynamic dimensions.
        ratios: Shares of channels that a search tries to prune.
        epochs: Of training after pruning.
        augment: Whether training shifts and mirrors images.
        threads: For training; with one the same machine gives the same bytes.
        objective: What the best is measured by.
        confidence: Of the intervals.
        thorough: Whether a search goes on after the first idea that keeps the budget.
        measure_on: ``aarch64``: judge the result on an emulated processor of the profile, too.
        cached: Whether trials are kept for the next search.
        replace: Whether a compression at `target` may be replaced.
    """

    source: str
    profile: str
    target: Path
    budget: str | None = None
    recipe: Path | None = None
    quantize: str | None = None
    data: str | None = None
    training: str | None = None
    inputs: str | None = None
    shapes: Mapping[str, int | tuple[int, ...]] = field(default_factory=dict)
    ratios: tuple[float, ...] = PRUNE_RATIOS
    epochs: int = 5
    augment: bool = False
    threads: int = 1
    objective: Objective = "balanced"
    confidence: float = 0.95
    thorough: bool = False
    measure_on: Literal["aarch64"] | None = None
    cached: bool = True
    replace: bool = False

    @property
    def is_tflite(self) -> bool:
        """Whether the source is a TFLite file."""
        return Path(self.source).suffix.lower() == ".tflite"


def check_request(request: CompressRequest) -> None:
    """Refuse what contradicts itself or cannot be had, before the work begins.

    Raises:
        BudgetError: The budget is none.
        PackageError: Options do not go together, a package is missing, or the target is taken.
    """
    if request.budget is not None and (request.recipe is not None or request.quantize is not None):
        raise PackageError("a budget decides by itself how to compress: leave out --recipe and --quantize")
    if request.recipe is not None and request.quantize is not None:
        raise PackageError(f"--recipe {request.recipe} says how to quantize: leave out --quantize {request.quantize}")
    if request.budget is not None and request.data is None and Budget.parse(request.budget).needs_labels:
        raise PackageError(f"--budget {request.budget!r} needs labelled data to judge on: pass --data")
    for option, source, use in (
        ("--inputs", request.inputs, "calibrated"),
        ("--train-data", request.training, "trained"),
    ):
        if source is not None and request.data is not None and _is_same(source, request.data):
            raise PackageError(
                f"{option} {source} is --data, too: what is {use} with is no proof; give other samples or leave it out"
            )
    if request.is_tflite:
        _check_for_tflite(request)
    if request.training is not None and importlib.util.find_spec("torch") is None:
        raise PackageError("--train-data needs torch: pip install 'shardwire[torch]', or leave it out")
    staging.check_target(request.target, marker=RECIPE, what="compression", replace=request.replace)


def _check_for_tflite(request: CompressRequest) -> None:
    """Refuse what only an ONNX graph can be put through."""
    asked = {
        "--train-data": request.training is not None,
        "--prune": bool(request.ratios) and request.ratios != PRUNE_RATIOS,
    }
    if steps := [option for option, is_asked in asked.items() if is_asked]:
        raise PackageError(
            f"{steps[0]} needs the ONNX or PyTorch model: a .tflite file is quantized only; leave it out, or give the "
            "model that the file was converted from"
        )
    if request.measure_on is not None:
        raise PackageError(f"--measure-on {request.measure_on} runs ONNX models only: leave it out")


def _is_same(first: str, second: str) -> bool:
    """Whether two options name one file, folder or function."""
    return first == second or Path(first).resolve() == Path(second).resolve()
