"""A coordinator's link to two real brokers: it names one at both, and its protocol sees one broker that came back."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.errors import TransportError
from edge.formats.message import Heartbeat, Session, decode_message
from edge.formats.topics import Topics
from edge.transport import Channel, Connected, Disconnected, Received
from host.broker import start_broker
from host.fleet.identity import Caller, birth
from host.fleet.many_brokers import ManyBrokersLink
from tests.integration.test_mqtt import nodes

_TOPICS = Topics(fleet="default")


def make_link(urls: str, *, connect_seconds: float = 10.0) -> ManyBrokersLink:
    caller = Caller(node="hub", session=Session(boot=1, connect=1), topics=_TOPICS)
    return ManyBrokersLink(
        urls,
        caller,
        will=lambda connect: birth(caller, connect=connect, online=False, retain=True),
        leads=lambda: True,
        connect_seconds=connect_seconds,
    )


def await_both(link: ManyBrokersLink) -> int:
    """Wait until both connections stand; return the number of the control connection."""
    numbers: dict[Channel, int] = {}
    while len(numbers) < len(Channel):
        event = link.take(15.0)
        assert event is not None
        if isinstance(event, Connected):
            numbers[event.channel] = event.connect
        elif isinstance(event, Disconnected):
            numbers.pop(event.channel, None)
    return numbers[Channel.CONTROL]


def test_it_goes_to_the_second_broker_with_a_newer_session_and_names_it(tmp_path: Path) -> None:
    with (
        start_broker("auto", folder=tmp_path / "one") as one,
        start_broker("auto", folder=tmp_path / "two") as two,
        nodes(two.url, "ear") as (ear,),
        make_link(f"{one.url},{two.url}") as link,
    ):
        ear.listen(Channel.CONTROL, _TOPICS.coordinator_heartbeat())
        first = await_both(link)
        named = ear.told(Received, lambda: link.take(0.05))
        assert decode_message(named.payload, Heartbeat).broker == 0
        one.process.kill()
        second = await_both(link)
        assert second > first
        assert link.place == 1
        while decode_message(ear.told(Received, lambda: link.take(0.05)).payload, Heartbeat).broker != 1:
            continue


def test_no_broker_at_all_is_said_in_one_line() -> None:
    link = make_link("mqtt://127.0.0.1:1,mqtt://127.0.0.1:2", connect_seconds=0.5)
    with pytest.raises(TransportError, match=r"^no broker at mqtt://127\.0\.0\.1:1: connection refused; .*:2: "), link:
        raise AssertionError("not reached")
