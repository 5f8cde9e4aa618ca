"""The load thread: verifies the blobs of a stage and loads it beside those that run."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

from edge.device.compute import UNKNOWN_RUN_SECONDS, StageTable
from edge.device.memory import resident_bytes
from edge.errors import DigestMismatch, ShardwireError, StageError
from edge.formats.bundle import SHARD_FORMATS
from edge.formats.tensor import Array, TensorSpec, zeros_of
from edge.protocol.effects import AgentEvent, BlobsDropped, LoadStage, StageLoaded, StageRefused
from edge.runtimes.base import StageOptions
from edge.runtimes.table import load_runtime
from edge.stage import Stage, load_stage
from edge.state import StateFolder
from edge.store import BlobStore

_log = logging.getLogger(__name__)


class Loader:
    """Loads one stage after another."""

    def __init__(
        self,
        *,
        store: BlobStore,
        stages: StageTable,
        threads: int,
        providers: Mapping[str, tuple[str, ...]],
        mode: Literal["default", "exact"] | None,
        state: StateFolder,
        put: Callable[[AgentEvent], None],
    ) -> None:
        """Prepare.

        Args:
            store: where the blobs are.
            stages: where loaded stages go.
            threads: of one operator.
            providers: execution providers in order of preference, by runtime.
            mode: overrides the deployment's; None does not.
            state: where an epoch is noted before it is loaded.
            put: takes the events.
        """
        self._store = store
        self._stages = stages
        self._threads = threads
        self._providers = providers
        self._mode = mode
        self._state = state
        self._put = put
        self._jobs: queue.SimpleQueue[LoadStage | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._loop, name="load", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def do(self, job: LoadStage) -> None:
        """Queue a stage."""
        self._jobs.put(job)

    def stop(self, timeout_seconds: float) -> None:
        """End after the stage that is being loaded."""
        self._jobs.put(None)
        self._thread.join(timeout_seconds)

    def _loop(self) -> None:
        while (job := self._jobs.get()) is not None:
            started = time.monotonic()
            try:
                self._state.loading(job.key.deployment, job.key.epoch)
                self._load(job)
            except DigestMismatch as error:
                # The store has removed it; the session may get it again.
                held, free = self._store.hold_bytes, self._store.free_bytes
                self._put(BlobsDropped(digests=(error.expected,), held_bytes=held, free_disk_bytes=free))
                self._put(StageRefused(key=job.key, code="DigestMismatch", reason=str(error)))
            except ShardwireError as error:
                self._put(StageRefused(key=job.key, code=type(error).__name__, reason=str(error)))
            except Exception as error:  # noqa: BLE001 - a fault of ours must not end the thread
                _log.exception("loading %s failed", job.key)
                reason = f"fault of the agent: {type(error).__name__}: {error}"
                self._put(StageRefused(key=job.key, code=type(error).__name__, reason=reason))
            else:
                seconds = time.monotonic() - started
                self._put(StageLoaded(key=job.key, load_seconds=seconds, rss_bytes=resident_bytes()))
            finally:
                self._state.loaded()

    def _load(self, job: LoadStage) -> None:
        view = job.manifest.in_format(SHARD_FORMATS.get(job.runtime, "onnx"))
        graphs = {shard.graph.digest for shard in view.shards[job.first_shard : job.stop_shard]}
        for blob in view.blobs(job.first_shard, job.stop_shard) if view.shard_format == "onnx" else ():
            # What is read is verified by that; ONNX Runtime maps the weights from their files, so they are hashed here.
            if blob.digest not in graphs:
                self._store.verify(blob.digest)
        options = StageOptions(
            threads=self._threads,
            mode=self._mode or job.mode,
            providers=self._providers.get(job.runtime, ("CPUExecutionProvider",)),
        )
        stage = load_stage(
            job.manifest,
            job.first_shard,
            job.stop_shard,
            route=job.route,
            runtime=load_runtime(job.runtime),
            options=options,
            read_blob=lambda blob: self._store.read(blob.digest),
            weights_folder=self._store.weights_folder,
            arrives=job.arrives,
            leaves=job.leaves,
        )
        self._stages.add(job.key, stage, usual_seconds=self._try(job, stage))

    def _try(self, job: LoadStage, stage: Stage) -> float:
        """Run a stage once on zeros and return the seconds: the first run of a session is slow, and tells if it works.

        Raises:
            StageError: it does not run, and must; elsewhere the probe says so of real inputs.
        """
        started = time.monotonic()
        tensors = zeros(stage.arriving.values())
        if tensors is None:
            return UNKNOWN_RUN_SECONDS
        try:
            stage.run(tensors)
        except StageError as error:
            if job.must_run:
                stage.close()
                raise
            _log.info("stage %d of %s does not run on zeros: %s", job.key.stage, job.key.deployment, error)
        return time.monotonic() - started


def zeros(specs: Iterable[TensorSpec]) -> dict[str, Array] | None:
    """Return tensors of zeros, by name; None where a dimension depends on the input."""
    tensors: dict[str, Array] = {}
    for spec in specs:
        shape = [dim for dim in spec.shape if dim is not None]
        if len(shape) != len(spec.shape):
            return None
        tensors[spec.name] = zeros_of(spec.dtype, shape)
    return tensors
