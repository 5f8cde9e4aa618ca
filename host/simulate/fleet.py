"""A whole fleet in one process: built from costs, a network and plans, given traffic and faults."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from edge.formats.plan import Codec, Constraints, Deployment, Plan, encode_deployment
from edge.formats.topics import Topics
from edge.protocol.builds import blobs_in, formats_of
from edge.protocol.on_disk import OnDisk
from edge.transport import Channel, Publication
from host.errors import PlanError
from host.planning.costs import DeviceCost, Network
from host.planning.planner import predicted_rps
from host.planning.replan import HORIZON_SECONDS
from host.simulate.bundle import SimulatedBundle
from host.simulate.client import Ask, SimulatedClient
from host.simulate.clock import Action, Clock
from host.simulate.coordinator import COORDINATOR, Blobs, SimulatedCoordinator
from host.simulate.device import SimulatedDevice
from host.simulate.faults import Fault
from host.simulate.measured import measured
from host.simulate.network import SimulatedBroker, Weather
from host.simulate.report import SimulationEvent, SimulationReport, outcome_figures
from host.simulate.sizes import WireSizes
from host.simulate.surroundings import Habits, Surroundings
from host.simulate.wire import Wire, bytes_by_link

_log = logging.getLogger(__name__)

EPOCH = "1-5177-1"
"""Of every deployment that is there from the beginning."""

SETTLE_SECONDS = 2.0
"""From power to the first request: connections stand, retained values have arrived."""

_ROUTE_SECONDS = 60.0
_MOST_SIMULATED_SECONDS = 1e7
_RNG_TRAFFIC, _RNG_WEATHER, _RNG_CLIENT = 1, 2, 3

Coordination = Literal["none", "commands", "replans"]
"""Whether a fleet has a coordinator, and whether that plans again by itself when it pays."""

Progress = Callable[[float, int, int], None]
"""Told every simulated second: the time, requests accepted, requests open."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Deployed:
    """A deployment that serves from the beginning.

    Attributes:
        name: of it.
        bundle: its stand-in.
        plan: on devices of the fleet.
        window: requests that stage 0 lets into the pipeline.
        codec: how tensors travel.
        constraints: what the plan keeps to.
    """

    name: str
    bundle: SimulatedBundle
    plan: Plan
    window: int = 8
    codec: Codec = "raw"
    constraints: Constraints = field(default_factory=Constraints)

    def value(self) -> Deployment:
        """Return the retained value of `serving`."""
        devices = dict.fromkeys(device for stage in self.plan.stages for device in (*stage.runners, *stage.standbys))
        return Deployment(
            name=self.name,
            epoch=EPOCH,
            manifest=self.bundle.manifest_blob,
            plan=self.plan,
            holders=(COORDINATOR, *devices),
            window=self.window,
            codec=self.codec,
            constraints=self.constraints,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """What the client asks for; it ends with so many requests or after so many seconds, whatever comes first.

    Attributes:
        requests: in all; 0 for no limit.
        seconds: 0 for no limit.
        rate: requests a second of all deployments together, at random times; 0 keeps `window` of each in flight.
        window: requests in flight of each deployment; 0 for the window of the deployment.
        deadline_seconds: of each request.
    """

    requests: int = 0
    seconds: float = 0.0
    rate: float = 0.0
    window: int = 0
    deadline_seconds: float = 30.0


class SimulatedFleet:
    """One fleet; `run` it once.

    Attributes:
        clock: of the simulation.
        devices: by name.
        client: who asks.
        coordinator: None where the fleet has none.
    """

    def __init__(
        self,
        devices: Sequence[DeviceCost],
        deployments: Sequence[Deployed],
        *,
        network: Network | None = None,
        faults: Sequence[Fault] = (),
        weather: Weather | None = None,
        habits: Habits | None = None,
        coordination: Coordination = "commands",
        seed: int = 0,
    ) -> None:
        """Build it.

        Args:
            devices: that there are; one whose first fault is `join` is not there at the beginning.
            deployments: that serve from the beginning.
            network: between them.
            faults: what goes wrong.
            weather: of the network.
            habits: of the devices.
            coordination: what the coordinator does.
            seed: of everything that is drawn.

        Raises:
            PlanError: a fault or a plan is of a device that there is not.
        """
        self.clock = Clock()
        self.devices: dict[str, SimulatedDevice] = {}
        self._deployments = {deployed.name: deployed for deployed in deployments}
        self._network = network or Network()
        self._faults = tuple(sorted(set(faults)))
        self._random = random.Random(_seed(seed, _RNG_TRAFFIC))  # noqa: S311 - a simulation must be repeatable
        self._traffic = Traffic()
        self._numbers = 0
        self._began = 0.0
        self._submitted_until = 0.0
        self._failures = 0
        self._happened: list[SimulationEvent] = []
        self._submitting = True
        self._wire = Wire(self._network)
        topics = Topics(fleet="simulated")
        self._broker = self._make_broker(topics, weather or Weather(), seed)
        bundles = {deployed.bundle.manifest_blob.digest: deployed.bundle for deployed in deployments}
        self._values = {deployed.name: deployed.value() for deployed in deployments}
        self._check(devices)
        around = Surroundings(
            clock=self.clock,
            broker=self._broker,
            topics=topics,
            bundles=bundles,
            habits=habits or Habits(),
            log=lambda name, text: _log.info("%s: %s", name, text),
        )
        self._add_devices(devices, around)
        self.client = self._make_client(topics, seed)
        self.coordinator = None if coordination == "none" else self._make_coordinator(around, coordination)
        for value in self._values.values():
            self._broker.retain(_retained(topics.serving(value.name), value))

    def _make_broker(self, topics: Topics, weather: Weather, seed: int) -> SimulatedBroker:
        named: dict[str, tuple[SimulatedBundle, Codec]] = {
            name: (deployed.bundle, deployed.codec) for name, deployed in self._deployments.items()
        }
        sizes = WireSizes(topics, named)
        return SimulatedBroker(self.clock, self._wire, weather=weather, wire_size=sizes, seed=_seed(seed, _RNG_WEATHER))

    def _make_client(self, topics: Topics, seed: int) -> SimulatedClient:
        client = SimulatedClient(
            clock=self.clock,
            broker=self._broker,
            topics=topics,
            link=self._network.client,
            bundles={name: deployed.bundle for name, deployed in self._deployments.items()},
            seed=_seed(seed, _RNG_CLIENT),
        )
        client.on_settled = self._settled
        client.on_route = self._planned
        return client

    def _add_devices(self, devices: Sequence[DeviceCost], around: Surroundings) -> None:
        for place, cost in enumerate(devices):
            phase = place / len(devices)
            self.devices[cost.name] = SimulatedDevice(cost, around, disk=self._disk(cost, around.habits), phase=phase)

    def _make_coordinator(self, around: Surroundings, coordination: Coordination) -> SimulatedCoordinator:
        return SimulatedCoordinator(
            clock=self.clock,
            broker=self._broker,
            topics=around.topics,
            blobs=Blobs(tuple(around.bundles.values())),
            horizon_seconds=HORIZON_SECONDS if coordination == "replans" else None,
        )

    def _check(self, devices: Sequence[DeviceCost]) -> None:
        known = {cost.name for cost in devices}
        for name, value in self._values.items():
            for stage in value.plan.stages if value.plan is not None else ():
                if unknown := [device for device in (*stage.runners, *stage.standbys) if device not in known]:
                    raise PlanError(
                        f"deployment {name!r}: stage {stage.index} is on {unknown[0]!r}, no device of the fleet"
                    )
        if unknown := [fault.device for fault in self._faults if fault.device not in known]:
            raise PlanError(f"no device of the fleet is called {unknown[0]!r}")

    def _disk(self, cost: DeviceCost, habits: Habits) -> OnDisk:
        """Return what a device has on its disk when it was there before: what it serves, its blobs, its speed."""
        serving: dict[str, Deployment] = {}
        held: set[str] = set()
        for name, value in self._values.items():
            bundle = self._deployments[name].bundle
            if value.plan is None:
                continue
            for stage in value.plan.stages:
                if cost.name in (*stage.runners, *stage.standbys):
                    serving[name] = value
                    formats = formats_of(bundle.manifest, value.plan, cost.name)
                    blobs = blobs_in(bundle.manifest, formats, stage.first_shard, stage.stop_shard)
                    held |= {bundle.manifest_blob.digest, *(blob.digest for blob in blobs)}
        speed = measured(cost, next(iter(self._deployments.values())).bundle, habits.profile)
        return OnDisk(serving=tuple(serving.values()), held=frozenset(held), speed=speed)

    # ------------------------------------------------------------------------------------------------------- running
    def run(self, traffic: Traffic, *, on_progress: Progress | None = None) -> SimulationReport:
        """Give it power and traffic, and let time pass until every request has its outcome.

        Args:
            traffic: what is asked; it must end.
            on_progress: told every simulated second; None for nobody.

        Raises:
            PlanError: the traffic has no end, or a deployment never came into service.
        """
        if not traffic.requests and not traffic.seconds:
            raise PlanError("traffic without an end: say how many requests, or for how many seconds")
        self._traffic = traffic
        first = {fault.device: fault.kind for fault in reversed(self._faults)}
        for name, device in self.devices.items():
            if first.get(name) != "join":
                device.start(quiet=True)
        self.client.start()
        if self.coordinator is not None:
            self.coordinator.start()
        self.clock.run(SETTLE_SECONDS)
        self.clock.run(_ROUTE_SECONDS, lambda: self.client.routes >= self._deployments.keys())
        if missing := sorted(self._deployments.keys() - self.client.routes):
            raise PlanError(f"deployment {missing[0]!r} did not come into service within {_ROUTE_SECONDS:.0f} s")
        self._began = self._submitted_until = self.clock.now
        for fault in self._faults:
            self.clock.at(self._began + fault.at, partial(self._apply, fault))
        if on_progress is not None:
            self._watch(on_progress)
        self._begin()
        self.clock.run(_MOST_SIMULATED_SECONDS, lambda: not self._submitting and not self.client.open)
        return self._report()

    def at(self, seconds: float, action: Action) -> None:
        """Do something so many seconds after power; to be said before `run`."""
        self.clock.at(seconds, action)

    def _watch(self, on_progress: Progress) -> None:
        on_progress(self.clock.now - self._began, len(self.client.asks), self.client.open)
        self.clock.after(1.0, lambda: self._watch(on_progress))

    def _apply(self, fault: Fault) -> None:
        device = self.devices[fault.device]
        self._failures += device.alive and fault.kind in ("kill", "cut", "pause")
        self._happened.append(
            SimulationEvent(at=self.clock.now - self._began, what=fault.kind, name=fault.device),
        )
        match fault.kind:
            case "kill":
                device.kill()
            case "join":
                device.start()
            case "pause":
                device.pause()
            case "resume":
                device.resume()
            case "slow":
                device.cpu.factor = fault.factor
            case "cut":
                device.cut()
            case "mend":
                device.mend()

    def _planned(self, deployment: Deployment) -> None:
        if deployment.epoch == EPOCH or deployment.plan is None:
            return
        now = self.clock.now - self._began
        faults = [event.at for event in self._happened if event.what != "plan"]
        self._happened.append(
            SimulationEvent(
                at=now,
                what="plan",
                name=deployment.name,
                epoch=deployment.epoch,
                stages=tuple(stage.runners for stage in deployment.plan.stages),
                after_seconds=now - faults[-1] if faults else None,
            )
        )

    # ------------------------------------------------------------------------------------------------------- traffic
    def _begin(self) -> None:
        if self._traffic.seconds:
            self.clock.after(self._traffic.seconds, self._end)
        if self._traffic.rate:
            self._next()
            return
        for name, value in self._values.items():
            for _ in range(self._traffic.window or value.window):
                self._submit(name)

    def _next(self) -> None:
        names = tuple(self._values)
        self._submit(names[self._numbers % len(names)])
        if self._submitting:
            self.clock.after(self._random.expovariate(self._traffic.rate), self._next)

    def _settled(self, ask: Ask) -> None:
        if not self._traffic.rate:
            self._submit(ask.name)

    def _submit(self, name: str) -> None:
        if not self._submitting:
            return
        self._numbers += 1
        self.client.submit(name, self._numbers, deadline_seconds=self._traffic.deadline_seconds)
        if self._numbers == self._traffic.requests:
            self._end()

    def _end(self) -> None:
        if self._submitting:
            self._submitting = False
            self._submitted_until = self.clock.now

    # -------------------------------------------------------------------------------------------------------- figures
    def _report(self) -> SimulationReport:
        seconds = self.clock.now - self._began
        plans = [(deployed.plan, self._traffic.window or deployed.window) for deployed in self._deployments.values()]
        rates = [predicted_rps(plan, window) for plan, window in plans]
        return SimulationReport(
            **outcome_figures(tuple(self.client.asks.values()), submitting_until=self._submitted_until),
            devices=len(self.devices),
            failures=self._failures,
            simulated_seconds=seconds,
            broker_bytes=self._wire.broker_bytes,
            messages_lost=self._broker.lost,
            link_bytes=bytes_by_link(self._broker.links),
            utilisation={
                name: min(1.0, device.cpu.busy_until_now / seconds) if seconds > 0 else 0.0
                for name, device in self.devices.items()
            },
            epochs=self.client.epochs(),
            predicted_throughput=sum(rate for rate in rates if math.isfinite(rate)),
            predicted_latency=max((plan.latency_seconds for plan, _ in plans), default=0.0),
            happened=tuple(self._happened),
            events=self.clock.events,
        )


def _retained(topic: str, value: Deployment) -> Publication:
    return Publication(channel=Channel.CONTROL, topic=topic, payload=encode_deployment(value), qos=1, retain=True)


def _seed(seed: int, purpose: int) -> int:
    return seed * 16 + purpose
