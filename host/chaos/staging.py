"""A fleet that runs elsewhere, reached through commands that the plan gives."""

from __future__ import annotations

import subprocess
from types import TracebackType
from typing import Self

from host.bundle import OpenBundle
from host.chaos.local import START_SECONDS, deploy
from host.chaos.plan import ChaosPlan, command_of
from host.chaos.watcher import Watcher
from host.chaos.wire import Condition, Link
from host.errors import FleetError


class StagingFleet:
    """See `host.chaos.scene.FleetHands`. What is done is noted, so that `restore` undoes it."""

    def __init__(self, plan: ChaosPlan) -> None:
        """Prepare; the `with` block only listens."""
        self._plan = plan
        self._killed: set[str] = set()
        self._paused: set[str] = set()
        self._hurt: set[str] = set()
        self._broker_gone = False
        self.watcher = Watcher(self.url, fleet=self.name, deployment=plan.load.deployment)

    def __enter__(self) -> Self:
        """Connect.

        Raises:
            TransportError: there is no broker, or it refuses us.
        """
        self.watcher.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Undo what is left of the faults, and disconnect."""
        try:
            self._undo()
        finally:
            self.watcher.__exit__(kind, error, trace)

    @property
    def url(self) -> str:
        """Of its broker."""
        return self._plan.fleet.broker

    @property
    def name(self) -> str:
        """Of the fleet."""
        return self._plan.fleet.name

    def kill(self, node: str) -> None:
        """Kill a node's process."""
        self._killed.add(node)
        self._run(self._plan.hands.kill, node)

    def start(self, node: str) -> None:
        """Start it again."""
        self._run(self._plan.hands.start, node)
        self._killed.discard(node)

    def pause(self, node: str) -> None:
        """Stop it where it stands."""
        self._paused.add(node)
        self._run(self._plan.hands.pause, node)

    def resume(self, node: str) -> None:
        """Let it go on."""
        self._run(self._plan.hands.resume, node)
        self._paused.discard(node)

    def cut(self, node: str, link: Link = "both") -> None:
        """Cut a node off."""
        self._hurt.add(node)
        self._run(self._plan.hands.cut, node, link)

    def heal(self, node: str) -> None:
        """Make its link perfect again."""
        self._run(self._plan.hands.heal, node)
        self._hurt.discard(node)

    def slow(self, node: str, condition: Condition) -> None:
        """Make its link slow; how slow is the command's."""
        del condition
        self._hurt.add(node)
        self._run(self._plan.hands.slow, node)

    def kill_broker(self) -> None:
        """Kill the broker."""
        self._broker_gone = True
        self._run(self._plan.hands.kill_broker)

    def start_broker(self) -> None:
        """Start it again."""
        self._run(self._plan.hands.start_broker)
        self._broker_gone = False

    def deploy(self, bundle: OpenBundle) -> str:
        """Put a bundle to work on the plan's devices; return its epoch."""
        fleet = self._plan.fleet
        devices = tuple(name for name in fleet.devices if name not in fleet.spares)
        return deploy(self.url, self.name, self._plan.load, bundle, devices=devices, standbys=fleet.standbys)

    def settle(self, bundle: OpenBundle) -> None:
        """Let a bundle serve, unless it does."""
        self.watcher.wait(lambda: self.watcher.value("serving") is not None, 2.0)
        serving = self.watcher.value("serving")
        if serving is None or serving.manifest != bundle.manifest_blob:
            self.deploy(bundle)

    def restore(self) -> None:
        """Undo every fault and wait until every device is there.

        Raises:
            FleetError: a command failed, or a device does not come back.
        """
        self._undo()
        wanted = self._plan.fleet.devices
        if not self.watcher.wait(lambda: all(map(self.watcher.alive, wanted)), START_SECONDS):
            away = next(name for name in wanted if not self.watcher.alive(name))
            raise FleetError(f"{away} was not there within {START_SECONDS:.0f} s")

    def _undo(self) -> None:
        if self._broker_gone:
            self.start_broker()
        for node in sorted(self._hurt):
            self.heal(node)
        for node in sorted(self._paused):
            self.resume(node)
        for node in sorted(self._killed):
            self.start(node)

    def _run(self, template: str, node: str = "", link: str = "") -> None:
        command = command_of(template, node=node, link=link)
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=self._plan.hands.timeout
            )
        except OSError as error:
            raise FleetError(f"{command[0]}: {error.strerror}") from error
        except subprocess.TimeoutExpired as error:
            raise FleetError(f"{' '.join(command)}: not done within {error.timeout:g} s") from error
        if done.returncode:
            said = done.stderr.strip().splitlines()
            raise FleetError(f"{' '.join(command)}: {said[-1] if said else f'exit code {done.returncode}'}")
