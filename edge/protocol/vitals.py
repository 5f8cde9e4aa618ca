"""Signs of life: the heartbeat and the counters of an agent. Part of the session."""

from collections.abc import Callable
from dataclasses import dataclass, field

from edge.formats.message import Heartbeat, Metrics, Session, Transfer
from edge.formats.topics import Topics
from edge.protocol.blobs import BlobCounters
from edge.protocol.effects import Beat, FrameDone, StageKey
from edge.protocol.epochs import Epochs
from edge.protocol.intake import Intake
from edge.protocol.loads import Loads
from edge.protocol.presence import Presence, control
from edge.transport import Publication

METRICS_SECONDS = 5.0
_ALMOST = 0.5
"""Beats are not exact: one that comes this much early is on time."""


@dataclass(kw_only=True, slots=True)
class Vitals:
    """Makes heartbeats and metrics from what the parts of a session count."""

    topics: Topics
    presence: Presence
    intake: Intake
    epochs: Epochs
    loads: Loads = field(default_factory=Loads)
    _beat: Beat | None = None
    _told: float = float("-inf")

    def frame_done(self, event: FrameDone, now: float) -> None:
        """A frame was run, or given up."""
        self.loads.done(event, now)

    def heartbeat(self, beat: Beat, now: float, *, data_up: bool) -> Publication:
        """Return the heartbeat that follows from a beat of the compute loop."""
        self._beat = beat
        heartbeat = Heartbeat(
            node=self.presence.identity.name,
            session=self._session,
            frames_done=beat.frames_done,
            oldest_queued_seconds=self.intake.oldest_seconds(now),
            data_up=data_up,
            stages=self.loads.report(self._is_loaded),
        )
        return control(self.topics.heartbeat(self.presence.identity.name), heartbeat, qos=0)

    def again(self, now: float, *, data_up: bool) -> list[Publication]:
        """Say at once that the data connection is cut, or stands again: who waits for that does not wait for a beat.

        Nothing is said before the first beat, and what the compute loop has done is as at the last one.
        """
        if self._beat is None or not self.presence.online:
            return []
        return [self.heartbeat(self._beat, now, data_up=data_up)]

    def metrics(
        self, beat: Beat, now: float, *, blobs: BlobCounters, transfers: Callable[[], tuple[Transfer, ...]]
    ) -> list[Publication]:
        """Return the counters every `METRICS_SECONDS`.

        Args:
            beat: of the compute loop.
            now: monotonic seconds.
            blobs: what was fetched and given.
            transfers: returns what is on its way.
        """
        if now - self._told < METRICS_SECONDS - _ALMOST:
            return []
        self._told = now
        me = self.presence.identity
        waiting = self.intake.waiting()
        metrics = Metrics(
            node=me.name,
            session=self._session,
            uptime_seconds=max(0.0, now - me.started),
            frames_done=beat.frames_done,
            frames_failed=self.loads.failed,
            refused=dict(sorted(self.intake.refused.items())),
            too_late=self.intake.all_too_late,
            dropped_messages=beat.dropped_messages,
            queued_frames=waiting[0],
            queued_bytes=waiting[1],
            run_p50_seconds=self.loads.percentile(0.5),
            run_p99_seconds=self.loads.percentile(0.99),
            fetched_bytes=blobs.fetched_bytes,
            served_bytes=blobs.served_bytes,
            repeated_blocks=blobs.repeated_blocks,
            held_bytes=self.presence.held_bytes,
            free_disk_bytes=self.presence.free_disk_bytes,
            free_memory_bytes=beat.free_memory_bytes,
            transfers=transfers(),
        )
        return [control(self.topics.metrics(me.name), metrics, qos=0)]

    def _is_loaded(self, key: StageKey) -> bool:
        return self.epochs.find(key.deployment, key.epoch) is not None

    @property
    def _session(self) -> Session:
        return self.presence.session
