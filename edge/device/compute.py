"""The compute thread: runs frames through loaded stages, publishes what follows, and beats the heart."""

import logging
import queue
import threading
import time
from collections.abc import Callable

from edge.device.kept import KeptStates
from edge.device.memory import available_bytes
from edge.errors import Gone, InvalidInput, RequestError, ShardwireError, StageFailed
from edge.formats.tensor import Array
from edge.protocol.effects import AgentEvent, Beat, CloseStage, FrameDone, RunFrame, StageClosed, StageKey
from edge.protocol.relay import Relay, remaining_ms
from edge.stage import Stage
from edge.state import StateFolder
from edge.transport import Transport

_log = logging.getLogger(__name__)
BEAT_SECONDS = 1.0
SLOWNESS = 10.0
"""A run that takes longer than this many usual runs of its stage no longer counts as life."""

LEAST_RUN_SECONDS = 0.1
"""What a usual run takes at least, for that: below, the system's own pauses are longer than runs."""

UNKNOWN_RUN_SECONDS = 1.0
"""What a run takes of a stage that never ran."""


class StageTable:
    """The loaded stages: the load thread adds, the compute thread uses and removes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stages: dict[StageKey, Stage] = {}
        self._usual: dict[StageKey, float] = {}

    def add(self, key: StageKey, stage: Stage, *, usual_seconds: float = UNKNOWN_RUN_SECONDS) -> None:
        """Add a stage; one that stood under the key is closed.

        Args:
            key: of the stage.
            stage: that can run.
            usual_seconds: what a run took when it was tried.
        """
        with self._lock:
            before = self._stages.get(key)
            self._stages[key] = stage
            self._usual[key] = usual_seconds
        if before is not None:
            before.close()

    def usual_seconds(self, key: StageKey) -> float:
        """Return what a run of a stage usually takes."""
        return self._usual.get(key, UNKNOWN_RUN_SECONDS)

    def ran(self, key: StageKey, seconds: float) -> None:
        """Note what a run took."""
        with self._lock:
            if key in self._usual:
                self._usual[key] += 0.1 * (seconds - self._usual[key])

    def find(self, key: StageKey) -> Stage | None:
        """Return a stage."""
        return self._stages.get(key)

    def close(self, key: StageKey) -> None:
        """Remove a stage and free it."""
        with self._lock:
            stage = self._stages.pop(key, None)
            self._usual.pop(key, None)
        if stage is not None:
            stage.close()


class Compute:
    """Runs one frame after another, in the order of arrival, and beats the heart.

    The loop beats between runs. While a run goes on, a thread of its own beats in its place, for `SLOWNESS` usual runs
    of that stage: a slow board is alive, and a run that hangs is not.
    """

    def __init__(
        self,
        *,
        relay: Relay,
        stages: StageTable,
        state: StateFolder,
        transport: Transport,
        put: Callable[[AgentEvent], None],
        dropped: Callable[[], int] = lambda: 0,
    ) -> None:
        """Prepare.

        Args:
            relay: makes what is sent.
            stages: that are loaded.
            state: where a request is noted before it runs.
            transport: that sends.
            put: takes the events.
            dropped: counts the messages that there was no room for.
        """
        self._relay = relay
        self._stages = stages
        self._state = state
        self._transport = transport
        self._put = put
        self._jobs: queue.SimpleQueue[RunFrame | CloseStage | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._loop, name="compute", daemon=True)
        self._heart = threading.Thread(target=self._watch, name="heart", daemon=True)
        self._kept = KeptStates()
        self._ended = threading.Event()
        self._dropped = dropped
        self._running: tuple[float, float] | None = None
        self._beaten = float("-inf")
        self._frames_done = 0
        self._warned = ""

    @property
    def frames_done(self) -> int:
        """Frames that were run so far."""
        return self._frames_done

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()
        self._heart.start()

    def do(self, job: RunFrame | CloseStage) -> None:
        """Queue a job; the session bounds how many there are."""
        self._jobs.put(job)

    def stop(self, timeout_seconds: float) -> None:
        """End after the run that is going on."""
        self._ended.set()
        self._jobs.put(None)
        self._thread.join(timeout_seconds)
        self._heart.join(timeout_seconds)

    def _loop(self) -> None:
        beat_at = time.monotonic()
        while True:
            now = time.monotonic()
            if now >= beat_at:
                self._beat(now)
                beat_at = now + BEAT_SECONDS
            try:
                job = self._jobs.get(timeout=beat_at - now if beat_at > now else 0.0)
            except queue.Empty:
                continue
            if job is None:
                return
            if isinstance(job, CloseStage):
                self._stages.close(job.key)
                self._kept.close(job.key)
                self._put(StageClosed(key=job.key))
            else:
                self._run(job)

    def _watch(self) -> None:
        while not self._ended.wait(BEAT_SECONDS / 4):
            now = time.monotonic()
            running = self._running
            if running is None or now - self._beaten < BEAT_SECONDS:
                continue
            if beats_in_run(now, started=running[0], usual_seconds=running[1]):
                self._beat(now)

    def _beat(self, now: float) -> None:
        self._beaten = now
        self._put(
            Beat(
                frames_done=self._frames_done,
                free_memory_bytes=available_bytes(),
                dropped_messages=self._dropped(),
            )
        )

    def _run(self, job: RunFrame) -> None:
        started = time.monotonic()
        stopped = started
        header = job.frame.header
        ended, did_fail = True, False
        try:
            if remaining_ms(job, started) > 0:
                outputs = self._run_stage(job, started)
                stopped = time.monotonic()
                self._stages.ran(job.key, stopped - started)
                publications = self._relay.after_run(job, outputs, started=started, stopped=stopped)
                ended = not job.onward
                self._frames_done += 1
            else:
                publications = []
        except InvalidInput as error:
            publications = self._relay.after_error(job, error)
        except ShardwireError as error:
            failed = error if isinstance(error, RequestError) else StageFailed(str(error))
            self._warn(job.key, failed)
            did_fail = isinstance(failed, StageFailed)
            publications = self._relay.after_error(job, failed)
        except Exception as error:  # noqa: BLE001 - a fault of ours must not end the thread
            _log.exception("run of %s failed", job.key)
            publications = self._relay.after_error(job, StageFailed(f"fault of the agent: {type(error).__name__}"))
            did_fail = True
        for publication in publications:
            self._transport.publish(publication)
        self._put(
            FrameDone(
                key=job.key,
                request_id=header.request_id,
                run_seconds=stopped - started,
                queued_seconds=started - job.arrived,
                ended=ended,
                failed=did_fail,
            )
        )

    def _run_stage(self, job: RunFrame, started: float) -> dict[str, Array]:
        self._state.enter(job.frame.header.request_id, job.key.deployment, job.key.epoch)
        self._running = (started, self._stages.usual_seconds(job.key))
        try:
            stage, header = self._stage(job.key), job.frame.header
            if not header.stream:
                return stage.run(job.frame.tensors)
            return self._kept.run(stage, job.key, header, job.frame.tensors, started)
        finally:
            self._running = None
            self._state.leave()

    def _warn(self, key: StageKey, error: RequestError) -> None:
        """Log why a run failed, once for the same reason: bad requests must not fill the disk."""
        reason = f"stage {key.stage} of {key.deployment} {key.epoch}: {error}"
        if reason != self._warned:
            self._warned = reason
            _log.warning("%s", reason)

    def _stage(self, key: StageKey) -> Stage:
        stage = self._stages.find(key)
        if stage is None:
            raise Gone(f"stage {key.stage} of {key.deployment} {key.epoch} was closed")
        return stage


def beats_in_run(now: float, *, started: float, usual_seconds: float) -> bool:
    """Tell whether a run that goes on counts as life.

    Args:
        now: monotonic seconds.
        started: when the run began.
        usual_seconds: what a run of the stage usually takes.
    """
    return now - started <= SLOWNESS * max(LEAST_RUN_SECONDS, usual_seconds)
