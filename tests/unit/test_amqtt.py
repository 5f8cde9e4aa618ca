"""The table of subscriptions that amqtt is given may grow while amqtt loops over it."""

from __future__ import annotations

from host.amqtt import _Steady


def test_a_loop_goes_on_when_a_subscription_comes_or_goes_meanwhile() -> None:
    table = _Steady(a=[1], b=[2])
    seen = []
    for topic in table:
        seen.append(topic)
        table[topic + "/more"] = []
    for topic, subscribers in table.items():
        assert table.pop(topic) is subscribers
    assert seen == ["a", "b"]
    assert table == {}
