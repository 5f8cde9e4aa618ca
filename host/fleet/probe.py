"""The probe: golden inputs through a new epoch, end to end, before it may serve. No IO and no clock."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

from edge.errors import REQUEST_ERRORS, CorruptFrame, FormatError, RequestError
from edge.formats.bundle import Manifest
from edge.formats.frame import FrameError, FrameHeader, Hop, decode_frame, encode_frame
from edge.formats.packet import Reassembler, split
from edge.formats.plan import Deployment
from edge.formats.tensor import Array
from edge.transport import Channel, Publication
from host.compare import compare
from host.fleet.identity import Caller

MAX_ATTEMPTS = 8
DEADLINE_SECONDS = 60.0
RESEND_SECONDS = 15.0
"""A slow device may need long for its first answer: its session allocates then."""

SHORT_RESEND_SECONDS = 1.0
"""Before the first frame of a short probe is sent again; twice as long before each further one."""

MAX_ROUNDS = 16
"""How many requests are made of the golden inputs at most, so that replicas answer too."""

_RETRY_SECONDS = 0.5
_HEADER_BYTES = 1024 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class GoldenCase:
    """One golden input and what the whole model answers."""

    inputs: Mapping[str, Array]
    whole: Mapping[str, Array]


class Probe:
    """Sends each golden input to stage 0 of an epoch and compares what comes back.

    Where stages have replicas the inputs go round, to each runner of stage 0 and so often that those of the other
    stages, who are given frames in turn, answer too.

    Attributes:
        sent: frames sent so far.
    """

    def __init__(
        self,
        deployment: Deployment,
        cases: Sequence[GoldenCase],
        manifest: Manifest,
        caller: Caller,
        *,
        short: bool = False,
        now: float,
    ) -> None:
        """Start; the first `tick` sends.

        Args:
            deployment: the epoch to probe.
            cases: golden inputs, and what the whole model answers.
            manifest: of the bundle.
            caller: who asks.
            short: as many requests as a stage has runners at most: for another plan of a bundle that was probed before.
            now: monotonic seconds.
        """
        if deployment.plan is None or not cases:
            raise ValueError("a probe needs a plan and a golden case")
        self._deployment = deployment
        self._first_devices = deployment.plan.stages[0].runners
        self._tolerance = manifest.tolerance
        self._caller = caller
        inner_runners = max((len(stage.runners) for stage in deployment.plan.stages[1:]), default=1)
        rounds = min(MAX_ROUNDS, inner_runners * len(self._first_devices))
        short_rounds = min(MAX_ROUNDS, max(inner_runners, len(self._first_devices)))
        self._golden = len(cases)
        self._cases = tuple(islice(cycle(cases), short_rounds if short else max(len(cases), rounds)))
        self._short = short
        self.sent = 0
        self._index = 0
        self._attempt = 0
        # Not 0: another probe of the same session may have left pieces of a frame at the device.
        self._sequence = int(now * 1000) & 0x7FFFFFFF
        self._deadline = now + DEADLINE_SECONDS
        self._send_at = now
        # Nobody may make us keep more than an answer can have.
        answer_bytes = max(sum(array.nbytes for array in case.whole.values()) for case in self._cases)
        self._reassembler = Reassembler(limit_bytes=2 * answer_bytes + _HEADER_BYTES)
        self.trace: tuple[Hop, ...] = ()
        self.failure: str | None = None

    @property
    def passed(self) -> bool:
        """Whether every case was answered rightly."""
        return self._index == len(self._cases)

    def tick(self, now: float) -> list[Publication]:
        """Send or send again what is due; give up when the time is over."""
        if self.passed or self.failure is not None:
            return []
        if now >= self._deadline:
            self.failure = f"no answer to the golden input within {DEADLINE_SECONDS:.0f} s"
            return []
        if now < self._send_at:
            return []
        if self._attempt == MAX_ATTEMPTS:
            self.failure = f"no answer to the golden input in {MAX_ATTEMPTS} attempts"
            return []
        backed_off = SHORT_RESEND_SECONDS * 2**self._attempt
        self._send_at = now + (min(RESEND_SECONDS, backed_off) if self._short else RESEND_SECONDS)
        self.sent += 1
        return list(self._frame(now))

    def receive(self, payload: bytes, now: float) -> None:
        """Take a packet from this caller's result topic; what is malformed or meant for others is dropped."""
        try:
            data = self._reassembler.add(payload, now)
            frame = None if data is None else decode_frame(data, limit_bytes=self._reassembler.limit_bytes)
        except (FormatError, CorruptFrame):
            return
        if frame is None or self.passed or self.failure is not None:
            return
        header = frame.header
        if header.request_id != self._request_id() or header.epoch != self._deployment.epoch:
            return
        if header.kind == "error" and header.error is not None:
            self._refused(header.error, now)
        elif header.kind == "result":
            self._answered(frame.tensors, header.trace, now)

    def _refused(self, error: FrameError, now: float) -> None:
        if REQUEST_ERRORS.get(error.code, RequestError).retryable and self._attempt < MAX_ATTEMPTS:
            self._send_at = min(self._send_at, now + max(_RETRY_SECONDS, error.retry_after_ms / 1000))
            return
        self.failure = f"{error.device or 'a device'} answered the golden input with {error.code}: {error.message}"

    def _answered(self, outputs: Mapping[str, Array], trace: tuple[Hop, ...], now: float) -> None:
        fault = compare(outputs, self._cases[self._index].whole, tolerance=self._tolerance)
        if fault is not None:
            which = self._index % self._golden
            self.failure = f"the answer to golden input {which} is not the whole model's: {fault}"
            return
        self.trace = trace
        self._index += 1
        self._attempt = 0
        self._send_at = now

    def _request_id(self) -> str:
        return f"probe-{self._deployment.name}-{self._deployment.epoch}-{self._index}"

    def _first_device(self) -> str:
        return self._first_devices[self._index % len(self._first_devices)]

    def _frame(self, now: float) -> Iterator[Publication]:
        caller, deployment = self._caller, self._deployment
        header = FrameHeader(
            request_id=self._request_id(),
            attempt=self._attempt,
            sender=caller.node,
            reply_to=caller.topics.result(caller.node),
            ttl_ms=int(1000 * (self._deadline - now)),
            deployment=deployment.name,
            epoch=deployment.epoch,
            stage=0,
            codec=deployment.codec,
        )
        self._attempt += 1
        self._sequence += 1
        frame = encode_frame(header, self._cases[self._index].inputs)
        topic = caller.topics.run(self._first_device(), deployment.name, deployment.epoch, 0)
        for packet in split(frame, sender=caller.node, session=caller.session, sequence=self._sequence):
            yield Publication(channel=Channel.DATA, topic=topic, payload=packet)
