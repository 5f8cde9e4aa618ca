"""`shardwire deploy`: what it asks of the coordinator, and how it shows what came of it."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest

from edge.formats.bundle import Blob
from edge.formats.message import DeployRequest
from edge.formats.plan import Constraints, Deployment, LeftOut, Pin, Plan
from host.bundle import BundleContent, manifest_blobs, write_bundle
from host.cli import deploy
from host.cli.main import main
from host.errors import FleetError
from host.fleet.blobs import BundleBlobs
from host.fleet.command import Course
from host.fleet.observe import FleetView
from tests.fake_bundle import fake_bundle
from tests.plans import plan, stage


class Coordinator:
    """Takes one request, and has a plan for it."""

    def __init__(self, made: Plan) -> None:
        self.made = made
        self.request: DeployRequest | None = None

    def ship(self, broker: str, request: DeployRequest, *, fleet: str, blobs: BundleBlobs) -> Course:
        del broker, fleet, blobs
        self.request = request
        return Course(name=request.name, epoch="1-a-1", plan=self.made)


@pytest.fixture
def coordinator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Coordinator:
    fake = fake_bundle(shards=4)
    blobs = {blob.digest: fake.blobs.read(blob.digest) for blob in manifest_blobs(fake.manifest)}
    write_bundle(
        BundleContent(manifest=fake.manifest, blobs=blobs, tag="1.0.0", parameter_count=8), tmp_path / "bundle"
    )
    monkeypatch.chdir(tmp_path)
    made = plan(stage(0, "pi-1", 0.01, received=1, sent=1, replicas=["pi-2"]), period=0.005, latency=0.02)
    left = LeftOut(device="old", reason="too \x1b[31mslow")
    found = Coordinator(msgspec.structs.replace(made, left_out=(left,)))
    monkeypatch.setattr(deploy, "ship", found.ship)
    monkeypatch.setattr(deploy, "look", lambda *_, **__: FleetView(devices=[], deployments=[], coordinator=None))
    # It would quiet the log of this process for the tests that follow.
    monkeypatch.setattr(deploy, "quiet_transport", lambda: None)
    return found


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    monkeypatch.setattr(sys, "argv", ["shardwire", "deploy", "bundle", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def test_nothing_said_is_a_request_for_the_best_throughput(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(monkeypatch) == 0
    request = coordinator.request
    assert request is not None
    assert (request.name, request.objective, request.codec, request.window) == ("double", "throughput", "raw", 8)
    assert request.constraints == Constraints()


def test_what_the_plan_must_keep_to_travels_with_the_request(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "--devices a,b --without c --pin -1:a --forbid l0:b --use-all --replicas 2 --no-side-by-side"
    assert run(monkeypatch, *words.split(), "--objective", "energy", "--codec", "auto", "--window", "3") == 0
    request = coordinator.request
    assert request is not None
    assert (request.objective, request.codec, request.window) == ("energy", "auto", 3)
    assert request.constraints == Constraints(
        devices=("a", "b"),
        without=("c",),
        pins=(Pin(layer=3, device="a"),),
        forbidden=(Pin(layer=0, device="b"),),
        use_all=True,
        most_replicas=2,
        side_by_side=False,
    )


def test_it_shows_the_plan_and_what_it_leaves_out(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    del coordinator
    run(monkeypatch)
    text = capsys.readouterr().out
    for word in ("pi-1 | pi-2", "double serves, epoch 1-a-1", "200.0 requests/s", "bound by compute of pi-1"):
        assert word in text
    assert "left out: old: too ?[31mslow" in text


def test_a_layer_that_is_not_there_is_refused_before_anything_is_sent(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--pin", "9:a") == 1
    assert capsys.readouterr().err == "shardwire: --pin: no layer 9; 'double' has layers 0 to 3, or -1 to -4\n"
    assert coordinator.request is None


def test_a_fleet_file_is_no_name_of_a_fleet(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--fleet", "hall.toml") == 1
    assert capsys.readouterr().err == (
        "shardwire: --fleet hall.toml: a fleet file is for plan and simulate; give the name of a fleet\n"
    )
    assert coordinator.request is None


_MANIFEST = Blob(digest="sha256:" + "0" * 64, size_bytes=1)


def serving(name: str, *devices: str) -> Deployment:
    made = plan(*(stage(at, each, 0.01, received=1, sent=1) for at, each in enumerate(devices)), period=1, latency=1)
    return Deployment(name=name, epoch="1-a-1", manifest=_MANIFEST, plan=made)


def test_what_else_the_devices_serve_is_said_as_no_plan_counts_it() -> None:
    made = serving("new", "pi-2", "pi-10", "pi-3")
    assert made.plan is not None
    known = [made, serving("old", "pi-2", "pi-10", "pi-4"), serving("other", "pi-3")]
    view = FleetView(devices=[], deployments=known, coordinator=None)
    assert list(deploy.shared_lines("new", made.plan, view)) == [
        "note: pi-2 and pi-10 serve old too: predictions take them for idle",
        "note: pi-3 serves other too: predictions take it for idle",
    ]


def test_progress_leaves_nothing_behind_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise FleetError("no")

    monkeypatch.setattr(deploy, "run_command", refuse)
    request = DeployRequest(request_id="r", name="net", manifest=_MANIFEST, holders=(), reply_to="")
    with pytest.raises(FleetError):
        deploy.ship("mqtt://127.0.0.1:1", request, fleet="default", blobs=BundleBlobs.__new__(BundleBlobs))
    assert capsys.readouterr().err == ""
