"""Who is there, from births, last wills, descriptions and heartbeats."""

from __future__ import annotations

import msgspec
import pytest

from edge.errors import FormatError
from edge.formats.message import About, Heartbeat, Message, Session, Speed, State, encode_message
from edge.formats.speed import MAX_KINDS, OperatorSpeed
from edge.formats.topics import Topics
from host.fleet.roster import SILENT_SECONDS, Roster

_TOPICS = Topics(fleet="test")


def session(connect: int) -> Session:
    return Session(boot=1, connect=connect)


def state(*, online: bool, connect: int = 1) -> State:
    return State(node="pi-1", role="agent", online=online, session=session(connect))


def about(connect: int = 1, free: int = 5) -> About:
    return About(
        node="pi-1",
        session=session(connect),
        profile="rpi4",
        runtimes=(),
        memory_bytes=10,
        free_memory_bytes=free,
        free_disk_bytes=1,
        cores=4,
        held_bytes=0,
        agent_version="0",
    )


def beat(connect: int = 1) -> Heartbeat:
    return Heartbeat(node="pi-1", session=session(connect), frames_done=0, oldest_queued_seconds=0.0, data_up=True)


def tell(roster: Roster, message: Message, now: float, *, retained: bool = False, node: str = "pi-1") -> None:
    kind = type(message).__name__.lower()
    topic = f"shardwire/test/device/{node}/{kind}"
    roster.receive(topic, encode_message(message), retained=retained, now=now)


def test_a_device_is_online_from_its_birth_until_three_heartbeats_are_missed() -> None:
    roster = Roster(_TOPICS)
    assert not roster.online("pi-1", 0.0)
    tell(roster, state(online=True), 0.0)
    tell(roster, beat(), 1.0)
    assert roster.online("pi-1", 1.0 + SILENT_SECONDS)
    assert not roster.online("pi-1", 1.1 + SILENT_SECONDS)


def test_who_is_there_is_asked_first_and_the_others_as_they_were_given() -> None:
    roster = Roster(_TOPICS)
    roster.receive(_TOPICS.state("pi-1"), encode_message(state(online=True)), retained=False, now=1.0)
    roster.receive(_TOPICS.heartbeat("pi-1"), encode_message(beat()), retained=False, now=1.0)
    assert roster.likely(["pi-9", "host-1", "pi-1"], 1.0) == ("pi-1", "pi-9", "host-1")


def test_a_last_will_takes_a_device_away_at_once() -> None:
    roster = Roster(_TOPICS)
    tell(roster, state(online=True), 0.0)
    tell(roster, state(online=False), 0.1)
    assert not roster.online("pi-1", 0.1)


def test_the_last_will_of_an_older_connection_changes_nothing() -> None:
    roster = Roster(_TOPICS)
    tell(roster, state(online=True, connect=2), 0.0)
    tell(roster, state(online=False, connect=1), 0.1)
    assert roster.online("pi-1", 0.2)


def test_of_two_devices_of_one_name_the_one_that_stays_counts_whatever_its_counters() -> None:
    roster = Roster(_TOPICS)
    for connect, instance, online in ((1, "first", True), (5, "twin", True), (5, "twin", False), (1, "first", True)):
        tell(roster, msgspec.structs.replace(state(online=online, connect=connect), instance=instance), 0.0)
    assert roster.online("pi-1", 0.1)
    tell(roster, msgspec.structs.replace(state(online=False), instance="first"), 0.2)
    assert not roster.online("pi-1", 0.3)


def test_a_heartbeat_of_a_newer_session_outweighs_the_last_will() -> None:
    roster = Roster(_TOPICS)
    tell(roster, state(online=False, connect=1), 0.0)
    tell(roster, beat(connect=1), 0.1)
    assert not roster.online("pi-1", 0.1)
    tell(roster, beat(connect=2), 0.2)
    assert roster.online("pi-1", 0.2)


def test_a_retained_birth_counts_for_a_while_and_never_as_a_heartbeat() -> None:
    roster = Roster(_TOPICS)
    tell(roster, state(online=True), 0.0, retained=True)
    tell(roster, state(online=True), 2.0, retained=True)
    assert roster.online("pi-1", 1.0)
    assert not roster.get("pi-1").beats(1.0)
    assert not roster.online("pi-1", 2.0 + SILENT_SECONDS)


def test_the_newest_description_counts() -> None:
    roster = Roster(_TOPICS)
    tell(roster, about(connect=2, free=7), 0.0)
    tell(roster, about(connect=1, free=9), 0.1)
    found = roster.get("pi-1").about
    assert found is not None
    assert found.free_memory_bytes == 7


def test_only_devices_that_are_there_and_have_described_themselves_can_be_planned_with() -> None:
    roster = Roster(_TOPICS)
    tell(roster, state(online=True), 0.0)
    assert roster.agents_online(0.0) == []
    tell(roster, about(), 0.0)
    assert [node.name for node in roster.agents_online(0.0)] == ["pi-1"]


@pytest.mark.parametrize(
    ("topic", "payload", "text"),
    [
        ("device/pi-2/state", encode_message(state(online=True)), "shardwire/test/device/pi-2/state: speaks of 'pi-1'"),
        ("device/pi-1/state", b"\xff", "message: "),
        ("device/pi-1/about", encode_message(state(online=True))[:-3], "message: "),
    ],
)
def test_what_a_node_says_of_another_is_refused(topic: str, payload: bytes, text: str) -> None:
    roster = Roster(_TOPICS)
    with pytest.raises(FormatError, match=text):
        roster.receive(f"shardwire/test/{topic}", payload, retained=False, now=0.0)
    assert roster.agents() == []


@pytest.mark.parametrize(
    "topic", ["other/test/device/pi-1/state", "shardwire/test/device/pi-1/log", "shardwire/test/x"]
)
def test_other_topics_are_passed_over(topic: str) -> None:
    assert Roster(_TOPICS).receive(topic, b"\xff", retained=False, now=0.0) is None


def test_a_heartbeat_is_enough_to_be_there_when_the_birth_message_was_lost() -> None:
    roster = Roster(_TOPICS)
    beat = Heartbeat(
        node="pi-1", session=Session(boot=1, connect=1), frames_done=0, oldest_queued_seconds=0.0, data_up=True
    )
    roster.receive(_TOPICS.heartbeat("pi-1"), encode_message(beat), retained=False, now=1.0)
    assert roster.online("pi-1", 1.5)


def test_what_a_device_measured_is_kept_whether_it_is_online_or_not() -> None:
    roster = Roster(_TOPICS)
    tell(roster, Speed(node="pi-1", profile="rpi4", message_seconds=1.0), 0.0, retained=True)
    tell(roster, Speed(node="pi-1", profile="rpi4", message_seconds=2.0), 1.0)
    tell(roster, state(online=False), 2.0)
    assert roster.speeds() == {"pi-1": Speed(node="pi-1", profile="rpi4", message_seconds=2.0)}


def test_a_speed_that_is_too_long_or_of_another_device_is_refused() -> None:
    roster = Roster(_TOPICS)
    kind = OperatorSpeed(kind="conv", macs_per_second=1.0, memory_bytes_per_second=1.0, call_seconds=0.0)
    with pytest.raises(FormatError, match=f"{MAX_KINDS + 1} kinds of operators are more than {MAX_KINDS}"):
        tell(roster, Speed(node="pi-1", profile="rpi4", operators=(kind,) * (MAX_KINDS + 1)), 0.0)
    with pytest.raises(FormatError, match="speaks of 'pi-1'"):
        tell(roster, Speed(node="pi-1", profile="rpi4"), 0.0, node="pi-2")
    assert not roster.speeds()


def test_a_speed_that_is_said_again_stays_the_object_that_it_was() -> None:
    roster = Roster(_TOPICS)
    speed = Speed(node="pi-1", profile="rpi4", message_seconds=0.001)
    for _ in range(2):
        roster.receive(_TOPICS.speed("pi-1"), encode_message(speed), retained=True, now=1.0)
    first = roster.speeds()["pi-1"]
    roster.receive(_TOPICS.speed("pi-1"), encode_message(speed), retained=False, now=2.0)
    assert roster.speeds()["pi-1"] is first
    other = Speed(node="pi-1", profile="rpi4", message_seconds=0.002)
    roster.receive(_TOPICS.speed("pi-1"), encode_message(other), retained=False, now=3.0)
    assert roster.speeds()["pi-1"] == other
