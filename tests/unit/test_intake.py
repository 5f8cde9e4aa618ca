"""What an agent does with frames: run, relay, answer, refuse or drop them; on a virtual clock."""

from typing import Any

import msgspec
import numpy as np
import pytest

from edge.formats.frame import FrameHeader, encode_frame
from edge.formats.message import Block, Done, FetchRequest, Session, Taken, decode_message
from edge.formats.packet import split
from edge.formats.plan import Deployment
from edge.formats.tensor import Array
from edge.protocol.intake import LEAST_SLOT_SECONDS
from edge.protocol.on_disk import OnDisk
from edge.transport import Channel, MemoryBroker, Publication
from tests.tiny_bundle import make_deployment, make_input, make_tiny_bundle
from tests.virtual_agent import TOPICS, Ear, VirtualAgent

BUNDLE = make_tiny_bundle()
RESULT = TOPICS.result("cam")


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker()


@pytest.fixture
def ear(broker: MemoryBroker) -> Ear:
    return Ear(broker, BUNDLE)


def serving(
    broker: MemoryBroker, ear: Ear, deployment: Deployment, *, poisoned: frozenset[str] = frozenset()
) -> VirtualAgent:
    agent = VirtualAgent(broker, disk=OnDisk(poisoned=poisoned))
    agent.start()
    ear.serve(deployment)
    agent.pump()
    assert agent.stages
    ear.forget()
    return agent


@pytest.fixture
def first(broker: MemoryBroker, ear: Ear) -> VirtualAgent:
    """The agent of the first of two stages; runs are held back."""
    agent = serving(broker, ear, make_deployment(BUNDLE, ("pi-1", "pi-2"), window=2))
    agent.hold_runs = True
    return agent


@pytest.fixture
def last(broker: MemoryBroker, ear: Ear) -> VirtualAgent:
    """The agent of the second of two stages."""
    return serving(broker, ear, make_deployment(BUNDLE, ("pi-2", "pi-1"), window=2))


@pytest.fixture
def only(broker: MemoryBroker, ear: Ear) -> VirtualAgent:
    """The agent of a plan whose one stage holds both shards; runs are held back."""
    agent = serving(broker, ear, make_deployment(BUNDLE, ("pi-1",), window=2))
    agent.hold_runs = True
    return agent


def make_header(request_id: str = "r1", **changes: Any) -> FrameHeader:
    header = FrameHeader(
        request_id=request_id,
        sender="cam",
        reply_to=RESULT,
        ttl_ms=10_000,
        deployment="tiny",
        epoch="1-a-1",
        stage=0,
    )
    return msgspec.structs.replace(header, **changes)


def send(agent: VirtualAgent, ear: Ear, header: FrameHeader, tensors: dict[str, Array] | None = None) -> None:
    name = "x" if header.stage == 0 else "hidden"
    ear.send_frame(header, {name: make_input(1)} if tensors is None else tensors)
    agent.pump()


def errors(ear: Ear) -> list[tuple[str, str]]:
    frames = ear.frames(RESULT)
    return [(frame.header.error.code, frame.header.error.message) for frame in frames if frame.header.error]


def test_a_frame_is_run_and_goes_on_to_the_next_stage(first: VirtualAgent, ear: Ear) -> None:
    send(first, ear, make_header())
    first.now += 0.5
    first.finish_run()
    (frame,) = ear.frames(TOPICS.run("pi-2", "tiny", "1-a-1", 1))
    assert (frame.header.sender, frame.header.stage, frame.header.reply_to) == ("pi-1", 1, RESULT)
    np.testing.assert_array_equal(frame.tensors["hidden"], make_input(1) + 1)
    (hop,) = frame.header.trace
    assert (hop.stage, hop.device, hop.sent_bytes) == (0, "pi-1", make_input(1).nbytes)
    assert hop.queued_seconds == pytest.approx(0.5)


def test_its_time_here_is_taken_from_the_time_that_is_left(first: VirtualAgent, ear: Ear) -> None:
    send(first, ear, make_header(ttl_ms=2000))
    first.now += 0.5
    first.finish_run()
    (frame,) = ear.frames(TOPICS.run("pi-2", "tiny", "1-a-1", 1))
    assert frame.header.ttl_ms == 1490


def test_the_last_stage_answers_the_client_and_frees_the_slot(last: VirtualAgent, ear: Ear) -> None:
    send(last, ear, make_header(sender="pi-2", stage=1))
    (frame,) = ear.frames(RESULT)
    assert frame.header.kind == "result"
    np.testing.assert_array_equal(frame.tensors["y"], make_input(1) + 1)
    assert [event.topic for event in ear.heard if event.topic.startswith(TOPICS.ack("pi-2"))] == [
        TOPICS.ack("pi-2")
    ] * 2
    assert ear.messages(Done) == [Done(node="pi-1", request_id="r1", attempt=0)]


def test_the_sender_hears_that_a_frame_was_taken_and_so_does_an_observer(first: VirtualAgent, ear: Ear) -> None:
    send(first, ear, make_header())
    send(first, ear, make_header("r2", sender="cam", observer=TOPICS.ack("eye")))
    topics = [event.topic for event in ear.heard if event.topic.endswith(("ack/cam", "ack/eye"))]
    assert topics == [TOPICS.ack("cam"), TOPICS.ack("cam"), TOPICS.ack("eye")]
    assert ear.messages(Taken)[0] == Taken(node="pi-1", request_id="r1", attempt=0, stage=0)


def test_a_large_frame_arrives_in_packets_in_any_order(first: VirtualAgent, ear: Ear) -> None:
    tensors = {"x": np.zeros((1, 100_000), np.float32)}
    frame = encode_frame(make_header(), tensors)
    packets = list(split(frame, sender="cam", session=Session(boot=1, connect=1), sequence=1))
    assert len(packets) > 2
    for packet in (*reversed(packets), packets[0]):
        ear.say(TOPICS.run("pi-1", "tiny", "1-a-1", 0), packet)
    first.pump()
    assert len(first.runs) == 1


class TestRefusal:
    def test_an_unknown_epoch_is_gone_and_the_answer_names_the_one_that_serves(
        self, first: VirtualAgent, ear: Ear
    ) -> None:
        send(first, ear, make_header(epoch="1-a-9"))
        assert errors(ear) == [("gone", "epoch 1-a-9 of tiny has no stage 0 on pi-1; 1-a-1 is serving")]

    def test_a_stage_of_another_device_is_gone_too(self, first: VirtualAgent, ear: Ear) -> None:
        send(first, ear, make_header(stage=1))
        assert errors(ear) == [("gone", "epoch 1-a-1 of tiny has no stage 1 on pi-1; 1-a-1 is serving")]

    def test_while_the_stage_loads_the_client_is_told_to_wait(self, broker: MemoryBroker, ear: Ear) -> None:
        agent = VirtualAgent(broker)
        agent.hold_loads = True
        agent.start()
        ear.serve(make_deployment(BUNDLE, ("pi-1", "pi-2")))
        send(agent, ear, make_header())
        assert errors(ear) == [("busy", "pi-1 is loading stage 0 of tiny")]

    def test_a_request_whose_time_is_up_is_dropped_without_a_word(self, first: VirtualAgent, ear: Ear) -> None:
        send(first, ear, make_header(ttl_ms=0))
        assert first.runs == []
        assert errors(ear) == []

    def test_a_request_that_killed_this_agent_is_not_run_again(self, broker: MemoryBroker, ear: Ear) -> None:
        deployment = make_deployment(BUNDLE, ("pi-1", "pi-2"))
        agent = serving(broker, ear, deployment, poisoned=frozenset({"bad"}))
        send(agent, ear, make_header("bad"))
        send(agent, ear, make_header("good"))
        assert errors(ear) == [("poison", "pi-1 died while it ran this request")]
        assert len(ear.frames(TOPICS.run("pi-2", "tiny", "1-a-1", 1))) == 1

    def test_a_flipped_bit_is_told_and_can_be_sent_again(self, first: VirtualAgent, ear: Ear) -> None:
        frame = bytearray(encode_frame(make_header(), {"x": make_input(1)}))
        frame[-100] ^= 1
        for packet in split(bytes(frame), sender="cam", session=Session(boot=1, connect=1), sequence=1):
            ear.say(TOPICS.run("pi-1", "tiny", "1-a-1", 0), packet)
        first.pump()
        assert errors(ear) == [("corrupt-frame", "frame of request 'r1': checksum is wrong")]
        assert first.runs == []

    @pytest.mark.parametrize(
        "changes",
        [
            {"reply_to": "shardwire/default/device/pi-1/command"},
            {"reply_to": "shardwire/other/result/cam"},
            {"reply_to": "shardwire/default/result/cam/more"},
            {"reply_to": "shardwire/default/result/#"},
            {"reply_to": "$SYS/broker"},
            {"observer": "shardwire/default/result/cam"},
            {"observer": "shardwire/default/ack/+"},
            {"sender": "cam/../pi-2"},
            {"sender": ""},
            {"request_id": ""},
            {"request_id": "r" * 65},
            {"kind": "result"},
            {"parts": 2},
        ],
        ids=str,
    )
    def test_a_header_that_would_make_us_publish_elsewhere_is_dropped(
        self, first: VirtualAgent, ear: Ear, changes: dict[str, Any]
    ) -> None:
        ear.send_frame(make_header(**changes), {"x": make_input(1)})
        heard = len(ear.heard)
        first.pump()
        assert len(ear.heard) == heard
        assert first.runs == []
        assert len(first.logs) == 1

    def test_a_frame_on_the_topic_of_another_stage_is_dropped(self, first: VirtualAgent, ear: Ear) -> None:
        frame = encode_frame(make_header(), {"x": make_input(1)})
        for packet in split(frame, sender="cam", session=Session(boot=1, connect=1), sequence=1):
            ear.say(TOPICS.run("pi-1", "tiny", "1-a-1", 1), packet)
        first.pump()
        assert first.runs == []
        assert first.logs[0].endswith("dropped: frame for stage 0 of 'tiny' on the wrong topic")


class TestAdmission:
    def test_a_window_of_requests_runs_as_many_wait_and_the_rest_is_told_to_come_back(
        self, first: VirtualAgent, ear: Ear
    ) -> None:
        for index in range(5):
            send(first, ear, make_header(f"r{index}"))
        assert [job.frame.header.request_id for job in first.runs] == ["r0", "r1"]
        assert errors(ear) == [("busy", "tiny has 2 requests in its pipeline and as many at its door")]

    def test_a_slot_is_not_free_before_the_request_left_the_whole_pipeline(self, first: VirtualAgent, ear: Ear) -> None:
        for index in range(3):
            send(first, ear, make_header(f"r{index}"))
        first.finish_run()
        first.finish_run()
        assert first.runs == []
        ear.say(TOPICS.ack("pi-1"), Done(node="pi-2", request_id="r0", attempt=0))
        first.pump()
        assert [job.frame.header.request_id for job in first.runs] == ["r2"]

    def test_a_single_stage_frees_its_slots_itself(self, only: VirtualAgent, ear: Ear) -> None:
        only.run = lambda frame: {"y": frame.tensors["x"]}
        for index in range(3):
            send(only, ear, make_header(f"r{index}"))
        only.finish_run()
        assert [job.frame.header.request_id for job in only.runs] == ["r1", "r2"]

    def test_a_slot_is_free_when_the_time_of_its_request_is_up(self, first: VirtualAgent, ear: Ear) -> None:
        send(first, ear, make_header("lost", ttl_ms=1000))
        send(first, ear, make_header("r1"))
        send(first, ear, make_header("r2"))
        first.finish_run()
        first.finish_run()
        first.wait(0.75)
        assert first.runs == []
        first.wait(0.5)
        assert [job.frame.header.request_id for job in first.runs] == ["r2"]

    def test_what_it_waited_at_the_door_is_not_time_in_the_pipeline(self, first: VirtualAgent, ear: Ear) -> None:
        for request_id in ("r0", "r1", "r2"):
            send(first, ear, make_header(request_id))
        first.wait(1.75)
        for request_id in ("r0", "r1"):
            first.finish_run()
            ear.say(TOPICS.ack("pi-1"), Done(node="pi-2", request_id=request_id, attempt=0))
        first.pump()
        slots = first.session._intake._slots["tiny", "1-a-1"]
        assert {name: expires - first.now for name, expires in slots.items()} == {"r2": LEAST_SLOT_SECONDS}

    def test_a_resend_takes_no_second_slot_and_does_not_run_twice_at_once(self, first: VirtualAgent, ear: Ear) -> None:
        for attempt in range(4):
            send(first, ear, make_header("r1", attempt=attempt))
        assert len(first.runs) == 1
        first.finish_run()
        send(first, ear, make_header("r1", attempt=5))
        send(first, ear, make_header("r2"))
        assert [job.frame.header.request_id for job in first.runs] == ["r1", "r2"]

    def test_an_inner_stage_is_bounded_too(self, last: VirtualAgent, ear: Ear) -> None:
        last.hold_runs = True
        for index in range(5):
            send(last, ear, make_header(f"r{index}", sender="pi-2", stage=1))
        assert len(last.runs) == 4
        assert errors(ear) == [("busy", "pi-1 has 4 requests of tiny queued")]

    def test_the_wait_that_busy_asks_for_follows_how_long_runs_take(self, first: VirtualAgent, ear: Ear) -> None:
        for index in range(5):
            send(first, ear, make_header(f"r{index}"))
        (frame,) = ear.frames(RESULT)
        assert frame.header.error is not None
        assert 10 <= frame.header.error.retry_after_ms <= 2000

    def test_done_goes_to_the_device_that_let_the_request_in(self, last: VirtualAgent, ear: Ear) -> None:
        last.hold_runs = True
        send(last, ear, make_header(sender="pi-2", stage=1))
        assert last.runs[0].admitting == ("pi-2",)
        assert last.runs[0].onward == ()


def test_frames_keep_an_epoch_from_draining(first: VirtualAgent, ear: Ear) -> None:
    ear.serve(make_deployment(make_tiny_bundle(), ("pi-8", "pi-9"), epoch="1-a-2"))
    first.pump()
    for index in range(4):
        first.wait(4)
        send(first, ear, make_header(f"r{index}"))
        first.finish_run()
        ear.say(TOPICS.ack("pi-1"), Done(node="pi-2", request_id=f"r{index}", attempt=0))
    assert first.stages
    first.wait(5.25)
    assert not first.stages


def test_a_block_is_given_to_a_neighbour_and_only_to_a_blocks_topic(first: VirtualAgent, ear: Ear) -> None:
    digest = BUNDLE.manifest_blob.digest
    ear.say(TOPICS.fetch("pi-1"), FetchRequest(digest=digest, block=0, reply_to=TOPICS.blocks("pi-2")))
    ear.say(TOPICS.fetch("pi-1"), FetchRequest(digest=digest, block=0, reply_to=TOPICS.command("pi-2")))
    first.pump()
    answers = [event for event in ear.heard if event.topic == TOPICS.blocks("pi-2")]
    assert [decode_message(event.payload, Block).data for event in answers] == [BUNDLE.blobs[digest]]
    assert not [event for event in ear.heard if event.topic == TOPICS.command("pi-2")]


def test_a_data_topic_on_the_control_connection_is_not_ours(first: VirtualAgent, ear: Ear) -> None:
    first.transport.subscribe(Channel.CONTROL, "shardwire/#")
    ear.transport.publish(Publication(channel=Channel.CONTROL, topic=TOPICS.ack("pi-1"), payload=b"nonsense", qos=1))
    first.pump()
    assert len(first.logs) == 1, "only the data connection reads acks"


class TestOfTwoEpochs:
    """While one drains, is tried, or is stuck, the other must not wait for it."""

    def agent(self, broker: MemoryBroker, ear: Ear) -> VirtualAgent:
        agent = serving(broker, ear, make_deployment(BUNDLE, ("pi-1", "pi-2"), window=1))
        agent.hold_runs = True
        for index in range(2):
            send(agent, ear, make_header(f"old{index}"))
        ear.serve(make_deployment(BUNDLE, ("pi-1", "pi-2"), epoch="1-a-2", window=1))
        agent.pump()
        return agent

    def test_a_full_pipeline_of_one_keeps_nobody_out_of_the_other(self, broker: MemoryBroker, ear: Ear) -> None:
        agent = self.agent(broker, ear)
        send(agent, ear, make_header("new", epoch="1-a-2"))
        assert [job.frame.header.request_id for job in agent.runs] == ["old0", "new"]
        assert errors(ear) == []

    def test_who_waits_at_the_door_of_one_that_is_closed_is_told(self, broker: MemoryBroker, ear: Ear) -> None:
        agent = self.agent(broker, ear)
        ear.serve(Deployment(name="tiny", epoch="1-a-3", manifest=None, plan=None))
        agent.pump()
        agent.wait(0.5)
        assert errors(ear) == [("gone", "epoch 1-a-1 of tiny has no stage 0 on pi-1; none is serving")]
        assert agent.session._intake._slots == {}
        assert [request_id for _, request_id in agent.session._intake._queue] == ["old0"]
