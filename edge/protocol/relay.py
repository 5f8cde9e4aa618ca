"""What a stage sends after a run: the frame for the next stage, a result, or an error; pure."""

import itertools
from collections.abc import Mapping

import msgspec

from edge.errors import RequestError
from edge.formats.frame import FrameError, FrameHeader, Hop, encode_frame
from edge.formats.message import Done, Session, encode_message
from edge.formats.packet import split
from edge.formats.tensor import Array
from edge.formats.topics import Topics
from edge.protocol.effects import RunFrame
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
            error=FrameError(code=code, message=message[:500], device=self._node, retry_after_ms=retry_after_ms),
        )
        return self.frame(header.reply_to, answer, {})

    def done(self, header: FrameHeader, admitting_device: str) -> list[Publication]:
        """Return the ack that frees the admission slot of a request; none when this node is the admitting one."""
        if not admitting_device or admitting_device == self._node:
            return []
        done = Done(node=self._node, request_id=header.request_id, attempt=header.attempt)
        topic = self._topics.ack(admitting_device)
        return [Publication(channel=Channel.DATA, topic=topic, payload=encode_message(done))]

    def after_run(
        self, job: RunFrame, outputs: Mapping[str, Array], *, started: float, stopped: float
    ) -> list[Publication]:
        """Return what follows a run that went well.

        Args:
            job: what was run.
            outputs: the cut set after the stage.
            started: when the run began, on the clock of `job.arrived`.
            stopped: when it ended.
        """
        header = job.frame.header
        hop = Hop(
            stage=job.key.stage,
            device=self._node,
            queued_seconds=started - job.arrived,
            run_seconds=stopped - started,
            received_bytes=job.received_bytes,
            sent_bytes=sum(array.nbytes for array in outputs.values()),
        )
        onward = msgspec.structs.replace(
            header,
            ttl_ms=remaining_ms(job, stopped),
            trace=(*header.trace, hop),
            kind="tensor" if job.next_device else "result",
            stage=job.key.stage + 1 if job.next_device else job.key.stage,
        )
        if not job.next_device:
            # The slot first: when the client hears the result, it sends the next request.
            return self.done(header, job.admitting_device) + self.frame(header.reply_to, onward, outputs)
        topic = self._topics.run(job.next_device, header.deployment, header.epoch, onward.stage)
        return self.frame(topic, onward, outputs)

    def after_error(self, job: RunFrame, error: RequestError) -> list[Publication]:
        """Return what follows a run that failed."""
        header = job.frame.header
        return self.error(header, error.code, str(error)) + self.done(header, job.admitting_device)


def remaining_ms(job: RunFrame, now: float) -> int:
    """Return what is left of a frame's time after its residence here, in milliseconds; at least 0."""
    return max(0, job.frame.header.ttl_ms - round((now - job.arrived) * 1000))
