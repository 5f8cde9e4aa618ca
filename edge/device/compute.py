"""The compute thread: runs frames through loaded stages, publishes what follows, and beats the heart."""

import logging
import queue
import threading
import time
from collections.abc import Callable

from edge.device.memory import available_bytes
from edge.errors import Gone, InvalidInput, RequestError, ShardwireError, StageFailed
from edge.protocol.effects import AgentEvent, Beat, CloseStage, FrameDone, RunFrame, StageKey
from edge.protocol.relay import Relay, remaining_ms
from edge.stage import Stage
from edge.state import StateFolder
from edge.transport import Transport

_log = logging.getLogger(__name__)
BEAT_SECONDS = 1.0


class StageTable:
    """The loaded stages: the load thread adds, the compute thread uses and removes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stages: dict[StageKey, Stage] = {}

    def add(self, key: StageKey, stage: Stage) -> None:
        """Add a stage; one that stood under the key is closed."""
        with self._lock:
            before = self._stages.get(key)
            self._stages[key] = stage
        if before is not None:
            before.close()

    def find(self, key: StageKey) -> Stage | None:
        """Return a stage."""
        return self._stages.get(key)

    def close(self, key: StageKey) -> None:
        """Remove a stage and free it."""
        with self._lock:
            stage = self._stages.pop(key, None)
        if stage is not None:
            stage.close()


class Compute:
    """Runs one frame after another, in the order of arrival."""

    def __init__(
        self,
        *,
        relay: Relay,
        stages: StageTable,
        state: StateFolder,
        transport: Transport,
        put: Callable[[AgentEvent], None],
    ) -> None:
        self._relay = relay
        self._stages = stages
        self._state = state
        self._transport = transport
        self._put = put
        self._jobs: queue.SimpleQueue[RunFrame | CloseStage | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._loop, name="compute", daemon=True)
        self._frames_done = 0
        self._warned = ""

    @property
    def frames_done(self) -> int:
        """Frames that were run so far."""
        return self._frames_done

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def do(self, job: RunFrame | CloseStage) -> None:
        """Queue a job; the session bounds how many there are."""
        self._jobs.put(job)

    def stop(self, timeout_seconds: float) -> None:
        """End after the run that is going on."""
        self._jobs.put(None)
        self._thread.join(timeout_seconds)

    def _loop(self) -> None:
        beat_at = time.monotonic()
        while True:
            now = time.monotonic()
            if now >= beat_at:
                self._put(Beat(frames_done=self._frames_done, free_memory_bytes=available_bytes()))
                beat_at = now + BEAT_SECONDS
            try:
                job = self._jobs.get(timeout=beat_at - now if beat_at > now else 0.0)
            except queue.Empty:
                continue
            if job is None:
                return
            if isinstance(job, CloseStage):
                self._stages.close(job.key)
            else:
                self._run(job)

    def _run(self, job: RunFrame) -> None:
        started = time.monotonic()
        stopped = started
        header = job.frame.header
        ended = True
        try:
            if remaining_ms(job, started) > 0:
                self._state.enter(header.request_id)
                try:
                    outputs = self._stage(job.key).run(job.frame.tensors)
                finally:
                    self._state.leave()
                stopped = time.monotonic()
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
            publications = self._relay.after_error(job, failed)
        except Exception as error:  # noqa: BLE001 - a fault of ours must not end the thread
            _log.exception("run of %s failed", job.key)
            publications = self._relay.after_error(job, StageFailed(f"fault of the agent: {type(error).__name__}"))
        for publication in publications:
            self._transport.publish(publication)
        self._put(
            FrameDone(
                key=job.key,
                request_id=header.request_id,
                run_seconds=stopped - started,
                queued_seconds=started - job.arrived,
                ended=ended,
            )
        )

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
