"""The client's loop: what it asks of the broker, and that nobody waits for ever; without a network."""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet

import pytest

import edge.client
from edge.buckets import Padded, pad
from edge.client import Client
from edge.client_loop import ClientLoop, Want
from edge.errors import TransportError
from edge.formats.bundle import Manifest
from edge.formats.plan import encode_deployment
from edge.formats.tensor import Array
from edge.formats.topics import Topics
from edge.protocol.requests import Route
from edge.transport import Channel, MemoryBroker, MemoryTransport, Publication, TransportEvent
from tests.tiny_bundle import make_deployment, make_input, make_tiny_bundle

BUNDLE = make_tiny_bundle()
DEPLOYMENT = make_deployment(BUNDLE, ("pi-1", "pi-2"))
SERVING = Publication(
    channel=Channel.CONTROL,
    topic=Topics(fleet="default").serving("tiny"),
    payload=encode_deployment(DEPLOYMENT),
    qos=1,
    retain=True,
)


def test_a_deployment_asked_for_while_the_connection_is_down_is_found_when_it_stands() -> None:
    broker = MemoryBroker()
    broker.route(SERVING)
    loop = ClientLoop(fleet="default", name="cam", doors={})

    def take(event: TransportEvent) -> None:
        loop._steps[type(event)](event, 0.0)

    transport = MemoryTransport(broker, on_event=take)
    loop._transport = transport
    loop._want(Want(name="tiny"), 0.0)
    assert loop.catalogue.serving("tiny") is None
    transport.connect(Channel.CONTROL)
    assert loop.catalogue.serving("tiny") == DEPLOYMENT


def test_a_request_that_meets_the_end_of_its_client_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client("mqtt://127.0.0.1:1", fleet="default", name="cam")
    client._loop.start(client._transport)
    client._loop.routes["tiny"] = Route(deployment=DEPLOYMENT, manifest=BUNDLE.manifest)

    def close(inputs: Mapping[str, Array], manifest: Manifest, *, kept: AbstractSet[str]) -> Padded:
        client.close()
        return pad(inputs, manifest, kept=kept)

    monkeypatch.setattr(edge.client, "pad", close)
    with pytest.raises(TransportError, match="the client is closed"):
        client.submit("tiny", {"x": make_input(1)})


def test_it_hears_the_states_of_the_devices_of_its_routes_again_after_each_connection() -> None:
    broker = MemoryBroker()
    broker.route(SERVING)
    loop = ClientLoop(fleet="default", name="cam", doors={})

    def take(event: TransportEvent) -> None:
        if type(event) in loop._steps:
            loop._steps[type(event)](event, 0.0)

    transport = MemoryTransport(broker, on_event=take)
    loop._transport = transport
    transport.connect(Channel.CONTROL)
    loop._want(Want(name="tiny"), 0.0)
    loop._follow([Route(deployment=DEPLOYMENT, manifest=BUNDLE.manifest)], 0.0)
    topics = Topics(fleet="default")
    wanted = {topics.serving("tiny"), topics.canary("tiny"), topics.state("pi-1"), topics.state("pi-2")}
    assert transport._filters[Channel.CONTROL] == wanted
    transport.cut(Channel.CONTROL)
    transport.connect(Channel.CONTROL)
    assert transport._filters[Channel.CONTROL] == wanted
