"""Somebody who may publish sends nonsense: truncated, flipped and oversized frames, blobs and messages, everywhere."""

from __future__ import annotations

import random
import secrets
from collections.abc import Iterator, Sequence

from edge.formats.frame import FrameHeader, encode_frame
from edge.formats.message import BLOCK_BYTES, Block, Hello, Session, State, encode_message
from edge.formats.packet import MAX_PACKET_BYTES, split
from edge.formats.plan import Deployment, encode_deployment
from edge.formats.topics import Topics
from edge.mqtt import MqttTransport
from edge.transport import Channel, Publication
from host.chaos.scene import Scene
from host.errors import FleetError

_FLIPS = 8


def corrupt(scene: Scene) -> None:
    """Send nonsense for `lasting` seconds; then the fleet can still be changed."""
    scene.steady(scene.fault.steady)
    serving = scene.fleet.watcher.value("serving")
    if serving is None:
        raise FleetError("nothing is served now")
    mark = scene.mark()
    liar = f"chaos-{secrets.token_hex(4)}"
    transport = MqttTransport(scene.fleet.url, fleet=scene.fleet.name, node=liar, on_event=lambda _event: None)
    transport.start()
    try:
        transport.wait_connected(10.0)
        for number, (topic, payload) in enumerate(_nonsense(scene, serving)):
            channel = Channel.DATA if "/device/" not in topic else Channel.CONTROL
            transport.publish(Publication(channel=channel, topic=topic, payload=payload))
            if number % 100 == 99:
                scene.steady(0.02)
        scene.until(mark.at + scene.fault.lasting)
    finally:
        transport.close()
    scene.recovered()
    scene.must_deploy(scene.bundles[-1])
    scene.steady(scene.fault.steady)


def spoilt(good: bytes, draw: random.Random) -> Iterator[bytes]:
    """Yield a message cut short, with bits flipped, and with bytes behind it."""
    for _ in range(_FLIPS):
        yield good[: draw.randrange(len(good))]
        flipped = bytearray(good)
        flipped[draw.randrange(len(good))] ^= 1 << draw.randrange(8)
        yield bytes(flipped)
    yield good + draw.randbytes(1000)
    yield good + bytes(MAX_PACKET_BYTES)
    yield draw.randbytes(len(good))


def _nonsense(scene: Scene, serving: Deployment) -> Iterator[tuple[str, bytes]]:
    topics, draw = Topics(fleet=scene.fleet.name), scene.random
    stages = serving.plan.stages if serving.plan is not None else ()
    devices = sorted({device for stage in stages for device in stage.devices})
    blob = scene.bundles[0].blobs()[0]
    block = encode_message(Block(digest=blob.digest, block=0, total_bytes=blob.size_bytes, data=bytes(BLOCK_BYTES)))
    client = scene.load.client_name
    nodes = (*devices, client)
    session = Session(boot=1, connect=1)
    said: list[tuple[str, bytes]] = [
        *((topics.blocks(node), block) for node in nodes),
        *((topics.command(device), encode_message(Hello(node="x"))) for device in devices),
        *((topics.ack(node), encode_message(Hello(node="x"))) for node in nodes),
        *((topics.fetch(device), block) for device in devices),
        (topics.hello(), encode_message(Hello(node="x"))),
        (topics.lease(), encode_message(Hello(node="x"))),
        (topics.heartbeat("x"), encode_message(State(node="x", role="agent", online=True, session=session))),
    ]
    frame = _frame(scene, serving, topics)
    packets = list(split(frame, sender="x", session=session, sequence=1))
    for stage in stages:
        said += [(topics.run(device, serving.name, serving.epoch, stage.index), packets[0]) for device in stage.devices]
    said.append((topics.result(client), packets[0]))
    # Plans are only cut short: one with a flipped letter may be a plan, and who may publish plans may change the fleet.
    plan = encode_deployment(serving)
    for topic, good in said:
        for payload in spoilt(good, draw):
            yield topic, payload
    for topic in (topics.desired(serving.name), topics.serving(serving.name), topics.canary(serving.name)):
        for payload in (*(plan[: draw.randrange(len(plan))] for _ in range(_FLIPS)), plan + b"x", bytes(1 << 16)):
            yield topic, payload


def _frame(scene: Scene, serving: Deployment, topics: Topics) -> bytes:
    inputs: Sequence[object] = scene.answers.inputs
    header = FrameHeader(
        request_id=f"nonsense-{len(inputs)}",
        sender="x",
        reply_to=topics.result("x"),
        ttl_ms=1000,
        deployment=serving.name,
        epoch=serving.epoch,
        stage=0,
    )
    return encode_frame(header, scene.answers.inputs[0])
