"""One epoch of a deployment, as far as one device has a part in it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from edge.formats.bundle import Blob, Manifest
from edge.formats.message import Progress, Ready
from edge.formats.plan import Deployment, Epoch, Stage
from edge.protocol.effects import StageKey, StageLoaded

DRAIN_IDLE_SECONDS = 5.0
DRAIN_MOST_SECONDS = 60.0
PROGRESS_SECONDS = 0.5


class Phase(Enum):
    """How far an epoch is on this device."""

    MANIFEST = "manifest"
    FETCHING = "fetching"
    LOADING = "loading"
    READY = "ready"


@dataclass(kw_only=True, slots=True)
class LocalEpoch:
    """One epoch of a deployment, as far as this device has a part in it.

    Attributes:
        stages: those that name this device, as runner or standby.
        waiting: blobs that are not here yet.
        total_bytes: of all blobs that were missing at first.
        draining_since: when a newer epoch began to serve; None while it has not.
        last_frame: when a frame for it came last.
        mended: whether a damaged blob of it was fetched again.
    """

    deployment: Deployment
    epoch: Epoch
    stages: tuple[Stage, ...]
    phase: Phase = Phase.MANIFEST
    manifest: Manifest | None = None
    waiting: dict[str, Blob] = field(default_factory=dict)
    total_bytes: int = 0
    loaded: dict[int, StageLoaded] = field(default_factory=dict)
    draining_since: float | None = None
    last_frame: float = 0.0
    mended: bool = False
    last_progress: float = float("-inf")

    def key(self, stage: Stage) -> StageKey:
        """Return the key of one of its stages."""
        return StageKey(self.deployment.name, self.deployment.epoch, stage.index)

    def blobs(self) -> tuple[Blob, ...] | None:
        """Return all blobs it needs here, the manifest first; None before the manifest is read."""
        if self.manifest is None or self.deployment.manifest is None:
            return None
        wanted = {self.deployment.manifest.digest: self.deployment.manifest}
        for stage in self.stages:
            wanted |= {blob.digest: blob for blob in self.manifest.blobs(stage.first_shard, stage.stop_shard)}
        return tuple(wanted.values())

    def claimed(self) -> tuple[Stage, ...]:
        """Return the stages that take memory now."""
        return self.stages if self.phase in (Phase.LOADING, Phase.READY) else ()

    @property
    def manifest_digest(self) -> str:
        """Digest of the manifest blob; empty in a tombstone."""
        return self.deployment.manifest.digest if self.deployment.manifest is not None else ""

    def start_draining(self, now: float) -> None:
        """Note that a newer epoch serves."""
        self.draining_since = self.last_frame = now

    def has_drained(self, now: float) -> bool:
        """Tell whether an epoch that no longer serves may be closed."""
        since = self.draining_since if self.draining_since is not None else now
        return now - self.last_frame >= DRAIN_IDLE_SECONDS or now - since >= DRAIN_MOST_SECONDS

    def progress(self, missing_bytes: Mapping[str, int]) -> Progress:
        """Return how far fetching is.

        Args:
            missing_bytes: of each blob that is being fetched.
        """
        missing = sum(missing_bytes.get(digest, blob.size_bytes) for digest, blob in self.waiting.items())
        return Progress(
            deployment=self.deployment.name,
            epoch=self.deployment.epoch,
            stage=self.stages[0].index,
            phase="loading" if self.phase is Phase.LOADING else "fetching",
            done_bytes=self.total_bytes - missing,
            total_bytes=self.total_bytes,
        )

    def ready(self) -> tuple[Ready, ...]:
        """Return the events that say that its stages can run."""
        return tuple(
            Ready(
                deployment=self.deployment.name,
                epoch=self.deployment.epoch,
                stage=loaded.key.stage,
                fetched_bytes=self.total_bytes,
                load_seconds=loaded.load_seconds,
                rss_bytes=loaded.rss_bytes,
            )
            for loaded in self.loaded.values()
        )
