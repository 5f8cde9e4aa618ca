"""Streams of requests that carry state from each one to the next, such as the memory of a recurrent network.

The client carries the state: each request has it among its inputs and each answer among its outputs. So stages stay
pure, any replica may run any request of a stream, and a device that dies takes nothing with it. A state that a bundle
marks as kept stays on the device instead, where one stage both reads and makes it: less to send, and lost with the
device or its epoch.
"""

import dataclasses
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

import numpy as np

from edge.errors import Cancelled, DeadlineExceeded, InvalidInput, StreamLost, TransportError
from edge.formats.bundle import Manifest, StreamState
from edge.formats.plan import Plan
from edge.formats.streams import ELSEWHERE
from edge.formats.tensor import Array, TensorSpec, as_tensor, check_inputs, matches, spec_of, zeros_of
from edge.protocol.pending import InferenceResult, Place


def is_carried(inputs: Mapping[str, Array], manifest: Manifest) -> bool:
    """Tell whether a request leaves the states of its model to the stream that it is part of."""
    return bool(manifest.states) and not any(state.input in inputs for state in manifest.states)


def kept_states(manifest: Manifest, plan: Plan | None) -> tuple[StreamState, ...]:
    """Return the states that devices keep under a plan.

    Those are marked so in the bundle, read by one stage only, made by that same stage and read by no other, and alike
    in every build.
    """
    if plan is None:
        return ()
    formed = {form.name for build in manifest.builds for form in build.forms}
    stage_of = [stage.index for stage in plan.stages for _ in range(stage.first_shard, stage.stop_shard)]
    if len(stage_of) != len(manifest.shards):
        return ()
    found = []
    for state in manifest.states:
        maker = next(
            (place for place in range(len(stage_of)) if state.output in manifest.cut_before(place + 1)),
            len(stage_of) - 1,
        )
        readers = {
            stage_of[place]
            for place, shard in enumerate(manifest.shards)
            if state.input in shard.reads or (state.output in shard.reads and stage_of[place] != stage_of[maker])
        }
        if state.kept and readers == {stage_of[maker]} and not formed & {state.input, state.output}:
            found.append(state)
    return tuple(found)


class CarriedState:
    """The state of one stream, between two of its requests.

    Attributes:
        values: by the name of the input that they are next.
    """

    def __init__(
        self,
        manifest: Manifest,
        values: Mapping[str, Array] | None = None,
        *,
        kept: Sequence[StreamState] = (),
    ) -> None:
        """Begin with zeros, or with the values of an earlier one.

        Args:
            manifest: of the bundle.
            values: of `values`, once.
            kept: states that devices keep.

        Raises:
            InvalidInput: the model carries no state, or other values.
        """
        if not manifest.states:
            raise InvalidInput(
                f"{manifest.name} carries no state: package it with --state INPUT=OUTPUT, or use requests of their own"
            )
        self._kept = tuple(kept)
        self._states = tuple(state for state in manifest.states if state not in self._kept)
        self._inputs: dict[str, TensorSpec] = {spec.name: spec for spec in manifest.inputs}
        self.values: dict[str, Array] = {}
        self.reset()
        if values is not None:
            if problem := check_inputs(dict(values), [self._inputs[name] for name in self.values]):
                raise InvalidInput(f"state to begin with: {problem}")
            self.values = dict(values)

    def reset(self) -> None:
        """Begin again with zeros."""
        specs = [self._inputs[state.input] for state in self._states]
        self.values = {spec.name: zeros_of(spec.dtype, [dim or 0 for dim in spec.shape]) for spec in specs}

    def feed(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the inputs of the next request, with the state.

        Raises:
            InvalidInput: a state is given that the stream carries.
        """
        away = {state.input: ELSEWHERE for state in self._kept}
        if given := sorted(inputs.keys() & (self.values.keys() | away.keys())):
            raise InvalidInput(f"input {given[0]!r} is carried by the stream: leave it out")
        return {**inputs, **self.values, **away}

    def take(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        """Keep the state out of an answer, and return the rest of it.

        Raises:
            InvalidInput: what came is not of the dtype and shape that the next request needs.
        """
        after: dict[str, Array] = {}
        for state in self._states:
            array, wanted = outputs[state.output], self._inputs[state.input]
            if not matches(spec_of(state.output, array), wanted):
                raise InvalidInput(
                    f"state {state.output!r} came as {array.dtype}{list(array.shape)}, the next request takes "
                    f"{wanted.dtype}{list(wanted.shape)}"
                )
            after[state.input] = array
        self.values = after
        carried = {state.output for state in self._states}
        return {name: array for name, array in outputs.items() if name not in carried}


@dataclass(frozen=True, kw_only=True, slots=True)
class Serving:
    """What serves a deployment now.

    Attributes:
        bundle: digest of its manifest.
    """

    bundle: str
    manifest: Manifest
    plan: Plan | None


class Submit(Protocol):
    """Sends one request of a stream."""

    def __call__(
        self, inputs: Mapping[str, Array], deadline_seconds: float, place: Place | None
    ) -> "Future[InferenceResult]":
        """Send it; `place` where devices keep the state."""


class Stream:
    """Requests of one deployment, one after another, each with the state that the one before it left. Thread-safe.

    `Client.open_stream` opens one; close it, or use it in a `with` block. A request that has no result leaves the state
    as it was, and the next one goes on from there; whoever would rather begin again calls `reset`. A deployment that is
    moved goes on; one that gets other weights begins again with zeros. Where devices keep the state, a request that
    does not find it ends with `StreamLost`, and the next one begins with zeros.
    """

    def __init__(
        self,
        *,
        serving: Callable[[], Serving],
        submit: Submit,
        deadline_seconds: float,
        state: Mapping[str, Array] | None = None,
    ) -> None:
        """Begin with zeros, or with a state.

        Args:
            serving: says what serves now; may wait.
            submit: sends one request.
            deadline_seconds: for requests that do not say.
            state: of an earlier stream, see `state`; with one the client carries every state.

        Raises:
            InvalidInput: the model carries no state, or not that one.
            ShardwireError: nothing serves.
        """
        self._serving = serving
        self._submit = submit
        self._deadline_seconds = deadline_seconds
        self._may_keep = state is None
        self._sequence = 0
        self._begin(serving(), state)
        self._lock = threading.Lock()
        self._closed = False
        self._sent: Future[InferenceResult] | None = None
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="shardwire-stream")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def state(self) -> dict[str, Array]:
        """What the next request begins with, by input name: to be kept by who wants to go on in another process.

        States that devices keep are not among it.
        """
        return dict(self._carried.values)

    def submit(
        self, inputs: Mapping[str, Array], *, deadline_seconds: float | None = None
    ) -> "Future[InferenceResult]":
        """Take a request, to be sent once those before it have their outcomes.

        Args:
            inputs: every input of the model but the states, by name; copied.
            deadline_seconds: from now on, the wait for its turn included.

        Returns:
            The outcome, as of `Client.submit`, what that raises included; without the states among the outputs.
            `cancel()` on it works until it is sent.

        Raises:
            TransportError: the stream is closed.
        """
        arrays = {name: np.array(as_tensor(value), order="C") for name, value in inputs.items()}
        seconds = self._deadline_seconds if deadline_seconds is None else deadline_seconds
        try:
            return self._worker.submit(self._run, arrays, time.monotonic() + seconds, seconds)
        except RuntimeError as error:
            raise TransportError("the stream is closed") from error

    def infer(self, inputs: Mapping[str, Array], *, deadline_seconds: float | None = None) -> InferenceResult:
        """Submit a request and wait for its outcome; see `submit`.

        Raises:
            RequestError: the outcome is no result.
            ShardwireError: it could not be sent.
        """
        return self.submit(inputs, deadline_seconds=deadline_seconds).result()

    def reset(self) -> None:
        """Begin again with zeros, after what was submitted before; returns when that has its outcomes.

        Raises:
            TransportError: the stream is closed.
        """
        try:
            self._worker.submit(self._reset).result()
        except RuntimeError as error:
            raise TransportError("the stream is closed") from error

    def close(self) -> None:
        """End; requests without an outcome are cancelled. Idempotent."""
        with self._lock:
            self._closed = True
            if self._sent is not None:
                self._sent.cancel()
        self._worker.shutdown(cancel_futures=True)

    def _begin(self, serving: Serving, state: Mapping[str, Array] | None = None) -> None:
        self._bundle = serving.bundle
        self._kept = kept_states(serving.manifest, serving.plan) if self._may_keep else ()
        self._carried = CarriedState(serving.manifest, state, kept=self._kept)
        self._stream, self._after = uuid.uuid4().hex, -1

    def _reset(self) -> None:
        self._carried.reset()
        self._after = -1

    def _run(self, inputs: dict[str, Array], deadline: float, seconds: float) -> InferenceResult:
        left = deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded(f"its turn in the stream did not come within {seconds:g} s")
        serving = self._serving()
        if serving.bundle != self._bundle:
            self._begin(serving)
        elif self._may_keep and kept_states(serving.manifest, serving.plan) != self._kept:
            before = self._after
            self._begin(serving)
            if before >= 0:
                raise StreamLost("the plan changed, and the devices that kept the state of the stream with it")
        place = self._place()
        sent = self._submit(self._carried.feed(inputs), left, place)
        with self._lock:
            self._sent = sent
            if self._closed:
                sent.cancel()
        try:
            result = sent.result()
        except CancelledError as error:
            raise Cancelled("the stream was closed") from error
        except StreamLost:
            self._begin(serving)
            raise
        outputs = self._carried.take(result.outputs)
        self._after = place.sequence if place is not None else -1
        return dataclasses.replace(result, outputs=outputs)

    def _place(self) -> Place | None:
        """Where the next request is, by a number that no other of the stream has."""
        if not self._kept:
            return None
        self._sequence += 1
        kept = frozenset(state.output for state in self._kept)
        return Place(stream=self._stream, sequence=self._sequence, after=self._after, kept=kept)
