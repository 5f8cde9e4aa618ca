"""The epochs of the deployments that a device takes part in: prepare, serve, drain, drop. Part of the session."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from edge.errors import BundleError, FormatError, StageError
from edge.formats.bundle import Blob, Manifest
from edge.formats.message import Dropped, Event, Failed
from edge.formats.plan import Deployment, Epoch, parse_epoch
from edge.protocol.effects import (
    CloseStage,
    CollectBlobs,
    Effect,
    LoadStage,
    Log,
    ReadManifest,
    SaveServing,
    StageKey,
    StageLoaded,
)
from edge.protocol.local_epoch import PROGRESS_SECONDS, LocalEpoch, Phase
from edge.protocol.needs import Capacity, check_memory, choose_runtime
from edge.routes import routes


@dataclass(frozen=True, kw_only=True, slots=True)
class Announce:
    """Publish an event of this device."""

    event: Event


@dataclass(frozen=True, kw_only=True, slots=True)
class Need:
    """Get a blob from one of its holders."""

    blob: Blob
    holders: tuple[str, ...]


EpochAction = Effect | Announce | Need


class Epochs:
    """Keeps, for every deployment, the newest serving plan and what is prepared beside it."""

    def __init__(self, *, node: str, capacity: Capacity, held: Iterable[str]) -> None:
        self._node = node
        self._capacity = capacity
        self._held = set(held)
        self._local: dict[tuple[str, str], LocalEpoch] = {}
        self._serving: dict[str, Deployment] = {}
        self._newest: dict[str, Epoch] = {}
        self._settled: dict[str, tuple[str, Failed | Dropped]] = {}
        self._previous: dict[str, frozenset[str]] = {}
        self._served: dict[str, frozenset[str]] = {}
        self.free_memory_bytes = capacity.memory_bytes
        self.can_serve = False
        self.also_keeps: Callable[[], frozenset[str]] = frozenset

    # ---------------------------------------------------------------------------------------------------- looking
    def current(self, name: str) -> Deployment | None:
        """Return the newest serving plan of a deployment."""
        return self._serving.get(name)

    def find(self, name: str, epoch: str) -> LocalEpoch | None:
        """Return an epoch that is prepared or served here."""
        return self._local.get((name, epoch))

    def budget_bytes(self) -> int:
        """Return the memory that a further stage may take."""
        used = sum(stage.memory_bytes for local in self._local.values() for stage in local.claimed())
        return max(0, min(self._capacity.memory_bytes - used, self.free_memory_bytes))

    def frame_limit_bytes(self) -> int:
        """Return the size of the largest frame that some stage here takes."""
        return max((local.frame_limit_bytes for local in self._local.values()), default=0)

    def wanted(self) -> frozenset[str]:
        """Return the digests of the blobs that some epoch waits for."""
        return frozenset(digest for local in self._local.values() for digest in local.waiting)

    def events(self) -> list[EpochAction]:
        """Return what a coordinator that just came must hear."""
        events: list[EpochAction] = []
        for local in self._local.values():
            events += self._ready_events(local)
        return events + [Announce(event=event) for _, event in self._settled.values() if isinstance(event, Failed)]

    # -------------------------------------------------------------------------------------------- what others say
    def desired(self, deployment: Deployment, now: float) -> list[EpochAction]:
        """Prepare a newer epoch beside what is served; say again how an epoch already known stands."""
        name, epoch = deployment.name, parse_epoch(deployment.epoch)
        newest = self._newest.get(name)
        if newest is not None and epoch < newest:
            return []
        local = self._local.get((name, deployment.epoch))
        if local is not None:
            return self._ready_events(local)
        settled = self._settled.get(name)
        if settled is not None and settled[0] == deployment.epoch:
            return [Announce(event=settled[1])]
        self._newest[name] = epoch
        actions: list[EpochAction] = []
        for other in self._of(name):
            if other.epoch < epoch and other.draining_since is None and not self._is_serving(other):
                actions += self._drop(other)
        return actions + self._prepare(deployment, epoch, now) + self._collect()

    def serving(self, deployment: Deployment, now: float) -> list[EpochAction]:
        """Serve a committed epoch, drain the older ones; a tombstone drops them all."""
        name, epoch = deployment.name, parse_epoch(deployment.epoch)
        known = self._serving.get(name)
        if known is not None and epoch < parse_epoch(known.epoch):
            return []
        actions: list[EpochAction] = []
        if known != deployment:
            self._remember_previous(name)
            self._serving[name] = deployment
            actions.append(SaveServing(deployment=deployment))
        self._newest[name] = max(epoch, self._newest.get(name, epoch))
        for other in self._of(name):
            if deployment.removed or (other.epoch < epoch and other.phase is not Phase.READY):
                actions += self._drop(other)
            elif other.epoch < epoch and other.draining_since is None:
                other.start_draining(now)
        if deployment.removed:
            self._previous.pop(name, None)
            self._served.pop(name, None)
            return actions + self._collect()
        settled = self._settled.get(name)
        if (name, deployment.epoch) not in self._local and (settled is None or settled[0] != deployment.epoch):
            actions += self._prepare(deployment, epoch, now)
        return actions + self._collect()

    def abandon(self, name: str, epoch: str) -> list[EpochAction]:
        """Drop an epoch that will not be served."""
        local = self._local.get((name, epoch))
        if local is not None and self._is_serving(local):
            return [Log(level="warning", text=f"epoch {epoch} of {name} is serving: not abandoned")]
        dropped = Dropped(deployment=name, epoch=epoch)
        self._settled[name] = (epoch, dropped)
        if local is None:
            return [Announce(event=dropped)]
        return self._drop(local) + self._collect()

    # ----------------------------------------------------------------------------------------- what the disk says
    def stored(self, digest: str, now: float) -> list[EpochAction]:
        """A blob is whole."""
        self._held.add(digest)
        actions: list[EpochAction] = []
        for local in tuple(self._local.values()):
            if local.waiting.pop(digest, None) is not None:
                actions += self._advance(local, now)
        return actions

    def blob_failed(self, digest: str, code: str, reason: str) -> list[EpochAction]:
        """A blob cannot be had, kept or parsed: every epoch that waits for it fails."""
        actions: list[EpochAction] = []
        for local in tuple(self._local.values()):
            is_manifest = local.phase is Phase.MANIFEST and local.manifest_digest == digest
            if digest in local.waiting or is_manifest:
                actions += self._fail(local, local.stages[0].index, code, reason)
        return actions + (self._collect() if actions else [])

    def manifest_read(self, digest: str, manifest: Manifest, now: float) -> list[EpochAction]:
        """A manifest is parsed: fetch what its stages need here."""
        actions: list[EpochAction] = []
        for local in tuple(self._local.values()):
            if local.phase is not Phase.MANIFEST or local.manifest_digest != digest:
                continue
            if problem := self._take_manifest(local, manifest):
                actions += self._fail(local, local.stages[0].index, type(problem).__name__, str(problem))
                continue
            local.phase = Phase.FETCHING
            actions += self._wait_for(local, local.blobs() or (), now)
        return actions

    def dropped(self, digests: Iterable[str]) -> None:
        """Blobs are gone from the disk."""
        self._held.difference_update(digests)

    # --------------------------------------------------------------------------------------- what the loader says
    def stage_loaded(self, loaded: StageLoaded) -> list[EpochAction]:
        """A stage can run."""
        local = self._local.get((loaded.key.deployment, loaded.key.epoch))
        if local is None:
            return [CloseStage(key=loaded.key)]
        if local.phase is not Phase.LOADING or loaded.key.stage in local.loaded:
            return []  # of a life of this epoch that was dropped and came back: it stands in for what this one loads
        local.loaded[loaded.key.stage] = loaded
        if local.to_load() is not None:
            return self._load_next(local)
        local.phase = Phase.READY
        return self._ready_events(local)

    def stage_refused(self, key: StageKey, code: str, reason: str, now: float) -> list[EpochAction]:
        """A stage cannot be loaded: its epoch fails here."""
        local = self._local.get((key.deployment, key.epoch))
        if local is None or local.phase is not Phase.LOADING or key.stage in local.loaded:
            return []
        if code == "DigestMismatch" and not local.mended:
            # A blob was damaged on the disk: it is fetched again, once.
            local.mended = True
            local.phase = Phase.FETCHING
            closed: list[EpochAction] = [CloseStage(key=loaded.key) for loaded in local.loaded.values()]
            local.loaded.clear()
            return closed + self._wait_for(local, local.blobs() or (), now)
        return self._fail(local, key.stage, code, reason) + self._collect()

    # ------------------------------------------------------------------------------------------------------- time
    def tick(self, missing_bytes: "dict[str, int]", now: float) -> list[EpochAction]:
        """Report progress and close what has drained.

        Args:
            missing_bytes: of each blob that is being fetched.
            now: monotonic seconds.
        """
        actions: list[EpochAction] = []
        for local in tuple(self._local.values()):
            if local.draining_since is not None and local.has_drained(now):
                actions += [*self._drop(local), *self._collect()]
            elif local.phase is not Phase.READY and now - local.last_progress >= PROGRESS_SECONDS:
                local.last_progress = now
                actions.append(Announce(event=local.progress(missing_bytes)))
        return actions

    # --------------------------------------------------------------------------------------------------- own steps
    def _prepare(self, deployment: Deployment, epoch: Epoch, now: float) -> list[EpochAction]:
        if deployment.plan is None or deployment.manifest is None:
            return []
        if not self._takes_part(deployment):
            return []
        stages = tuple(stage for stage in deployment.plan.stages if self._node in stage.devices)
        local = LocalEpoch(deployment=deployment, epoch=epoch, stages=stages, last_frame=now)
        self._local[deployment.name, deployment.epoch] = local
        self._settled.pop(deployment.name, None)
        return self._wait_for(local, (deployment.manifest,), now)

    def _wait_for(self, local: LocalEpoch, blobs: Iterable[Blob], now: float) -> list[EpochAction]:
        local.waiting = {blob.digest: blob for blob in blobs if blob.digest not in self._held}
        local.total_bytes += sum(blob.size_bytes for blob in local.waiting.values())
        if not local.waiting:
            return self._advance(local, now)
        holders = tuple(holder for holder in local.deployment.holders if holder != self._node)
        return [Need(blob=blob, holders=holders) for blob in local.waiting.values()]

    def _advance(self, local: LocalEpoch, now: float) -> list[EpochAction]:
        if local.waiting:
            return []
        if local.manifest is None:
            return [ReadManifest(blob=local.deployment.manifest)] if local.deployment.manifest else []
        try:
            check_memory(local.deployment.name, local.stages, self.budget_bytes())
            choose_runtime(local.manifest, self._capacity.runtimes)
        except StageError as error:
            return self._fail(local, local.stages[0].index, type(error).__name__, str(error)) + self._collect()
        local.phase = Phase.LOADING
        local.last_progress = now
        return self._load_next(local)

    def _load_next(self, local: LocalEpoch) -> list[EpochAction]:
        stage = local.to_load()
        if stage is None or local.manifest is None:
            return []
        return [
            LoadStage(
                key=local.key(stage),
                manifest=local.manifest,
                first_shard=stage.first_shard,
                stop_shard=stage.stop_shard,
                route=local.routes[stage.index],
                mode=local.deployment.mode,
                runtime=choose_runtime(local.manifest, self._capacity.runtimes),
            )
        ]

    def _take_manifest(self, local: LocalEpoch, manifest: Manifest) -> Exception | None:
        """Work out what the stages here have to do; return why they cannot."""
        plan = local.deployment.plan
        shards = len(manifest.shards)
        if plan is None or plan.stages[-1].stop_shard != shards:
            return BundleError(f"plan of {local.deployment.name} does not end at the bundle's {shards} shards")
        try:
            found = routes(manifest, plan)
            choose_runtime(manifest, self._capacity.runtimes)
            check_memory(local.deployment.name, local.stages, self.budget_bytes())
        except (StageError, BundleError, FormatError) as error:
            return error
        local.take_manifest(manifest, found)
        return None

    def _fail(self, local: LocalEpoch, stage: int, code: str, reason: str) -> list[EpochAction]:
        name, epoch = local.deployment.name, local.deployment.epoch
        failed = Failed(deployment=name, epoch=epoch, stage=stage, code=code, reason=reason[:500])
        self._settled[name] = (epoch, failed)
        return [
            *self._forget(local),
            Announce(event=failed),
            Log(level="error", text=f"{name} {epoch}: {reason}"),
        ]

    def _drop(self, local: LocalEpoch) -> list[EpochAction]:
        dropped = Dropped(deployment=local.deployment.name, epoch=local.deployment.epoch)
        return [*self._forget(local), Announce(event=dropped)]

    def _forget(self, local: LocalEpoch) -> list[EpochAction]:
        del self._local[local.deployment.name, local.deployment.epoch]
        return [CloseStage(key=loaded.key) for loaded in local.loaded.values()]

    def collect(self) -> list[EpochAction]:
        """Drop the blobs that nothing needs."""
        return self._collect()

    def _collect(self) -> list[EpochAction]:
        """Drop blobs that no live or served epoch and none before it needs; not while a manifest is unread."""
        keep = set(self.also_keeps())
        for name, deployment in self._serving.items():
            if not self._takes_part(deployment):
                continue
            local = self._local.get((name, deployment.epoch))
            if local is not None and (served := local.blobs()) is not None:
                self._served[name] = frozenset(blob.digest for blob in served)
            if name not in self._served:
                return []
            # Also when it failed to load here just now: the cause may pass, and nobody else may hold its blobs.
            keep |= self._served[name]
        for digests in self._previous.values():
            keep |= digests
        for local in self._local.values():
            blobs = local.blobs()
            if blobs is None:
                return []
            keep.update(blob.digest for blob in blobs)
        if self._held <= keep:
            return []
        self._held &= keep
        return [CollectBlobs(keep=frozenset(keep))]

    def _remember_previous(self, name: str) -> None:
        known = self._serving.get(name)
        local = self._local.get((name, known.epoch)) if known is not None else None
        blobs = local.blobs() if local is not None else None
        if blobs is not None:
            self._previous[name] = frozenset(blob.digest for blob in blobs)

    def _ready_events(self, local: LocalEpoch) -> list[EpochAction]:
        if local.phase is not Phase.READY or not self.can_serve:
            return []
        return [Announce(event=event) for event in local.ready()]

    def _of(self, name: str) -> list[LocalEpoch]:
        return [local for (other, _), local in self._local.items() if other == name]

    def _takes_part(self, deployment: Deployment) -> bool:
        stages = deployment.plan.stages if deployment.plan is not None and not deployment.removed else ()
        return any(self._node in stage.devices for stage in stages)

    def _is_serving(self, local: LocalEpoch) -> bool:
        serving = self._serving.get(local.deployment.name)
        return serving is not None and serving.epoch == local.deployment.epoch
