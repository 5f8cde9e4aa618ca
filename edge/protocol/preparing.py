"""The epochs that are on a device: from their manifest to stages that run, and back. Part of the session."""

from collections.abc import Iterable
from dataclasses import dataclass

from edge.errors import BundleError, FormatError, ShardwireError, StageError, Unfit
from edge.formats.bundle import Blob, Manifest
from edge.formats.message import Dropped, Event, Failed
from edge.formats.plan import Deployment, parse_epoch
from edge.protocol.builds import runtime_of
from edge.protocol.effects import CloseStage, CollectBlobs, Effect, LoadStage, Log, ReadManifest, StageKey
from edge.protocol.live import LiveBlobs
from edge.protocol.local_epoch import LocalEpoch, Phase, holders_of, stages_of
from edge.protocol.memory import MOST_DEATHS, Memory
from edge.protocol.needs import Capacity, check_memory
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

MAX_SETTLED = 256
"""Deployments of which it is remembered how their newest epoch ended here."""


class Preparing:
    """Brings epochs to where they can run, and frees them again.

    Attributes:
        free_memory_bytes: what the system would still give, as heard last.
        can_serve: whether frames can arrive.
    """

    def __init__(self, *, node: str, capacity: Capacity, live: LiveBlobs, memory: Memory) -> None:
        self._node = node
        self._capacity = capacity
        self._live = live
        self._memory = memory
        self._local: dict[tuple[str, str], LocalEpoch] = {}
        self._serving: dict[str, Deployment] = {}
        self._canary: dict[str, str] = {}
        self._settled: dict[str, tuple[str, Failed | Dropped]] = {}
        self._closing: set[StageKey] = set()
        self.free_memory_bytes = capacity.memory_bytes
        self.can_serve = False

    def budget_bytes(self) -> int:
        """Return the memory that a further stage may take."""
        used = sum(local.claimed_bytes() for local in self._local.values())
        return max(0, min(self._capacity.memory_bytes - used, self.free_memory_bytes))

    def collect(self) -> list[EpochAction]:
        """Drop the blobs that no live or served epoch and none before it needs; not while a manifest is unread."""
        serving = [
            (name, self._local.get((name, deployment.epoch)))
            for name, deployment in self._serving.items()
            if stages_of(deployment, self._node)
        ]
        keep = self._live.collect(serving, self._local.values())
        return [CollectBlobs(keep=keep)] if keep is not None else []

    def make_room(self, digest: str) -> list[EpochAction]:
        """Give up what is only kept to serve it again, for a blob that an epoch waits for."""
        if all(digest not in local.waiting for local in self._local.values()):
            return []
        given_up = self._live.give_up()
        if collected := self.collect():
            return [*collected, Log(level="warning", text="disk full: blobs kept for a rollback are given up")]
        self._live.take_back(given_up)
        return []

    # -------------------------------------------------------------------------------------------------- towards ready
    def _prepare(self, deployment: Deployment, now: float, *, is_new: bool) -> list[EpochAction]:
        """Begin with an epoch; one that is new here must not be older than what served, nor expired."""
        stages = stages_of(deployment, self._node)
        if not stages or deployment.manifest is None:
            return []
        name, epoch = deployment.name, deployment.epoch
        if self._memory.is_unfit(name, epoch):
            reason = f"the agent of {self._node} died {MOST_DEATHS} times while it loaded or ran this epoch"
            return self._give_up(deployment, stages[0].index, Unfit(reason))
        self._local[name, epoch] = local = LocalEpoch(
            deployment=deployment,
            epoch=parse_epoch(epoch),
            stages=stages,
            last_frame=now,
            swaps=any(self._node in stage.swaps for stage in stages),
            is_new=is_new,
        )
        self._settled.pop(name, None)
        return self._wait_for(local, (deployment.manifest,), now)

    def _wait_for(self, local: LocalEpoch, blobs: Iterable[Blob], now: float) -> list[EpochAction]:
        local.waiting = {blob.digest: blob for blob in blobs if blob.digest not in self._live.held}
        local.total_bytes += sum(blob.size_bytes for blob in local.waiting.values())
        if not local.waiting:
            return self._advance(local, now)
        return [
            Need(blob=blob, holders=holders_of(local.deployment, local.manifest, blob.digest, self._node))
            for blob in local.waiting.values()
        ]

    def _advance(self, local: LocalEpoch, now: float) -> list[EpochAction]:
        """Take the next step once nothing is waited for."""
        if local.waiting:
            return []
        if local.manifest is None:
            return [ReadManifest(blob=local.deployment.manifest)] if local.deployment.manifest else []
        local.last_progress = now
        if not local.swaps:
            return self._start_loading(local)
        if self._is_serving(local):
            return self._swap(local)
        local.phase = Phase.FETCHED
        return self._standing(local)

    def _take_manifest(self, local: LocalEpoch, manifest: Manifest) -> Exception | None:
        """Work out what the stages here have to do; return why they cannot."""
        plan = local.deployment.plan
        shards = len(manifest.shards)
        if plan is None or plan.stages[-1].stop_shard != shards:
            return BundleError(f"plan of {local.deployment.name} does not end at the bundle's {shards} shards")
        try:
            if local.is_new:
                self._memory.judge(local.deployment, manifest)
            found = routes(manifest, plan)
            runtime = runtime_of(manifest, plan, self._node, self._capacity.runtimes)
            check_memory(local.deployment.name, local.stages, self._room_bytes(local))
            local.take_manifest(manifest, found, runtime=runtime)
        except (StageError, BundleError, FormatError) as error:
            return error
        return None

    def _room_bytes(self, local: LocalEpoch) -> int:
        """Return the memory for an epoch; one that swaps has that of the older ones, too."""
        replaced = sum(other.claimed_bytes() for other in self._older(local)) if local.swaps else 0
        others = sum(other.claimed_bytes() for other in self._local.values() if other is not local)
        # The system's own count is up to a second old: what was freed just now is not in it.
        free_bytes = self.free_memory_bytes + max(replaced, local.freed_bytes)
        return max(0, min(self._capacity.memory_bytes - others + replaced, free_bytes))

    # ------------------------------------------------------------------------------------------------------- loading
    def _start_loading(self, local: LocalEpoch) -> list[EpochAction]:
        if any(local.key(stage) in self._closing for stage in local.stages):
            local.phase = Phase.SWAPPING  # an earlier life of this epoch is not freed yet
            return []
        try:
            check_memory(local.deployment.name, local.stages, self._room_bytes(local))
        except StageError as error:
            return self._fail(local, local.stages[0].index, type(error).__name__, str(error)) + self.collect()
        local.phase = Phase.LOADING
        return self._load_next(local)

    def _load_next(self, local: LocalEpoch) -> list[EpochAction]:
        stage = local.to_load()
        if stage is None or local.manifest is None:
            return []
        arrives, leaves = local.crossing[stage.index]
        return [
            LoadStage(
                key=local.key(stage),
                manifest=local.manifest,
                first_shard=stage.first_shard,
                stop_shard=stage.stop_shard,
                route=local.routes[stage.index],
                mode=local.deployment.mode,
                runtime=local.runtime,
                must_run=local.swaps,
                arrives=arrives,
                leaves=leaves,
            )
        ]

    def _swap(self, local: LocalEpoch) -> list[EpochAction]:
        """Free what runs under its name, then load it."""
        older = self._older(local)
        local.freed_bytes = sum(other.claimed_bytes() for other in older)
        actions: list[EpochAction] = []
        for other in older:
            if other.phase in (Phase.SWAPPING, Phase.LOADING, Phase.READY):
                actions += self._unload(other)
                other.phase = Phase.STOPPED
        local.phase = Phase.SWAPPING
        return actions + self._load_waiting(local.deployment.name)

    def _restore(self, failed: LocalEpoch) -> list[EpochAction]:
        """Load again what was stopped for an epoch that failed; what no longer serves is dropped instead."""
        actions: list[EpochAction] = []
        for other in self._older(failed) if failed.swaps else ():
            if other.phase is not Phase.STOPPED:
                continue
            if self._is_serving(other):
                other.phase = Phase.SWAPPING
                other.freed_bytes = sum(stage.memory_bytes for stage in failed.stages)
            else:
                actions += self._drop(other)
        return actions + self._load_waiting(failed.deployment.name)

    def _load_waiting(self, name: str) -> list[EpochAction]:
        """Load what waits, once everything before it is freed."""
        if any(key.deployment == name for key in self._closing):
            return []
        return [
            action for local in self._of(name) if local.phase is Phase.SWAPPING for action in self._start_loading(local)
        ]

    def _close(self, keys: Iterable[StageKey]) -> list[EpochAction]:
        closing = tuple(keys)
        self._closing.update(closing)
        return [CloseStage(key=key) for key in closing]

    def _unload(self, local: LocalEpoch) -> list[EpochAction]:
        """Free its stages; one that is being loaded is closed when it is."""
        loaded = [done.key for done in local.loaded.values()]
        if local.phase is Phase.LOADING and (stage := local.to_load()) is not None:
            self._closing.add(local.key(stage))
        local.loaded.clear()
        local.ready_since = None
        return self._close(loaded)

    # ------------------------------------------------------------------------------------------------------- the end
    def _fail(self, local: LocalEpoch, stage: int, code: str, reason: str) -> list[EpochAction]:
        failed = self._failed(local.deployment, stage, code, reason)
        return [*self._forget(local), *failed, *self._restore(local)]

    def _give_up(self, deployment: Deployment, stage: int, error: ShardwireError) -> list[EpochAction]:
        return self._failed(deployment, stage, type(error).__name__, str(error))

    def _failed(self, deployment: Deployment, stage: int, code: str, reason: str) -> list[EpochAction]:
        name, epoch = deployment.name, deployment.epoch
        failed = Failed(deployment=name, epoch=epoch, stage=stage, code=code, reason=reason[:500])
        self._note_end(name, epoch, failed)
        return [Announce(event=failed), Log(level="error", text=f"{name} {epoch}: {reason}")]

    def _drop(self, local: LocalEpoch) -> list[EpochAction]:
        name, epoch = local.name
        if self._local.get(local.name) is not local:
            return []  # dropped with another one
        dropped = Announce(event=Dropped(deployment=name, epoch=epoch))
        return [*self._forget(local), dropped, *self._memory.forgive(name, epoch), *self._restore(local)]

    def _settle(self, local: LocalEpoch) -> list[EpochAction]:
        """Drop an epoch and do not begin with it again."""
        name, epoch = local.name
        self._note_end(name, epoch, Dropped(deployment=name, epoch=epoch))
        return self._drop(local)

    def _note_end(self, name: str, epoch: str, event: Failed | Dropped) -> None:
        """Remember that an epoch is not to be begun with again; of the deployments that ended last."""
        self._settled.pop(name, None)
        self._settled[name] = (epoch, event)
        while len(self._settled) > MAX_SETTLED:
            del self._settled[next(iter(self._settled))]

    def _forget(self, local: LocalEpoch) -> list[EpochAction]:
        del self._local[local.name]
        return self._unload(local)

    # ------------------------------------------------------------------------------------------------------- looking
    def _standing(self, local: LocalEpoch) -> list[EpochAction]:
        """Return what a coordinator wants to hear of an epoch: that it is ready, or waits for a command."""
        if local.phase is Phase.FETCHED:
            return [Announce(event=local.fetched())]
        if local.phase is not Phase.READY or not self.can_serve:
            return []
        return [Announce(event=event) for event in local.ready()]

    def _of(self, name: str) -> list[LocalEpoch]:
        return [local for (other, _), local in self._local.items() if other == name]

    def _older(self, local: LocalEpoch) -> list[LocalEpoch]:
        return [other for other in self._of(local.deployment.name) if other.epoch < local.epoch]

    def _is_serving(self, local: LocalEpoch) -> bool:
        serving = self._serving.get(local.deployment.name)
        return serving is not None and serving.epoch == local.deployment.epoch

    def _is_live(self, local: LocalEpoch) -> bool:
        """Tell whether requests go to an epoch: all, or those of a canary."""
        return self._is_serving(local) or self._canary.get(local.deployment.name) == local.deployment.epoch
