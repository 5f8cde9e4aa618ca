"""A coordinator that plans again by itself: real broker, real agents, nobody at the keyboard."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edge.client import Client
from edge.formats.bundle import GoldenPair
from edge.formats.frame import FrameHeader, encode_frame
from edge.formats.message import Session
from edge.formats.plan import Deployment, decode_deployment
from edge.formats.tensor import Array
from edge.formats.topics import Topics
from edge.transport import Channel, Received
from host.broker import RunningBroker
from host.bundle import BundleContent, blob_of, write_bundle
from host.fleet.identity import Caller
from host.fleet.link import FleetLink
from host.fleet.local import LocalAgent, local_agents
from host.processes import running_child
from tests.command_line import command_of, environment, shardwire_ok
from tests.tiny_bundle import TinyBundle, make_input, make_tiny_bundle

pytestmark = pytest.mark.slow

_WAIT_SECONDS = 90.0
_TOPICS = Topics(fleet="default")


def write_tiny(tiny: TinyBundle, folder: Path) -> Path:
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
    write_bundle(BundleContent(manifest=manifest, blobs=blobs, tag="1", parameter_count=0), folder)
    return folder


class Served:
    """Follows what `tiny` is served by."""

    def __init__(self, link: FleetLink) -> None:
        self._link = link
        self.value: Deployment | None = None
        link.subscribe(Channel.CONTROL, _TOPICS.serving("tiny"))

    def by(self, *devices: str) -> Deployment:
        """Wait until these devices, and no others, serve; fail loudly when they do not."""
        end = time.monotonic() + _WAIT_SECONDS
        while self._users() != set(devices):
            left = end - time.monotonic()
            assert left > 0, f"{devices} do not serve: {self.value}"
            event = self._link.take(left)
            if isinstance(event, Received) and event.payload and event.topic == _TOPICS.serving("tiny"):
                self.value = decode_deployment(event.payload)
        assert self.value is not None
        return self.value

    def _users(self) -> set[str]:
        plan = self.value.plan if self.value is not None else None
        return {name for stage in plan.stages for name in stage.devices} if plan is not None else set()


@contextmanager
def following(url: str) -> Iterator[Served]:
    caller = Caller(node="spy-1", session=Session(boot=1, connect=1), topics=_TOPICS)
    with FleetLink(url, caller) as link:
        yield Served(link)


def state_of(url: str) -> str:
    (found,) = msgspec.json.decode(shardwire_ok("status", "--json", "--broker", url).out)
    return str(found["state"])


def await_state(url: str, state: str) -> None:
    end = time.monotonic() + _WAIT_SECONDS
    while (found := state_of(url)) != state:
        assert time.monotonic() < end, found


def check_answer(url: str, tiny: TinyBundle) -> None:
    with Client.connect(url) as client:
        x = make_input(3)
        result = client.infer("tiny", {"x": x})
        assert np.allclose(result.outputs["y"], tiny.answer(x), rtol=1e-4, atol=1e-5)


def test_a_deployment_comes_back_by_itself_and_moves_to_a_device_that_pays(
    broker: RunningBroker, tmp_path: Path
) -> None:
    tiny = make_tiny_bundle()
    bundle = write_tiny(tiny, tmp_path / "tiny")
    url, log, folder = broker.url, tmp_path / "hub.log", tmp_path / "agents"
    hub = command_of("coordinator", "--name", "hub", "--folder", tmp_path / "hub", "--broker", url)
    with (
        running_child(hub, log=log, env=environment()),
        local_agents(url, [LocalAgent(name="pi-1", profile="rpi4")], folder=folder) as first,
        local_agents(url, [LocalAgent(name="pi-2", profile="rpi3")], folder=folder) as second,
        following(url) as served,
    ):
        shardwire_ok("deploy", bundle, "--name", "tiny", "--objective", "latency", "--broker", url)
        one = served.by("pi-1")
        check_answer(url, tiny)

        first["pi-1"].kill()
        two = served.by("pi-2")
        check_answer(url, tiny)
        assert two.epoch > one.epoch
        assert (two.constraints, two.window, two.mode) == (one.constraints, one.window, one.mode)
        assert "hub" in two.holders
        (line,) = [line for line in log.read_text().splitlines() if "tiny: plans again, pi-1 " in line]
        assert ": a stage has no device; " in line

        with local_agents(url, [LocalAgent(name="box", profile="x86-gateway")], folder=folder) as third:
            served.by("box")
            check_answer(url, tiny)
            assert "tiny: plans again, box joined: " in log.read_text()
            third["box"].kill()
            second["pi-2"].kill()
            reason = "no device is here that can take part"
            await_state(url, f"broken: box offline; it cannot be mended: {reason}")
            assert log.read_text().count(reason) == 1

        with local_agents(url, [LocalAgent(name="pi-2", profile="rpi3")], folder=folder):
            served.by("pi-2")
            check_answer(url, tiny)
            await_state(url, "serving")
