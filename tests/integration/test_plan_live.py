"""`shardwire plan` with devices that are asked over a broker, and constraints that a deployment keeps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from host.broker import start_broker
from host.bundle import BundleContent, write_bundle
from host.fleet.local import LocalAgent, local_agents
from tests.command_line import shardwire, shardwire_ok
from tests.tiny_bundle import make_tiny_bundle

AGENTS = (
    LocalAgent(name="pi-1", profile="rpi4"),
    LocalAgent(name="pi-2", profile="rpi4"),
    LocalAgent(name="cam", profile="rpi-zero2w"),
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tiny = make_tiny_bundle()
    blobs = {digest: data for digest, data in tiny.blobs.items() if digest != tiny.manifest_blob.digest}
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    write_bundle(BundleContent(manifest=tiny.manifest, blobs=blobs, tag="1", parameter_count=0), folder)
    return folder


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    folder = tmp_path_factory.mktemp("fleet")
    with (
        start_broker("auto", folder=folder / "broker") as running,
        local_agents(running.url, AGENTS, folder=folder / "agents"),
    ):
        yield "--broker", running.url


def test_devices_are_asked_and_constraints_are_kept(at: tuple[str, str], bundle: Path) -> None:
    ran = shardwire_ok("plan", bundle, "--pin", "0:cam", "--without", "pi-2", "--use-all", "--json", *at)
    found = msgspec.json.decode(ran.out, type=dict[str, Any])
    assert [stage["device"] for stage in found["plan"]["stages"]] == ["cam", "pi-1"]
    assert set(found["available_memory_bytes"]) == {"cam", "pi-1"}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--pin", "0:cam-9"], "--pin: no device called 'cam-9' in fleet 'default'; there are: cam, pi-1, pi-2"),
        (["--devices", "pi-9"], "no device called 'pi-9' in fleet 'default'; online are: cam, pi-1, pi-2"),
        (["--fleet", "empty"], "no devices are online in fleet 'empty': start shardwire-agent on them"),
    ],
)
def test_what_cannot_be_planned_is_one_line(
    at: tuple[str, str], bundle: Path, arguments: list[str], complaint: str
) -> None:
    ran = shardwire("plan", bundle, *arguments, *at)
    assert (ran.code, ran.complaint) == (1, f"shardwire: {complaint}")
