"""A recording of speech through two live agents, with the state of the network carried from window to window.

And what else is no plain tensor of one size: inputs of any length, text, and a state that a device keeps.
"""

from __future__ import annotations

import secrets
import wave
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
import pytest

from edge.client import Client
from edge.errors import InvalidInput, StreamLost
from edge.formats.message import DeployRequest
from edge.formats.plan import Constraints, Pin, Plan
from edge.streams import kept_states
from host.broker import start_broker
from host.bundle import OpenBundle
from host.fleet.blobs import BundleBlobs
from host.fleet.command import Course, run_command
from host.package import PackageRequest, package
from host.reference import Reference
from tests.agents import AgentProcess, running_agents
from tests.command_line import shardwire_ok
from tests.zoo import packaged_file

pytestmark = pytest.mark.slow

Floats = npt.NDArray[np.float32]
Segments = list[tuple[int, int]]

RECORDING = Path(__file__).resolve().parent.parent / "data" / "agent-newlocation.wav"
RATE = 16_000
WINDOW, CONTEXT = 512, 64
SOURCE = packaged_file("silero_vad", "data", "silero_vad_16k_op15.onnx")
"""The network without `If`, whose nodes lie open to be cut."""
DEVICES = ("ear-1", "ear-2")


def speech() -> Floats:
    """The recording at 16 kHz, between -1 and 1: 8 kHz with a sample drawn between every two."""
    with wave.open(str(RECORDING)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (RATE // 2, 1, 2)
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
    return np.interp(np.arange(2 * samples.size) / 2, np.arange(samples.size), samples).astype(np.float32)


def windows() -> Iterator[dict[str, npt.NDArray[np.generic]]]:
    """Each window of 512 samples behind the last 64 of the one before, as Silero's own wrapper cuts them."""
    padded = np.concatenate([np.zeros(CONTEXT, np.float32), speech()])
    for start in range(0, padded.size - CONTEXT - WINDOW + 1, WINDOW):
        yield {"input": padded[start : start + CONTEXT + WINDOW][None], "sr": np.array(RATE)}


def samples() -> list[dict[str, npt.NDArray[np.generic]]]:
    """Two windows with the state of a stream that begins, to package with."""
    first = list(windows())[20:22]
    return [{**window, "state": np.zeros((2, 1, 128), np.float32)} for window in first]


def segments(probabilities: list[float]) -> Segments:
    """Where speech is, in windows, by the rules of Silero's `get_speech_timestamps`.

    It begins at 0.5 and ends below 0.35 for a tenth of a second; less than a quarter of a second is none.
    """
    quiet, least = 0.1 * RATE / WINDOW, 0.25 * RATE / WINDOW
    found: Segments = []
    start = end = None
    for place, probability in enumerate(probabilities):
        if probability >= 0.5:
            start, end = place if start is None else start, None
        elif probability < 0.35 and start is not None:
            end = place if end is None else end
            if place - end >= quiet:
                found += [(start, end)] if end - start >= least else []
                start = end = None
    if start is not None and len(probabilities) - start >= least:
        found.append((start, len(probabilities)))
    return found


def whole_model() -> list[float]:
    """What the file as it came says of every window, in one onnxruntime session, with its state."""
    session = Reference(SOURCE.read_bytes())
    state = np.zeros((2, 1, 128), np.float32)
    probabilities = []
    for window in windows():
        answer = session.run({**window, "state": state})
        state = answer["stateN"]
        probabilities.append(float(answer["output"].item()))
    return probabilities


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> OpenBundle:
    """Silero with its state declared."""
    return packaged("silero", "state=stateN", tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def keeping(tmp_path_factory: pytest.TempPathFactory) -> OpenBundle:
    """Silero whose state stays on a device."""
    return packaged("keeper", "state=stateN:device", tmp_path_factory.mktemp("keeper"))


def packaged(name: str, state: str, folder: Path) -> OpenBundle:
    request = PackageRequest(
        source=str(SOURCE),
        profile="x86-gateway",
        quantize="none",
        name=name,
        shapes={"batch": 1, "sequence": CONTEXT + WINDOW},
        states=(state,),
        inputs=f"{__name__}:samples",
        target=folder / name,
    )
    return package(request).bundle


@pytest.fixture(scope="module")
def fleet(
    bundle: OpenBundle, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, tuple[AgentProcess, ...]]]:
    """Two agents that share the network, and the address of their broker."""
    folder = tmp_path_factory.mktemp("fleet")
    with (
        start_broker("auto", folder=folder / "broker") as broker,
        running_agents(broker.url, folder, *DEVICES) as agents,
    ):
        plan = deploy(broker.url, bundle)
        shards = [bundle.manifest.shards[stage.first_shard : stage.stop_shard] for stage in plan.stages]
        sizes = [sum(shard.size_bytes for shard in part) for part in shards]
        assert min(sizes) > 100_000, "each device has some of the convolutions or the recurrent cell"
        yield broker.url, agents


def deploy(url: str, bundle: OpenBundle, *pins: Pin) -> Plan:
    """Put a part of the network on each device."""
    courses: list[Course] = []
    request = DeployRequest(
        request_id=secrets.token_hex(8),
        name=bundle.manifest.name,
        manifest=bundle.manifest_blob,
        holders=(),
        constraints=Constraints(devices=DEVICES, use_all=True, most_replicas=1, pins=pins),
        mode="exact",
        reply_to="",
    )
    run_command(url, request, fleet="default", blobs=BundleBlobs(bundle), on_change=courses.append)
    plan = courses[-1].plan
    assert plan is not None
    assert sorted(stage.device for stage in plan.stages) == list(DEVICES)
    return plan


def test_two_devices_find_the_speech_that_the_whole_model_finds(fleet: tuple[str, tuple[AgentProcess, ...]]) -> None:
    url, _ = fleet
    expected = whole_model()
    assert segments(expected) == [(3, 59), (66, 102)], "the recording has a pause"
    with Client.connect(url) as client, client.open_stream("silero") as stream:
        answers = [future.result() for future in [stream.submit(window) for window in windows()]]
        assert all(answer.outputs.keys() == {"output"} for answer in answers)
        assert all({hop.device for hop in answer.trace} == set(DEVICES) for answer in answers)
        found = [float(answer.outputs["output"].item()) for answer in answers]
        assert segments(found) == segments(expected)
        assert np.abs(np.subtract(found, expected)).max() <= 1e-5

        # Without the state it hears something else, and a stream that begins again hears the same again.
        zeros = np.zeros((2, 1, 128), np.float32)
        alone = [client.infer("silero", {**window, "state": zeros}) for window in list(windows())[:40]]
        assert np.abs(np.subtract([answer.outputs["output"].item() for answer in alone], expected[:40])).max() > 0.1
        stream.reset()
        assert [stream.infer(window).outputs["output"].item() for window in list(windows())[:5]] == found[:5]


def test_a_stream_survives_the_death_of_a_device(fleet: tuple[str, tuple[AgentProcess, ...]]) -> None:
    url, agents = fleet
    expected = whole_model()
    with Client.connect(url) as client, client.open_stream("silero") as stream:
        futures = [stream.submit(window) for window in windows()]
        futures[30].result()
        agents[1].process.kill()
        agents[1].restart()
        found = [float(future.result().outputs["output"].item()) for future in futures]
    assert segments(found) == segments(expected)
    assert np.abs(np.subtract(found, expected)).max() <= 1e-5


def test_a_stream_goes_on_in_another_process(fleet: tuple[str, tuple[AgentProcess, ...]]) -> None:
    url, _ = fleet
    first = list(windows())[:12]
    with Client.connect(url) as client:
        with client.open_stream("silero") as stream:
            whole = [stream.infer(window).outputs["output"].item() for window in first]
            stream.reset()
            half = [stream.infer(window).outputs["output"].item() for window in first[:6]]
            state = stream.state
        with client.open_stream("silero", state=state) as stream:
            half += [stream.infer(window).outputs["output"].item() for window in first[6:]]
        with pytest.raises(InvalidInput, match=r"state to begin with: missing input 'state'"):
            client.open_stream("silero", state={})
    assert half == whole


def test_a_device_keeps_the_state_and_says_when_it_is_lost(
    fleet: tuple[str, tuple[AgentProcess, ...]], keeping: OpenBundle
) -> None:
    url, agents = fleet
    expected = whole_model()
    manifest = keeping.manifest
    # The state is read by one of the first layers and made behind the recurrent cell: one stage must hold both.
    reads = next(place for place, shard in enumerate(manifest.shards) if "state" in shard.reads)
    makes = next(place for place in range(len(manifest.shards)) if "stateN" in manifest.cut_before(place + 1))
    ends = [manifest.shards[place].first_layer for place in (reads, makes)]
    last = Pin(layer=len(manifest.layers) - 1, device=DEVICES[1])
    plan = deploy(url, keeping, *(Pin(layer=layer, device=DEVICES[0]) for layer in ends), last)
    assert [state.input for state in kept_states(manifest, plan)] == ["state"]
    with Client.connect(url) as client, client.open_stream("keeper") as stream:
        answers = [future.result() for future in [stream.submit(window) for window in windows()]]
        found = [float(answer.outputs["output"].item()) for answer in answers]
        assert segments(found) == segments(expected)
        assert np.abs(np.subtract(found, expected)).max() <= 1e-5
        # The state is 1,024 bytes, and travels neither there nor back.
        with client.open_stream("silero") as carried:
            heavier = carried.infer(next(windows()))
        assert heavier.trace[0].received_bytes - answers[0].trace[0].received_bytes > 900
        assert heavier.trace[-1].sent_bytes - answers[0].trace[-1].sent_bytes > 900

        agents[0].process.kill()
        agents[0].restart()
        with pytest.raises(StreamLost, match="is not here"):
            stream.infer(next(windows()))
        again = [stream.infer(window).outputs["output"].item() for window in list(windows())[:5]]
        assert again == found[:5]


# A running sum over what was said, in numbers and in words.
TALK = """
<ir_version: 9, opset_import: ["" : 20]>
net (int64[1, n] ids, float[1, n] mask, string[1] word, string[1] said, float[1, 2] sum)
    => (float[1, n, 2] out, string[1] told, float[1, 2] after)
<float[4, 2] table = {0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4}, int64[1] one = {1}, int64[1] last = {2}>
{
    looked = Gather (table, ids)
    wide = Unsqueeze (mask, last)
    masked = Mul (looked, wide)
    total = ReduceSum <keepdims = 0> (masked, one)
    after = Add (total, sum)
    held = Unsqueeze (sum, one)
    out = Add (masked, held)
    told = StringConcat (said, word)
}
"""


def test_inputs_of_any_length_and_text_go_through_the_same_devices(
    fleet: tuple[str, tuple[AgentProcess, ...]], tmp_path: Path
) -> None:
    url, _ = fleet
    onnx.save(onnx.parser.parse_model(TALK), tmp_path / "talk.onnx")
    request = PackageRequest(
        source=str(tmp_path / "talk.onnx"),
        profile="x86-gateway",
        quantize="none",
        states=("sum=after", "said=told"),
        buckets=("ids:1=8,40000",),
        target=tmp_path / "talk",
    )
    bundle = package(request).bundle
    deploy(url, bundle)
    sums = np.zeros(2, np.float32)
    rng = np.random.default_rng(0)
    with Client.connect(url) as client, client.open_stream("talk") as stream:
        # The largest is more than eight times the smallest, and goes through as well.
        for length, word in ((3, "Straße"), (8, ""), (30_000, "日本語"), (1, "!")):
            ids = rng.integers(0, 4, (1, length))
            mask = np.ones((1, length), np.float32)
            answer = stream.infer({"ids": ids, "mask": mask, "word": np.array([word])})
            table = np.arange(1, 9, dtype=np.float32).reshape(4, 2) / 2
            np.testing.assert_allclose(answer.outputs["out"], table[ids] + sums, rtol=1e-5)
            assert {hop.device for hop in answer.trace} == set(DEVICES)
            sums = sums + table[ids[0]].sum(axis=0)
        assert stream.state["said"].tolist() == ["Straße日本語!"]
        np.testing.assert_allclose(stream.state["sum"], sums[None], rtol=1e-5)
        with pytest.raises(
            InvalidInput, match=r"input 'ids' has 40001 along dimension 1, the largest that talk takes is"
        ):
            stream.infer({**answer_to_nothing(), "ids": np.zeros((1, 40_001), np.int64)})

    # The same by the command: files in order are a stream, and each as long as it likes.
    paths = []
    for place, (length, word) in enumerate(((2, "a"), (5, "b"))):
        paths.append(tmp_path / f"{place}.npz")
        np.savez(
            paths[-1], ids=np.ones((1, length), np.int64), mask=np.ones((1, length), np.float32), word=np.array([word])
        )
    shown = shardwire_ok("infer", "talk", *paths, "--broker", url, "--json")
    found = [entry["outputs"] for entry in msgspec.json.decode(shown.out)]
    assert found == [{"out": [1, 2, 2]}, {"out": [1, 5, 2]}]
    ran = shardwire_ok("run", tmp_path / "talk", *paths, "--json")
    assert [entry["outputs"] for entry in msgspec.json.decode(ran.out)] == found


def answer_to_nothing() -> dict[str, npt.NDArray[np.generic]]:
    """A request that says nothing."""
    return {"mask": np.zeros((1, 1), np.float32), "word": np.array([""], object)}
