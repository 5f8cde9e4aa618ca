"""What a stage sends after a run: the frames for the next step, a result, or an error; no IO, no clock."""

import itertools
from collections.abc import Mapping, Sequence

import msgspec

from edge.errors import RequestError
from edge.formats.frame import FrameError, FrameHeader, Hop, encode_frame
from edge.formats.message import Done, Session, State, Taken, encode_message
from edge.formats.packet import split
from edge.formats.tensor import Array
from edge.formats.topics import Topics
from edge.protocol.effects import Onward, RunFrame
from edge.protocol.runners import FrameKey, Runners
from edge.transport import Channel, Publication


class Relay:
    """Makes the publications of one node; safe to use from several threads."""

    def __init__(self, *, topics: Topics, node: str, session: Session) -> None:
        """Start with the first frame.

        Args:
            topics: of the fleet.
            node: name of this node.
            session: any session of this process; with the sequence it makes a frame's key unique.
        """
        self._topics = topics
        self._node = node
        self._session = session
        self._sequence = itertools.count()
        self._runners = Runners(node)

    def frame(self, topic: str, header: FrameHeader, tensors: Mapping[str, Array]) -> list[Publication]:
        """Return the packets of a frame, in order."""
        header = msgspec.structs.replace(header, sender=self._node)
        packets = split(
            encode_frame(header, tensors), sender=self._node, session=self._session, sequence=next(self._sequence)
        )
        return [Publication(channel=Channel.DATA, topic=topic, payload=packet) for packet in packets]

    def error(self, header: FrameHeader, code: str, message: str, *, retry_after_ms: int = 0) -> list[Publication]:
        """Return the error that answers the frame with `header`."""
        answer = msgspec.structs.replace(
            header,
            kind="error",
            tensors=(),
            part=0,
            parts=1,
            error=FrameError(code=code, message=message[:500], device=self._node, retry_after_ms=retry_after_ms),
        )
        return self.frame(header.reply_to, answer, {})

    def done(self, header: FrameHeader, admitting: Sequence[str]) -> list[Publication]:
        """Return the acks that free the admission slot of a request; none for this node itself."""
        payload = encode_message(Done(node=self._node, request_id=header.request_id, attempt=header.attempt))
        topics = [self._topics.ack(device) for device in admitting if device != self._node]
        return [Publication(channel=Channel.DATA, topic=topic, payload=payload) for topic in topics]

    def taken(self, taken: Taken) -> None:
        """Note that the receiver of a frame has it."""
        self._runners.taken(taken.node, FrameKey(taken.request_id, taken.attempt, taken.stage))

    def state(self, state: State) -> None:
        """Note whether a device is there: frames go to others while it is away."""
        self._runners.state(state)

    def after_run(
        self, job: RunFrame, outputs: Mapping[str, Array], *, started: float, stopped: float
    ) -> list[Publication]:
        """Return what follows a run that went well.

        Args:
            job: what was run.
            outputs: what the stage sends.
            started: when the run began, on the clock of `job.arrived`.
            stopped: when it ended.
        """
        header = job.frame.header
        # A tensor that goes to two stages leaves twice.
        leaving = [name for onward in job.onward for name in onward.hand.names] if job.onward else list(outputs)
        hop = Hop(
            stage=job.key.stage,
            device=self._node,
            queued_seconds=started - job.arrived,
            run_seconds=stopped - started,
            received_bytes=job.received_bytes,
            sent_bytes=sum(outputs[name].nbytes for name in leaving),
        )
        after = msgspec.structs.replace(
            header,
            ttl_ms=remaining_ms(job, stopped),
            trace=(*header.trace, hop),
            codec=job.codec,
            part=0,
            parts=1,
        )
        if not job.onward:
            result = msgspec.structs.replace(after, kind="result")
            # The slot first: when the client hears the result, it sends the next request.
            return self.done(header, job.admitting) + self.frame(header.reply_to, result, outputs)
        publications: list[Publication] = []
        for onward in job.onward:
            hand = onward.hand
            frame = msgspec.structs.replace(after, stage=hand.stage, part=hand.part, parts=hand.parts)
            topic = self._topics.run(self._receiver(onward, frame, stopped), frame.deployment, frame.epoch, hand.stage)
            publications += self.frame(topic, frame, {name: outputs[name] for name in hand.names})
        return publications

    def _receiver(self, onward: Onward, header: FrameHeader, now: float) -> str:
        """Return which device gets a frame; parts of one request must meet, whoever sends them."""
        if header.stream:  # whoever keeps its state
            return self._runners.meet(onward.runners, header.stream, 0, standbys=onward.standbys)
        if onward.hand.parts > 1:
            return self._runners.meet(onward.runners, header.request_id, header.attempt, standbys=onward.standbys)
        key = FrameKey(header.request_id, header.attempt, header.stage)
        return self._runners.choose(onward.runners, key, now, standbys=onward.standbys)

    def after_error(self, job: RunFrame, error: RequestError) -> list[Publication]:
        """Return what follows a run that failed."""
        header = job.frame.header
        return self.error(header, error.code, str(error)) + self.done(header, job.admitting)


def remaining_ms(job: RunFrame, now: float) -> int:
    """Return what is left of a frame's time after its residence here, in milliseconds; at least 0."""
    return max(0, job.frame.header.ttl_ms - round((now - job.arrived) * 1000))
