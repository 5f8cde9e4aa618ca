"""States of streams that a device keeps: found again by number, lost in a way that is said, and bounded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest

from edge.device import kept
from edge.device.kept import KEPT_SECONDS, MAX_KEPT_STREAMS, KeptStates
from edge.errors import InvalidInput, StreamLost
from edge.formats.frame import FrameHeader
from edge.formats.streams import ELSEWHERE, is_elsewhere
from edge.formats.tensor import Array
from edge.protocol.effects import StageKey
from edge.runtimes.base import StageOptions
from edge.runtimes.onnx import OnnxRuntime
from edge.stage import Stage, load_stage
from host.bundle import OpenBundle
from host.package import PackageRequest, package
from tests.graphs import parsed

KEY = StageKey("sum", "1-a-1", 0)
# The first node and the last have nothing to do with the memory.
NET = """
net (float[1, 2] x, float[1, 2] memory) => (float[1, 2] z, float[1, 2] after)
{
    y = Exp (x)
    after = Add (x, memory)
    both = Add (y, after)
    z = Neg (both)
}
"""
APART = """
net (float[1, 2] x, float[1, 2] memory) => (float[1, 2] z, float[1, 2] after)
{
    y = Add (x, memory)
    z = Exp (y)
    after = Neg (z)
}
"""


def bundle_of(folder: Path, text: str) -> OpenBundle:
    onnx.save(parsed(text), folder / "net.onnx")
    request = PackageRequest(
        source=str(folder / "net.onnx"),
        profile="rpi4",
        quantize="none",
        states=("memory=after:device",),
        target=folder / "bundle",
    )
    return package(request).bundle


def stage_of(bundle: OpenBundle, first: int, stop: int) -> Stage:
    return load_stage(
        bundle.manifest,
        first,
        stop,
        runtime=OnnxRuntime(),
        options=StageOptions(),
        read_blob=bundle.read,
        weights_folder=bundle.blobs_folder,
    )


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """The whole network as one stage."""
    bundle = bundle_of(tmp_path, NET)
    return stage_of(bundle, 0, len(bundle.manifest.shards))


def header(sequence: int, after: int, stream: str = "s") -> FrameHeader:
    return FrameHeader(
        request_id="r",
        sender="cam",
        reply_to="t",
        ttl_ms=1,
        deployment="sum",
        epoch="1-a-1",
        stage=0,
        stream=stream,
        sequence=sequence,
        after=after,
    )


def frame(value: float) -> Mapping[str, Array]:
    return {"x": np.full((1, 2), value, np.float32), "memory": ELSEWHERE}


def memory(outputs: Mapping[str, Array], value: float) -> float:
    """What was added up, from `z`."""
    assert is_elsewhere(outputs["after"])
    return round(-float(outputs["z"][0, 0]) - float(np.exp(np.float32(value))), 4)


def test_a_request_goes_on_from_the_one_that_it_names(stage: Stage) -> None:
    states = KeptStates()
    asked = [(1, -1, 1.0), (2, 1, 2.0), (3, 2, 3.0)]
    sums = [memory(states.run(stage, KEY, header(sequence, after), frame(x), 0.0), x) for sequence, after, x in asked]
    assert sums == [1, 3, 6]
    assert states.size_bytes == 3 * 8


def test_a_request_that_comes_again_is_answered_alike(stage: Stage) -> None:
    states = KeptStates()
    for sequence, after in ((1, -1), (2, 1), (2, 1), (2, 1)):
        found = memory(states.run(stage, KEY, header(sequence, after), frame(1), 0.0), 1)
    assert found == 2
    # And one whose forerunner failed begins where that had begun.
    assert memory(states.run(stage, KEY, header(3, 1), frame(1), 0.0), 1) == 2


@pytest.mark.parametrize(
    ("key", "stream", "after"), [(KEY, "s", 2), (KEY, "other", 1), (StageKey("sum", "2-a-1", 0), "s", 1)]
)
def test_a_state_that_is_not_here_is_lost(stage: Stage, key: StageKey, stream: str, after: int) -> None:
    states = KeptStates()
    states.run(stage, KEY, header(1, -1), frame(1), 0.0)
    with pytest.raises(StreamLost, match=rf"the state after request {after} of stream {stream} is not here"):
        states.run(stage, key, header(9, after, stream), frame(1), 0.0)


def test_only_the_last_few_states_of_a_stream_are_kept(stage: Stage) -> None:
    states = KeptStates()
    for sequence in range(6):
        states.run(stage, KEY, header(sequence, sequence - 1), frame(1), 0.0)
    assert states.size_bytes == 4 * 8
    states.run(stage, KEY, header(6, 3), frame(1), 0.0)
    with pytest.raises(StreamLost):
        states.run(stage, KEY, header(7, 1), frame(1), 0.0)


def test_a_stream_that_rests_is_forgotten(stage: Stage) -> None:
    states = KeptStates()
    states.run(stage, KEY, header(1, -1), frame(1), 0.0)
    states.run(stage, KEY, header(2, 1), frame(1), KEPT_SECONDS)
    with pytest.raises(StreamLost):
        states.run(stage, KEY, header(3, 2), frame(1), 2 * KEPT_SECONDS + 1)
    assert (len(states), states.size_bytes) == (0, 0)


def test_there_is_a_most_of_streams_and_the_one_unused_longest_goes(stage: Stage) -> None:
    states = KeptStates()
    for place in range(MAX_KEPT_STREAMS):
        states.run(stage, KEY, header(1, -1, f"s{place}"), frame(1), 0.0)
    states.run(stage, KEY, header(2, 1, "s0"), frame(1), 0.0)
    states.run(stage, KEY, header(1, -1, "new"), frame(1), 0.0)
    assert len(states) == MAX_KEPT_STREAMS
    states.run(stage, KEY, header(3, 2, "s0"), frame(1), 0.0)
    with pytest.raises(StreamLost):
        states.run(stage, KEY, header(2, 1, "s1"), frame(1), 0.0)


def test_there_is_a_most_of_bytes(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "MAX_KEPT_BYTES", 5 * 8)
    states = KeptStates()
    for place in range(9):
        states.run(stage, KEY, header(1, -1, f"s{place}"), frame(1), 0.0)
    assert (len(states), states.size_bytes) == (5, 5 * 8)


def test_a_stage_that_is_closed_takes_its_streams_with_it(stage: Stage) -> None:
    states = KeptStates()
    other = StageKey("sum", "1-a-1", 1)
    for key in (KEY, other):
        states.run(stage, key, header(1, -1), frame(1), 0.0)
    states.close(KEY)
    assert (len(states), states.size_bytes) == (1, 8)


# --------------------------------------------------------------------------------------------------------- the stage
def test_a_stage_that_only_hands_a_state_on_leaves_it_where_it_is(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, NET)
    assert len(bundle.manifest.shards) == 4
    tensors = dict(frame(1))
    states = KeptStates()
    for index, (first, stop) in enumerate([(0, 1), (1, 3), (3, 4)]):
        one = stage_of(bundle, first, stop)
        assert [state.input for state in one.keeps] == (["memory"] if index == 1 else [])
        tensors = states.run(one, StageKey("sum", "1-a-1", index), header(1, -1), tensors, 0.0)
    assert memory(tensors, 1) == 1
    assert len(states) == 1


def test_a_stage_that_reads_a_state_which_another_one_makes_has_lost_it(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, APART)
    first = stage_of(bundle, 0, 1)
    assert first.keeps == ()
    with pytest.raises(StreamLost, match="state 'memory' is not kept by this stage"):
        KeptStates().run(first, KEY, header(1, -1), frame(1), 0.0)


def test_what_stands_for_a_state_is_no_tensor_outside_of_a_stream(stage: Stage) -> None:
    with pytest.raises(InvalidInput, match=r"tensor 'memory' is uint8\[0\], expected float32\[1, 2\]"):
        stage.run(frame(1))


def test_in_a_stream_other_tensors_are_checked_as_ever(stage: Stage) -> None:
    bad: dict[str, Any] = {"x": ELSEWHERE, "memory": ELSEWHERE}
    with pytest.raises(InvalidInput, match=r"tensor 'x' is uint8\[0\], expected float32\[1, 2\]"):
        KeptStates().run(stage, KEY, header(1, -1), bad, 0.0)


def test_a_state_that_is_not_marked_is_not_kept(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, NET)
    plain = msgspec.structs.replace(
        bundle.manifest, states=tuple(msgspec.structs.replace(s, kept=False) for s in bundle.manifest.states)
    )
    one = load_stage(
        plain,
        0,
        len(plain.shards),
        runtime=OnnxRuntime(),
        options=StageOptions(),
        read_blob=bundle.read,
        weights_folder=bundle.blobs_folder,
    )
    assert one.keeps == ()
