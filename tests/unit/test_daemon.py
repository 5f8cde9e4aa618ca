"""How a coordinator's loop takes events and time: nothing that matters waits, and heartbeats come in batches."""

from __future__ import annotations

import logging
from collections import deque
from pathlib import Path

import pytest

from edge.formats.message import CommandOutcome, FleetEvent, decode_message
from edge.transport import Channel, Publication, Received, TransportEvent
from host.fleet.daemon import CoordinatorLoop
from host.fleet.effects import CoordinatorEffect, Happened, Told
from host.fleet.history import HistoryLog
from host.fleet.outcomes import outcome_of
from tests.fake_bundle import fake_bundle
from tests.fake_fleet import TOPICS, FakeFleet


class FakeLink:
    """Events that wait, and what was published."""

    def __init__(self, caller: object) -> None:
        self.caller = caller
        self.events: deque[TransportEvent] = deque()
        self.published: list[Publication] = []

    def take(self, timeout_seconds: float) -> TransportEvent | None:
        del timeout_seconds
        return self.events.popleft() if self.events else None

    def publish(self, publication: Publication) -> bool:
        self.published.append(publication)
        return True

    def subscribe(self, channel: Channel, filter: str) -> None:
        """Nothing is delivered by itself."""


class Looped:
    """A loop around a real coordinator whose ticks are counted."""

    def __init__(self, history: HistoryLog | None = None) -> None:
        self.core = FakeFleet().coordinator(fake_bundle()).core
        self.link = FakeLink(self.core.caller)
        self.ticks = 0
        self.effects: list[CoordinatorEffect] = []
        self.core.tick = self._tick  # type: ignore[method-assign]  # a spy
        self.loop = CoordinatorLoop(self.core, self.link, history=history)  # type: ignore[arg-type]  # its twin

    def _tick(self, now: float) -> list[CoordinatorEffect]:
        del now
        self.ticks += 1
        return self.effects

    def hear(self, topic: str, *, channel: Channel = Channel.CONTROL) -> None:
        self.link.events.append(Received(channel=channel, topic=topic, payload=b"", retained=False))


def test_hundreds_of_heartbeats_are_taken_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("host.fleet.daemon.time.monotonic", lambda: now[0])
    one = Looped()
    one.loop.step()
    for number in range(1000):
        one.hear(TOPICS.heartbeat(f"pi-{number}"))
    one.loop.step()
    assert not one.link.events
    assert one.ticks == 1, "it is not time yet"
    now[0] += 0.05
    one.loop.step()
    assert one.ticks == 2


@pytest.mark.parametrize("topic", [TOPICS.state("pi-1"), TOPICS.event("pi-1"), TOPICS.lease()])
def test_what_may_change_a_decision_is_followed_by_a_tick_at_once(topic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("host.fleet.daemon.time.monotonic", lambda: 100.0)
    one = Looped()
    one.loop.step()
    one.hear(topic)
    one.loop.step()
    assert one.ticks == 2


def test_a_result_of_a_probe_is_urgent_and_a_request_for_a_block_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("host.fleet.daemon.time.monotonic", lambda: 100.0)
    one = Looped()
    one.loop.step()
    one.hear(TOPICS.fetch("coordinator-aaaa"), channel=Channel.DATA)
    one.loop.step()
    assert one.ticks == 1
    one.hear(TOPICS.result("coordinator-aaaa"), channel=Channel.DATA)
    one.loop.step()
    assert one.ticks == 2


def test_what_happened_is_written_down_and_told(tmp_path: Path) -> None:
    one = Looped(HistoryLog(tmp_path))
    one.effects = [Happened(what="left", device="pi-1", why="its connection ended")]
    one.loop.step()
    (written,) = HistoryLog(tmp_path).read(10)
    (told,) = [found for found in one.link.published if found.topic == TOPICS.history()]
    assert (told.qos, told.retain) == (1, False)
    assert decode_message(told.payload, FleetEvent) == written
    assert (written.who, written.what, written.device) == ("coordinator-aaaa", "left", "pi-1")
    assert len(written.at) == len("2026-01-01T00:00:00Z")


def test_what_happened_in_one_moment_waits_for_the_disk_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr("host.fleet.history.os.fsync", synced.append)
    one = Looped(HistoryLog(tmp_path))
    one.effects = [Happened(what="left", device=f"pi-{number}") for number in range(300)]
    one.loop.step()
    assert len(synced) == 1
    assert [event.device for event in HistoryLog(tmp_path).read(1000)] == [f"pi-{number}" for number in range(300)]
    assert len(one.link.published) == 300


def test_outcomes_of_long_ago_are_forgotten() -> None:
    one = Looped()
    outcomes = [outcome_of(f"replan-{number}") for number in range(2000)]
    one.effects = [Told(outcome=outcome) for outcome in outcomes]
    one.loop.step()
    assert list(one.loop.outcomes.values()) == outcomes[-len(one.loop.outcomes) :]
    assert len(one.loop.outcomes) < len(outcomes)


def test_a_history_that_cannot_be_written_stops_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = Looped(HistoryLog(tmp_path / "gone"))
    one.effects = [Happened(what="left", device="pi-1")]
    one.loop.step()
    assert "left is not written down: " in caplog.text
    assert [found.topic for found in one.link.published] == [TOPICS.history()]


def test_news_that_are_told_again_stand_in_the_log_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="host.fleet.daemon")
    looped = Looped()
    trying = CommandOutcome(request_id="r", done=False, ok=True, reason="trying")
    ended = CommandOutcome(request_id="r", done=True, ok=True, reason="")
    looped.effects = [Told(outcome=outcome) for outcome in (trying, trying, ended)]
    looped.loop.step()
    assert [record.message for record in caplog.records] == ["command r: trying", "command r: done"]
