"""Blobs that a device keeps for others: so that no single death takes the last copy of one. Part of the session.

Once an epoch serves, a device that has a part in it, as runner, standby or keeper, fetches in the background what it
lacks of its kept stages, and of the golden inputs where it holds stage 0; then it says `Kept`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from edge.formats.bundle import Blob, Manifest
from edge.formats.message import Kept
from edge.formats.plan import Deployment, Stage, parse_epoch
from edge.protocol.builds import blobs_in, formats_of
from edge.protocol.effects import Log, ReadManifest
from edge.protocol.live import LiveBlobs
from edge.protocol.local_epoch import LocalEpoch, golden_blobs, holders_of, stages_of
from edge.protocol.preparing import Announce, EpochAction, Need

RETRY_SECONDS = 30.0
"""After a blob could not be had."""


@dataclass(kw_only=True, slots=True)
class _Part:
    """What is kept of one deployment.

    Attributes:
        loads: the stages that are loaded here.
        keeps: those that are only kept.
        blobs: all of it; None before the manifest is read.
        waiting: what is on its way.
        failed: whether a blob of it could not be had.
        not_before: when it is tried again.
        reading: whether the manifest is being read.
        said: what was announced last.
    """

    deployment: Deployment
    loads: tuple[Stage, ...]
    keeps: tuple[Stage, ...]
    blobs: dict[str, Blob] | None = None
    manifest: Manifest | None = None
    waiting: set[str] = field(default_factory=set)
    failed: bool = False
    not_before: float = float("-inf")
    reading: bool = False
    said: Kept | None = None
    told: bool = False

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All of which the blobs are kept."""
        return (*self.loads, *self.keeps)

    @property
    def golden(self) -> bool:
        """Whether golden inputs are kept, too."""
        return any(stage.index == 0 for stage in self.stages)


class Keeping:
    """Fetches and keeps what a device only holds for others."""

    def __init__(
        self,
        *,
        node: str,
        live: LiveBlobs,
        find: Callable[[str, str], LocalEpoch | None],
        collect: Callable[[], list[EpochAction]],
    ) -> None:
        """Start with nothing to keep.

        Args:
            node: name of this device.
            live: what is held, and where what was kept before is noted.
            find: returns an epoch that is loaded here.
            collect: drops blobs that nothing needs.
        """
        self._node = node
        self._held = live.held
        self._find = find
        self._collect = collect
        self._parts: dict[str, _Part] = {}
        self._previous = live.kept_before

    def serving(self, deployment: Deployment) -> None:
        """Take what serves now; what was kept for the epoch before stays until the next one."""
        name = deployment.name
        known = self._parts.get(name)
        if known is not None:
            if parse_epoch(deployment.epoch) <= parse_epoch(known.deployment.epoch):
                return
            del self._parts[name]
            self._previous[name] = frozenset(known.blobs or ())
        plan = deployment.plan
        if plan is None or deployment.removed:
            self._previous.pop(name, None)
            return
        loads = stages_of(deployment, self._node)
        keeps = tuple(stage for stage in plan.stages if self._node in stage.keepers)
        if loads or keeps:
            self._parts[name] = _Part(deployment=deployment, loads=loads, keeps=keeps)

    def keeps(self) -> frozenset[str] | None:
        """Return the digests of all that is kept, here or not; None while that is not known."""
        kept: set[str] = set()
        for part in self._parts.values():
            if part.blobs is None:
                self._find_manifest(part)
            if part.blobs is None:
                return None
            kept |= part.blobs.keys()
        return frozenset(kept.union(*self._previous.values()))

    def wanted(self) -> frozenset[str]:
        """Return the digests of the blobs that it waits for."""
        return frozenset(digest for part in self._parts.values() for digest in part.waiting)

    def events(self) -> list[EpochAction]:
        """Return what a coordinator that just came must hear."""
        return [Announce(event=part.said) for part in self._parts.values() if part.said is not None]

    def stored(self, digest: str, _now: float) -> list[EpochAction]:
        """A blob is whole."""
        for part in self._parts.values():
            part.waiting.discard(digest)
        return []  # the next tick goes on

    def blob_failed(self, digest: str, _code: str, reason: str) -> list[EpochAction]:
        """A blob cannot be had, kept or parsed: it is tried again later, and nothing else suffers."""
        actions: list[EpochAction] = []
        for name, part in self._parts.items():
            manifest = part.deployment.manifest
            is_manifest = part.reading and manifest is not None and manifest.digest == digest
            if digest not in part.waiting and not is_manifest:
                continue
            # The others go on: what can be had must not wait for what cannot.
            part.waiting.discard(digest)
            part.failed, part.reading = True, part.reading and not is_manifest
            if not part.told:
                part.told = True
                actions.append(Log(level="warning", text=f"{name}: cannot keep what it should yet: {reason}"))
        return actions

    def manifest_read(self, digest: str, manifest: Manifest) -> None:
        """A manifest is parsed."""
        for part in self._parts.values():
            blob = part.deployment.manifest
            if part.manifest is None and blob is not None and blob.digest == digest:
                part.reading = False
                _take_manifest(part, blob, manifest, self._node)

    def dropped(self, digests: tuple[str, ...]) -> None:
        """Blobs are gone from the disk."""
        for part in self._parts.values():
            if part.blobs is not None and not part.blobs.keys().isdisjoint(digests):
                part.said = None

    def tick(self, now: float) -> list[EpochAction]:
        """Go on with what is not kept yet, after what is loaded here can run."""
        actions: list[EpochAction] = []
        for part in self._parts.values():
            if part.failed:
                part.failed, part.not_before = False, now + RETRY_SECONDS
            ready = not part.loads or self._is_ready(part)
            if part.waiting or part.reading or now < part.not_before or not ready:
                continue
            actions += self._next(part)
        return actions

    def _next(self, part: _Part) -> list[EpochAction]:
        manifest = part.deployment.manifest
        if manifest is None:
            return []
        if part.blobs is None and manifest.digest in self._held:
            part.reading = True
            return [ReadManifest(blob=manifest)]
        wanted = part.blobs.values() if part.blobs is not None else (manifest,)
        missing = [blob for blob in wanted if blob.digest not in self._held]
        if not missing:
            return self._say(part, whole=True)
        part.waiting = {blob.digest for blob in missing}
        needs = [
            Need(blob=blob, holders=holders_of(part.deployment, part.manifest, blob.digest, self._node))
            for blob in missing
        ]
        return [*self._say(part, whole=False), *needs]

    def _say(self, part: _Part, *, whole: bool) -> list[EpochAction]:
        """Say what is held, unless that was said; what is loaded here is held before the rest."""
        stages = tuple(sorted(stage.index for stage in (part.stages if whole else part.loads)))
        kept = Kept(
            deployment=part.deployment.name,
            epoch=part.deployment.epoch,
            stages=stages,
            golden=whole and part.golden,
        )
        if not stages or kept == part.said:
            return []
        part.said = kept
        return [Announce(event=kept), *(self._collect() if whole else [])]

    def _is_ready(self, part: _Part) -> bool:
        local = self._find_manifest(part)
        return local is not None and local.ready_since is not None

    def _find_manifest(self, part: _Part) -> LocalEpoch | None:
        """Return the epoch of a part where it is loaded, or being loaded, and take its manifest."""
        local = self._find(part.deployment.name, part.deployment.epoch)
        blob = part.deployment.manifest
        if part.blobs is None and blob is not None and local is not None and local.manifest is not None:
            _take_manifest(part, blob, local.manifest, self._node)
        return local


def _take_manifest(part: _Part, blob: Blob, manifest: Manifest, node: str) -> None:
    wanted, plan = [blob], part.deployment.plan
    formats = manifest.formats if plan is None else formats_of(manifest, plan, node)
    for stage in part.stages:
        wanted += blobs_in(manifest, formats, stage.first_shard, stage.stop_shard)
    wanted += golden_blobs(manifest) if part.golden else ()
    part.manifest, part.blobs = manifest, {blob.digest: blob for blob in wanted}
