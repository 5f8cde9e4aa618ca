"""Whatever the network and the devices do, every request has exactly one outcome, and it is right."""

import random
from dataclasses import dataclass, field

import msgspec
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.errors import DeadlineExceeded
from edge.formats.frame import Frame, FrameError, FrameHeader
from edge.formats.message import Session, State, Taken
from edge.protocol.requests import InferenceResult, Route, SendRequest
from tests.request_harness import BUNDLE, Harness
from tests.tiny_bundle import WIDTH, make_deployment

LEAST_ATTEMPTS = 6
"""As many fit into a minute where each waits twice as long as the one before it."""

DEADLINE_SECONDS = 60.0
REQUESTS = 12


@dataclass(kw_only=True)
class Pipeline:
    """A pipeline of one stage on several devices, on a network that loses, repeats and reorders, seeded."""

    rng: random.Random
    loss: float
    client: Harness
    epoch: int = 1
    up: set[str] = field(default_factory=lambda: {"pi-1", "pi-2", "pi-3"})
    boots: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("pi-1", "pi-2", "pi-3"), 1))
    on_the_way: list[tuple[float, Frame | Taken | State]] = field(default_factory=list)
    seen: int = 0
    runs: int = 0

    def route(self) -> Route:
        deployment = make_deployment(BUNDLE, ("pi-1",), epoch=f"1-a-{self.epoch}", replicas={0: ("pi-2",)})
        plan = deployment.plan
        assert plan is not None
        stages = (msgspec.structs.replace(plan.stages[0], standbys=("pi-3",)),)
        plan = msgspec.structs.replace(plan, stages=stages)
        return Route(deployment=msgspec.structs.replace(deployment, plan=plan), manifest=BUNDLE.manifest)

    def post(self, what: Frame | Taken | State, *, safe: bool = False) -> None:
        """Put something on its way: it may be lost, and come twice and late."""
        for _ in range(self.rng.choice((1, 1, 1, 2))):
            if safe or self.rng.random() >= self.loss:
                self.on_the_way.append((self.client.now + self.rng.expovariate(20.0), what))

    def serve(self, send: SendRequest) -> None:
        """Take what the client sent."""
        device, header = send.topic.split("/")[3], send.header
        if device not in self.up or self.rng.random() < self.loss:
            return
        self.post(Taken(node=device, request_id=header.request_id, attempt=header.attempt, stage=0))
        fate = self.rng.random()
        if header.epoch != f"1-a-{self.epoch}" and fate < 0.5:
            self.refuse(header, device, "gone")
        elif fate < 0.1:
            self.refuse(header, device, self.rng.choice(("busy", "corrupt-frame")))
        else:
            self.runs += 1
            # What the model of this epoch answers to this request.
            answer = np.full((1, WIDTH), int(header.request_id[1:]) + 1000 * int(header.epoch[4:]), np.float32)
            self.post(Frame(header=msgspec.structs.replace(header, kind="result"), tensors={"y": answer}))

    def refuse(self, header: FrameHeader, device: str, code: str) -> None:
        error = FrameError(code=code, message=f"why {self.rng.random()}", device=device, retry_after_ms=50)
        self.post(Frame(header=msgspec.structs.replace(header, kind="error", error=error), tensors={}))

    def disturb(self) -> None:
        """Let something happen: a death, a return, another plan, a cut of the client's connection."""
        event, device = self.rng.random(), self.rng.choice(("pi-1", "pi-2", "pi-3"))
        if event < 0.06 and len(self.up) > 1:
            self.up.discard(device)
            self.tell(device)
        elif event < 0.16 and device not in self.up:
            self.up.add(device)
            self.boots[device] += 1
            self.tell(device)
        elif event < 0.18:
            self.epoch += 1
            self.client.take(self.client.requests.set_route(self.route(), self.client.now))
        elif event < 0.20:
            self.client.requests.disconnected()
            self.client.take(self.client.requests.reconnected(self.client.now))

    def tell(self, device: str) -> None:
        session = Session(boot=self.boots[device], connect=1)
        self.post(State(node=device, role="agent", online=device in self.up, session=session), safe=True)

    def deliver(self) -> None:
        due = [what for at, what in self.on_the_way if at <= self.client.now]
        self.on_the_way = [entry for entry in self.on_the_way if entry[0] > self.client.now]
        for what in due:
            if isinstance(what, Frame):
                self.client.take(self.client.requests.frame(what, self.client.now))
            elif isinstance(what, Taken):
                self.client.requests.taken(what, self.client.now)
            else:
                self.client.take(self.client.requests.state(what, self.client.now))

    def step(self) -> None:
        self.deliver()
        self.client.wait(0.05)
        fresh, self.seen = self.client.sent[self.seen :], len(self.client.sent)
        for send in fresh:
            self.serve(send)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), loss=st.sampled_from((0.0, 0.05, 0.3)), quiet=st.booleans())
def test_every_request_has_exactly_one_outcome_and_it_is_right(seed: int, loss: float, quiet: bool) -> None:
    client = Harness()
    pipeline = Pipeline(rng=random.Random(seed), loss=loss, client=client)
    client.take(client.requests.set_route(pipeline.route(), 0.0))
    for device in sorted(pipeline.up):
        pipeline.tell(device)
    cancelled: set[str] = set()
    for step in range(round((DEADLINE_SECONDS + 10.0) / 0.05)):
        if step < REQUESTS:
            client.submit(f"r{step}", deadline_seconds=DEADLINE_SECONDS)
        if step < 200 and not quiet:
            pipeline.disturb()
        if step == 30 and "r11" not in client.outcomes:
            cancelled.add("r11")
            client.take(client.requests.cancel("r11", client.now))
        pipeline.step()
        if len(client.outcomes) + len(cancelled) == REQUESTS and not pipeline.on_the_way:
            break
    # A second outcome would have failed in the harness.
    assert set(client.outcomes) == {f"r{index}" for index in range(REQUESTS)} - cancelled
    for request_id, outcome in client.outcomes.items():
        if isinstance(outcome, DeadlineExceeded):
            # Every attempt may be lost where so much is; else a minute is enough for 10 s of faults.
            assert loss == 0.3
            assert sum(send.header.request_id == request_id for send in client.sent) >= LEAST_ATTEMPTS
            continue
        assert isinstance(outcome, InferenceResult)
        assert float(outcome.outputs["y"][0, 0]) == int(request_id[1:]) + 1000 * int(outcome.epoch[4:])
    assert client.requests.next_wake() == float("inf")
