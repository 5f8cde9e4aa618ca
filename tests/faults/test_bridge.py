"""Two sites joined by a mosquitto bridge: one fleet over both, each alone while the link is cut, one again after."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edge.client import Client
from edge.transport import Channel, Publication, Received
from host.broker import Bridge, RunningBroker, start_broker
from host.fleet.local import LocalAgent, local_agents
from tests.command_line import shardwire_ok
from tests.integration.test_mqtt import Node, nodes
from tests.integration.test_replan import write_tiny
from tests.tcp_relay import TcpRelay, relay_to
from tests.tiny_bundle import TinyBundle, make_input, make_tiny_bundle

pytestmark = pytest.mark.slow

_TOPIC = "shardwire/default/t/x"


class Sites:
    """Two brokers, and the relay that the bridge of the second to the first goes through."""

    def __init__(self, near: RunningBroker, far: RunningBroker, link: TcpRelay) -> None:
        self.near, self.far, self.link = near, far, link


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[Sites]:
    with (
        start_broker("mosquitto", folder=tmp_path / "near") as near,
        relay_to(near.port) as link,
        start_broker(
            "mosquitto",
            folder=tmp_path / "far",
            bridge=Bridge(address="127.0.0.1", port=link.port, name="far", fleets=("default",)),
        ) as far,
    ):
        yield Sites(near, far, link)


def await_crossing(sender: Node, receiver: Node) -> None:
    """Wait until what is said at one site is heard at the other."""
    receiver.told(Received, lambda: sender.say(Channel.CONTROL, _TOPIC, b"?", qos=1), payload=b"?", topic=_TOPIC)


def check_answers(url: str, tiny: TinyBundle) -> None:
    with Client.connect(url) as client:
        for seed in range(3):
            x = make_input(seed)
            result = client.infer("tiny", {"x": x}, deadline_seconds=60.0)
            assert np.allclose(result.outputs["y"], tiny.answer(x), rtol=1e-4, atol=1e-5)


def test_messages_cross_once_both_ways_and_last_wills_too(sites: Sites) -> None:
    with nodes(sites.near.url, "a") as (a,), nodes(sites.far.url, "b") as (b,):
        for node in (a, b):
            node.listen(Channel.CONTROL, _TOPIC)
        await_crossing(a, b)
        await_crossing(b, a)
        for sender, receiver, payload in ((a, b, b"to the far site"), (b, a, b"to the near site")):
            assert sender.say(Channel.CONTROL, _TOPIC, payload, qos=1)
            receiver.await_event(Received, payload=payload)
            assert sender.say(Channel.CONTROL, _TOPIC, payload + b"!", qos=1)
            copies = 0
            while receiver.await_event(Received).payload != payload + b"!":
                copies += 1
            assert copies == 0, "a message comes once, however it could run around"


def test_what_is_retained_crosses_when_the_link_heals(sites: Sites) -> None:
    with nodes(sites.near.url, "a") as (a,), nodes(sites.far.url, "b") as (b,):
        for node in (a, b):
            node.listen(Channel.CONTROL, _TOPIC)
        await_crossing(a, b)
        sites.link.silence()
        sites.link.cut()
        kept = Publication(
            channel=Channel.CONTROL, topic="shardwire/default/t/kept", payload=b"new", qos=1, retain=True
        )
        b.listen(Channel.CONTROL, kept.topic)
        assert a.transport.publish(kept)
        sites.link.heal()
        assert b.await_event(Received, topic=kept.topic).payload == b"new"


def test_a_deployment_spans_two_sites_and_answers_again_after_a_cut(sites: Sites, tmp_path: Path) -> None:
    tiny = make_tiny_bundle()
    bundle = write_tiny(tiny, tmp_path / "tiny")
    agents = (
        LocalAgent(name="pi-1", profile="rpi4"),
        LocalAgent(name="pi-2", profile="rpi3", url=sites.far.url),
    )
    with nodes(sites.near.url, "a") as (a,), nodes(sites.far.url, "b") as (b,):
        b.listen(Channel.CONTROL, _TOPIC)
        await_crossing(a, b)
    with local_agents(sites.near.url, agents, folder=tmp_path / "agents"):
        shardwire_ok("deploy", bundle, "--use-all", "--broker", sites.near.url)
        check_answers(sites.near.url, tiny)
        check_answers(sites.far.url, tiny)
        sites.link.silence()
        sites.link.cut()
        sites.link.heal()
        check_answers(sites.near.url, tiny)
        check_answers(sites.far.url, tiny)
