"""The in-memory broker behaves as MQTT does, as far as the fleet relies on it; and addresses of real ones."""

import pytest

from edge.errors import TransportError
from edge.mqtt_url import BrokerAddress, parse_broker_url, parse_broker_urls, shown_brokers
from edge.transport import (
    Channel,
    Connected,
    Disconnected,
    MemoryBroker,
    MemoryTransport,
    Publication,
    Received,
    Subscribed,
    TransportEvent,
    topic_matches,
)


@pytest.mark.parametrize(
    ("filter", "topic", "matches"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a/c", False),
        ("a/+", "a/c", True),
        ("a/+", "a", False),
        ("a/+", "a/b/c", False),
        ("a/#", "a/b/c", True),
        ("a/#", "a", True),
        ("#", "a/b", True),
        ("a/+/c", "a/b/c", True),
    ],
)
def test_filters(filter: str, topic: str, matches: bool) -> None:
    assert topic_matches(filter, topic) is matches


def make_node(broker: MemoryBroker, *, will: Publication | None = None) -> tuple[MemoryTransport, list[TransportEvent]]:
    events: list[TransportEvent] = []
    node = MemoryTransport(broker, on_event=events.append, will=(lambda _connect: will) if will else None)
    return node, events


def control(topic: str, payload: bytes, *, retain: bool = False) -> Publication:
    return Publication(channel=Channel.CONTROL, topic=topic, payload=payload, retain=retain)


def test_a_message_reaches_those_who_subscribed_before() -> None:
    broker = MemoryBroker()
    node, events = make_node(broker)
    node.connect(Channel.CONTROL)
    node.subscribe(Channel.CONTROL, "a/#")
    assert node.publish(control("a/b", b"1"))
    assert events == [
        Connected(channel=Channel.CONTROL, connect=1),
        Subscribed(channel=Channel.CONTROL, filter="a/#"),
        Received(channel=Channel.CONTROL, topic="a/b", payload=b"1"),
    ]


def test_a_retained_message_reaches_those_who_subscribe_later_until_it_is_emptied() -> None:
    broker = MemoryBroker()
    speaker, _ = make_node(broker)
    speaker.connect(Channel.CONTROL)
    speaker.publish(control("a", b"1", retain=True))
    late, events = make_node(broker)
    late.connect(Channel.CONTROL)
    late.subscribe(Channel.CONTROL, "a")
    assert events[-1] == Received(channel=Channel.CONTROL, topic="a", payload=b"1", retained=True)
    speaker.publish(control("a", b"", retain=True))
    assert broker.retained == {}


def test_a_cut_publishes_the_last_will_and_forgets_the_subscriptions() -> None:
    broker = MemoryBroker()
    other, heard = make_node(broker)
    other.connect(Channel.CONTROL)
    other.subscribe(Channel.CONTROL, "#")
    node, events = make_node(broker, will=control("will", b"dead"))
    node.connect(Channel.CONTROL)
    node.subscribe(Channel.CONTROL, "a")
    node.cut(Channel.CONTROL, reason="pulled")
    assert heard[-1] == Received(channel=Channel.CONTROL, topic="will", payload=b"dead")
    assert events[-1] == Disconnected(channel=Channel.CONTROL, reason="pulled")
    assert not node.publish(control("a", b"1"))
    node.connect(Channel.CONTROL)
    assert events[-1:] == [Connected(channel=Channel.CONTROL, connect=2)]


def test_closing_publishes_the_last_will_too_and_once() -> None:
    broker = MemoryBroker()
    other, heard = make_node(broker)
    other.connect(Channel.CONTROL)
    other.subscribe(Channel.CONTROL, "will")
    node, _ = make_node(broker, will=control("will", b"bye"))
    node.connect(Channel.CONTROL)
    node.close()
    node.close()
    assert [event for event in heard if isinstance(event, Received)] == [
        Received(channel=Channel.CONTROL, topic="will", payload=b"bye")
    ]


def test_an_unsubscribed_topic_is_silent() -> None:
    broker = MemoryBroker()
    node, events = make_node(broker)
    node.connect(Channel.DATA)
    node.subscribe(Channel.DATA, "a")
    node.unsubscribe(Channel.DATA, "a")
    node.publish(Publication(channel=Channel.DATA, topic="a", payload=b"1"))
    assert not [event for event in events if isinstance(event, Received)]


def address(**changes: object) -> BrokerAddress:
    fields: dict[str, object] = {"host": "h", "port": 1883, "tls": False, "user": None, "password": None}
    fields |= {"shown": "mqtt://h:1883"} | changes
    return BrokerAddress(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("mqtt://h", address()),
        ("mqtt://h:1", address(port=1, shown="mqtt://h:1")),
        ("mqtts://h", address(port=8883, tls=True, shown="mqtts://h:8883")),
        ("mqtt://me:s%40cret@h/", address(user="me", password="s@cret")),  # noqa: S106 - no secret
        ("mqtt://[::1]:5", address(host="::1", port=5, shown="mqtt://[::1]:5")),
    ],
)
def test_an_address_is_read(url: str, expected: BrokerAddress) -> None:
    assert parse_broker_url(url) == expected


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://h", "it starts with neither mqtt:// nor mqtts://"),
        ("localhost", "it starts with neither mqtt:// nor mqtts://"),
        ("mqtt://", "it names no host"),
        ("mqtt://h:x", "Port could not be cast to integer value as 'x'"),
        ("mqtt://h:99999", "Port out of range 0-65535"),
        ("mqtt://h:0", "port 0 is none"),
        ("mqtt://h/topic", "something follows the port"),
    ],
)
def test_what_is_no_address_is_told_with_the_reason(url: str, why: str) -> None:
    with pytest.raises(TransportError) as caught:
        parse_broker_url(url)
    assert str(caught.value) == f"{url!r} is no broker address: {why}; write mqtt://[user:password@]host[:port]"


def test_a_password_is_never_shown() -> None:
    with pytest.raises(TransportError) as caught:
        parse_broker_url("mqtt://me:secret@h/x")
    assert "secret" not in str(caught.value)


def test_a_list_of_brokers_keeps_its_order_and_shows_no_password() -> None:
    urls = "mqtt://me:a%2Cb@one, mqtts://two:5"
    assert [address.host for address in parse_broker_urls(urls)] == ["one", "two"]
    assert parse_broker_urls(urls)[0].password == "a,b"  # noqa: S105 - no secret
    assert shown_brokers(urls) == "mqtt://one:1883,mqtts://two:5"


@pytest.mark.parametrize(
    ("urls", "text"),
    [
        ("mqtt://h,", "'' is no broker address: it starts with neither mqtt:// nor mqtts://; "),
        ("mqtt://h,mqtt://me@h:1883", "broker mqtt://h:1883 is given twice: name each broker once"),
    ],
)
def test_a_list_with_a_hole_or_a_broker_twice_is_refused(urls: str, text: str) -> None:
    with pytest.raises(TransportError) as caught:
        parse_broker_urls(urls)
    assert str(caught.value).startswith(text)
