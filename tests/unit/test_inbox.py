"""The queue of a node never grows without bound from what others send."""

from edge.inbox import MAX_PENDING_BYTES, MAX_PENDING_EVENTS, Inbox
from edge.transport import Channel, Connected, Received


def message(size: int, channel: Channel = Channel.DATA) -> Received:
    return Received(channel=channel, topic="t", payload=bytes(size))


def test_events_come_out_in_order_and_none_is_none() -> None:
    inbox: Inbox[str] = Inbox()
    inbox.put("a")
    inbox.put_from_network(message(1))
    inbox.put("b")
    assert [inbox.get(0), inbox.get(0), inbox.get(0), inbox.get(0)] == ["a", message(1), "b", None]


def test_bytes_that_wait_are_bounded_for_each_connection_by_itself() -> None:
    inbox: Inbox[str] = Inbox()
    half = message(MAX_PENDING_BYTES // 2)
    for _ in range(3):
        inbox.put_from_network(half)
    assert inbox.dropped == 1
    inbox.put_from_network(message(1, Channel.CONTROL))
    assert inbox.dropped == 1
    inbox.get(0)
    inbox.put_from_network(half)
    assert inbox.dropped == 1


def test_a_flood_of_small_messages_is_bounded_but_our_own_events_are_not() -> None:
    inbox: Inbox[str] = Inbox()
    for _ in range(MAX_PENDING_EVENTS + 5):
        inbox.put_from_network(message(0))
    assert inbox.dropped == 5
    inbox.put("ours")
    inbox.put_from_network(Connected(channel=Channel.DATA))
    assert [event for _ in range(MAX_PENDING_EVENTS + 2) if not isinstance(event := inbox.get(0), Received)] == [
        "ours",
        Connected(channel=Channel.DATA),
    ]
