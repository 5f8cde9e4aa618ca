"""The requests of a client without a network, on a virtual clock."""

import msgspec

from edge.errors import RequestError
from edge.formats.frame import Frame, FrameError, FrameHeader, Hop
from edge.formats.tensor import Array
from edge.formats.topics import Topics
from edge.protocol.requests import AskServing, InferenceResult, RequestAction, Requests, Route, SendRequest
from tests.tiny_bundle import TinyBundle, make_deployment, make_input, make_tiny_bundle

BUNDLE = make_tiny_bundle()


def make_route(
    *, epoch: str = "1-a-1", window: int = 4, bundle: TinyBundle = BUNDLE, costs: tuple[float, float] | None = None
) -> Route:
    """`costs` are what the plan says of its bottleneck and of its latency, seconds."""
    deployment = make_deployment(bundle, ("pi-1", "pi-2"), epoch=epoch, window=window)
    if costs is not None and deployment.plan is not None:
        plan = msgspec.structs.replace(deployment.plan, bottleneck_seconds=costs[0], latency_seconds=costs[1])
        deployment = msgspec.structs.replace(deployment, plan=plan)
    return Route(deployment=deployment, manifest=bundle.manifest)


class Harness:
    """A client without a network: `sent` is what it would publish, `outcomes` what its callers get."""

    def __init__(self, route: Route | None = None) -> None:
        self.requests = Requests(topics=Topics(fleet="default"), client="cam", draw=lambda: 0.0)
        self.now = 0.0
        self.sent: list[SendRequest] = []
        self.asked: list[str] = []
        self.outcomes: dict[str, InferenceResult | RequestError] = {}
        if route is not None:
            self.take(self.requests.set_route(route, 0.0))

    def take(self, actions: list[RequestAction]) -> None:
        for action in actions:
            if isinstance(action, SendRequest):
                self.sent.append(action)
            elif isinstance(action, AskServing):
                self.asked.append(action.name)
            else:
                assert action.request_id not in self.outcomes, "a second outcome"
                self.outcomes[action.request_id] = action.outcome

    def submit(self, request_id: str, *, deadline_seconds: float = 30.0, observe: bool = False) -> None:
        self.take(
            self.requests.submit(
                request_id,
                "tiny",
                {"x": make_input(1)},
                deadline_seconds=deadline_seconds,
                observe=observe,
                now=self.now,
            )
        )

    def wait(self, seconds: float) -> None:
        """Let time pass, waking only when it asks to be woken."""
        end = self.now + seconds
        while (wake := self.requests.next_wake()) <= end:
            self.now = max(self.now, wake)
            self.take(self.requests.tick(self.now))
        self.now = end

    def answer(self, header: FrameHeader, outputs: dict[str, Array] | None = None) -> None:
        made = {"y": make_input(2)} if outputs is None else outputs
        hops = tuple(
            Hop(stage=stage, device="d", queued_seconds=0, run_seconds=0, received_bytes=1, sent_bytes=1)
            for stage in range(2)
        )
        result = msgspec.structs.replace(header, kind="result", trace=hops)
        self.take(self.requests.frame(Frame(header=result, tensors=made), self.now))

    def refuse(self, header: FrameHeader, code: str, *, retry_after_ms: int = 0) -> None:
        error = FrameError(code=code, message="why", device="pi-1", retry_after_ms=retry_after_ms)
        answer = msgspec.structs.replace(header, kind="error", error=error)
        self.take(self.requests.frame(Frame(header=answer, tensors={}), self.now))

    @property
    def attempts(self) -> list[int]:
        return [send.header.attempt for send in self.sent]
