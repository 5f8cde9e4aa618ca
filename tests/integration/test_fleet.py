"""Coordinator, agents and commands on a real broker, each a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edge.client import Client
from edge.formats.bundle import GoldenPair, encode_manifest
from edge.formats.frame import FrameHeader, encode_frame
from edge.formats.tensor import Array
from edge.transport import Received
from host.broker import RunningBroker, start_broker
from host.bundle import BundleContent, blob_of, write_bundle
from host.fleet.link import FleetLink
from host.fleet.local import LocalAgent, local_agents
from host.processes import running_child
from tests.command_line import command_of, environment, shardwire, shardwire_ok
from tests.silent_agent import silent_agent
from tests.tiny_bundle import TinyBundle, make_input, make_tiny_bundle

AGENTS = (LocalAgent(name="pi-1", profile="rpi4"), LocalAgent(name="pi-2", profile="rpi3"))
_WAIT_SECONDS = 30.0


@pytest.fixture(scope="module")
def tiny() -> TinyBundle:
    return make_tiny_bundle()


@pytest.fixture(scope="module")
def bundle(tiny: TinyBundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle on disk, with a golden input."""
    blobs = {digest: data for digest, data in tiny.blobs.items() if digest != tiny.manifest_blob.digest}

    def keep(**tensors: Array) -> Any:
        header = FrameHeader(
            kind="result", request_id="golden", sender="", reply_to="", ttl_ms=0, deployment="", epoch="", stage=0
        )
        data = encode_frame(header, tensors)
        blobs[blob_of(data).digest] = data
        return blob_of(data)

    x = make_input(7)
    y = tiny.answer(x)
    golden = (GoldenPair(inputs=keep(x=x), outputs=keep(y=y), whole=keep(y=y)),)
    manifest = msgspec.structs.replace(tiny.manifest, golden=golden)
    assert encode_manifest(manifest)
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    write_bundle(BundleContent(manifest=manifest, blobs=blobs, tag="1", parameter_count=0), folder)
    return folder


@pytest.fixture
def agents(broker: RunningBroker, tmp_path: Path) -> Iterator[Mapping[str, subprocess.Popen[bytes]]]:
    with local_agents(broker.url, AGENTS, folder=tmp_path / "agents") as processes:
        yield processes


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBroker]:
    """A broker and two agents for tests that leave nothing behind."""
    folder = tmp_path_factory.mktemp("calm")
    with (
        start_broker("auto", folder=folder / "broker") as running,
        local_agents(running.url, AGENTS, folder=folder / "agents"),
    ):
        yield running


@pytest.fixture
def at(broker: RunningBroker) -> tuple[str, str]:
    """The option that names the broker."""
    return ("--broker", broker.url)


def _held_bytes(at: tuple[str, str], device: str) -> int:
    found = msgspec.json.decode(shardwire_ok("fleet", "--json", *at).out)
    (held,) = [record["held_bytes"] for record in found if record["name"] == device]
    return int(held)


def status(at: tuple[str, str]) -> Any:
    return msgspec.json.decode(shardwire_ok("status", "--json", *at).out)


def check_answers(broker: RunningBroker, tiny: TinyBundle, name: str = "tiny") -> None:
    with Client.connect(broker.url) as client:
        for seed in range(3):
            x = make_input(seed)
            result = client.infer(name, {"x": x}, observe=True)
            assert np.allclose(result.outputs["y"], tiny.answer(x), rtol=1e-4, atol=1e-5)
            assert len(result.trace) == 2


def retained_topics(broker: RunningBroker, caller_name: str = "spy-1") -> dict[str, bytes]:
    """What the broker keeps for deployments."""
    from edge.formats.message import Session
    from edge.formats.topics import Topics
    from edge.transport import Channel
    from host.fleet.identity import Caller

    caller = Caller(node=caller_name, session=Session(boot=1, connect=1), topics=Topics(fleet="default"))
    found: dict[str, bytes] = {}
    with FleetLink(broker.url, caller) as link:
        link.subscribe(Channel.CONTROL, caller.topics.any_deployment("desired"))
        link.subscribe(Channel.CONTROL, caller.topics.any_deployment("serving"))
        end = time.monotonic() + 1.0
        while (left := end - time.monotonic()) > 0:
            event = link.take(left)
            if isinstance(event, Received) and event.payload:
                found[event.topic] = event.payload
    return found


def wait_for(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + _WAIT_SECONDS
    while not condition():
        assert time.monotonic() < end, f"not within {_WAIT_SECONDS:.0f} s: {what}"


def test_deploy_without_a_coordinator_serves_and_undeploy_removes(
    broker: RunningBroker, agents: object, at: tuple[str, str], bundle: Path, tiny: TinyBundle, tmp_path: Path
) -> None:
    deployed = shardwire_ok("deploy", bundle, "--devices", "pi-1,pi-2", "--use-all", *at)
    assert "tiny serves, epoch 1-" in deployed.out
    check_answers(broker, tiny)

    (found,) = status(at)
    assert found["state"] == "serving"
    assert {stage["device"] for stage in found["stages"]} == {"pi-1", "pi-2"}
    *devices, last = found["holders"]
    assert set(devices) == {"pi-1", "pi-2"}
    assert last.startswith("host-"), "who deployed gave the golden inputs, and is asked last as it has gone"

    np.savez(tmp_path / "x.npz", x=make_input(1))
    (answer,) = msgspec.json.decode(shardwire_ok("infer", "tiny", tmp_path / "x.npz", "--json", *at).out)
    assert answer["outputs"] == {"y": [1, 384]}
    assert [stage["device"] for stage in answer["stages"]] == [stage["device"] for stage in found["stages"]]
    assert len(answer["hops"]) == 3
    assert all(hop["seconds"] is not None and hop["seconds"] < 5 for hop in answer["hops"])
    assert "─" in shardwire_ok("infer", "tiny", tmp_path / "x.npz", "--stream", *at).out

    shardwire_ok("undeploy", "tiny", *at)
    assert status(at) == []
    gone = shardwire("infer", "tiny", tmp_path / "x.npz", *at)
    assert (gone.code, gone.complaint) == (1, "shardwire: no deployment called 'tiny'; there are: none")


def test_the_devices_are_listed_with_what_they_can_do(calm: RunningBroker) -> None:
    at = ("--broker", calm.url)
    devices = {device["name"]: device for device in msgspec.json.decode(shardwire_ok("fleet", "--json", *at).out)}
    assert set(devices) == {"pi-1", "pi-2"}
    assert devices["pi-2"]["profile"] == "rpi3"
    assert devices["pi-2"]["online"]
    assert devices["pi-2"]["macs_per_second"]["float32"] > 0
    text = shardwire_ok("fleet", *at).out
    assert "rpi4" in text
    assert "online" in text


def test_a_coordinator_holds_the_blobs_and_its_deployments_survive_its_restart(
    broker: RunningBroker, agents: object, at: tuple[str, str], bundle: Path, tiny: TinyBundle, tmp_path: Path
) -> None:
    command = command_of("coordinator", "--name", "hub", "--folder", tmp_path / "hub", *at)
    log = tmp_path / "hub.log"
    with running_child(command, log=log, env=environment()) as hub:
        wait_for(lambda: "claims the lease" in log.read_text(), "the coordinator claims the lease")
        shardwire_ok("deploy", bundle, "--use-all", *at)
        (found,) = status(at)
        assert "hub" in found["holders"]
        check_answers(broker, tiny)
        hub.send_signal(signal.SIGTERM)
        assert hub.wait(10) == 0
    stored = list((tmp_path / "hub" / "blobs" / "sha256").iterdir())
    assert len(stored) == len(tiny.blobs) + 2, "every blob of the bundle, golden tensors included"
    with running_child(command, log=log, env=environment()) as hub:
        wait_for(lambda: log.read_text().count("claims the lease") == 2, "the coordinator claims the lease again")
        shardwire_ok("deploy", bundle, "--use-all", *at)
        (again,) = status(at)
        assert again["epoch"] != found["epoch"]
        check_answers(broker, tiny)
        shardwire_ok("undeploy", "tiny", *at)
        assert not list((tmp_path / "hub" / "blobs" / "sha256").iterdir()), "what nobody needs any more is dropped"
        hub.send_signal(signal.SIGINT)
        assert hub.wait(10) == 130


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["deploy", "{bundle}", "--devices", "pi-1,pi-9"], "no device called 'pi-9'; online are: pi-1, pi-2"),
        (
            ["deploy", "{bundle}", "--devices", "Pi_1"],
            "device name 'Pi_1' is not allowed: use 1 to 63 of a-z, 0-9 and '-', starting with a letter or digit",
        ),
        (["deploy", "nothing"], "nothing: no bundle here (no index.json); make one with `shardwire package`"),
        (
            ["deploy", "{bundle}", "--fleet", "empty"],
            "no devices are online in fleet 'empty': start shardwire-agent on them",
        ),
        (["status", "tiny"], "no deployment called 'tiny'; there is none"),
        (["undeploy", "tiny"], "no deployment called 'tiny'; there is none"),
        (["infer", "tiny", "x.npz"], "no deployment called 'tiny'; there are: none"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_leaves_nothing(
    calm: RunningBroker, bundle: Path, arguments: list[str], complaint: str
) -> None:
    ran = shardwire(*(word.format(bundle=bundle) for word in arguments), "--broker", calm.url)
    assert (ran.code, ran.complaint) == (1, f"shardwire: {complaint}")
    assert retained_topics(calm) == {}


@pytest.mark.parametrize("command", ["fleet", "status", "undeploy x", "infer x y.npz", "coordinator"])
def test_without_a_broker_every_command_says_so(command: str, tmp_path: Path) -> None:
    more = ["--connect-timeout", "1", "--folder", str(tmp_path)] if command == "coordinator" else []
    ran = shardwire(*command.split(), *more, "--broker", "mqtt://127.0.0.1:1")
    assert ran.code == 1
    assert ran.err.strip().splitlines()[-1] == (
        "shardwire: no broker at mqtt://127.0.0.1:1: connection refused; start one (mosquitto -p 1) or give --broker"
    )


def test_devices_without_room_are_refused_with_what_they_lack(
    broker: RunningBroker, at: tuple[str, str], bundle: Path, tmp_path: Path
) -> None:
    small = [LocalAgent(name="pi-1", profile="rpi4", memory_limit_bytes=1 << 20)]
    with local_agents(broker.url, small, folder=tmp_path / "agents"):
        ran = shardwire("deploy", bundle, *at)
    assert ran.code == 1
    assert ran.complaint.startswith("shardwire: no plan fits: the shards need 1.1 MiB of weights and room")
    assert "devices have memory: pi-1 1.0 MiB" in ran.complaint
    assert retained_topics(broker) == {}


def _start(*arguments: str | Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command_of(*arguments), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def _desired(broker: RunningBroker) -> bool:
    return "shardwire/default/deployment/tiny/desired" in retained_topics(broker)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("with_coordinator", [False, True], ids=["alone", "with a coordinator"])
def test_an_interrupted_deployment_is_abandoned(
    broker: RunningBroker,
    agents: object,
    at: tuple[str, str],
    bundle: Path,
    tmp_path: Path,
    number: signal.Signals,
    code: int,
    with_coordinator: bool,
) -> None:
    hub = command_of("coordinator", "--name", "hub", "--folder", tmp_path / "hub", *at) if with_coordinator else []
    log = tmp_path / "hub.log"
    with running_child(hub or [sys.executable, "-c", ""], log=log, env=environment()):
        if with_coordinator:
            wait_for(lambda: "claims the lease" in log.read_text(), "the coordinator claims the lease")
        with silent_agent(broker.url, "mute"):
            running = _start("deploy", bundle, "--use-all", *at, "--devices", "pi-1,mute")
            wait_for(lambda: _desired(broker), "the plan is published")
            running.send_signal(number)
            _, said = running.communicate(timeout=30)
        assert running.returncode == code, said
        assert b"Traceback" not in said
        wait_for(lambda: retained_topics(broker) == {}, "the plan is taken back")
        # On its disk they are spare for a while: the command may be given again at once.
        wait_for(lambda: _held_bytes(at, "pi-1") == 0, "the device that was ready needs the blobs no more")


def test_a_device_that_goes_away_while_it_prepares_ends_the_deployment(
    broker: RunningBroker, agents: object, at: tuple[str, str], bundle: Path
) -> None:
    with silent_agent(broker.url, "mute"):
        running = _start("deploy", bundle, "--use-all", *at, "--devices", "pi-1,mute")
        wait_for(lambda: _desired(broker), "the plan is published")
    _, said = running.communicate(timeout=60)
    assert running.returncode == 1
    assert said.decode().strip().splitlines()[-1] == "shardwire: mute went away while the epoch was preparing"
    assert retained_topics(broker) == {}


def test_a_deployment_whose_device_is_away_is_shown_as_broken(
    broker: RunningBroker,
    agents: Mapping[str, subprocess.Popen[bytes]],
    at: tuple[str, str],
    bundle: Path,
) -> None:
    shardwire_ok("deploy", bundle, "--use-all", *at)
    agents["pi-2"].kill()
    wait_for(lambda: status(at)[0]["state"].startswith("broken: pi-2 offline"), "the status tells")
    assert status(at)[0]["state"].endswith("no coordinator is there to plan again")


def test_a_device_that_comes_back_too_small_is_named_with_its_reason(
    broker: RunningBroker,
    agents: Mapping[str, subprocess.Popen[bytes]],
    at: tuple[str, str],
    bundle: Path,
    tmp_path: Path,
) -> None:
    shardwire_ok("deploy", bundle, "--use-all", *at)
    agents["pi-2"].kill()
    agents["pi-2"].wait(timeout=10)
    small = [LocalAgent(name="pi-2", profile="rpi4", memory_limit_bytes=1)]
    with local_agents(broker.url, small, folder=tmp_path / "agents"):
        wait_for(lambda: status(at)[0]["state"].startswith("broken: pi-2: stage "), "the status tells")
        assert "this device has 0 MiB free" in status(at)[0]["state"]


def test_any_broker_carries_a_deployment(
    any_broker: RunningBroker, bundle: Path, tiny: TinyBundle, tmp_path: Path
) -> None:
    with local_agents(any_broker.url, AGENTS, folder=tmp_path / "agents"):
        shardwire_ok("deploy", bundle, "--use-all", "--broker", any_broker.url)
        check_answers(any_broker, tiny)
        shardwire_ok("undeploy", "tiny", "--broker", any_broker.url)


def test_local_agents_that_cannot_start_say_why(broker: RunningBroker, tmp_path: Path) -> None:
    from host.errors import FleetError

    wrong = [LocalAgent(name="pi-1", profile="rpi9")]
    with (
        pytest.raises(FleetError, match=r"^agent pi-1 ended at its start: shardwire-agent: unknown profile 'rpi9'"),
        local_agents(broker.url, wrong, folder=tmp_path),
    ):
        raise AssertionError("not reached")


@pytest.mark.parametrize("name", ["coordinator", "fleet", "status", "deploy", "undeploy", "infer", "demo"])
def test_fleet_commands_load_no_packaging_tool(name: str) -> None:
    program = f"import host.cli.{name}, sys; print(*{{n.partition('.')[0] for n in sys.modules}})"
    ran = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ}, check=True, capture_output=True, text=True
    )
    assert not {"torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime"} & set(ran.stdout.split())
