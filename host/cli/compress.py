"""`shardwire compress`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from host.cli.console import err, out
from host.cli.package import model_stem, parse_shapes
from host.cli.report_table import print_report
from host.compress.recipe import MODES
from host.compress.report.summary import search_report
from host.compress.report.tracking import log_tensorboard, log_wandb
from host.compress.request import CompressRequest
from host.compress.search.candidates import PRUNE_RATIOS
from host.compress.search.search import BudgetUnmetError
from host.compression import Compression, compress_model
from host.errors import PackageError

_FORMS = "folder of images, .npz, .csv or package.module:callable"

Model = Annotated[
    str, typer.Argument(help="path.onnx, path.tflite, package.module:factory; nothing is EfficientNet-Lite0.")
]
Profile = Annotated[str, typer.Option(help="Device profile: an id or a .toml file.")]
Output = Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the compression.")]
Budget = Annotated[str | None, typer.Option(help="What must be kept, such as 'top1-drop<=0.005,cosine>=0.99'.")]
Recipe = Annotated[Path | None, typer.Option(help="Apply this recipe instead of searching.")]
Mode = Annotated[str | None, typer.Option(help=f"{', '.join(MODES)}, instead of searching.")]
Data = Annotated[str | None, typer.Option(help=f"To judge on: {_FORMS}.")]
TrainData = Annotated[str | None, typer.Option(help="To recover pruned models on; the same forms.")]
Inputs = Annotated[
    str | None, typer.Option(help="To calibrate with: file.npz or package.module:callable; else part of --data.")
]
Shapes = Annotated[list[str] | None, typer.Option(help="NAME=SIZE binds a dynamic dimension.")]
Prune = Annotated[list[float] | None, typer.Option(help="Share of channels that a search may remove; 0 for none.")]
Epochs = Annotated[int, typer.Option(min=1, help="Of training after pruning.")]
Augment = Annotated[bool, typer.Option("--augment", help="Shift and mirror images while training.")]
Threads = Annotated[int, typer.Option(min=1, help="For training; 1 gives the same bytes every time.")]
Objective = Annotated[Literal["balanced", "size", "latency"], typer.Option(help="What the best is measured by.")]
Confidence = Annotated[float, typer.Option(min=0.5, max=0.9999, help="Of the intervals.")]
Thorough = Annotated[bool, typer.Option("--thorough", help="Try everything, not only until one will do.")]
MeasureOn = Annotated[Literal["aarch64"] | None, typer.Option(help="Judge the result on an emulated processor, too.")]
TensorBoard = Annotated[Path | None, typer.Option(help="Write event files for TensorBoard here.")]
Wandb = Annotated[Path | None, typer.Option(help="Write an offline run for Weights & Biases here.")]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Work everything out again.")]
Force = Annotated[bool, typer.Option("--force", help="Replace a compression that is there.")]


def command(
    model: Model = "",
    profile: Profile = "rpi4",
    output: Output = None,
    budget: Budget = None,
    recipe: Recipe = None,
    quantize: Mode = None,
    data: Data = None,
    train_data: TrainData = None,
    inputs: Inputs = None,
    shape: Shapes = None,
    prune: Prune = None,
    epochs: Epochs = 5,
    augment: Augment = False,
    threads: Threads = 1,
    objective: Objective = "balanced",
    confidence: Confidence = 0.95,
    thorough: Thorough = False,
    measure_on: MeasureOn = None,
    tensorboard: TensorBoard = None,
    wandb: Wandb = None,
    no_cache: NoCache = False,
    force: Force = False,
) -> None:
    """Compress a model."""
    _check_trackers(tensorboard, wandb)
    request = CompressRequest(
        source=model,
        profile=profile,
        target=output or Path("compressions") / f"{model_stem(model)}-{Path(profile).stem}",
        budget=budget,
        recipe=recipe,
        quantize=quantize,
        data=data,
        training=train_data,
        inputs=inputs,
        shapes=parse_shapes(shape or []),
        ratios=_ratios(prune),
        epochs=epochs,
        augment=augment,
        threads=threads,
        objective=objective,
        confidence=confidence,
        thorough=thorough,
        measure_on=measure_on,
        cached=not no_cache,
        replace=force,
    )
    _report(_shown(request), tensorboard, wandb)


def _shown(request: CompressRequest) -> Compression:
    """Compress with a line for each step and a bar for training."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeRemainingColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    ) as bars:
        bar = bars.add_task("compressing", total=None)

        def say(line: str) -> None:
            bars.console.print(f"  {line}", style="dim", markup=False)
            bars.update(bar, description="compressing", total=None)

        def progress(epoch: int, epochs: int, batch: int, batches: int, loss: float) -> None:
            done = (epoch - 1) * batches + batch
            text = f"epoch {epoch} of {epochs}, loss {loss:.4f}"
            bars.update(bar, description=text, total=epochs * batches, completed=done)

        try:
            return compress_model(request, say=say, progress=progress)
        except BudgetUnmetError as error:
            bars.stop()
            print_report(search_report(error.found, profile=request.profile, budget=request.budget))
            raise


def _check_trackers(tensorboard: Path | None, wandb: Path | None) -> None:
    """Miss a package before the work, not after it."""
    for option, folder, package in (("--tensorboard", tensorboard, "tensorboardX"), ("--wandb", wandb, "wandb")):
        if folder is not None and importlib.util.find_spec(package) is None:
            raise PackageError(f"{option} needs {package}: pip install 'shardwire[tracking]'")


def _report(result: Compression, tensorboard: Path | None, wandb: Path | None) -> None:
    print_report(result.report)
    if tensorboard is not None:
        log_tensorboard(result.report, tensorboard)
    if wandb is not None:
        log_wandb(result.report, wandb, "shardwire")
    out.print(f"written to {result.folder}; package it with --recipe {result.folder / 'recipe.toml'}", markup=False)


def _ratios(given: list[float] | None) -> tuple[float, ...]:
    if given is None:
        return PRUNE_RATIOS
    if wrong := [ratio for ratio in given if not 0 <= ratio < 1]:
        raise PackageError(f"--prune {wrong[0]:g}: give a share from 0 below 1")
    return tuple(ratio for ratio in given if ratio > 0)
