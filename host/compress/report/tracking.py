"""Give a report to an experiment tracker: TensorBoard event files, or an offline run of Weights & Biases.

Both write to a folder and never to the network. The packages come with the extra ``tracking`` and are loaded when they
are asked for.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from host.compress.report.records import Report, ReportError, TensorHistogram
from host.compress.report.wording import printable, score_text, size_text, time_text

# Read before the package is loaded: no reports of its crashes, no look at the code, no messages.
_WANDB_ENVIRONMENT = {
    "WANDB_MODE": "offline",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_DISABLE_CODE": "true",
    "WANDB_DISABLE_GIT": "true",
    "WANDB_SILENT": "true",
    "WANDB_CONSOLE": "off",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Scalar:
    """A figure: its name and where it stands in a series."""

    tag: str
    value: float
    step: int


def log_tensorboard(report: Report, folder: Path) -> None:
    """Write a report as one event file: figures as scalars, histograms (step 0 before, step 1 after) and its text.

    Args:
        report: What to write.
        folder: Of the run; made if it is not there.

    Raises:
        ReportError: If tensorboardX is not installed or the folder cannot be written.
    """
    tensorboard = _needed("tensorboardX")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # An absolute path is never taken for the address of a cloud store.
        with _quiet("tensorboardX"), tensorboard.SummaryWriter(logdir=str(folder.resolve())) as writer:
            for scalar in scalars(report):
                writer.add_scalar(scalar.tag, scalar.value, scalar.step)
            for histogram in report.histograms:
                tag = _tag(histogram.kind, histogram.tensor)
                for step, counts in enumerate((histogram.before, histogram.after)):
                    writer.add_histogram_raw(tag, **_raw(histogram, counts), global_step=step)
            writer.add_text("report", _indented(text(report)), 0)
    except OSError as error:
        raise ReportError(f"{folder}: cannot write event files: {error.strerror}") from error


def log_wandb(report: Report, folder: Path, project: str) -> Path:
    """Write a report as an offline run of Weights & Biases, which ``wandb sync`` may send later.

    Args:
        report: What to write.
        folder: Where the folder ``wandb`` with the run is made.
        project: Name of the project.

    Returns:
        The folder of the run.

    Raises:
        ReportError: If wandb is not installed or cannot write the run.
    """
    # Its logs stay in the folder too.
    with _environment({**_WANDB_ENVIRONMENT, "WANDB_CACHE_DIR": str(folder.resolve() / "wandb" / "cache")}):
        wandb = _needed("wandb")
        in_use = wandb.run is not None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            run = wandb.init(
                project=project,
                dir=str(folder.resolve()),
                name=printable(report.model) or None,
                mode="offline",
                save_code=False,
                config={"profile": report.profile, "budget": report.budget, "source_digest": report.source_digest},
                settings=_wandb_settings(wandb),
            )
            with run:
                _fill(wandb, run, report)
                return Path(run.dir).parent
        except (OSError, wandb.Error) as error:
            line = (str(error).splitlines() or [type(error).__name__])[0]
            raise ReportError(f"{folder}: Weights & Biases could not write the run: {line}") from error
        finally:
            # Ends the process that writes the run, unless the caller has a run of its own there.
            if not in_use:
                wandb.teardown()


def scalars(report: Report) -> Iterator[_Scalar]:
    """Every figure of a report: passes and candidates in their order as steps, nodes in graph order."""
    for step, row in enumerate(report.passes):
        if row.kept and row.after is not None:
            for field in ("nodes", "macs", "weight_bytes", "peak_activation_bytes", "latency_seconds"):
                yield from _scalar(f"passes/{field}", getattr(row.after, field), step)
    for step, candidate in enumerate(report.candidates):
        for field in ("size_bytes", "predicted_seconds", "latency_seconds", "latency_ratio"):
            yield from _scalar(f"candidates/{field}", getattr(candidate, field), step)
        for score in candidate.scores:
            yield from _scalar(_tag("candidates", score.metric), score.value, step)
    for evaluation in report.evaluations:
        for score in evaluation.scores:
            tag = _tag("evaluation", evaluation.where, score.metric)
            for name, value in (("value", score.value), ("low", score.low), ("high", score.high)):
                yield from _scalar(f"{tag}/{name}", value, 0)
    for step, node in enumerate(report.sensitivity):
        yield from _scalar("sensitivity/snr_db", node.snr_db, step)


def text(report: Report) -> str:
    """What a report says in words, line by line."""
    lines = [f"model {report.model}, profile {report.profile}"]
    if report.budget is not None:
        lines.append(f"budget {report.budget}")
    lines += [report.outcome, ""]
    for number, each in enumerate(report.candidates):
        marks = "".join((" chosen" if each.chosen else "", " front" if each.on_front else ""))
        costs = f"{size_text(each.size_bytes)}, {time_text(each.latency_seconds)}"
        scores = ", ".join(f"{score.metric} {score_text(score)}" for score in each.scores)
        lines.append(f"candidate {number}: {each.name}: {each.status}{marks}; {costs}; {scores}; {each.judgement}")
    lines += ["", *(f"note: {note}" for note in report.notes)]
    return "\n".join(printable(line) for line in lines)


def _scalar(tag: str, value: float | None, step: int) -> Iterator[_Scalar]:
    if value is not None:
        yield _Scalar(tag=tag, value=float(value), step=step)


def _tag(*parts: str) -> str:
    """A name that both trackers take as it is."""
    return "/".join(re.sub(r"[^A-Za-z0-9_.-]+", "_", part).strip("_") or "unnamed" for part in parts)


def _indented(lines: str) -> str:
    """Make Markdown show lines as they are: names may hold what it takes for marks."""
    return "\n".join(f"    {line}" for line in lines.split("\n"))


def _raw(histogram: TensorHistogram, counts: tuple[int, ...]) -> dict[str, Any]:
    edges = np.linspace(histogram.low, histogram.high, len(counts) + 1)
    middles, weights = (edges[:-1] + edges[1:]) / 2, np.asarray(counts, np.float64)
    return {
        "min": histogram.low,
        "max": histogram.high,
        "num": int(weights.sum()),
        "sum": float(weights @ middles),
        "sum_squares": float(weights @ middles**2),
        "bucket_limits": edges[1:].tolist(),
        "bucket_counts": list(counts),
    }


def _fill(wandb: Any, run: Any, report: Report) -> None:
    steps: dict[int, dict[str, Any]] = {0: {}, 1: {}}
    for scalar in scalars(report):
        steps.setdefault(scalar.step, {})[scalar.tag] = scalar.value
    for histogram in report.histograms:
        edges = np.linspace(histogram.low, histogram.high, len(histogram.before) + 1)
        for step, counts in enumerate((histogram.before, histogram.after)):
            drawn = wandb.Histogram(np_histogram=(np.asarray(counts), edges))
            steps[step][_tag(histogram.kind, histogram.tensor)] = drawn
    for step in sorted(steps):
        run.log(steps[step], step=step)
    run.summary["report"] = text(report)


def _wandb_settings(wandb: Any) -> Any:
    """No watching of the machine, the code or the packages, and no words on the terminal."""
    return wandb.Settings(
        host="(not told)",
        reinit="create_new",
        console="off",
        silent=True,
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
    )


def _needed(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise ReportError(
            f"tracking needs {error.name or package}, which is not installed: pip install 'shardwire[tracking]'"
        ) from error


@contextmanager
def _environment(wanted: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _quiet(logger: str) -> Iterator[None]:
    # It says on each new writer where it writes to.
    log = logging.getLogger(logger)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
