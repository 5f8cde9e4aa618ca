"""One epoch of a deployment, as far as one device has a part in it."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from edge.formats.bundle import Blob, Manifest, ShardFormat
from edge.formats.message import Event, Fetched, Progress, Ready
from edge.formats.plan import Deployment, Epoch, Holding, Stage
from edge.protocol.builds import blobs_in, crossing_formats, format_by, held_formats, shards_in
from edge.protocol.effects import Onward, StageKey, StageLoaded
from edge.protocol.fetch import MAX_HOLDERS
from edge.protocol.needs import frame_limit_bytes
from edge.routes import Route

DRAIN_IDLE_SECONDS = 5.0
DRAIN_MOST_SECONDS = 60.0
PROGRESS_SECONDS = 0.5


class Phase(Enum):
    """How far an epoch is on this device."""

    MANIFEST = "manifest"
    FETCHING = "fetching"
    FETCHED = "fetched"  # it waits for `Swap`
    SWAPPING = "swapping"  # it waits until what runs in its place is freed
    LOADING = "loading"
    READY = "ready"
    STOPPED = "stopped"  # freed for a newer epoch that swaps, and loaded again when that one fails


@dataclass(kw_only=True, slots=True)
class LocalEpoch:
    """One epoch of a deployment, as far as this device has a part in it.

    Attributes:
        stages: those that name this device, what it runs first, then what it is a standby of.
        routes: of every stage of the plan, by index; empty before the manifest is read.
        runtime: name of the one that its stages are loaded with; empty before the manifest is read.
        crossing: the forms in which tensors arrive at each of its stages here and leave it, by index.
        frame_limit_bytes: size of the largest frame that one of its stages here takes.
        next_devices: those that its stages here may send to.
        waiting: blobs that are not here yet.
        total_bytes: of all blobs that were missing at first.
        draining_since: when a newer epoch began to serve; None while it has not.
        last_frame: when a frame for it came last.
        mended: whether a damaged blob of it was fetched again.
        swaps: whether it is loaded in place of what runs, for want of room beside it.
        freed_bytes: memory of the stages that were freed for it.
        ready_since: when all its stages could run; None while they cannot.
        is_new: whether it must be judged first, as one that makes another bundle active.
    """

    deployment: Deployment
    epoch: Epoch
    stages: tuple[Stage, ...]
    phase: Phase = Phase.MANIFEST
    manifest: Manifest | None = None
    routes: tuple[Route, ...] = ()
    runtime: str = ""
    crossing: dict[int, tuple[ShardFormat, ShardFormat]] = field(default_factory=dict)
    frame_limit_bytes: int = 0
    next_devices: frozenset[str] = frozenset()
    waiting: dict[str, Blob] = field(default_factory=dict)
    total_bytes: int = 0
    loaded: dict[int, StageLoaded] = field(default_factory=dict)
    draining_since: float | None = None
    last_frame: float = 0.0
    mended: bool = False
    swaps: bool = False
    freed_bytes: int = 0
    ready_since: float | None = None
    is_new: bool = False
    last_progress: float = float("-inf")

    @property
    def name(self) -> tuple[str, str]:
        """Deployment and epoch."""
        return self.deployment.name, self.deployment.epoch

    def key(self, stage: Stage) -> StageKey:
        """Return the key of one of its stages."""
        return StageKey(self.deployment.name, self.deployment.epoch, stage.index)

    def blobs(self) -> tuple[Blob, ...] | None:
        """Return all blobs it needs here, the manifest first; None before the manifest is read."""
        if self.manifest is None or self.deployment.manifest is None:
            return None
        wanted = {self.deployment.manifest.digest: self.deployment.manifest}
        for stage in self.stages:
            blobs = blobs_in(self.manifest, (format_by(self.runtime),), stage.first_shard, stage.stop_shard)
            wanted |= {blob.digest: blob for blob in blobs}
        return tuple(wanted.values())

    def onward(self, stage: int) -> tuple[Onward, ...]:
        """Return the frames that follow a run of one of its stages."""
        plan = self.deployment.plan
        if plan is None or stage >= len(self.routes):
            return ()
        hands = self.routes[stage].hands
        stages = plan.stages
        return tuple(
            Onward(hand=hand, runners=stages[hand.stage].runners, standbys=stages[hand.stage].standbys)
            for hand in hands
        )

    def take_manifest(self, manifest: Manifest, found: tuple[Route, ...], *, runtime: str) -> None:
        """Note what its stages have to do.

        Args:
            manifest: of its bundle.
            found: the routes of its plan.
            runtime: that its stages are loaded with, for which the bundle has a build.

        Raises:
            BundleError: tensors travel in the form of a build that the bundle does not have, or that is not sound.
        """
        plan = self.deployment.plan
        if plan is not None:
            self.crossing = {stage.index: crossing_formats(manifest, plan, stage) for stage in self.stages}
        views = {arrives: manifest.in_format(arrives) for arrives, _ in self.crossing.values()}
        self.manifest, self.routes, self.runtime = manifest, found, runtime
        follows = [onward for stage in self.stages for onward in self.onward(stage.index)]
        self.next_devices = frozenset(name for onward in follows for name in (*onward.runners, *onward.standbys))
        self.frame_limit_bytes = max(
            (
                frame_limit_bytes(views[self.crossing[stage.index][0]], names)
                for stage in self.stages
                for names in found[stage.index].arriving
            ),
            default=0,
        )

    def to_load(self) -> Stage | None:
        """Return the next stage to load: one at a time, so that nothing is on its way when one is refused."""
        return next((stage for stage in self.stages if stage.index not in self.loaded), None)

    def runs(self, stage: int) -> bool:
        """Tell whether a stage can run, also while others of this epoch are still being loaded."""
        return stage in self.loaded

    def claimed_bytes(self) -> int:
        """Return the memory that its stages take now, or were promised."""
        takes = self.phase in (Phase.SWAPPING, Phase.LOADING, Phase.READY)
        return sum(stage.memory_bytes for stage in self.stages) if takes else 0

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

    def fetched(self) -> Fetched:
        """Return the event that says that it waits for `Swap`."""
        return Fetched(deployment=self.deployment.name, epoch=self.deployment.epoch)

    def standing(self, missing_bytes: Mapping[str, int]) -> Event:
        """Return the event that says how far it is while it cannot run, see `progress`."""
        return self.fetched() if self.phase is Phase.FETCHED else self.progress(missing_bytes)

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
            phase="loading" if self.phase in (Phase.SWAPPING, Phase.LOADING) else "fetching",
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


def stages_of(deployment: Deployment, node: str) -> tuple[Stage, ...]:
    """Return the stages that a device loads: what it runs first, then what it is a standby of."""
    plan = deployment.plan
    if plan is None or deployment.removed:
        return ()
    runs = [stage for stage in plan.stages if node in stage.runners]
    return (*runs, *(stage for stage in plan.stages if node in stage.standbys))


def holders_of(deployment: Deployment, manifest: Manifest | None, digest: str, node: str) -> tuple[str, ...]:
    """Return who is asked for a blob, in this order and each once: those that `holdings` name, then `holders`.

    Args:
        deployment: of the epoch.
        manifest: of its bundle; None while only that is wanted, which all of `holdings` have.
        digest: of the blob.
        node: who asks.
    """
    named = [holding.node for holding in deployment.holdings if _has(holding, deployment, manifest, digest)]
    others = (holder for holder in dict.fromkeys((*named, *deployment.holders)) if holder != node)
    return tuple(itertools.islice(others, MAX_HOLDERS))


def _has(holding: Holding, deployment: Deployment, manifest: Manifest | None, digest: str) -> bool:
    if manifest is None or (deployment.manifest is not None and digest == deployment.manifest.digest):
        return True
    if holding.golden and any(blob.digest == digest for blob in golden_blobs(manifest)):
        return True
    first, stop = max(0, holding.first_shard), max(0, holding.stop_shard)
    shards = (shard for each in held_formats(manifest, holding) for shard in shards_in(manifest, each)[first:stop])
    return any(digest == blob.digest for shard in shards for blob in (shard.graph, *shard.weights))


def golden_blobs(manifest: Manifest) -> tuple[Blob, ...]:
    """Return what coordinators probe an epoch with, golden inputs and the whole model's answers, and clients' files."""
    golden = (blob for pair in manifest.golden for blob in (pair.inputs, pair.whole))
    return tuple({blob.digest: blob for blob in (*golden, *manifest.processing.blobs)}.values())
