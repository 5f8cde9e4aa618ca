"""The load of a chaos run: a client that submits at a rate, whatever becomes of its requests, and notes everything."""

from __future__ import annotations

import gc
import math
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from edge.client import Client, InferenceResult
from edge.errors import Busy, RequestError, ShardwireError
from edge.formats.tensor import Array
from host.chaos.answers import Answers
from host.chaos.oracle import Mark, Sample, recovery

_GRACE_SECONDS = 5.0
_FIRST_SECONDS = 30.0


@dataclass(slots=True)
class _Request:
    submitted: float
    index: int
    accepted: bool = False
    done: float = math.inf
    outcome: str = ""
    outcomes: int = 0
    epoch: str = ""
    outputs: Mapping[str, Array] | None = None
    attempts: int = 1
    poisonous: bool = False
    right: bool | None = None


class LoadDriver:
    """Submits in a thread of its own for the length of a `with` block."""

    def __init__(
        self,
        url: str,
        *,
        fleet: str,
        deployment: str,
        answers: Answers,
        digest: Callable[[str], str | None],
        rate: float,
        deadline_seconds: float,
    ) -> None:
        """Prepare.

        Args:
            url: of the broker.
            fleet: its name.
            deployment: that is asked.
            answers: inputs and what they should give.
            digest: of the manifest that an epoch runs, None when it is not known (yet).
            rate: requests a second.
            deadline_seconds: of each.
        """
        self._answers = answers
        self._digest = digest
        self._deployment = deployment
        self._rate = rate
        self._deadline = deadline_seconds
        self._lock = threading.Lock()
        self._requests: list[_Request] = []
        self._ending = threading.Event()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="chaos-load", daemon=True)
        self._client = Client.connect(url, fleet=fleet, timeout_seconds=10.0)

    def __enter__(self) -> Self:
        """Ask once, so that the way is known, and begin.

        Raises:
            ShardwireError: nothing answers.
        """
        try:
            self._client.infer(self._deployment, self._answers.inputs[0], deadline_seconds=_FIRST_SECONDS)
        except BaseException:
            self._client.close()
            raise
        # A client holds far less than this process: what it holds for other reasons must not stop it now and then.
        gc.freeze()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop at once."""
        self._ending.set()
        self._thread.join(_GRACE_SECONDS)
        self._client.close()

    @property
    def deployment(self) -> str:
        """The deployment that is asked."""
        return self._deployment

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self._rate

    @property
    def deadline_seconds(self) -> float:
        """Of each request."""
        return self._deadline

    @property
    def client_name(self) -> str:
        """Node name of the client."""
        return self._client.name

    def finish(self) -> list[Sample]:
        """Submit no more, wait until every request has its outcome or its deadline is long over, and return them."""
        self._ending.set()
        self._thread.join(self._deadline)
        end = time.monotonic() + self._deadline + _GRACE_SECONDS
        with self._changed:
            while self._open() and (left := end - time.monotonic()) > 0:
                self._changed.wait(min(left, 0.5))
        return self.samples()

    def samples(self) -> list[Sample]:
        """Return what is known of every request by now."""
        with self._lock:
            return [self._sample(request) for request in self._requests]

    def wait(self, mark: Mark, timeout_seconds: float) -> bool:
        """Wait until the fleet has recovered from a fault; tell whether it has."""
        end = time.monotonic() + timeout_seconds
        while math.isinf(recovery(self.samples(), mark)):
            if time.monotonic() > end:
                return False
            with self._changed:
                self._changed.wait(0.1)
        return True

    def until(self, moment: float) -> None:
        """Let the load go on until a moment of the monotonic clock."""
        self._ending.wait(max(0.0, moment - time.monotonic()))

    def submit(self, inputs: Mapping[str, Array], *, poisonous: bool = False) -> Future[InferenceResult] | None:
        """Submit one more request beside the load; it is judged only by having an outcome."""
        return self._submit(_Request(submitted=time.monotonic(), index=-1, poisonous=poisonous), inputs)

    def _open(self) -> bool:
        with self._lock:
            return any(request.accepted and not request.outcome for request in self._requests)

    def _sample(self, request: _Request) -> Sample:
        if request.right is None and request.outputs is not None and self._digest(request.epoch) is not None:
            request.right, request.outputs = self._right(request), None
        return Sample(
            submitted=request.submitted,
            accepted=request.accepted,
            done=request.done,
            outcome=request.outcome,
            outcomes=request.outcomes,
            epoch=request.epoch,
            # An answer of an epoch that nobody ever heard of is no answer.
            right=request.right is not False and request.outputs is None,
            attempts=request.attempts,
            poisonous=request.poisonous,
        )

    def _right(self, request: _Request) -> bool:
        return request.index < 0 or self._answers.right(
            self._digest(request.epoch), request.index, request.outputs or {}
        )

    def _run(self) -> None:
        begin, count = time.monotonic(), 0
        while not self._ending.wait(max(0.0, begin + count / self._rate - time.monotonic())):
            index = count % len(self._answers.inputs)
            self._submit(_Request(submitted=time.monotonic(), index=index), self._answers.inputs[index])
            count += 1

    def _submit(self, request: _Request, inputs: Mapping[str, Array]) -> Future[InferenceResult] | None:
        with self._lock:
            self._requests.append(request)
        try:
            future = self._client.submit(self._deployment, inputs, deadline_seconds=self._deadline)
        except Busy:
            request.outcome = Busy.code
            return None
        except ShardwireError:
            return None
        request.accepted = True
        future.add_done_callback(lambda done: self._ended(request, done))
        return future

    def _ended(self, request: _Request, future: Future[InferenceResult]) -> None:
        request.done = time.monotonic()
        request.outcomes += 1
        try:
            result = future.result()
        except CancelledError:
            return  # by us
        except RequestError as error:
            request.outcome = error.code
        else:
            request.epoch, request.attempts = result.epoch, result.attempts
            request.outputs, request.outcome = result.outputs, "result"
        with self._changed:
            self._changed.notify_all()
