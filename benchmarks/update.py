"""What an update moves: EfficientNet-Lite0 deployed, deployed again with its last layer re-trained, and interrupted.

Broker and agents are real processes on this machine. Every request for a block and every block is counted as it goes
through the broker. Re-training is played by changing every weight of the last layer by a few percent.
"""

from __future__ import annotations

import itertools
import secrets
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnx import numpy_helper

from benchmarks.fleet import FLEET, PROFILE
from benchmarks.measure import Figure, Key, main_of, say
from edge.formats.message import Block, DeployRequest, FetchRequest, decode_message
from edge.formats.plan import Constraints, Plan
from edge.formats.topics import Topics
from edge.mqtt import MqttTransport
from edge.transport import Channel, Connected, Received, Subscribed, TransportEvent
from host.broker import start_broker
from host.bundle import OpenBundle
from host.errors import FleetError
from host.fleet.blobs import BundleBlobs
from host.fleet.command import Course, run_command
from host.fleet.local import LocalAgent, local_agents
from host.ingest import ingest
from host.model import to_bytes
from host.package import PackageRequest, package
from host.processes import running_child

DEVICES = ("pi-1", "pi-2")
INTERRUPTED = "pi-3"
INTERRUPTIONS = 4
LIMIT_SECONDS = 60.0
_CHANGE = 0.05
_TOPICS = Topics(fleet=FLEET)

KEYS = (
    Key(name="changed_layer_bytes", meaning="weights of the layer that was re-trained"),
    Key(name="moved_bytes", meaning="blocks that went to the devices for the stages that they run, in the update"),
    Key(name="moved_ratio", meaning="the second through the first"),
    Key(name="whole_bytes", meaning="the same when the model was deployed for the first time"),
    Key(name="copied_bytes", meaning="blocks that went to devices in the update so that a second one holds them, too"),
    Key(name="transfer_blocks", meaning="blocks of the transfer that was interrupted"),
    Key(name="interruptions", meaning="kill -9 of the device, at equal parts of the transfer"),
    Key(name="resent_blocks_per_interruption", meaning="blocks asked for again after one, at most"),
)


class Wire:
    """Counts the blocks that go through a broker, and the requests for them."""

    def __init__(self, url: str) -> None:
        self.changed = threading.Condition()
        self._bytes: Counter[tuple[str, str]] = Counter()
        self._asked: dict[str, Counter[tuple[str, int]]] = {}
        self._subscribed = threading.Semaphore(0)
        self._transport = MqttTransport(url, fleet=FLEET, node="wire", on_event=self._on_event)

    def start(self) -> None:
        """Connect, and wait until nothing is missed.

        Raises:
            FleetError: the broker does not answer.
        """
        self._transport.start()
        for _ in range(2):
            if not self._subscribed.acquire(timeout=LIMIT_SECONDS):
                raise FleetError("the broker does not answer")

    def close(self) -> None:
        """Leave."""
        self._transport.close()

    def moved(self) -> Counter[tuple[str, str]]:
        """Bytes of blocks so far by device and digest."""
        with self.changed:
            return Counter(self._bytes)

    def blocks(self, device: str) -> int:
        """How many different blocks a device asked for."""
        return len(self._asked.get(device, ()))

    def repeated(self, device: str) -> int:
        """How many requests of a device were for a block that it had asked for before."""
        with self.changed:
            asked = self._asked.get(device, Counter())
            return sum(asked.values()) - len(asked)

    def await_blocks(self, device: str, count: int) -> None:
        """Wait until a device has asked for so many different blocks.

        Raises:
            FleetError: it does not.
        """
        with self.changed:
            if not self.changed.wait_for(lambda: self.blocks(device) >= count, LIMIT_SECONDS):
                raise FleetError(f"{device} did not ask for {count} blocks within {LIMIT_SECONDS:.0f} s")

    def _on_event(self, event: TransportEvent) -> None:
        if isinstance(event, Connected) and event.channel is Channel.DATA:
            for filter in (_TOPICS.fetch("+"), _TOPICS.blocks("+")):
                self._transport.subscribe(Channel.DATA, filter)
        elif isinstance(event, Subscribed):
            self._subscribed.release()
        elif isinstance(event, Received):
            message = decode_message(event.payload, object)
            with self.changed:
                if isinstance(message, Block):
                    self._bytes[event.topic.rsplit("/", 1)[1], message.digest] += len(message.data)
                elif isinstance(message, FetchRequest):
                    device = message.reply_to.rsplit("/", 1)[1]
                    self._asked.setdefault(device, Counter())[message.digest, message.block] += 1
                self.changed.notify_all()


@contextmanager
def counting(url: str) -> Iterator[Wire]:
    """Count for the length of a `with` block."""
    wire = Wire(url)
    wire.start()
    try:
        yield wire
    finally:
        wire.close()


def make_bundles(folder: Path) -> tuple[OpenBundle, OpenBundle]:
    """Package the model, and the model with its last layer re-trained as its next version."""
    model = onnx.load_model_from_string(to_bytes(ingest("").model.ir))
    last = [tensor for tensor in model.graph.initializer if tensor.name in model.graph.node[-1].input]
    sources = (folder / "first.onnx", folder / "second.onnx")
    onnx.save(model, sources[0])
    draw = np.random.default_rng(0)
    for tensor in last:
        values = numpy_helper.to_array(tensor)
        changed = values * (1 + _CHANGE * draw.standard_normal(values.shape)).astype(values.dtype)
        tensor.CopyFrom(numpy_helper.from_array(changed.astype(values.dtype), tensor.name))
    onnx.save(model, sources[1])
    first, second = (_package(source, version) for source, version in zip(sources, ("1.0.0", "1.1.0"), strict=True))
    return first, second


def _package(source: Path, version: str) -> OpenBundle:
    target = source.with_suffix("")
    request = PackageRequest(
        source=str(source), profile=PROFILE, target=target, quantize="none", name="lite0", version=version
    )
    return package(request).bundle


def deploy(url: str, bundle: OpenBundle, devices: tuple[str, ...]) -> Plan:
    """Put a bundle to work on devices, a stage each; return the plan.

    Raises:
        FleetError: it does not come to work.
    """
    seen: list[Course] = []
    request = DeployRequest(
        request_id=secrets.token_hex(8),
        name=bundle.manifest.name,
        manifest=bundle.manifest_blob,
        holders=(),
        constraints=Constraints(devices=devices, use_all=True, most_replicas=1),
        reply_to="",
    )
    run_command(url, request, fleet=FLEET, blobs=BundleBlobs(bundle), on_change=seen.append)
    plan = seen[-1].plan
    if plan is None:
        raise FleetError("the plan was not seen")
    return plan


def split(moved: Counter[tuple[str, str]], plan: Plan, bundle: OpenBundle) -> tuple[int, int]:
    """Return the bytes that went to devices for what they run, and those for what they only keep."""
    runs = {(device, bundle.manifest_blob.digest) for stage in plan.stages for device in stage.runners}
    for stage in plan.stages:
        for blob in bundle.manifest.blobs(stage.first_shard, stage.stop_shard):
            runs.update((device, blob.digest) for device in stage.runners)
    run = sum(size for place, size in moved.items() if place in runs)
    return run, sum(moved.values()) - run


@contextmanager
def _agent(url: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run the device that is interrupted; nobody waits until it is online, so that it can be killed at any block."""
    command = [
        *(sys.executable, "-P", "-m", "edge.cli", "--broker", url, "--name", INTERRUPTED, "--profile", PROFILE),
        *("--fleet", FLEET, "--folder", str(folder / INTERRUPTED), "--threads", "1"),
    ]
    with running_child(command, log=folder / f"{INTERRUPTED}.log") as process:
        yield process


def interrupt(url: str, wire: Wire, bundle: OpenBundle, folder: Path) -> Sequence[int]:
    """Kill a new device again and again while it fetches; return how many blocks it asked for again each time."""
    blobs = (bundle.manifest_blob, *bundle.manifest.blobs(0, len(bundle.manifest.shards)))
    total = sum(max(1, -(-blob.size_bytes // (128 << 10))) for blob in blobs)
    marks = [0]
    with ThreadPoolExecutor(1) as pool, ExitStack() as stack:
        process = stack.enter_context(_agent(url, folder))
        done = pool.submit(deploy, url, bundle, (INTERRUPTED,))
        for count in range(1, INTERRUPTIONS + 1):
            wire.await_blocks(INTERRUPTED, count * total // (INTERRUPTIONS + 1))
            process.kill()
            process = stack.enter_context(_agent(url, folder))
            # A window, and what it asks for beyond what is known by then.
            wire.await_blocks(INTERRUPTED, wire.blocks(INTERRUPTED) + 1)
            marks.append(wire.repeated(INTERRUPTED))
        done.result(LIMIT_SECONDS)
    marks[-1] = wire.repeated(INTERRUPTED)
    return [after - before for before, after in itertools.pairwise(marks)]


def measure() -> dict[str, Figure]:
    """Take all figures."""
    with TemporaryDirectory(prefix="shardwire-bench-") as temporary:
        folder = Path(temporary)
        say("packaging EfficientNet-Lite0 twice")
        first, second = make_bundles(folder)
        agents = [LocalAgent(name=name, profile=PROFILE) for name in DEVICES]
        with start_broker(folder=folder / "broker") as broker, counting(broker.url) as wire:
            with local_agents(broker.url, agents, folder=folder / "agents", fleet=FLEET):
                plan = deploy(broker.url, first, DEVICES)
                before = wire.moved()
                whole, _ = split(before, plan, first)
                plan = deploy(broker.url, second, DEVICES)
                moved, copied = split(wire.moved() - before, plan, second)
            resent = interrupt(broker.url, wire, second, folder / "agents")
            blocks = wire.blocks(INTERRUPTED)
    layer = second.manifest.layers[-1].weight_bytes
    return {
        "changed_layer_bytes": layer,
        "moved_bytes": moved,
        "moved_ratio": moved / layer,
        "whole_bytes": whole,
        "copied_bytes": copied,
        "transfer_blocks": blocks,
        "interruptions": INTERRUPTIONS,
        "resent_blocks_per_interruption": max(resent),
    }


if __name__ == "__main__":
    main_of(__doc__, measure, KEYS)
