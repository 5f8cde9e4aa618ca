"""A fleet of processes on this machine, each node behind a wire of its own: hurt where the plan names no other."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from edge.formats.message import DeployRequest
from edge.formats.plan import Constraints
from host.broker import Bridge, RunningBroker, start_broker
from host.bundle import OpenBundle
from host.chaos.plan import FleetPart, LoadPart
from host.chaos.watcher import Watcher
from host.chaos.wire import Condition, Link, Wire, Wires
from host.errors import FleetError
from host.fleet.blobs import BundleBlobs
from host.fleet.command import run_command
from host.fleet.jobs import GRACE_SECONDS
from host.fleet.local import last_line
from host.processes import start_child, stop_child

START_SECONDS = 60.0
PROFILE = "x86-gateway"
BRIDGE = "bridge"
"""Name of the wire between two sites, as `cut` and `heal` know it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Surroundings:
    """What a node's process is started within.

    Attributes:
        env: more of its environment.
        within: command that runs the one behind it.
        folder: of the node, instead of the usual one.
        options: more of its arguments.
    """

    env: Mapping[str, str] | None = None
    within: tuple[str, ...] = ()
    folder: Path | None = None
    options: tuple[str, ...] = ()


class LocalFleet:
    """Broker, wires, agents and coordinators for the length of a `with` block; nothing of it outlives this process."""

    def __init__(
        self,
        setup: FleetPart,
        load: LoadPart,
        *,
        folder: Path,
        seed: int,
        surroundings: Mapping[str, Surroundings] | None = None,
    ) -> None:
        """Prepare; the `with` block starts everything.

        Args:
            setup: who is there.
            load: the deployment that is asked.
            folder: for blobs, state and logs.
            seed: of what the wires draw.
            surroundings: by node.
        """
        self.setup = setup
        self.load = load
        self.folder = folder
        self._surroundings = dict(surroundings or {})
        self._stack = contextlib.ExitStack()
        self._broker_stack = contextlib.ExitStack()
        self._far: RunningBroker | None = None
        self._began = 0.0
        self._wires = Wires(seed)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._paused: set[str] = set()
        self._broker: RunningBroker | None = None
        self.watcher: Watcher

    def __enter__(self) -> Self:
        """Start everything and wait until everybody is there.

        Raises:
            FleetError: somebody is not, in time.
        """
        with contextlib.ExitStack() as stack:
            self._stack = stack
            stack.callback(self._stop)
            self.start_broker()
            stack.enter_context(self._wires)
            self.watcher = stack.enter_context(
                Watcher(self.url, fleet=self.setup.name, deployment=self.load.deployment)
            )
            if self.setup.far:
                self._start_far(stack)
            for name in (*self.setup.coordinators, *self.setup.devices):
                self._lay_wire(name, name)
                self.start(name)
            self.await_alive()
            self._began = time.monotonic()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End everything."""
        self._stack.close()

    def _start_far(self, stack: contextlib.ExitStack) -> None:
        """Start the broker of the second site, whose bridge to the first goes through a wire of its own."""
        near = self._the_broker()
        wire = self._wires.add(BRIDGE, (near.address, near.port))
        bridge = Bridge(address="127.0.0.1", port=wire.port, name=BRIDGE, fleets=(self.setup.name,))
        self._far = stack.enter_context(start_broker("mosquitto", folder=self.folder / "far-broker", bridge=bridge))

    def _lay_wire(self, key: str, node: str) -> Wire:
        broker = self._far if self._far is not None and node in self.setup.far else self._the_broker()
        return self._wires.add(key, (broker.address, broker.port))

    def _the_broker(self) -> RunningBroker:
        if self._broker is None:
            raise FleetError("the fleet was not started")
        return self._broker

    @property
    def url(self) -> str:
        """Of the broker, without a wire."""
        return self._the_broker().url

    @property
    def far_url(self) -> str:
        """Of the broker of the second site.

        Raises:
            FleetError: there is none.
        """
        if self._far is None:
            raise FleetError("this fleet has one site")
        return self._far.url

    @property
    def name(self) -> str:
        """Of the fleet."""
        return self.setup.name

    # --------------------------------------------------------------------------------------------------- processes
    def pid(self, node: str) -> int:
        """Return the process id of a node."""
        return self._processes[node].pid

    def running(self, node: str) -> bool:
        """Tell whether a node's process lives."""
        return node in self._processes and self._processes[node].poll() is None

    def log(self, node: str) -> Path:
        """Return the file that a node writes to."""
        return self.folder / f"{node}.log"

    def node_folder(self, node: str) -> Path:
        """Return where a node keeps its blobs and state."""
        around = self._surroundings.get(node, Surroundings())
        return around.folder or self.folder / node

    def start(self, node: str) -> None:
        """Start a node's process; without effect where it lives."""
        if not self.running(node):
            self._launch(node, node, self._wires[node].url, self.node_folder(node))

    def start_twin(self, node: str) -> None:
        """Start a second agent with the name of one."""
        twin = f"{node}-twin"
        self._launch(twin, node, self._lay_wire(twin, node).url, self.folder / twin)

    def twin_runs(self, node: str) -> bool:
        """Tell whether the second agent lives."""
        return self.running(f"{node}-twin")

    def _launch(self, key: str, node: str, url: str, folder: Path) -> None:
        around = self._surroundings.get(node, Surroundings())
        fleet = ("--broker", url, "--fleet", self.setup.name, "--name", node, "--folder", str(folder))
        program = (
            ("-m", "host", "coordinator", *fleet, "--connect-timeout", "60")
            if node in self.setup.coordinators
            else ("-m", "edge.cli", *fleet, "--profile", PROFILE, "--threads", "1", "--connect-timeout", "60")
        )
        command = [*around.within, sys.executable, "-P", *program, *around.options]
        env = {**os.environ, "OMP_NUM_THREADS": "1", **(around.env or {})}
        self._processes[key] = start_child(command, log=self.log(key), env=env)

    def kill(self, node: str) -> None:
        """Kill a node's process with a signal that it cannot catch, and wait for its end."""
        process = self._processes[node]
        process.kill()
        process.wait(10.0)
        self._paused.discard(node)

    def pause(self, node: str) -> None:
        """Stop a node's process where it stands."""
        os.kill(self.pid(node), signal.SIGSTOP)
        self._paused.add(node)

    def resume(self, node: str) -> None:
        """Let a node's process go on."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid(node), signal.SIGCONT)
        self._paused.discard(node)

    # ------------------------------------------------------------------------------------------------------- links
    def cut(self, node: str, link: Link = "both") -> None:
        """Cut a node off, silently."""
        self._wires[node].cut(link)

    def heal(self, node: str) -> None:
        """Make a node's link perfect again."""
        self._wires[node].set_condition(Condition())
        self._wires[node].heal()

    def slow(self, node: str, condition: Condition) -> None:
        """Make a node's link slow and lossy."""
        self._wires[node].set_condition(condition)

    def power_loss(self, node: str) -> None:
        """Cut a node off and then kill it: the broker hears neither a FIN nor a reset of its connections, ever."""
        self._wires[node].cut()
        self._wires[node].abandon()
        self.kill(node)

    # ------------------------------------------------------------------------------------------------------ broker
    def kill_broker(self) -> None:
        """Kill the broker; its port stays its own."""
        process = self._the_broker().process
        process.kill()
        process.wait(10.0)

    def start_broker(self) -> None:
        """Start the broker, again at the port that it had."""
        port = 0 if self._broker is None else self._broker.port
        self._broker_stack.close()
        self._broker = self._broker_stack.enter_context(
            start_broker(folder=self.folder / "broker", port=port, persistence=self.setup.persistence)
        )

    # ---------------------------------------------------------------------------------------------------- the whole
    def deploy(self, bundle: OpenBundle, *, devices: tuple[str, ...] = (), name: str = "", standbys: int = 0) -> str:
        """Put a bundle to work, on every device but the spares, or those named; return its epoch.

        Args:
            bundle: to deploy.
            devices: that may take part.
            name: of the deployment, instead of the load's; another one need not take all devices.
            standbys: at least, of each stage.

        Raises:
            FleetError: it failed.
        """
        chosen = devices or tuple(name for name in self.setup.devices if name not in self.setup.spares)
        spare = max(standbys, self.setup.standbys)
        return deploy(self.url, self.name, self.load, bundle, devices=chosen, standbys=spare, name=name)

    def settle(self, bundle: OpenBundle) -> None:
        """Let a bundle serve with a stage on every device but the spares, as at the start.

        Raises:
            FleetError: that failed.
        """
        serving = self.watcher.value("serving")
        wanted = {name for name in self.setup.devices if name not in self.setup.spares}
        plan = serving.plan if serving is not None and serving.manifest == bundle.manifest_blob else None
        if plan is None or {stage.device for stage in plan.stages} != wanted:
            self.deploy(bundle)

    def await_settled(self) -> None:
        """Wait until the coordinators act on who is away: after their start everybody has some seconds to come."""
        threading.Event().wait(max(0.0, self._began + GRACE_SECONDS - time.monotonic()))

    def await_alive(self, *nodes: str) -> None:
        """Wait until nodes, or all, beat.

        Raises:
            FleetError: one does not, in time; the text has its last line.
        """
        wanted = nodes or (*self.setup.coordinators, *self.setup.devices)
        if self.watcher.wait(lambda: all(map(self.watcher.alive, wanted)), START_SECONDS):
            return
        away = next(node for node in wanted if not self.watcher.alive(node))
        raise FleetError(f"{away} was not there within {START_SECONDS:.0f} s: {last_line(self.log(away))}")

    def restore(self) -> None:
        """Undo every fault: all processes run, all links are perfect, and no twin runs.

        Raises:
            FleetError: a node does not come back.
        """
        if self._broker is not None and self._broker.process.poll() is not None:
            self.start_broker()
        for node in (*self.setup.coordinators, *self.setup.devices):
            if self.twin_runs(node):
                self.kill(f"{node}-twin")
            self.heal(node)
            if node in self._paused:
                self.resume(node)
            self.start(node)
        self.await_alive()

    def _stop(self) -> None:
        for node, process in self._processes.items():
            if node in self._paused:
                self.resume(node)
            process.terminate()
        for process in self._processes.values():
            stop_child(process)
        self._broker_stack.close()


def deploy(
    url: str,
    fleet: str,
    load: LoadPart,
    bundle: OpenBundle,
    *,
    devices: tuple[str, ...],
    standbys: int = 0,
    name: str = "",
    say: Callable[[str], None] = lambda _phase: None,
) -> str:
    """Put a bundle to work as `shardwire deploy` does; return its epoch.

    Args:
        url: of the broker.
        fleet: its name.
        load: the deployment, and how it runs.
        bundle: to deploy.
        devices: that may take part.
        standbys: devices that hold each stage idle.
        name: of the deployment, instead of the load's, which has a stage on each device.
        say: told what is going on.

    Raises:
        FleetError: it failed.
    """
    request = DeployRequest(
        request_id=secrets.token_hex(8),
        name=name or load.deployment,
        manifest=bundle.manifest_blob,
        holders=(),
        constraints=Constraints(devices=devices, use_all=not name, most_replicas=1, standbys=standbys),
        mode=load.mode,
        window=load.window,
        reply_to="",
    )
    blobs = BundleBlobs(bundle)
    return run_command(url, request, fleet=fleet, blobs=blobs, on_change=lambda course: say(course.phase)).epoch
