"""`shardwire deploy`: what it asks of the coordinator, and how it shows what came of it."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest

from edge.formats.message import DeployRequest
from edge.formats.plan import Constraints, LeftOut, Pin, Plan
from host.bundle import BundleContent, manifest_blobs, write_bundle
from host.cli import deploy
from host.cli.main import main
from host.fleet.blobs import BundleBlobs
from host.fleet.command import Course
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
