"""`shardwire infer`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from edge.client import Client
from edge.errors import RequestError, StoreError, TransportError
from edge.formats.bundle import Manifest
from edge.formats.topics import check_name
from edge.outbox import DurableClient, Outbox
from edge.processing.answer import read_answers
from edge.processing.values import Answer, Prepared
from edge.protocol.requests import InferenceResult
from edge.streams import is_carried
from host.cli.console import err, out, print_json
from host.cli.given import Request, read_requests
from host.cli.options import DEFAULT_BROKER, DEFAULT_FLEET, Broker, Fleet, Json, quiet_transport
from host.cli.shown import lines_of, record_of
from host.cli.signals import terminated_as_exit
from host.errors import FleetError
from host.fleet.hops import hop_times

_KNOWN_SECONDS = 3.0
_MANIFEST_SECONDS = 60.0
_TAG_LETTERS = 1000


def command(
    name: Annotated[str, typer.Argument(help="Deployment.")],
    files: Annotated[list[Path] | None, typer.Argument(help="Photos, WAV, .txt, or .npz files with tensors.")] = None,
    text: Annotated[list[str] | None, typer.Option("--text", help="A text for the model. May be repeated.")] = None,
    inputs: Annotated[list[Path] | None, typer.Option(help="One more .npz file with the input tensors.")] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Keep several requests in flight.")] = False,
    window: Annotated[int, typer.Option(min=1, max=1024, help="How many, with --stream.")] = 4,
    top: Annotated[int, typer.Option(min=1, max=100, help="How many classes to show.")] = 1,
    deadline: Annotated[float, typer.Option(min=0.1, help="Seconds that each request may take.")] = 30.0,
    door: Annotated[
        list[str] | None,
        typer.Option(
            help="Hand inputs to the agent DEVICE on this machine through its door, never through the broker.",
            metavar="DEVICE=SOCKET",
        ),
    ] = None,
    outbox: Annotated[
        Path | None,
        typer.Option(
            help="Keep requests in this file until their answers are shown; what an earlier command left there goes "
            "first.",
            metavar="FILE",
        ),
    ] = None,
    broker: Broker = DEFAULT_BROKER,
    fleet: Fleet = DEFAULT_FLEET,
    json: Json = False,
) -> None:
    """Send photos, sounds, texts or tensors through a deployment."""
    quiet_transport()
    check_name(name, what="deployment name")
    paths = [*(files or []), *(inputs or [])]
    if not paths and not text and outbox is None:
        raise typer.BadParameter("give photos, WAV or .npz files, or --text", param_hint="FILES")
    doors = _doors(door or ())
    with contextlib.ExitStack() as stack:
        stack.enter_context(terminated_as_exit())
        kept = None if outbox is None else stack.enter_context(Outbox(outbox))
        client = stack.enter_context(
            Client.connect(broker, fleet=fleet, name=kept.client_name if kept else None, doors=doors)
        )
        manifest = _manifest(client, name)
        # Read before anything is sent: one bad file among many stops the whole command, not half of it.
        requests = read_requests(paths, text or [], manifest, read=lambda blob: client.file(name, blob))
        screen = _Screen(manifest=manifest, top=top, quiet=json)
        if kept is None:
            send = _sender(requests, manifest)
            results = send(client, name, requests, deadline, window if stream else 1)
            records = list(_shown(requests, results, screen))
        else:
            durable = DurableClient(client, kept)
            futures = list(durable.resume().values())
            known: dict[str, Prepared] = {}
            for request in requests:
                tag = request.shown[:_TAG_LETTERS]
                known[tag] = request.prepared
                futures.append(durable.submit(name, request.prepared.tensors, deadline_seconds=deadline, tag=tag))
            records = _durable(futures, kept, known, screen)
    if json:
        print_json(records)


def _sender(requests: Sequence[Request], manifest: Manifest) -> Callable[..., Iterator[InferenceResult]]:
    """Requests that leave the states of their model to a stream are one."""
    is_stream = all(is_carried(request.prepared.tensors, manifest) for request in requests)
    return _in_stream if is_stream else _side_by_side


def _side_by_side(
    client: Client, name: str, requests: Sequence[Request], deadline: float, window: int
) -> Iterator[InferenceResult]:
    """Send requests that have nothing to do with each other."""
    tensors = (request.prepared.tensors for request in requests)
    return client.stream(name, tensors, window=window, deadline_seconds=deadline, observe=True)


def _in_stream(
    client: Client, name: str, requests: Sequence[Request], deadline: float, _window: int
) -> Iterator[InferenceResult]:
    """Send requests one after another, each with the state that the one before it left."""
    with client.open_stream(name, deadline_seconds=deadline, observe=True) as stream:
        for request in requests:
            yield stream.infer(request.prepared.tensors)


def _durable(
    futures: Sequence[Future[InferenceResult]], outbox: Outbox, known: Mapping[str, Prepared], shown: _Screen
) -> list[dict[str, Any]]:
    """Show the answers as they come; a request leaves the outbox once its answer was shown.

    Of one that an earlier command left there it is not known where its image lay in the photo.
    """
    records: list[dict[str, Any]] = []
    failed = ""
    for future in futures:
        if isinstance(fault := future.exception(), StoreError):
            raise fault
        for settled in outbox.settled():
            if isinstance(settled.outcome, RequestError):
                failed = f"{settled.tag}: {settled.outcome}"
                err.print(failed, markup=False, soft_wrap=True)
            else:
                records.append(shown.show(settled.tag, settled.outcome, known.get(settled.tag)))
            outbox.forget(settled.row)
    if failed:
        raise FleetError("not every request has an answer, see above")
    return records


def _doors(texts: Sequence[str]) -> dict[str, Path]:
    doors = {}
    for text in texts:
        device, equals, path = text.partition("=")
        if not equals or not path:
            raise typer.BadParameter(f"{text!r} is not DEVICE=SOCKET", param_hint="--door")
        doors[check_name(device, what="device name")] = Path(path)
    return doors


def _manifest(client: Client, name: str) -> Manifest:
    with contextlib.suppress(TransportError):
        # Whether there is such a deployment is known soon; its manifest may take longer on a slow link.
        return client.deployment(name, timeout_seconds=_KNOWN_SECONDS)[1]
    return client.deployment(name, timeout_seconds=_MANIFEST_SECONDS)[1]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Screen:
    """Shows answers, unless they are for a program.

    Attributes:
        top: how many classes.
        quiet: whether nothing is printed.
    """

    manifest: Manifest
    top: int
    quiet: bool

    def show(self, source: str, result: InferenceResult, prepared: Prepared | None) -> dict[str, Any]:
        """Print one answer and return its record."""
        answers = read_answers(self.manifest.processing, result.outputs, prepared=prepared, top=self.top)
        if not self.quiet:
            _print(source, result, answers)
        return _record(source, result, answers)


def _shown(
    requests: Sequence[Request], results: Iterator[InferenceResult], screen: _Screen
) -> Iterator[dict[str, Any]]:
    """Show each answer as it comes and yield its record."""
    for request in requests:
        try:
            result = next(results)
        except StopIteration as error:
            raise FleetError(f"{request.shown}: the client ended without an answer") from error
        yield screen.show(request.shown, result, request.prepared)


def _print(source: str, result: InferenceResult, answers: Sequence[Answer]) -> None:
    name = Path(source).name if "/" in source and Path(source).suffix else source
    for place, (words, score) in enumerate(lines_of(answers, result.outputs)):
        rating = "" if score is None else f", {score:.3f}"
        tail = f", {result.latency_seconds * 1e3:.1f} ms" if place == 0 else ""
        out.print(f"{name}: {words}{rating}{tail}", markup=False, soft_wrap=True)
    out.print(f"  {timeline(result)}", style="dim", markup=False, soft_wrap=True)


def timeline(result: InferenceResult) -> str:
    """Return the way of one request: hops, and at each device how long it waited and ran."""
    hops = hop_times(result)
    words = ["client"]
    at = "client"
    for hop, stage in zip(hops, result.trace, strict=False):
        if hop.sender != at:  # side by side: the way goes on from an earlier device
            words.append(f"| {hop.sender}")
        at = stage.device
        words.append(f"─{_ms(hop.seconds)}→ {stage.device}")
        words.append(f"(queue {_ms(stage.queued_seconds)}, run {_ms(stage.run_seconds)})")
    if hops[-1].sender != at:
        words.append(f"| {hops[-1].sender}")
    words.append(f"─{_ms(hops[-1].seconds)}→ client; in ms")
    if result.attempts > 1:
        words.append(f"(sent {result.attempts} times)")
    return " ".join(words)


def _ms(seconds: float | None) -> str:
    return "?" if seconds is None else f"{seconds * 1e3:.1f}"


def _record(source: str, result: InferenceResult, answers: Sequence[Answer]) -> dict[str, Any]:
    return {
        "file": source,
        "labels": [],
        **record_of(answers),
        "outputs": {name: list(array.shape) for name, array in result.outputs.items()},
        "latency_seconds": result.latency_seconds,
        "attempts": result.attempts,
        "epoch": result.epoch,
        "stages": [
            {
                "device": stage.device,
                "queued_seconds": stage.queued_seconds,
                "run_seconds": stage.run_seconds,
                "received_bytes": stage.received_bytes,
                "sent_bytes": stage.sent_bytes,
            }
            for stage in result.trace
        ],
        "hops": [{"from": hop.sender, "to": hop.receiver, "seconds": hop.seconds} for hop in hop_times(result)],
    }
