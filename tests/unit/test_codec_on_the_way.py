"""A deployment says how its tensors travel, and every node on the way keeps to it; on a virtual clock."""

import numpy as np
import pytest

from edge.formats.frame import decode_frame, encode_frame
from edge.formats.message import Session
from edge.formats.packet import split
from edge.formats.plan import Codec
from edge.formats.tensor import Array
from edge.protocol.intake import LEAST_QUEUE_BYTES
from tests.tiny_bundle import WIDTH, make_deployment, make_tiny_bundle
from tests.virtual_agent import TOPICS
from tests.virtual_fleet import VirtualClient, VirtualFleet

BUNDLE = make_tiny_bundle()
ZEROS: dict[str, Array] = {"x": np.zeros((1, WIDTH), np.float32)}


def make_fleet(codec: Codec) -> VirtualFleet:
    return VirtualFleet(BUNDLE, make_deployment(BUNDLE, ("pi-0", "pi-1"), codec=codec))


@pytest.mark.parametrize("codec", ["raw", "deflate"])
def test_tensors_travel_from_stage_to_stage_and_to_the_client_as_the_deployment_says(codec: Codec) -> None:
    fleet = make_fleet(codec)
    fleet.send(fleet.header(), ZEROS)
    (onward,) = fleet.ear.frames(TOPICS.run("pi-1", "tiny", "1-a-1", 1))
    (result,) = fleet.results()
    assert [onward.header.codec, result.header.codec] == [codec, codec]
    np.testing.assert_array_equal(result.tensors["y"], ZEROS["x"] + 2)
    hop = result.header.trace[1]
    assert (hop.received_bytes < 4 * WIDTH) == (codec == "deflate")
    assert hop.sent_bytes == 4 * WIDTH, "before the codec"


def test_the_client_sends_as_the_deployment_says() -> None:
    fleet = make_fleet("deflate")
    client = VirtualClient(fleet, BUNDLE)
    client.submit("r1", ZEROS)
    (frame,) = fleet.ear.frames(TOPICS.run("pi-0", "tiny", "1-a-1", 0))
    assert frame.header.codec == "deflate"
    assert set(client.outcomes) == {"r1"}


def test_a_queue_counts_what_frames_take_once_inflated() -> None:
    fleet = make_fleet("deflate")
    agent = fleet.agents["pi-0"]
    agent.hold_runs = True
    agent.session._intake.queue_limit_bytes = 0
    large: dict[str, Array] = {"x": np.zeros((1, LEAST_QUEUE_BYTES // 16), np.float32)}
    for index in range(4):
        header = fleet.header(f"r{index}", codec="deflate")
        assert len(encode_frame(header, large)) < LEAST_QUEUE_BYTES // 100
        fleet.send(header, large)
    fleet.send(fleet.header("r4", codec="deflate"), large)
    assert len(agent.runs) == 4
    assert fleet.errors() == [("busy", f"pi-0 has {LEAST_QUEUE_BYTES} bytes queued")]


def test_a_frame_that_would_inflate_to_more_than_a_stage_can_need_is_dropped() -> None:
    fleet = make_fleet("deflate")
    agent = fleet.agents["pi-0"]
    bomb: dict[str, Array] = {"x": np.zeros((1, 16 << 20), np.uint8)}
    frame = encode_frame(fleet.header(codec="deflate"), bomb)
    assert decode_frame(frame).tensors["x"].nbytes == 16 << 20
    for packet in split(frame, sender="cam", session=Session(boot=1, connect=1), sequence=1):
        fleet.ear.say(TOPICS.run("pi-0", "tiny", "1-a-1", 0), packet)
    fleet.pump()
    assert agent.runs == []
    assert agent.logs[-1].endswith("frame: tensors of 16777216 bytes are more than 4194304")
