"""The epochs of the deployments that a device takes part in: prepare, serve, drain, drop. Part of the session."""

from collections.abc import Mapping

from edge.formats.bundle import Manifest
from edge.formats.message import Dropped, Failed
from edge.formats.plan import Deployment, Epoch, parse_epoch
from edge.protocol.effects import Log, SaveServing, StageClosed, StageKey, StageLoaded
from edge.protocol.live import LiveBlobs
from edge.protocol.local_epoch import PROGRESS_SECONDS, LocalEpoch, Phase
from edge.protocol.memory import FIT_SECONDS, Memory
from edge.protocol.needs import Capacity
from edge.protocol.preparing import Announce, EpochAction, Preparing


class Epochs(Preparing):
    """Keeps, for every deployment, the newest serving plan and what is prepared beside it."""

    def __init__(self, *, node: str, capacity: Capacity, live: LiveBlobs, memory: Memory) -> None:
        super().__init__(node=node, capacity=capacity, live=live, memory=memory)
        self._newest: dict[str, Epoch] = {}

    # ---------------------------------------------------------------------------------------------------- looking
    def current(self, name: str) -> Deployment | None:
        """Return the newest serving plan of a deployment."""
        return self._serving.get(name)

    def values(self) -> tuple[tuple[str, Deployment], ...]:
        """Return the newest serving plan of every deployment, tombstones too."""
        return tuple(self._serving.items())

    def knows(self, name: str) -> bool:
        """Tell whether a deployment was heard of."""
        return name in self._newest

    def count(self) -> int:
        """Return how many deployments were heard of."""
        return len(self._newest)

    def find(self, name: str, epoch: str) -> LocalEpoch | None:
        """Return an epoch that is prepared or served here."""
        return self._local.get((name, epoch))

    def runs(self, name: str, epoch: str, stage: str) -> bool:
        """Tell whether a stage can run, named as in a topic."""
        local = self._local.get((name, epoch))
        return local is not None and any(str(index) == stage for index in local.loaded)

    def frame_limit_bytes(self) -> int:
        """Return the size of the largest frame that some stage here takes."""
        return max((local.frame_limit_bytes for local in self._local.values()), default=0)

    def next_devices(self) -> frozenset[str]:
        """Return the devices that stages here may send to."""
        return frozenset[str]().union(*(local.next_devices for local in self._local.values()))

    def wanted(self) -> frozenset[str]:
        """Return the digests of the blobs that some epoch waits for."""
        return frozenset(digest for local in self._local.values() for digest in local.waiting)

    def events(self) -> list[EpochAction]:
        """Return what a coordinator that just came must hear."""
        events: list[EpochAction] = []
        for local in self._local.values():
            events += self._standing(local)
        return events + [Announce(event=event) for _, event in self._settled.values() if isinstance(event, Failed)]

    # -------------------------------------------------------------------------------------------- what others say
    def desired(self, deployment: Deployment, now: float) -> list[EpochAction]:
        """Prepare a newer epoch beside what is served; say again how an epoch already known stands."""
        name, epoch = deployment.name, parse_epoch(deployment.epoch)
        newest = self._newest.get(name)
        if newest is not None and epoch < newest:
            return []
        if (standing := self._known(deployment)) is not None:
            return standing
        self._newest[name] = epoch
        actions: list[EpochAction] = []
        for other in self._of(name):
            if other.epoch < epoch and other.draining_since is None and not self._is_live(other):
                actions += self._drop(other)
        return actions + self._prepare(deployment, now, is_new=self._is_new(deployment)) + self.collect()

    def canary(self, deployment: Deployment, now: float) -> list[EpochAction]:
        """Keep an epoch that gets a part of the requests, or prepare it; one older than what serves is over."""
        name, epoch = deployment.name, parse_epoch(deployment.epoch)
        serving = self._serving.get(name)
        if deployment.removed or (serving is not None and epoch <= parse_epoch(serving.epoch)):
            return []
        actions: list[EpochAction] = []
        tried = self._canary.get(name)
        if tried is not None and tried != deployment.epoch:
            if epoch < parse_epoch(tried):
                return []
            actions += self.end_canary(name)
        self._canary[name] = deployment.epoch
        self._newest.setdefault(name, parse_epoch(serving.epoch) if serving is not None else epoch)
        if (standing := self._known(deployment)) is not None:
            return actions + standing
        return actions + self._prepare(deployment, now, is_new=self._is_new(deployment))

    def end_canary(self, name: str) -> list[EpochAction]:
        """Drop the epoch that got a part of the requests, unless it serves all of them now."""
        local = self._local.get((name, self._canary.pop(name, "")))
        if local is None or local.draining_since is not None or self._is_live(local):
            return []
        return self._settle(local) + self.collect()

    def serving(self, deployment: Deployment, now: float, *, from_disk: bool = False) -> list[EpochAction]:
        """Serve a committed epoch, drain the older ones; a tombstone drops them all.

        Args:
            deployment: what serves.
            now: monotonic seconds.
            from_disk: it served here before the agent started.
        """
        name, epoch = deployment.name, parse_epoch(deployment.epoch)
        known = self._serving.get(name)
        if known is not None and epoch < parse_epoch(known.epoch):
            return []
        is_new = self._is_new(deployment) and not from_disk
        actions: list[EpochAction] = []
        if known != deployment:
            old = self._local.get((name, known.epoch)) if known is not None else None
            if old is not None and old.epoch < epoch:
                self._live.superseded(old, deployment)
            self._serving[name] = deployment
            actions.append(SaveServing(deployment=deployment))
        self._newest[name] = max(epoch, self._newest.get(name, epoch))
        if name in self._canary and parse_epoch(self._canary[name]) <= epoch:
            del self._canary[name]
        for other in self._of(name):
            if deployment.removed or (other.epoch < epoch and other.phase is not Phase.READY):
                actions += self._drop(other)
            elif other.epoch < epoch and other.draining_since is None:
                other.start_draining(now)
        if deployment.removed:
            self._live.removed(name)
            self._canary.pop(name, None)
            return actions + self.collect()
        local = self._local.get((name, deployment.epoch))
        # A commit counts more than an `Abandon` that came before; what failed here is not tried again.
        if local is None and not self._has_failed(name, deployment.epoch):
            actions += self._prepare(deployment, now, is_new=is_new)
        elif local is not None and known != deployment:
            # It missed the command, or the coordinator did not wait for it.
            actions += self._swap(local) if local.phase is Phase.FETCHED else self._serves(local)
        return actions + self.collect()

    def abandon(self, name: str, epoch: str) -> list[EpochAction]:
        """Drop an epoch that will not be served; what was stopped for it is loaded again."""
        local = self._local.get((name, epoch))
        if local is not None and self._is_serving(local):
            return [Log(level="warning", text=f"epoch {epoch} of {name} is serving: not abandoned")]
        if self._canary.get(name) == epoch:
            del self._canary[name]
        if local is not None:
            return self._settle(local) + self.collect()
        dropped = Dropped(deployment=name, epoch=epoch)
        settled = self._settled.get(name)
        if settled is None or parse_epoch(settled[0]) <= parse_epoch(epoch):
            self._note_end(name, epoch, dropped)
        return [Announce(event=dropped)]

    def swap(self, name: str, epoch: str) -> list[EpochAction]:
        """Load a fetched epoch in place of what is served under its name; say again how it stands."""
        local = self._local.get((name, epoch))
        if local is not None and local.phase is Phase.FETCHED:
            return self._swap(local)
        if local is not None:
            return self._standing(local)
        settled = self._settled.get(name)
        return [Announce(event=settled[1])] if settled is not None and settled[0] == epoch else []

    # ----------------------------------------------------------------------------------------- what the disk says
    def stored(self, digest: str, now: float) -> list[EpochAction]:
        """A blob is whole."""
        self._live.held.add(digest)
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
        return actions + (self.collect() if actions else [])

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

    # --------------------------------------------------------------------------------------- what the loader says
    def stage_loaded(self, loaded: StageLoaded, now: float) -> list[EpochAction]:
        """A stage can run."""
        local = self._local.get((loaded.key.deployment, loaded.key.epoch))
        if local is None or local.phase is Phase.STOPPED or loaded.key in self._closing:
            return self._close([loaded.key])
        if local.phase is not Phase.LOADING or loaded.key.stage in local.loaded:
            return []  # of a life of this epoch that was dropped and came back: it stands in for what this one loads
        local.loaded[loaded.key.stage] = loaded
        if local.to_load() is not None:
            return self._load_next(local)
        local.phase, local.ready_since = Phase.READY, now
        return [*self._standing(local), *(self._serves(local) if self._is_serving(local) else [])]

    def stage_refused(self, key: StageKey, code: str, reason: str, now: float) -> list[EpochAction]:
        """A stage cannot be loaded: its epoch fails here."""
        if key in self._closing:
            return self.stage_closed(StageClosed(key=key))
        local = self._local.get((key.deployment, key.epoch))
        if local is None or local.phase is not Phase.LOADING or key.stage in local.loaded:
            return []
        if code == "DigestMismatch" and not local.mended:
            # A blob was damaged on the disk: it is fetched again, once.
            local.mended = True
            local.phase = Phase.FETCHING
            return self._unload(local) + self._wait_for(local, local.blobs() or (), now)
        local.phase = Phase.FETCHING  # nothing of it is on its way any more
        return self._fail(local, key.stage, code, reason) + self.collect()

    def stage_closed(self, closed: StageClosed) -> list[EpochAction]:
        """A stage is freed: who waited for its memory is loaded."""
        self._closing.discard(closed.key)
        return self._load_waiting(closed.key.deployment)

    # ------------------------------------------------------------------------------------------------------- time
    def tick(self, missing_bytes: Mapping[str, int], now: float) -> list[EpochAction]:
        """Report progress and close what has drained.

        Args:
            missing_bytes: of each blob that is being fetched.
            now: monotonic seconds.
        """
        actions: list[EpochAction] = []
        for local in tuple(self._local.values()):
            if local.draining_since is not None and local.has_drained(now):
                actions += [*self._drop(local), *self.collect()]
            elif local.phase is Phase.READY:
                if local.ready_since is not None and now - local.ready_since >= FIT_SECONDS:
                    actions += self._memory.forgive(*local.name)
            elif local.phase is not Phase.STOPPED and now - local.last_progress >= PROGRESS_SECONDS:
                local.last_progress = now
                actions.append(Announce(event=local.standing(missing_bytes)))
        return actions

    # --------------------------------------------------------------------------------------------------- own steps
    def _known(self, deployment: Deployment) -> list[EpochAction] | None:
        """Return how an epoch stands that is here or was given up; None when it is neither."""
        name = deployment.name
        local = self._local.get((name, deployment.epoch))
        if local is not None:
            return self._standing(local)
        settled = self._settled.get(name)
        if settled is not None and settled[0] == deployment.epoch:
            return [Announce(event=settled[1])]
        return None

    def _has_failed(self, name: str, epoch: str) -> bool:
        settled = self._settled.get(name)
        return settled is not None and settled[0] == epoch and isinstance(settled[1], Failed)

    def _is_new(self, deployment: Deployment) -> bool:
        """Tell whether a deployment makes another bundle active than the one that serves."""
        known = self._serving.get(deployment.name)
        return known is None or known.manifest is None or known.manifest != deployment.manifest

    def _serves(self, local: LocalEpoch) -> list[EpochAction]:
        """Note that an epoch which is ready serves: its version, and that nothing is stopped for it any more."""
        if local.phase is not Phase.READY or local.manifest is None:
            return []
        actions: list[EpochAction] = [*self._memory.served(local.deployment.name, local.manifest)]
        for other in self._older(local):
            if other.phase is Phase.STOPPED:
                actions += self._drop(other)
        return actions
