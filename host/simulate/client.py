"""The client of a simulated fleet: requests and catalogue of the real one, and somebody who checks the answers."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from edge.errors import RequestError, ShardwireError
from edge.formats.frame import decode_frame, encode_frame
from edge.formats.message import Block, Session, State, Taken, decode_message, encode_message
from edge.formats.packet import Reassembler, split
from edge.formats.plan import Deployment, decode_deployment
from edge.formats.topics import Topics
from edge.protocol.catalogue import Catalogue, CatalogueAction, Removed, TrialEnded, Tried
from edge.protocol.fetch import AskBlock
from edge.protocol.requests import InferenceResult, RequestAction, Requests, Route, SendRequest, Settle
from edge.transport import Channel, Connected, Disconnected, Publication, Received, Subscribed, TransportEvent
from host.planning.costs import LinkCost
from host.simulate.bundle import SimulatedBundle
from host.simulate.clock import Clock
from host.simulate.network import SimulatedBroker, SimulatedTransport

CLIENT = "client"
"""Its name, also among the nodes of a medium."""

_TICK_SECONDS = 0.02
"""The real client wakes to the moment; a steady tick is one thing to happen where each answer would move the next."""


@dataclass(kw_only=True, slots=True)
class Ask:
    """One request and what became of it.

    Attributes:
        number: that it carries.
        submitted, settled: seconds; `settled` is negative while it has no outcome.
        outcomes: that it got; more than one is a fault.
        sends: how often it was sent.
        error: class of the error that was its outcome, empty for a result.
        right: whether the result was right.
    """

    number: int
    name: str
    submitted: float
    settled: float = -1.0
    outcomes: int = 0
    sends: int = 0
    error: str = ""
    right: bool = False

    def settle(self, outcome: InferenceResult | RequestError, *, right: bool, now: float) -> bool:
        """Note an outcome; return whether it is the first."""
        self.outcomes += 1
        if self.outcomes > 1:
            return False
        self.settled, self.right = now, right
        if isinstance(outcome, InferenceResult):
            self.sends = outcome.attempts
        else:
            self.error = type(outcome).__name__
        return True


class SimulatedClient:
    """Submits requests and notes their outcomes.

    Attributes:
        asks: every request, by its id, in the order of submission.
        open: how many have no outcome.
        routes: deployments that can be asked.
        on_settled, on_route: told of each first outcome, and of each plan that comes into service.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        broker: SimulatedBroker,
        topics: Topics,
        link: LinkCost,
        bundles: Mapping[str, SimulatedBundle],
        seed: int,
    ) -> None:
        """Prepare; `start` connects.

        Args:
            clock: of the simulation.
            broker: to connect to.
            topics: of the fleet.
            link: of the client.
            bundles: by name of the deployment.
            seed: of its jitter.
        """
        self.asks: dict[str, Ask] = {}
        self.open = 0
        self.routes: set[str] = set()
        self.on_settled: Callable[[Ask], object] = lambda _: None
        self.on_route: Callable[[Deployment], object] = lambda _: None
        self._clock = clock
        self._topics = topics
        self._bundles = bundles
        jitter = random.Random(seed).random  # noqa: S311 - a simulation must be repeatable
        self._requests = Requests(topics=topics, client=CLIENT, draw=jitter, connected=False)
        self._catalogue = Catalogue(reply_to=topics.blocks(CLIENT))
        self._reassembler = Reassembler()
        self._sequence = itertools.count()
        self._watched: frozenset[str] = frozenset()
        self._ticking = False
        self._transport = SimulatedTransport(broker, CLIENT, link, on_event=self._hear)

    def start(self) -> None:
        """Connect, and want every deployment."""
        self._transport.connect()

    def submit(self, name: str, number: int, *, deadline_seconds: float) -> None:
        """Accept a request that carries `number`."""
        request_id = f"request-{number}"
        self.asks[request_id] = Ask(number=number, name=name, submitted=self._clock.now)
        self.open += 1
        actions = self._requests.submit(
            request_id,
            name,
            self._bundles[name].inputs(number),
            deadline_seconds=deadline_seconds,
            observe=False,
            now=self._clock.now,
        )
        self._act(actions)
        self._wake()

    def epochs(self) -> dict[str, str]:
        """Return the epoch that serves each deployment, as far as the client knows."""
        return {deployment.name: deployment.epoch for deployment in self._catalogue.deployments()}

    def _wake(self) -> None:
        if not self._ticking and (self.open or self._catalogue.fetching):
            self._ticking = True
            self._clock.after(_TICK_SECONDS, self._tick)

    def _tick(self) -> None:
        self._ticking = False
        self._act(self._requests.tick(self._clock.now))
        if self._catalogue.fetching:
            self._follow(self._catalogue.tick(self._clock.now))
        self._wake()

    # ------------------------------------------------------------------------------------------------------- messages
    def _hear(self, event: TransportEvent) -> None:
        match event:
            case Connected(channel=Channel.DATA):
                for filter in (self._topics.ack(CLIENT), self._topics.blocks(CLIENT), self._topics.result(CLIENT)):
                    self._transport.subscribe(Channel.DATA, filter)
            case Connected():
                self._watched = frozenset()
                for name in self._bundles:
                    self._transport.subscribe(Channel.CONTROL, self._topics.serving(name))
                    self._transport.subscribe(Channel.CONTROL, self._topics.canary(name))
                    self._follow(self._catalogue.want(name, self._clock.now))
            case Disconnected(channel=Channel.DATA):
                self._requests.disconnected()
            case Subscribed(filter=filter) if filter == self._topics.result(CLIENT):
                self._act(self._requests.reconnected(self._clock.now))
            case Received():
                try:
                    self._received(event)
                except ShardwireError:
                    return  # as the real client: what it was for is sent again in time
            case _:
                pass

    def _received(self, event: Received) -> None:
        now, levels = self._clock.now, self._topics.parse(event.topic)
        match levels:
            case ("result", _):
                if (data := self._reassembler.add(event.payload, now)) is not None:
                    self._act(self._requests.frame(decode_frame(data), now))
            case ("ack", _):
                self._requests.taken(decode_message(event.payload, Taken), now)
            case ("blocks", _):
                self._follow(self._catalogue.block(decode_message(event.payload, Block), now))
            case ("deployment", name, "serving") if event.payload:
                deployment = decode_deployment(event.payload)
                if deployment.name == name:
                    self._follow(self._catalogue.seen(deployment, now))
                    self._wake()
            case ("deployment", name, "canary"):
                canary = decode_deployment(event.payload) if event.payload else None
                if canary is None or canary.name == name:
                    self._follow(self._catalogue.tried(name, canary, now))
                    self._wake()
            case ("device", name, "state") if event.payload:
                state = decode_message(event.payload, State)
                if state.node == name:
                    self._act(self._requests.state(state, now))
            case _:
                pass

    # --------------------------------------------------------------------------------------------------- carrying out
    def _act(self, actions: Iterable[RequestAction]) -> None:
        for action in actions:
            if isinstance(action, SendRequest):
                self._send(action)
            elif isinstance(action, Settle):
                self._settle(action.request_id, action.outcome)
            else:
                self._transport.subscribe(Channel.CONTROL, self._topics.serving(action.name))

    def _send(self, action: SendRequest) -> None:
        frame = encode_frame(action.header, action.tensors)
        session = Session(boot=1, connect=1)
        for packet in split(frame, sender=CLIENT, session=session, sequence=next(self._sequence)):
            self._transport.publish(Publication(channel=Channel.DATA, topic=action.topic, payload=packet))

    def _settle(self, request_id: str, outcome: InferenceResult | RequestError) -> None:
        ask = self.asks[request_id]
        right = isinstance(outcome, InferenceResult) and _same(outcome, self._bundles[ask.name], ask.number)
        if not ask.settle(outcome, right=right, now=self._clock.now):
            return
        self.open -= 1
        # Not within the steps of the requests, which are in the middle of their work.
        self._clock.after(0.0, partial(self.on_settled, ask))

    def _follow(self, actions: Iterable[CatalogueAction]) -> None:
        for action in actions:
            if isinstance(action, AskBlock):
                topic, payload = self._topics.fetch(action.holder), encode_message(action.request)
                self._transport.publish(Publication(channel=Channel.DATA, topic=topic, payload=payload))
            elif isinstance(action, Route):
                self._act(self._requests.set_route(action, self._clock.now))
                self.routes.add(action.deployment.name)
                self.on_route(action.deployment)
            elif isinstance(action, Tried):
                self._act(self._requests.set_canary(action.route, self._clock.now))
            elif isinstance(action, TrialEnded):
                self._act(self._requests.end_canary(action.name, self._clock.now))
            elif isinstance(action, Removed):
                self._requests.remove_route(action.name)
        self._watch()

    def _watch(self) -> None:
        """Hear the states of those devices that requests go through, as the real client does."""
        wanted = self._requests.watching()
        for device in sorted(wanted - self._watched):
            self._transport.subscribe(Channel.CONTROL, self._topics.state(device))
        for device in sorted(self._watched - wanted):
            self._transport.unsubscribe(Channel.CONTROL, self._topics.state(device))
        self._watched = wanted


def _same(outcome: InferenceResult, bundle: SimulatedBundle, number: int) -> bool:
    right = bundle.answer(number)
    return right.keys() == outcome.outputs.keys() and all(
        array.shape == outcome.outputs[name].shape and int(array[0]) == int(outcome.outputs[name][0])
        for name, array in right.items()
    )
