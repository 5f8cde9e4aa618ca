"""`shardwire run`."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from edge.buckets import pad
from edge.processing.answer import read_answers
from edge.streams import CarriedState, is_carried
from host.answers import load_whole
from host.bundle import open_bundle
from host.cli.console import out, print_json, table
from host.cli.given import read_requests
from host.cli.shown import lines_of, record_of


def command(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    files: Annotated[
        list[Path] | None, typer.Argument(help="Photos, WAV, .txt, or .npz files with the input tensors.")
    ] = None,
    text: Annotated[list[str] | None, typer.Option("--text", help="A text for the model. May be repeated.")] = None,
    top: Annotated[int, typer.Option(min=1, max=100, help="How many classes to show.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="Threads of one operator.")] = 1,
    exact: Annotated[bool, typer.Option("--exact", help="Run unoptimised, bit-equal to the whole model.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Answer photos, sounds, texts or tensors with a bundle, without a broker."""
    if not files and not text:
        raise typer.BadParameter("give photos, WAV or .npz files, or --text", param_hint="FILES")
    opened = open_bundle(bundle)
    manifest = opened.manifest
    stage = load_whole(opened, mode="exact" if exact else "default", threads=threads)
    requests = read_requests(files or [], text or [], manifest, read=opened.read)
    rows = table("input", "answer", ">score", ">ms")
    records: list[dict[str, Any]] = []
    carried = CarriedState(manifest) if manifest.states else None
    for request in requests:
        tensors = request.prepared.tensors
        stream = carried if carried is not None and is_carried(tensors, manifest) else None
        padded = pad(tensors if stream is None else stream.feed(tensors), manifest)
        began = time.perf_counter()
        outputs = padded.cut(stage.run(padded.inputs))
        milliseconds = (time.perf_counter() - began) * 1e3
        outputs = outputs if stream is None else stream.take(outputs)
        answers = read_answers(manifest.processing, outputs, prepared=request.prepared, top=top)
        for words, score in lines_of(answers, outputs):
            rows.add_row(request.shown, words, "" if score is None else f"{score:.3f}", f"{milliseconds:.1f}")
        shapes = {"outputs": {name: list(array.shape) for name, array in outputs.items()}}
        records.append({"file": request.shown, **(record_of(answers) if answers else {}), **shapes})
    stage.close()
    if json:
        print_json(records)
    else:
        out.print(rows)
