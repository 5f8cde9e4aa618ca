"""`shardwire demo`: the main job on this machine, every answer checked."""

from __future__ import annotations

import contextlib
import secrets
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

from edge.client import Client
from edge.formats.message import DeployRequest
from edge.formats.plan import Constraints
from edge.formats.tensor import Array
from edge.processing.answer import read_labels
from edge.processing.prepare import prepare_image
from edge.protocol.requests import InferenceResult
from host.answers import load_whole, read_tensors
from host.broker import BrokerKind, RunningBroker, choose_broker, start_broker
from host.bundle import OpenBundle
from host.cli.console import err, out, size_text, table
from host.cli.deploy import ship
from host.cli.infer import timeline
from host.cli.options import quiet_transport
from host.cli.signals import terminated_as_exit
from host.cli.status import plan_table
from host.compare import compare, cosine, relative_error
from host.errors import FleetError
from host.fleet.blobs import BundleBlobs
from host.fleet.local import LocalAgent, local_agents

FLEET = "demo"
AGENTS = (
    LocalAgent(name="pi-4", profile="rpi4"),
    LocalAgent(name="pi-3", profile="rpi3"),
    LocalAgent(name="orin", profile="jetson-orin-nano"),
)
PHOTOS = (243, 559, 949, 853, 915, 455, 541, 741, 471, 99, 22, 317)
"""Classes of the photos, which the source model gets right."""

FLOAT_TOLERANCE = 1e-5
"""Relative error of fp32 shards to the unsplit model on one processor; int8 must be equal, bit by bit."""

_DEPLOY_NAMES = {"none": "lite0-fp32", "int8": "lite0-int8"}
_Weights = Literal["none", "int8"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Photo:
    """A photo whose class is known."""

    path: Path
    label: str
    tensor: Array


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What the fleet said to a photo, beside the unsplit model.

    Attributes:
        relative_error: largest, to the unsplit model's outputs.
        mismatch: whether that is more than allowed.
    """

    deployment: str
    photo: Photo
    label: str
    probability: float
    result: InferenceResult
    relative_error: float
    mismatch: bool

    @property
    def right(self) -> bool:
        """Whether it is the known class."""
        return self.label == self.photo.label


def command(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the fleet running until Ctrl-C.")] = False,
    broker: Annotated[str, typer.Option(help="auto, mosquitto or amqtt.")] = "auto",
) -> None:
    """Package, deploy to three agents on this machine, classify photos, and check every answer."""
    quiet_transport()
    if broker not in ("auto", "mosquitto", "amqtt"):
        raise typer.BadParameter("choose auto, mosquitto or amqtt", param_hint="--broker")
    kind: BrokerKind = broker  # type: ignore[assignment]  # checked above
    choose_broker(kind)  # a missing broker is said before minutes are spent
    with terminated_as_exit(), tempfile.TemporaryDirectory(prefix="shardwire-demo-") as name:
        failed = _demo(Path(name), kind, keep=keep)
    raise typer.Exit(1 if failed else 0)


def _demo(folder: Path, kind: BrokerKind, *, keep: bool) -> bool:
    """Run the whole demo in `folder`; return whether something was wrong."""
    began = time.monotonic()
    kinds: tuple[_Weights, ...] = ("none", "int8")
    bundles = {weights: _package(weights, folder / _DEPLOY_NAMES[weights]) for weights in kinds}
    with _fleet(folder, kind) as running:
        answers: list[Answer] = []
        for weights, bundle in bundles.items():
            answers += _deploy_and_ask(running, bundle, weights)
        line, failed = verdict(answers)
        out.print(f"\n{line} ({time.monotonic() - began:.0f} s)")
        if keep:
            _wait(running, answers[0].photo.path)
    return failed


def verdict(answers: Sequence[Answer]) -> tuple[str, bool]:
    """Return the last line of the demo, and whether something is wrong."""
    right = sum(answer.right for answer in answers)
    mismatches = sum(answer.mismatch for answer in answers)
    deployments = len({answer.deployment for answer in answers})
    photos = len(answers) // max(1, deployments)
    line = (
        f"{len(answers)} photos ({photos} through each of {deployments} deployments), "
        f"{right} right, {mismatches} mismatches"
    )
    return line, right < len(answers) or mismatches > 0 or not answers


def differs(found: Mapping[str, Array], expected: Mapping[str, Array], *, tolerance: float) -> tuple[float, bool]:
    """Return the largest relative error of an answer, and whether it is a mismatch.

    Args:
        found: outputs of the fleet.
        expected: outputs of the unsplit model.
        tolerance: largest relative error allowed; 0 asks for equal bits.
    """
    fault = compare(found, expected, tolerance=tolerance)
    if found.keys() != expected.keys() or any(found[name].shape != expected[name].shape for name in expected):
        return float("inf"), True
    return max(relative_error(found[name], expected[name]) for name in expected), fault is not None


def _package(weights: _Weights, target: Path) -> OpenBundle:
    # Only here: the other commands run where neither torch nor onnx is installed.
    from host.package import PackageRequest, package

    request = PackageRequest(source="", profile="rpi4", target=target, quantize=weights, name=target.name)
    with err.status("packaging EfficientNet-Lite0") as status:
        bundle = package(request, say=lambda line: status.update(f"packaging {target.name}: {line}")).bundle
    manifest = bundle.manifest
    largest = max(shard.size_bytes for shard in manifest.shards)
    shipped = sum(blob.size_bytes for blob in manifest.blobs(0, len(manifest.shards)))
    out.print(
        f"packaged {manifest.name}: {len(manifest.shards)} shards, {size_text(shipped)}, "
        f"largest {size_text(largest)} of {size_text(manifest.max_shard_bytes)} allowed"
    )
    return bundle


@contextlib.contextmanager
def _fleet(folder: Path, kind: BrokerKind) -> Iterator[RunningBroker]:
    with start_broker(kind, folder=folder / "broker") as running:
        with err.status("starting three agents"):
            agents = contextlib.ExitStack()
            agents.enter_context(local_agents(running.url, AGENTS, folder=folder / "agents", fleet=FLEET))
        with agents:
            shown = ", ".join(f"{agent.name} ({agent.profile})" for agent in AGENTS)
            out.print(f"{running.kind} at {running.url}; agents, a process each: {shown}")
            yield running


def _deploy_and_ask(running: RunningBroker, bundle: OpenBundle, weights: _Weights) -> list[Answer]:
    name = bundle.manifest.name
    request = DeployRequest(
        request_id=secrets.token_hex(8),
        name=name,
        manifest=bundle.manifest_blob,
        holders=(),
        constraints=Constraints(devices=tuple(agent.name for agent in AGENTS), use_all=True),
        reply_to="",
    )
    course = ship(running.url, request, fleet=FLEET, blobs=BundleBlobs(bundle))
    out.print(f"\n[bold]{name}[/bold] serves, epoch {course.epoch}; times and memory as predicted for the real devices")
    if course.plan is not None:
        out.print(plan_table(course.plan))
    tolerance = FLOAT_TOLERANCE if weights == "none" else 0.0
    with Client.connect(running.url, fleet=FLEET) as client:
        answers = _classify(client, bundle, tolerance)
        agreement = _agreement(client, bundle)
    out.print(_answer_table(answers))
    out.print(f"way of the last photo: {timeline(answers[-1].result)}", markup=False, soft_wrap=True)
    out.print(f"agreement with the source model in PyTorch: {agreement}")
    return answers


def _photos(bundle: OpenBundle) -> list[Photo]:
    from host.ingest.zoo import photo_paths

    manifest = bundle.manifest
    recipe, names = manifest.processing.photo, manifest.processing.classes
    if recipe is None or names is None:
        raise FleetError(f"bundle {manifest.name!r} takes no photos")
    paths = {int(path.stem.rpartition("_")[2]): path for path in photo_paths()}
    return [
        Photo(
            path=paths[number],
            label=names[number],
            tensor=prepare_image(recipe, paths[number].read_bytes(), where=str(paths[number])),
        )
        for number in PHOTOS
    ]


def _classify(client: Client, bundle: OpenBundle, tolerance: float) -> list[Answer]:
    """Send every photo through the fleet and through the unsplit model on this machine."""
    manifest = bundle.manifest
    photos = _photos(bundle)
    recipe = manifest.processing.photo
    if recipe is None:
        return []
    whole = load_whole(bundle)
    answers = []
    for photo in photos:
        inputs = {recipe.name: photo.tensor}
        result = client.infer(manifest.name, inputs, observe=True)
        error, mismatch = differs(result.outputs, whole.run(inputs), tolerance=tolerance)
        ((label, probability),) = read_labels(manifest.processing, result.outputs, top=1)
        answers.append(
            Answer(
                deployment=manifest.name,
                photo=photo,
                label=label,
                probability=probability,
                result=result,
                relative_error=error,
                mismatch=mismatch,
            )
        )
    whole.close()
    return answers


def _agreement(client: Client, bundle: OpenBundle) -> str:
    """Say how close the fleet's answers to the golden inputs are to the source model's own."""
    angles = []
    for pair in bundle.manifest.golden:
        outputs = client.infer(bundle.manifest.name, read_tensors(bundle, pair.inputs)).outputs
        source = read_tensors(bundle, pair.outputs)
        angles += [cosine(outputs[name], source[name]) for name in source]
    worst = min(angles)
    if worst < bundle.manifest.least_cosine:
        raise FleetError(f"cosine {worst:.4f} to the source model is below {bundle.manifest.least_cosine:g}")
    return f"cosine {worst:.6f} on {len(bundle.manifest.golden)} golden input{'s' * (len(angles) != 1)}"


def _answer_table(answers: Sequence[Answer]) -> Table:
    rows = table("photo", "expected", "answer", ">probability", ">ms", ">error to the whole")
    for answer in answers:
        good = "green" if answer.right and not answer.mismatch else "bold red"
        error = answer.relative_error
        rows.add_row(
            answer.photo.path.name,
            _short(answer.photo.label),
            f"[{good}]{_short(answer.label)}[/{good}]",
            f"{answer.probability:.3f}",
            f"{answer.result.latency_seconds * 1e3:.1f}",
            "0" if error == 0 and not answer.mismatch else f"{error:.1e}{' !' if answer.mismatch else ''}",
        )
    return rows


def _short(label: str) -> str:
    return label.partition(",")[0]


def _wait(running: RunningBroker, photo: Path) -> None:
    out.print(
        f"\nthe fleet goes on until Ctrl-C; in another terminal:\n"
        f"  export SHARDWIRE_BROKER={running.url} SHARDWIRE_FLEET={FLEET}\n"
        f"  shardwire status lite0-int8\n  shardwire infer lite0-int8 {photo}",
        soft_wrap=True,
        markup=False,
    )
    with contextlib.suppress(KeyboardInterrupt):
        running.process.wait()
