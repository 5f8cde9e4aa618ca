"""Submit requests to a deployment and await their results, from any Python program; see `Client`."""

import secrets
import threading
import time
import uuid
from collections import deque
from collections.abc import Generator, Iterable, Mapping
from collections.abc import Set as AbstractSet
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from edge.buckets import Padded, pad
from edge.client_loop import Cancel, ClientLoop, Submit, Want, WantFile
from edge.errors import InvalidInput, TransportError, UnknownDeployment
from edge.formats.bundle import Blob, Manifest
from edge.formats.plan import Deployment
from edge.formats.streams import is_elsewhere
from edge.formats.tensor import Array, as_tensor
from edge.formats.topics import Topics, check_name
from edge.mqtt import MqttTransport
from edge.protocol.pending import Place
from edge.protocol.requests import InferenceResult, Route
from edge.streams import Serving, Stream
from edge.transport import Channel

__all__ = ["Client", "InferenceResult"]

CONNECT_SECONDS = 5.0
MAX_DEADLINE_SECONDS = 86_400.0
_HELLO_SECONDS = 0.3
_LISTEN_SECONDS = 0.3
_ROUTE_SECONDS = 10.0
_FILE_SECONDS = 60.0
_CLOSE_SECONDS = 2.0


class Client:
    """A node that submits requests. Thread-safe; close it, or use it in a `with` block.

    ::

        with Client.connect("mqtt://broker") as client:
            print(client.infer("effnet", {"input": image}).outputs)
    """

    def __init__(self, url: str, *, fleet: str, name: str, doors: Mapping[str, Path] | None = None) -> None:
        """Prepare; `connect` is the way to make a client.

        Raises:
            TransportError: the URL is none.
            FormatError: fleet or name is not allowed.
        """
        self.name = check_name(name, what="client name")
        self._topics = Topics(fleet=fleet)
        self._doors = dict(doors or {})
        self._loop = ClientLoop(fleet=fleet, name=name, doors=self._doors)
        self._transport = MqttTransport(url, fleet=fleet, node=name, on_event=self._loop.events.put_from_network)
        self._closing = threading.Lock()
        self._closed = False

    @classmethod
    def connect(
        cls,
        url: str,
        *,
        fleet: str = "default",
        name: str | None = None,
        doors: Mapping[str, Path] | None = None,
        timeout_seconds: float = CONNECT_SECONDS,
    ) -> Self:
        """Connect to a broker.

        Args:
            url: `mqtt://[user:password@]host[:port]`, or `mqtts://`.
            fleet: name of the fleet.
            name: of this client in the fleet, unique; a random one by default.
            doors: sockets of agents on this machine by device (`shardwire-agent --door`). Inputs then go through them
                and never through the broker, so the first stage must be pinned to one of these devices.
            timeout_seconds: how long the first connection may take.

        Raises:
            TransportError: no broker there, or it refuses.
            FormatError: fleet or name is not allowed.
        """
        client = cls(url, fleet=fleet, name=name or f"client-{secrets.token_hex(4)}", doors=doors)
        client._loop.start(client._transport)
        client._transport.start()
        try:
            client._transport.wait_connected(timeout_seconds)
        except BaseException:
            client.close()
            raise
        return client

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect; requests without an outcome end with `Cancelled`. Idempotent."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
        self._loop.stop(_CLOSE_SECONDS)
        self._transport.close()

    # ------------------------------------------------------------------------------------------------- deployments
    def deployment(self, name: str, timeout_seconds: float = _ROUTE_SECONDS) -> tuple[Deployment, Manifest]:
        """Return the plan that serves a deployment now, and the manifest of its bundle.

        Raises:
            UnknownDeployment: nothing serves under this name; the text says what there is.
            BundleError: its manifest cannot be had, or is malformed.
            TransportError: its manifest did not come in time.
        """
        check_name(name, what="deployment name")
        route = self._await_route(name, timeout_seconds)
        return route.deployment, route.manifest

    def file(self, name: str, blob: Blob, timeout_seconds: float = _FILE_SECONDS) -> bytes:
        """Return a file of the bundle of a deployment, such as a tokenizer; it is remembered.

        Raises:
            UnknownDeployment: nothing serves under this name.
            BundleError: nobody has the file.
            TransportError: it did not come in time.
        """
        self.deployment(name)
        loop, digest = self._loop, blob.digest
        with loop.changed:
            if digest in loop.files.found:
                return loop.files.found[digest]
            loop.files.faults.pop(digest, None)
        loop.events.put(WantFile(name=name, blob=blob))
        with loop.changed:
            loop.changed.wait_for(lambda: digest in loop.files.found or digest in loop.files.faults, timeout_seconds)
            if digest in loop.files.found:
                return loop.files.found[digest]
            if digest in loop.files.faults:
                raise loop.files.faults[digest]
        raise TransportError(
            f"file {digest[:19]} of {name} did not come within {timeout_seconds:g} s: is its fleet up?"
        )

    def deployments(self, wait_seconds: float = 1.0) -> tuple[Deployment, ...]:
        """Return what serves in this fleet, after listening for `wait_seconds`."""
        self._transport.subscribe(Channel.CONTROL, self._topics.any_deployment("serving"))
        self._loop.say_hello()
        with self._loop.changed:
            self._loop.changed.wait_for(lambda: self._closed, wait_seconds)
            return self._loop.catalogue.deployments()

    def _await_route(self, name: str, timeout_seconds: float) -> Route:
        loop = self._loop
        deadline = time.monotonic() + timeout_seconds
        with loop.changed:
            loop.faults.pop(name, None)
        loop.events.put(Want(name=name))

        def settled() -> bool:
            seen = loop.catalogue.serving(name)
            return name in loop.routes or name in loop.faults or (seen is not None and seen.removed)

        with loop.changed:
            # The retained value usually answers at once; a broker may have lost it, then a node says it again.
            if not loop.changed.wait_for(settled, min(_HELLO_SECONDS, timeout_seconds)):
                loop.say_hello()
                loop.changed.wait_for(settled, max(0.0, deadline - time.monotonic()))
            if name in loop.routes:
                return loop.routes[name]
            if name in loop.faults:
                raise loop.faults[name]
            seen = loop.catalogue.serving(name)
        if seen is not None and not seen.removed:
            raise TransportError(f"the manifest of {name} did not come within {timeout_seconds:g} s: is its fleet up?")
        others = ", ".join(deployment.name for deployment in self.deployments(_LISTEN_SECONDS)) or "none"
        raise UnknownDeployment(f"no deployment called {name!r}; there are: {others}")

    # ---------------------------------------------------------------------------------------------------- requests
    def submit(
        self,
        name: str,
        inputs: Mapping[str, Array],
        *,
        deadline_seconds: float = 30.0,
        observe: bool = False,
        request_id: str | None = None,
    ) -> "Future[InferenceResult]":
        """Accept a request; it has exactly one outcome.

        Args:
            name: of the deployment.
            inputs: every input of the model by name; copied, and padded where the bundle says so. What comes of that in
                the answer is cut off again.
            deadline_seconds: after which the outcome is `DeadlineExceeded`.
            observe: let every stage tell this client when a frame arrives, for times of each hop by one clock.
            request_id: of a request that an earlier life of this client accepted; a new one by default.

        Returns:
            The outcome: a result, or a `RequestError`. `cancel()` on it forgets the request.

        Raises:
            InvalidInput: the inputs do not fit the model; nothing was sent.
            UnknownDeployment: nothing serves under this name.
            TransportError: the client is closed.
        """
        padded = self.check(name, inputs, deadline_seconds=deadline_seconds)
        return self._accept(name, padded, deadline_seconds, observe=observe, request_id=request_id)

    def _accept(
        self,
        name: str,
        padded: Padded,
        deadline_seconds: float,
        *,
        observe: bool,
        request_id: str | None = None,
        place: Place | None = None,
    ) -> "Future[InferenceResult]":
        request_id = request_id or uuid.uuid4().hex
        future: Future[InferenceResult] = Future()
        request = Submit(
            request_id=request_id,
            name=name,
            inputs=padded.inputs,
            cuts=padded.cuts,
            deadline_seconds=deadline_seconds,
            observe=observe,
            future=future,
            place=place,
        )
        with self._closing:
            # Not after the loop was told to end: nobody would give it an outcome.
            if self._closed:
                raise TransportError("the client is closed")
            self._loop.events.put(request)
        future.add_done_callback(lambda done: self._forget(request_id) if done.cancelled() else None)
        return future

    def check(
        self,
        name: str,
        inputs: Mapping[str, Array],
        *,
        deadline_seconds: float,
        kept: AbstractSet[str] = frozenset(),
    ) -> Padded:
        """Return copies of the inputs of a request that could be submitted now, padded where the bundle says so.

        Raises:
            InvalidInput, UnknownDeployment, TransportError: it could not, see `submit`.
        """
        if self._closed:
            raise TransportError("the client is closed")
        if not 0 < deadline_seconds <= MAX_DEADLINE_SECONDS:
            raise InvalidInput(f"deadline of {deadline_seconds:g} s is not within 0 and {MAX_DEADLINE_SECONDS:g} s")
        route = self._loop.routes.get(name)
        if route is None:
            check_name(name, what="deployment name")
            route = self._await_route(name, min(_ROUTE_SECONDS, deadline_seconds))
        if fault := self._no_door(route.deployment):
            raise InvalidInput(fault)
        arrays = {key: np.array(as_tensor(value), order="C") for key, value in inputs.items()}
        return pad(arrays, route.manifest, kept=kept)

    def _no_door(self, deployment: Deployment) -> str:
        """Say which device inputs would have to go to through the broker, where this client has doors; else nothing."""
        first = deployment.plan.stages[0].devices if self._doors and deployment.plan is not None else ()
        away = [device for device in first if device not in self._doors]
        if not away:
            return ""
        here = ", ".join(sorted(self._doors))
        return (
            f"the first stage of {deployment.name} is on {away[0]}, which has no door here: "
            f"deploy it with --pin 0:{here.partition(',')[0]}; doors are of {here}"
        )

    def _forget(self, request_id: str) -> None:
        self._loop.events.put(Cancel(request_id=request_id))

    def infer(
        self, name: str, inputs: Mapping[str, Array], *, deadline_seconds: float = 30.0, observe: bool = False
    ) -> InferenceResult:
        """Submit a request and wait for its outcome; see `submit`.

        Raises:
            RequestError: the outcome is no result.
        """
        return self.submit(name, inputs, deadline_seconds=deadline_seconds, observe=observe).result()

    def open_stream(
        self,
        name: str,
        *,
        deadline_seconds: float = 30.0,
        observe: bool = False,
        state: Mapping[str, Array] | None = None,
    ) -> Stream:
        """Open a stream of requests that carry the state of a model from each one to the next.

        Args:
            name: of the deployment; its bundle must say which inputs are states (`shardwire package --state`).
            deadline_seconds: of each request.
            observe: as of `submit`.
            state: what to begin with, from `Stream.state`; zeros by default.

        Raises:
            InvalidInput: its model carries no state, or not that one.
            UnknownDeployment: nothing serves under this name.
            BundleError: its manifest cannot be had, or is malformed.
            TransportError: its manifest did not come in time, or the client is closed.
        """
        check_name(name, what="deployment name")

        def serving() -> Serving:
            route = self._loop.routes.get(name) or self._await_route(name, _ROUTE_SECONDS)
            deployment = route.deployment
            bundle = deployment.manifest.digest if deployment.manifest is not None else ""
            return Serving(bundle=bundle, manifest=route.manifest, plan=deployment.plan)

        def submit(
            inputs: Mapping[str, Array], deadline_seconds: float, place: Place | None
        ) -> "Future[InferenceResult]":
            kept = frozenset(input for input, array in inputs.items() if is_elsewhere(array)) if place else frozenset()
            padded = self.check(name, inputs, deadline_seconds=deadline_seconds, kept=kept)
            return self._accept(name, padded, deadline_seconds, observe=observe, place=place)

        return Stream(serving=serving, submit=submit, deadline_seconds=deadline_seconds, state=state)

    def stream(
        self,
        name: str,
        requests: Iterable[Mapping[str, Array]],
        *,
        window: int = 4,
        deadline_seconds: float = 30.0,
        observe: bool = False,
        ordered: bool = True,
    ) -> Generator[InferenceResult]:
        """Keep `window` requests in flight and yield their results, in order unless `ordered` is false.

        In order one slow request holds back the results after it, which are there by then.

        Raises:
            RequestError: a request has no result; those after it are cancelled.
        """
        waiting: deque[Future[InferenceResult]] = deque()

        def next_done() -> Future[InferenceResult]:
            if not ordered:
                done = wait(waiting, return_when=FIRST_COMPLETED).done
                first = next(future for future in waiting if future in done)
                waiting.remove(first)
                return first
            return waiting.popleft()

        try:
            for inputs in requests:
                waiting.append(self.submit(name, inputs, deadline_seconds=deadline_seconds, observe=observe))
                if len(waiting) >= window:
                    yield next_done().result()
            while waiting:
                yield next_done().result()
        finally:
            for future in waiting:
                future.cancel()
