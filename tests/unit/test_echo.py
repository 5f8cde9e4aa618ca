"""What messages cost a device: frames that it sends to itself."""

from __future__ import annotations

import pytest

from edge.device.echo import LARGE_BYTES, SMALL_BYTES, Burst, Echo, message_cost, processor_share
from edge.formats.frame import decode_frame
from edge.formats.message import Session
from edge.formats.packet import Reassembler
from edge.protocol.effects import Echoed


def burst(*, frames: int, frame_bytes: int, wall: float, processor: float, trips: tuple[float, ...] = ()) -> Burst:
    return Burst(
        frames=frames, frame_bytes=frame_bytes, wall_seconds=wall, processor_seconds=processor, round_trips=trips
    )


@pytest.mark.parametrize("share", [1.0, 0.15])
def test_costs_follow_from_two_sizes_and_from_the_share_of_the_processor(share: float) -> None:
    # A frame costs 0.1 ms alone, 0.05 ms as one of many, and 2 ns a byte, sent and received once each.
    small = burst(frames=10, frame_bytes=1000, wall=1.0, processor=10 * 2 * (5e-5 + 1000 * 2e-9) * share)
    large = burst(frames=5, frame_bytes=100_000, wall=0.25, processor=5 * 2 * (5e-5 + 100_000 * 2e-9) * share)
    alone = 3 * 2 * (1e-4 + 1000 * 2e-9) * share
    single = burst(frames=3, frame_bytes=1000, wall=1.0, processor=alone, trips=(0.01, 0.5, 0.02))
    cost = message_cost(single, small, large, share)
    assert cost.seconds == pytest.approx(1e-4)
    assert cost.seconds_per_byte == pytest.approx(2e-9)
    assert cost.link.bytes_per_second == pytest.approx(5 * 100_000 / 0.25)
    assert cost.link.latency_seconds == 0.01


def test_a_cost_is_never_negative() -> None:
    small = burst(frames=1, frame_bytes=SMALL_BYTES, wall=1.0, processor=1.0)
    large = burst(frames=1, frame_bytes=LARGE_BYTES, wall=1.0, processor=0.5)
    cost = message_cost(burst(frames=1, frame_bytes=1, wall=1, processor=0, trips=(1.0,)), small, large, 1.0)
    assert (cost.seconds, cost.seconds_per_byte) == (0, 0)


def test_frames_go_out_as_packets_and_what_comes_back_is_counted() -> None:
    joined = Reassembler()
    sizes: list[int] = []

    def publish(packet: bytes) -> bool:
        frame = joined.add(packet, 0.0)
        if frame is not None:
            decoded = decode_frame(frame)
            sizes.append(decoded.tensors["x"].nbytes)
            echo.heard(Echoed(request_id="of-an-earlier-life"))
            echo.heard(Echoed(request_id=decoded.header.request_id))
        return True

    echo = Echo(publish, session=Session(boot=1, connect=0), node="pi-1")
    cost = echo.measure()
    assert cost is not None
    assert cost.seconds >= 0
    assert cost.link.bytes_per_second > 0
    assert set(sizes) == {SMALL_BYTES, LARGE_BYTES}


def test_without_a_connection_nothing_is_measured() -> None:
    assert Echo(lambda _: False, session=Session(boot=1, connect=0), node="pi-1").measure() is None


def test_the_share_of_a_processor_is_a_part_of_it() -> None:
    assert 0 < processor_share(0.01) <= 1


def test_a_measurement_that_is_given_up_finds_nothing_however_much_others_send() -> None:
    echo = Echo(lambda _: True, session=Session(boot=1, connect=0), node="pi-1")
    asked = 0

    def give_up() -> bool:
        nonlocal asked
        asked += 1
        echo.heard(Echoed(request_id="foreign"))
        return asked > 20

    assert echo.measure(give_up) is None
    assert asked == 21
