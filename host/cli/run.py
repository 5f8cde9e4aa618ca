"""`shardwire run`."""

import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from edge.formats.tensor import Array, check_inputs
from edge.preprocess import read_labels
from host.answers import load_whole
from host.bundle import open_bundle
from host.cli.console import out, print_json, read_inputs, table
from host.errors import PackageError


def command(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    files: Annotated[list[Path], typer.Argument(help="Photos, or .npz files with the input tensors.")],
    top: Annotated[int, typer.Option(min=1, max=100, help="How many classes to show.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="Threads of one operator.")] = 1,
    exact: Annotated[bool, typer.Option("--exact", help="Run unoptimised, bit-equal to the whole model.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Answer photos or tensors with a bundle, without a broker."""
    opened = open_bundle(bundle)
    stage = load_whole(opened, mode="exact" if exact else "default", threads=threads)
    rows = table("file", "answer", ">probability", ">ms")
    answers: list[dict[str, Any]] = []
    for path in files:
        inputs = read_inputs(path, opened.manifest)
        if fault := check_inputs(inputs, opened.manifest.inputs):
            raise PackageError(f"{path}: {fault}")
        began = time.perf_counter()
        outputs = stage.run(inputs)
        milliseconds = (time.perf_counter() - began) * 1e3
        if opened.manifest.labels is None:
            text = "; ".join(describe(name, array) for name, array in outputs.items())
            rows.add_row(str(path), text, "", f"{milliseconds:.1f}")
            answers.append({"file": str(path), "outputs": {n: list(a.shape) for n, a in outputs.items()}})
            continue
        best = read_labels(opened.manifest.labels, outputs, top=top)
        for label, probability in best:
            rows.add_row(str(path), label, f"{probability:.3f}", f"{milliseconds:.1f}")
        answers.append({"file": str(path), "labels": [{"label": n, "probability": p} for n, p in best]})
    if json:
        print_json(answers)
    else:
        out.print(rows)


def describe(name: str, array: Array) -> str:
    """Return one output in a few words: name, shape, range."""
    if array.size == 0 or array.dtype.kind == "b":
        return f"{name} {array.dtype}{list(array.shape)}"
    return f"{name} {array.dtype}{list(array.shape)} in [{np.min(array):.4g}, {np.max(array):.4g}]"
