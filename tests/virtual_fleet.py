"""Several agents' protocols on one in-memory broker that holds back or loses what the test says."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from edge.errors import RequestError
from edge.formats.frame import Frame, FrameHeader
from edge.formats.plan import Deployment
from edge.formats.tensor import Array
from edge.protocol.requests import InferenceResult, RequestAction, Requests, Route, SendRequest, Settle
from edge.transport import MemoryBroker, Publication
from tests.tiny_bundle import DiamondBundle, TinyBundle, make_input
from tests.virtual_agent import TOPICS, Ear, VirtualAgent, run_as_addition

RESULT = TOPICS.result("cam")


def run_diamond(frame: Frame) -> dict[str, Array]:
    """Play the stages of the diamond bundle: `a = x + 1`, `b = 2a`, `c = 3a`, `y = b + c`."""
    tensors = frame.tensors
    match frame.header.stage:
        case 0:
            return {"a": np.asarray(tensors["x"] + np.float32(1))}
        case 1:
            return {"b": np.asarray(tensors["a"] * np.float32(2))}
        case 2:
            return {"c": np.asarray(tensors["a"] * np.float32(3))}
    return {"y": np.asarray(tensors["b"] + tensors["c"])}


@dataclass(slots=True)
class HoldingBroker(MemoryBroker):
    """Keeps in `held` what `holds` says, and routes the rest."""

    holds: Callable[[Publication], bool] = lambda _publication: False
    held: list[Publication] = field(default_factory=list)

    def route(self, publication: Publication) -> None:
        """Deliver a message, or keep it."""
        if self.holds(publication):
            self.held.append(publication)
        else:
            MemoryBroker.route(self, publication)

    def deliver(self, publication: Publication) -> None:
        """Deliver a message whatever is held."""
        MemoryBroker.route(self, publication)


class VirtualFleet:
    """The agents of one deployment, serving, and an ear."""

    def __init__(self, bundle: TinyBundle, deployment: Deployment) -> None:
        self.broker = HoldingBroker()
        self.ear = Ear(self.broker, bundle)
        self.deployment = deployment
        assert deployment.plan is not None
        run = run_diamond if isinstance(bundle, DiamondBundle) else run_as_addition
        names = dict.fromkeys(name for stage in deployment.plan.stages for name in stage.devices)
        self.agents = {name: VirtualAgent(self.broker, name, run=run) for name in names}
        for agent in self.agents.values():
            agent.start()
        self.ear.serve(deployment)
        self.pump()
        assert all(agent.stages for agent in self.agents.values())
        self.ear.forget()

    def pump(self) -> None:
        """Let every agent take everything, until nothing waits."""
        while not all(agent.idle for agent in self.agents.values()):
            for agent in self.agents.values():
                agent.pump()

    def wait(self, seconds: float) -> None:
        """Let time pass for everyone."""
        for agent in self.agents.values():
            agent.wait(seconds)
        self.pump()

    def header(self, request_id: str = "r1", **changes: Any) -> FrameHeader:
        """Return the header of a request of the client `cam`."""
        header = FrameHeader(
            request_id=request_id,
            sender="cam",
            reply_to=RESULT,
            ttl_ms=10_000,
            deployment=self.deployment.name,
            epoch=self.deployment.epoch,
            stage=0,
        )
        return msgspec.structs.replace(header, **changes)

    def send(self, header: FrameHeader, tensors: dict[str, Array] | None = None, *, device: str = "pi-0") -> None:
        """Send a frame to a device, by default an input to stage 0, and let everyone act."""
        self.ear.send_frame(header, {"x": make_input(1)} if tensors is None else tensors, device)
        self.pump()

    def results(self) -> list[Frame]:
        """Return the results that came."""
        return [frame for frame in self.ear.frames(RESULT) if frame.header.kind == "result"]

    def errors(self) -> list[tuple[str, str]]:
        """Return the errors that came."""
        frames = self.ear.frames(RESULT)
        return [(frame.header.error.code, frame.header.error.message) for frame in frames if frame.header.error]


class VirtualClient:
    """The requests of the client `cam` of a fleet, driven at the fleet's pace."""

    def __init__(self, fleet: VirtualFleet, bundle: TinyBundle) -> None:
        self._fleet = fleet
        self._heard = 0
        self.now = 100.0
        self.requests = Requests(topics=TOPICS, client="cam", draw=lambda: 0.0)
        self.outcomes: dict[str, InferenceResult | RequestError] = {}
        self._act(self.requests.set_route(Route(deployment=fleet.deployment, manifest=bundle.manifest), self.now))

    def submit(self, request_id: str, inputs: dict[str, Array] | None = None) -> None:
        """Submit a request, and let everything happen that follows at once."""
        self._act(
            self.requests.submit(
                request_id,
                self._fleet.deployment.name,
                {"x": make_input(1)} if inputs is None else inputs,
                deadline_seconds=30.0,
                observe=True,
                now=self.now,
            )
        )

    def wait(self, seconds: float) -> None:
        """Let time pass for the client and the fleet."""
        self.now += seconds
        self._fleet.wait(seconds)
        self._act(self.requests.tick(self.now))

    def _act(self, actions: list[RequestAction]) -> None:
        for action in actions:
            if isinstance(action, SendRequest):
                self._fleet.send(action.header, dict(action.tensors), device=action.topic.split("/")[3])
            elif isinstance(action, Settle):
                self.outcomes[action.request_id] = action.outcome
        self._hear()

    def _hear(self) -> None:
        frames = self._fleet.ear.frames(RESULT)
        for taken in self._fleet.ear.taken(TOPICS.ack("cam")):
            self.requests.taken(taken, self.now)
        fresh, self._heard = frames[self._heard :], len(frames)
        for frame in fresh:
            self._act(self.requests.frame(frame, self.now))
