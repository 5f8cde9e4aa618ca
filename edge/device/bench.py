"""The bench thread: times shards and messages beside what is served."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Literal

from edge.device.echo import Echo
from edge.device.timing import Bench, GaveUp, time_shards
from edge.errors import ShardwireError
from edge.formats.bundle import SHARD_FORMATS
from edge.formats.message import Speed
from edge.formats.roofline import fit
from edge.formats.speed import ModelSpeed
from edge.protocol.effects import AgentEvent, BenchEnded, Echoed, RunBench
from edge.runtimes.base import StageOptions
from edge.runtimes.table import load_runtime
from edge.store import BlobStore

_log = logging.getLogger(__name__)


class BenchThread:
    """Carries out one bench after another."""

    def __init__(
        self,
        *,
        store: BlobStore,
        echo: Echo,
        threads: int,
        providers: Mapping[str, tuple[str, ...]],
        mode: Literal["default", "exact"] | None,
        frames_done: Callable[[], int],
        put: Callable[[AgentEvent], None],
    ) -> None:
        """Prepare.

        Args:
            store: where the blobs are.
            echo: measures messages.
            threads: of one operator.
            providers: execution providers in order of preference, by runtime.
            mode: overrides the request's; None does not.
            frames_done: how many frames this device ran.
            put: takes the events.
        """
        self._store = store
        self._echo = echo
        self._threads = threads
        self._providers = providers
        self._mode = mode
        self._frames_done = frames_done
        self._put = put
        self._stopping = threading.Event()
        self._jobs: queue.SimpleQueue[RunBench | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._loop, name="bench", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def do(self, job: RunBench) -> None:
        """Queue a bench."""
        self._jobs.put(job)

    def heard(self, echoed: Echoed) -> None:
        """Note that a frame of the bench came back."""
        self._echo.heard(echoed)

    def stop(self, timeout_seconds: float) -> None:
        """End after the run that is going on."""
        self._stopping.set()
        self._jobs.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)

    def _loop(self) -> None:
        while (job := self._jobs.get()) is not None:
            started = time.monotonic()
            found: Speed | None = None
            level, reason = logging.INFO, ""
            try:
                found = self._measure(job)
            except GaveUp:
                level, reason = logging.DEBUG, "there are frames to run, or the agent ends"  # it is tried again
            except ShardwireError as error:
                reason = str(error)
            except Exception as error:  # noqa: BLE001 - a fault of ours must not end the thread
                _log.exception("bench failed")
                reason = f"fault of the agent: {type(error).__name__}: {error}"
            if reason:
                _log.log(level, "bench of %s ended early: %s", job.manifest.name, reason)
            self._put(BenchEnded(job=job, seconds=time.monotonic() - started, found=found, reason=reason))

    def _measure(self, job: RunBench) -> Speed:
        runtime = load_runtime(job.runtime)
        offer = runtime.offer()
        frames = self._frames_done()
        asked = bool(job.request_id)
        own = SHARD_FORMATS.get(job.runtime, "onnx") == job.manifest.shard_format
        bench = Bench(
            runtime=runtime,
            options=StageOptions(
                threads=self._threads,
                mode=self._mode or job.mode,
                providers=self._providers.get(job.runtime, ("CPUExecutionProvider",)),
            ),
            read_blob=lambda blob: self._store.read(blob.digest),
            weights_folder=self._store.weights_folder,
            memory_bytes=job.memory_bytes,
            most_seconds=job.most_seconds,
            give_up=lambda: self._stopping.is_set() or (not asked and self._frames_done() != frames),
        )
        times = time_shards(job.manifest, job.first_shard, job.stop_shard, bench)
        messages = self._echo.measure(self._stopping.is_set) if asked and job.messages else None
        model = ModelSpeed(
            manifest=job.digest,
            mode=job.mode,
            threads=self._threads,
            runtime=f"{offer.name} {offer.version}",
            shard_seconds=times.shard_seconds,
            session_seconds=times.session_seconds,
        )
        return Speed(
            node="",
            profile="",
            # Operators are told for the mode that nearly all deployments have, by the names that the layers go by.
            operators=fit(job.manifest, times.shard_seconds) if job.fits and job.mode == "default" and own else (),
            message_seconds=messages.seconds if messages is not None else -1.0,
            message_seconds_per_byte=messages.seconds_per_byte if messages is not None else -1.0,
            link=messages.link if messages is not None else None,
            models=(model,),
        )
