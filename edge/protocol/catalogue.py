"""What a client knows of the deployments of its fleet: plans, and manifests fetched block by block; no IO."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from edge.errors import BundleError, ShardwireError
from edge.formats.bundle import MAX_MANIFEST_BYTES, Blob, Manifest, check_bytes, decode_manifest
from edge.formats.message import BLOCK_BYTES, Block
from edge.formats.plan import Deployment, parse_epoch
from edge.protocol.fetch import AskBlock, FetchAction, Fetcher, FetchFailed, all_blocks
from edge.protocol.ways import Route, devices_of

_REMEMBERED_MANIFESTS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Removed:
    """A deployment is removed."""

    name: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Unusable:
    """The manifest of a deployment cannot be had or read."""

    name: str
    error: ShardwireError


@dataclass(frozen=True, kw_only=True, slots=True)
class Tried:
    """A plan is tried on a part of the requests."""

    route: Route


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialEnded:
    """No plan of a deployment is tried any more."""

    name: str


CatalogueAction = AskBlock | Route | Tried | TrialEnded | Removed | Unusable


@dataclass(slots=True)
class _Download:
    blob: Blob
    data: bytearray
    names: set[str] = field(default_factory=set)


class Catalogue:
    """The newest serving plan of every deployment seen, and the manifests of those asked for."""

    def __init__(self, *, reply_to: str) -> None:
        self._fetcher = Fetcher(reply_to=reply_to)
        self._serving: dict[str, Deployment] = {}
        self._canaries: dict[str, Deployment] = {}
        self._wanted: set[str] = set()
        self._manifests: dict[str, Manifest] = {}
        self._downloads: dict[str, _Download] = {}

    def deployments(self) -> tuple[Deployment, ...]:
        """Return every deployment seen that is not removed, by name."""
        return tuple(self._serving[name] for name in sorted(self._serving) if not self._serving[name].removed)

    def serving(self, name: str) -> Deployment | None:
        """Return the newest serving plan or tombstone of a deployment, None when none was seen."""
        return self._serving.get(name)

    @property
    def wanted(self) -> tuple[str, ...]:
        """Names of the deployments whose route is kept up to date."""
        return tuple(sorted(self._wanted))

    def want(self, name: str, now: float) -> list[CatalogueAction]:
        """Keep the route of a deployment up to date from now on."""
        self._wanted.add(name)
        deployment = self._serving.get(name)
        actions = self._resolve(deployment, now) if deployment is not None else []
        return actions + self._resolve_canary(name, now)

    def seen(self, deployment: Deployment, now: float) -> list[CatalogueAction]:
        """Take a serving plan; an older one than the one known is ignored."""
        known = self._serving.get(deployment.name)
        if known is not None and parse_epoch(deployment.epoch) <= parse_epoch(known.epoch):
            # Shown again: its manifest may be had now, where it could not before.
            again = known.name in self._wanted and deployment.epoch == known.epoch and not self._has_manifest(known)
            return self._resolve(known, now) if again else []
        self._serving[deployment.name] = deployment
        ended = self._end_outdated(deployment.name)
        if deployment.removed:
            return [Removed(name=deployment.name), *ended]
        # First the plan: what was tried may be what serves now.
        if deployment.name not in self._wanted:
            return ended
        return [*self._resolve(deployment, now), *ended, *self._resolve_canary(deployment.name, now)]

    def tried(self, name: str, canary: Deployment | None, now: float) -> list[CatalogueAction]:
        """Take what is tried on a part of the requests, None when nothing is; it must come after what serves.

        Args:
            name: of the deployment.
            canary: its plan.
            now: monotonic seconds.
        """
        known = self._canaries.get(name)
        if canary is None or canary.removed:
            return [TrialEnded(name=name)] if self._canaries.pop(name, None) is not None else []
        if known is not None and parse_epoch(canary.epoch) <= parse_epoch(known.epoch):
            return []
        self._canaries[name] = canary
        ended = self._end_outdated(name)
        return ended or (self._resolve_canary(name, now) if name in self._wanted else [])

    def _has_manifest(self, deployment: Deployment) -> bool:
        return deployment.manifest is None or deployment.manifest.digest in self._manifests

    def _end_outdated(self, name: str) -> list[CatalogueAction]:
        canary, serving = self._canaries.get(name), self._serving.get(name)
        if canary is None or serving is None or parse_epoch(canary.epoch) > parse_epoch(serving.epoch):
            return []
        del self._canaries[name]
        return [TrialEnded(name=name)]

    def _resolve_canary(self, name: str, now: float) -> list[CatalogueAction]:
        canary, serving = self._canaries.get(name), self._serving.get(name)
        if canary is None or serving is None or serving.removed or canary.manifest is None:
            return []
        if canary.manifest.digest in self._manifests:
            return [Tried(route=Route(deployment=canary, manifest=self._manifests[canary.manifest.digest]))]
        return self._download(canary, canary.manifest, now)

    def block(self, block: Block, now: float) -> list[CatalogueAction]:
        """Take a block of a manifest."""
        return self._follow(self._fetcher.take(block, now), now)

    def paused(self) -> None:
        """The connection is cut: nothing can be asked for, and no holder is to blame."""
        self._fetcher.paused()

    def resumed(self, now: float) -> list[CatalogueAction]:
        """The connection stands again."""
        return self._follow(self._fetcher.resumed(now), now)

    def tick(self, now: float) -> list[CatalogueAction]:
        """Ask again for what did not come."""
        return self._follow(self._fetcher.tick(now), now)

    @property
    def fetching(self) -> bool:
        """Whether a manifest is on its way."""
        return bool(self._downloads)

    def _resolve(self, deployment: Deployment, now: float) -> list[CatalogueAction]:
        blob = deployment.manifest
        if blob is None or deployment.plan is None:
            return [Removed(name=deployment.name)]
        if blob.digest in self._manifests:
            return [Route(deployment=deployment, manifest=self._manifests[blob.digest])]
        return self._download(deployment, blob, now)

    def _download(self, deployment: Deployment, blob: Blob, now: float) -> list[CatalogueAction]:
        if not 0 <= blob.size_bytes <= MAX_MANIFEST_BYTES:
            error = BundleError(f"manifest of {deployment.name} has {blob.size_bytes} bytes")
            is_canary = self._canaries.get(deployment.name) is deployment
            return [] if is_canary else [Unusable(name=deployment.name, error=error)]
        download = self._downloads.get(blob.digest)
        if download is not None:
            download.names.add(deployment.name)
            return []
        self._downloads[blob.digest] = _Download(blob=blob, data=bytearray(blob.size_bytes), names={deployment.name})
        # Whoever runs a stage has read the manifest, so the devices hold it too.
        holders = tuple(dict.fromkeys((*devices_of(deployment.plan), *deployment.holders)))
        return self._follow(self._fetcher.want(blob, holders, all_blocks(blob), now), now)

    def _follow(self, actions: Iterable[FetchAction], now: float) -> list[CatalogueAction]:
        out: list[CatalogueAction] = []
        for action in actions:
            if isinstance(action, AskBlock):
                out.append(action)
            elif isinstance(action, FetchFailed):
                out += self._give_up(action.digest, BundleError(f"manifest: {action.reason}"))
            else:
                download = self._downloads[action.blob.digest]
                start = action.index * BLOCK_BYTES
                download.data[start : start + len(action.data)] = action.data
                out += self._follow(self._fetcher.kept(action.blob.digest, (action.index,), now), now)
                if action.blob.digest not in self._fetcher.wanted:
                    out += self._finish(download)
        return out

    def _finish(self, download: _Download) -> list[CatalogueAction]:
        data, digest = bytes(download.data), download.blob.digest
        try:
            check_bytes(data, expected=digest, where="manifest")
            manifest = decode_manifest(data)
        except ShardwireError as error:
            return self._give_up(digest, error)
        del self._downloads[digest]
        while len(self._manifests) >= _REMEMBERED_MANIFESTS:
            del self._manifests[next(iter(self._manifests))]
        self._manifests[digest] = manifest
        names = sorted(download.names)
        serving = (_with_manifest(self._serving.get(name), digest) for name in names)
        canaries = (_with_manifest(self._canaries.get(name), digest) for name in names)
        return [
            *(Route(deployment=found, manifest=manifest) for found in serving if found is not None),
            *(Tried(route=Route(deployment=found, manifest=manifest)) for found in canaries if found is not None),
        ]

    def _give_up(self, digest: str, error: ShardwireError) -> list[CatalogueAction]:
        download = self._downloads.pop(digest, None)
        names = sorted(download.names) if download is not None else []
        # A canary that cannot be had is tried by others; what serves goes on.
        return [
            Unusable(name=name, error=error)
            for name in names
            if _with_manifest(self._canaries.get(name), digest) is None
            or _with_manifest(self._serving.get(name), digest) is not None
        ]


def _with_manifest(deployment: Deployment | None, digest: str) -> Deployment | None:
    """Return a deployment if it has this manifest."""
    manifest = deployment.manifest if deployment is not None else None
    return deployment if manifest is not None and manifest.digest == digest else None
