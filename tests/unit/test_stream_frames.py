"""Frames of a stream whose state devices keep: they stay with one replica, and say which request they go on from."""

from __future__ import annotations

import msgspec
import pytest

from edge.errors import RequestError, StreamLost
from edge.formats.frame import FrameHeader
from edge.formats.streams import ELSEWHERE
from edge.protocol.pending import InferenceResult, Place
from tests.request_harness import BUNDLE, Harness, make_route
from tests.tiny_bundle import make_deployment, make_input
from tests.virtual_fleet import VirtualFleet

THRICE = ("pi-2", "pi-3")
FIRST_THRICE = make_deployment(BUNDLE, ("pi-0", "pi-1"), replicas={0: THRICE}, window=8)
SECOND_THRICE = make_deployment(BUNDLE, ("pi-0", "pi-1"), replicas={1: THRICE}, window=8)
PLACE = Place(stream="talk", sequence=7, after=5, kept=frozenset({"memory"}))


def harness() -> Harness:
    """A client whose first stage has three replicas and whose model has a state among its outputs."""
    route = make_route()
    memory = msgspec.structs.replace(route.manifest.outputs[0], name="memory")
    manifest = msgspec.structs.replace(route.manifest, outputs=(*route.manifest.outputs, memory))
    return Harness(type(route)(deployment=FIRST_THRICE, manifest=manifest))


def submit(client: Harness, request_id: str, place: Place | None) -> FrameHeader:
    before = len(client.sent)
    client.take(
        client.requests.submit(
            request_id,
            "tiny",
            {"x": make_input(1)},
            deadline_seconds=30,
            observe=False,
            now=client.now,
            place=place,
        )
    )
    return client.sent[before].header


def test_a_client_sends_a_stream_to_one_replica_and_says_where_it_is() -> None:
    client = harness()
    for index in range(4):
        header = submit(client, f"r{index}", PLACE)
        assert (header.stream, header.sequence, header.after) == ("talk", 7, 5)
    assert len({send.topic for send in client.sent}) == 1
    submit(client, "other", None)
    assert (client.sent[-1].header.stream, client.sent[-1].header.sequence, client.sent[-1].header.after) == ("", 0, -1)
    # Other streams have other replicas.
    for index in range(3):
        submit(client, f"s{index}", Place(stream=str(index), sequence=1, after=-1, kept=frozenset()))
    assert len({send.topic for send in client.sent}) > 1


def test_what_a_device_keeps_is_no_output_of_the_result() -> None:
    client = harness()
    header = submit(client, "r", PLACE)
    client.answer(header, {"y": make_input(2), "memory": ELSEWHERE})
    result = client.outcomes["r"]
    assert isinstance(result, InferenceResult)
    assert result.outputs.keys() == {"y"}


def test_without_a_stream_an_answer_must_have_its_state() -> None:
    client = harness()
    client.answer(submit(client, "r", None), {"y": make_input(2), "memory": ELSEWHERE})
    assert client.outcomes == {}
    client.answer(client.sent[-1].header, {"y": make_input(2), "memory": make_input(3)})
    assert isinstance(client.outcomes["r"], InferenceResult)


def test_a_lost_state_is_the_outcome() -> None:
    client = harness()
    client.refuse(submit(client, "r", PLACE), "stream-lost")
    outcome = client.outcomes["r"]
    assert isinstance(outcome, StreamLost)
    assert isinstance(outcome, RequestError)
    assert str(outcome) == "pi-1: why"


def test_a_stage_hands_a_stream_to_one_replica() -> None:
    fleet = VirtualFleet(BUNDLE, SECOND_THRICE)
    for index in range(6):
        header = fleet.header(f"r{index}")
        fleet.send(msgspec.structs.replace(header, stream="talk", sequence=index + 1, after=index or -1))
    assert sorted(len(fleet.agents[name].ran) for name in ("pi-1", *THRICE)) == [0, 0, 6]
    assert len(fleet.results()) == 6
    assert [frame.header.sequence for frame in fleet.results()] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("stream", "sequence", "after"), [("x" * 65, 1, -1), ("s", -1, -1), ("s", 3, 3), ("s", 3, -2), ("s", 1 << 63, 0)]
)
def test_a_frame_whose_place_makes_no_sense_is_dropped(stream: str, sequence: int, after: int) -> None:
    fleet = VirtualFleet(BUNDLE, SECOND_THRICE)
    header = msgspec.structs.replace(fleet.header("r"), stream=stream, sequence=sequence, after=after)
    fleet.send(header)
    assert fleet.agents["pi-0"].ran == []
    assert fleet.results() == []
