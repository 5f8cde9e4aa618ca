"""Two sites joined by a bridge are cut apart, change each on its own, and are joined again."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Mapping

from edge.formats.message import State, decode_message
from edge.formats.topics import ROOT
from edge.mqtt import MqttTransport
from edge.transport import Channel, Connected, Received, TransportEvent
from host.chaos.faults.poison import local
from host.chaos.local import BRIDGE
from host.chaos.scene import Scene

_EQUAL_SECONDS = 30.0
_LISTEN_SECONDS = 1.0


def bridge(scene: Scene) -> None:
    """Cut the bridge for `lasting` seconds, deploy at the near site meanwhile; then both brokers keep equal values."""
    fleet = local(scene)
    scene.steady(scene.fault.steady)
    mark = scene.mark()
    fleet.cut(BRIDGE)
    near = tuple(name for name in fleet.setup.devices if name not in fleet.setup.far)
    scene.recovered()
    fleet.deploy(scene.bundles[-1], devices=near)
    scene.until(mark.at + scene.fault.lasting)
    fleet.heal(BRIDGE)
    scene.recovered()
    healed, unequal = time.monotonic(), ["everything"]
    while unequal and time.monotonic() < healed + _EQUAL_SECONDS:
        unequal = differences(retained(fleet.url, fleet.name), retained(fleet.far_url, fleet.name))
    if unequal:
        scene.complain(f"the brokers keep unequal values of {', '.join(unequal)}")
    else:
        scene.say(f"both brokers kept equal values {time.monotonic() - healed:.1f} s after the link was healed")
    scene.steady(scene.fault.steady)


def differences(one: Mapping[str, bytes], other: Mapping[str, bytes]) -> list[str]:
    """Return the topics whose retained values do not say the same at two brokers.

    How old a process was, and how much memory was free, when it said who it is, makes no difference.
    """
    return sorted(topic for topic in {**one, **other} if _sense(topic, one) != _sense(topic, other))


def _sense(topic: str, values: Mapping[str, bytes]) -> object:
    value = values.get(topic)
    if value is None or not topic.endswith(("/state", "/about", "/speed")):
        return value
    message = decode_message(value, object)
    return (message.online, message.session, message.instance) if isinstance(message, State) else type(message)


def retained(url: str, fleet: str) -> dict[str, bytes]:
    """Return what a broker keeps of a fleet, by topic."""
    found: dict[str, bytes] = {}
    node = f"chaos-{secrets.token_hex(4)}"

    def on_event(event: TransportEvent) -> None:
        if isinstance(event, Connected) and event.channel is Channel.CONTROL:
            transport.subscribe(Channel.CONTROL, f"{ROOT}/{fleet}/#")
        elif isinstance(event, Received) and event.retained and event.payload:
            found[event.topic] = event.payload

    transport = MqttTransport(url, fleet=fleet, node=node, on_event=on_event)
    transport.start()
    try:
        transport.wait_connected(10.0)
        threading.Event().wait(_LISTEN_SECONDS)
    finally:
        transport.close()
    return dict(found)
