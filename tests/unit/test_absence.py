"""When a device counts as away, and when it may be used again; virtual clock."""

from __future__ import annotations

from edge.formats.message import Heartbeat, Message, Session, State, encode_message
from edge.formats.topics import Topics
from host.fleet.absence import (
    AWAY_SECONDS,
    DATA_DOWN_SECONDS,
    FLAP_SECONDS,
    STEADY_SECONDS,
    Absence,
    Patience,
)
from host.fleet.roster import SILENT_SECONDS, Roster

_TOPICS = Topics(fleet="test")
_LOOK_SECONDS = 0.05


class Watched:
    """One device, who judges it, and a clock."""

    def __init__(self, patience: Patience | None = None) -> None:
        self.now = 100.0
        self.connect = 1
        self.frames = 0
        self.roster = Roster(_TOPICS)
        self.absence = Absence(self.roster)
        self.patience = {"pi-1": patience or Patience()}
        self.news: list[tuple[str, str]] = []
        self.state(online=True)
        self.beat()
        self.look()

    def tell(self, kind: str, message: Message, *, retained: bool = False) -> None:
        topic = f"shardwire/test/device/pi-1/{kind}"
        self.roster.receive(topic, encode_message(message), retained=retained, now=self.now)

    def state(self, *, online: bool) -> None:
        session = Session(boot=1, connect=self.connect)
        self.tell("state", State(node="pi-1", role="agent", online=online, session=session))

    def beat(self, *, data_up: bool = True, waits: float = 0.0, frames: int = 0) -> None:
        self.frames += frames
        session = Session(boot=1, connect=self.connect)
        beat = Heartbeat(
            node="pi-1", session=session, frames_done=self.frames, oldest_queued_seconds=waits, data_up=data_up
        )
        self.tell("heartbeat", beat)

    def look(self, *, settled: bool = True) -> str | None:
        for event in self.absence.look(["pi-1"], self.now, patience=self.patience, settled=settled):
            self.news.append((event.what, event.why))
        return self.absence.why("pi-1")

    def wait(self, seconds: float, *, settled: bool = True) -> str | None:
        for _ in range(round(seconds / _LOOK_SECONDS)):
            self.now += _LOOK_SECONDS
            self.look(settled=settled)
        return self.absence.why("pi-1")

    def beats(self, count: int, *, data_up: bool = True, waits: float = 0.0, frames: int = 0) -> str | None:
        for _ in range(count):
            self.wait(1.0)
            self.beat(data_up=data_up, waits=waits, frames=frames)
        return self.look()

    def restart(self) -> None:
        self.connect += 1
        self.state(online=True)
        self.beat()
        self.look()


def test_a_last_will_counts_after_a_quarter_of_a_second() -> None:
    one = Watched()
    one.state(online=False)
    assert one.look() is None
    assert one.wait(AWAY_SECONDS - _LOOK_SECONDS) is None
    assert one.wait(2 * _LOOK_SECONDS) == "its connection ended"
    assert one.news == [("joined", ""), ("left", "its connection ended")]


def test_who_starts_again_at_once_was_never_away() -> None:
    one = Watched()
    one.state(online=False)
    one.wait(AWAY_SECONDS - _LOOK_SECONDS)
    one.restart()
    assert one.wait(1.0) is None
    assert one.news == [("joined", "")]


def test_who_is_silent_is_away_at_once_and_stays_it_when_its_last_will_comes() -> None:
    one = Watched()
    assert one.wait(SILENT_SECONDS - _LOOK_SECONDS) is None
    assert one.wait(2 * _LOOK_SECONDS) == "nothing was heard of it for 2.5 s"
    one.state(online=False)
    assert one.look() == "nothing was heard of it for 2.5 s"
    assert [what for what, _ in one.news] == ["joined", "left"]


def test_a_heart_that_beats_late_over_a_slow_link_is_no_absence() -> None:
    one = Watched()
    for late in (0.1, 0.9, 0.0, 1.2, 0.4):
        one.wait(1.0 + late)
        one.beat()
        one.wait(0.05)
    assert one.look() is None


def test_no_heart_beats_while_a_long_stage_runs() -> None:
    one = Watched(Patience(run_seconds=4.0))
    assert one.wait(8.0) is None
    assert one.wait(2.0) is not None


def test_who_has_lost_its_data_connection_for_a_second_is_away_until_it_is_back() -> None:
    one = Watched()
    one.beat(data_up=False)
    assert one.look() is None
    assert one.wait(DATA_DOWN_SECONDS + _LOOK_SECONDS) == "it has no connection for tensors"
    one.beat()
    assert one.look() is None


def test_who_works_off_nothing_while_frames_wait_is_stuck() -> None:
    one = Watched()
    assert one.beats(2, waits=6.0) is None
    assert one.beats(2, waits=8.0) == "it is stuck: a frame waits for 8 s and none is done"
    assert one.beats(1, waits=9.0, frames=1) is None


def test_a_long_queue_that_moves_or_was_to_be_expected_is_not_stuck() -> None:
    assert Watched().beats(20, waits=30.0, frames=1) is None
    assert Watched(Patience(wait_seconds=4.0)).beats(20, waits=30.0) is None


def test_nobody_is_away_before_everybody_had_the_time_to_come_back() -> None:
    one = Watched()
    one.state(online=False)
    assert one.wait(4.0, settled=False) is None
    assert one.wait(_LOOK_SECONDS) is not None


def test_silence_that_nobody_listened_to_does_not_count() -> None:
    one = Watched()
    one.now += 30.0
    assert one.look() is None
    assert one.wait(SILENT_SECONDS - _LOOK_SECONDS) is None
    assert one.wait(2 * _LOOK_SECONDS) is not None


def test_who_left_long_before_is_no_news() -> None:
    one = Watched()
    fresh = Absence(one.roster)
    one.state(online=False)
    for _ in range(20):
        one.now += _LOOK_SECONDS
        assert fresh.look(["pi-1", "pi-9"], one.now, patience={}, settled=True) == []
    assert fresh.why("pi-1") == "its connection ended"
    assert fresh.why("pi-9") is not None


def test_who_comes_and_goes_has_to_stay_for_a_while_before_plans_use_it() -> None:
    one = Watched()
    for expected in (True, True, False):
        one.state(online=False)
        one.wait(1.0)
        assert not one.absence.steady("pi-1", one.now)
        one.restart()
        assert one.absence.steady("pi-1", one.now) == expected
    one.beats(round(STEADY_SECONDS) - 1)
    assert not one.absence.steady("pi-1", one.now)
    one.beats(2)
    assert one.absence.steady("pi-1", one.now)
    one.state(online=False)
    one.wait(1.0)
    one.restart()
    assert not one.absence.steady("pi-1", one.now), "and once more"
    one.beats(round(FLAP_SECONDS) + 1)
    assert one.absence.steady("pi-1", one.now)
