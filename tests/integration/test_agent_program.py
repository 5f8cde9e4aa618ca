"""`shardwire-agent` as a program: its errors, its signals, its name."""

import os
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edge.client import Client
from edge.formats.message import State, decode_message
from edge.mqtt import MqttTransport
from edge.transport import Channel, Received, TransportEvent
from host.broker import RunningBroker
from tests.agents import AgentProcess, running_agents
from tests.tiny_bundle import make_deployment, make_input, make_tiny_bundle, tiny_coordinator

BASE = [sys.executable, "-m", "edge.cli"]


def run(folder: Path, *arguments: str, name: str = "pi-1") -> subprocess.CompletedProcess[str]:
    command = [*BASE, "--name", name, "--folder", str(folder / "agent"), "--profile", "x86-gateway", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--broker", "localhost"), "'localhost' is no broker address: it starts with neither mqtt:// nor mqtts://"),
        (("--broker", "mqtt://h", "--fleet", "A"), "fleet name 'A' is not allowed: use 1 to 63 of a-z, 0-9 and '-'"),
        (("--broker", "mqtt://h", "--profile", "pdp-11"), "unknown profile 'pdp-11': choose one of "),
        (
            ("--broker", "mqtt://127.0.0.1:1", "--connect-timeout", "0.3"),
            "no broker at mqtt://127.0.0.1:1: connection refused; start one (mosquitto -p 1) or give --broker",
        ),
        (("--broker", "mqtt://127.0.0.1:1", "--folder", "/dev/null/x"), "/dev/null/x cannot be used: Not a directory"),
    ],
    ids=["url", "fleet", "profile", "no broker", "folder"],
)
def test_what_is_wrong_is_one_line_and_exit_code_two(tmp_path: Path, arguments: tuple[str, ...], line: str) -> None:
    ended = run(tmp_path, *arguments)
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith(f"shardwire-agent: {line}")
    assert "Traceback" not in ended.stderr
    assert ended.returncode == 2


def test_it_says_its_version() -> None:
    ended = subprocess.run([*BASE, "--version"], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout.startswith("shardwire-agent 0.")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_it_cleanly_and_it_says_that_it_is_offline(
    broker: RunningBroker, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    with running_agents(broker.url, tmp_path, "pi-1") as (agent,):
        agent.process.send_signal(number)
        assert agent.process.wait(timeout=5) == code
        assert f"ends: {number.name}" in agent.said()
    assert not retained_state(broker, "pi-1").online


def test_a_signal_in_the_middle_of_work_ends_it_cleanly_too(broker: RunningBroker, tmp_path: Path) -> None:
    bundle = make_tiny_bundle()
    with (
        running_agents(broker.url, tmp_path, "pi-1") as (agent,),
        tiny_coordinator(broker.url, bundle) as coordinator,
        Client.connect(broker.url) as client,
    ):
        for _ in range(3):
            coordinator.events.clear()
            coordinator.deploy(make_deployment(bundle, ("pi-1",)))
            stream = client.stream("tiny", ({"x": make_input(seed)} for seed in range(10_000)))
            for _, _ in zip(range(50), stream, strict=False):
                pass
            agent.process.terminate()
            assert agent.process.wait(timeout=5) == 0
            stream.close()
            agent.restart()


def test_a_signal_ends_it_while_it_still_looks_for_a_broker(tmp_path: Path) -> None:
    agent = AgentProcess("mqtt://127.0.0.1:1", "pi-1", tmp_path)
    agent.await_line("connection refused; trying again")
    agent.process.terminate()
    assert agent.process.wait(timeout=5) == 0


def test_a_killed_agent_is_offline_by_its_last_will(broker: RunningBroker, tmp_path: Path) -> None:
    with running_agents(broker.url, tmp_path, "pi-1") as (agent,):
        assert retained_state(broker, "pi-1").online
        agent.process.kill()
        agent.process.wait(timeout=5)
        state = await_state(broker, "pi-1", online=False)
        assert state.session.connect == 1


def test_of_two_agents_with_one_name_one_stops_and_says_why(broker: RunningBroker, tmp_path: Path) -> None:
    with running_agents(broker.url, tmp_path / "a", "pi-1") as (first,):
        second = AgentProcess(broker.url, "pi-1", tmp_path / "b")
        try:
            first_ended, second_ended = await_end(first, second)
            ended = first if first_ended else second
            assert first_ended != second_ended
            assert ended.process.wait(timeout=5) == 3
            assert "another agent is called pi-1: give each its own --name" in ended.said()
        finally:
            second.process.kill()
            second.process.wait(timeout=5)


def test_a_second_agent_in_the_same_folder_is_refused(broker: RunningBroker, tmp_path: Path) -> None:
    with running_agents(broker.url, tmp_path, "pi-1") as (agent,):
        command = [*BASE, "--broker", broker.url, "--name", "pi-2", "--folder", str(agent.folder)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert ended.returncode == 2
        told = f"{agent.folder} is in use by another process: give each its own --folder"
        assert ended.stderr == f"shardwire-agent: {told}\n"


def test_it_ends_with_its_parent_when_asked_to(broker: RunningBroker, tmp_path: Path) -> None:
    program = (
        "import subprocess, sys\n"
        "child = subprocess.Popen(sys.argv[1:], stderr=subprocess.PIPE, text=True)\n"
        "while ' ready: ' not in child.stderr.readline(): pass\n"
        "print(child.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [
        *BASE,
        "--broker",
        broker.url,
        "--name",
        "pi-1",
        "--folder",
        str(tmp_path / "pi-1"),
        "--exit-with-parent",
    ]
    parent = subprocess.Popen(
        [sys.executable, "-c", program, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        os.kill(pid, 0)
        parent.kill()
    assert not await_state(broker, "pi-1", online=False).online


def retained_state(broker: RunningBroker, node: str) -> State:
    return await_state(broker, node, online=None)


def await_state(broker: RunningBroker, node: str, *, online: bool | None) -> State:
    """Return the first state of a node that is as wanted, retained or not."""
    events: queue.Queue[TransportEvent] = queue.Queue()
    transport = MqttTransport(broker.url, fleet="default", node="watcher", on_event=events.put)
    transport.start()
    try:
        transport.wait_connected(10)
        transport.subscribe(Channel.CONTROL, f"shardwire/default/device/{node}/state")
        while True:
            event = events.get(timeout=15)
            if isinstance(event, Received):
                state = decode_message(event.payload, State)
                if online is None or state.online == online:
                    return state
    finally:
        transport.close()


def await_end(first: AgentProcess, second: AgentProcess) -> tuple[bool, bool]:
    """Wait until one of two agents ends; return which have."""
    pause = threading.Event()
    for _ in range(600):
        ended = (first.process.poll() is not None, second.process.poll() is not None)
        if any(ended):
            return ended
        pause.wait(0.05)
    raise AssertionError(f"both live: {first.said()} {second.said()}")
