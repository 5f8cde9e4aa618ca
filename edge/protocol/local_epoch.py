"""One epoch of a deployment, as far as one device has a part in it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from edge.formats.bundle import Blob, Manifest
from edge.formats.message import Progress, Ready
from edge.formats.plan import Deployment, Epoch, Stage
from edge.protocol.effects import Onward, StageKey, StageLoaded
from edge.protocol.needs import frame_limit_bytes
from edge.routes import Route

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
        stages: those that name this device, as runner or standby; two where stages side by side are between them.
        routes: of every stage of the plan, by index; empty before the manifest is read.
        frame_limit_bytes: size of the largest frame that one of its stages here takes.
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
    routes: tuple[Route, ...] = ()
    frame_limit_bytes: int = 0
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

    def onward(self, stage: int) -> tuple[Onward, ...]:
        """Return the frames that follow a run of one of its stages."""
        plan = self.deployment.plan
        if plan is None or stage >= len(self.routes):
            return ()
        return tuple(Onward(hand=hand, runners=plan.stages[hand.stage].runners) for hand in self.routes[stage].hands)

    def take_manifest(self, manifest: Manifest, found: tuple[Route, ...]) -> None:
        """Note what its stages have to do.

        Args:
            manifest: of its bundle.
            found: the routes of its plan.
        """
        self.manifest, self.routes = manifest, found
        parts = [names for stage in self.stages for names in found[stage.index].arriving]
        self.frame_limit_bytes = max((frame_limit_bytes(manifest, names) for names in parts), default=0)

    def to_load(self) -> Stage | None:
        """Return the next stage to load: one at a time, so that nothing is on its way when one is refused."""
        return next((stage for stage in self.stages if stage.index not in self.loaded), None)

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
