"""What a client knows of the deployments of its fleet: serving plans, and manifests fetched block by block; no IO."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from edge.errors import BundleError, ShardwireError
from edge.formats.bundle import MAX_MANIFEST_BYTES, Blob, Manifest, check_bytes, decode_manifest
from edge.formats.message import BLOCK_BYTES, Block
from edge.formats.plan import Deployment, parse_epoch
from edge.protocol.fetch import AskBlock, FetchAction, Fetcher, FetchFailed, all_blocks
from edge.protocol.requests import Route

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


CatalogueAction = AskBlock | Route | Removed | Unusable


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
        return self._resolve(deployment, now) if deployment is not None else []

    def seen(self, deployment: Deployment, now: float) -> list[CatalogueAction]:
        """Take a serving plan; an older one than the one known is ignored."""
        known = self._serving.get(deployment.name)
        if known is not None and parse_epoch(deployment.epoch) <= parse_epoch(known.epoch):
            return []
        self._serving[deployment.name] = deployment
        if deployment.removed:
            return [Removed(name=deployment.name)]
        return self._resolve(deployment, now) if deployment.name in self._wanted else []

    def block(self, block: Block, now: float) -> list[CatalogueAction]:
        """Take a block of a manifest."""
        return self._follow(self._fetcher.take(block, now), now)

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
        if not 0 <= blob.size_bytes <= MAX_MANIFEST_BYTES:
            error = BundleError(f"manifest of {deployment.name} has {blob.size_bytes} bytes")
            return [Unusable(name=deployment.name, error=error)]
        download = self._downloads.get(blob.digest)
        if download is not None:
            download.names.add(deployment.name)
            return []
        self._downloads[blob.digest] = _Download(blob=blob, data=bytearray(blob.size_bytes), names={deployment.name})
        # Whoever runs a stage has read the manifest, so the devices hold it too.
        holders = (*(name for stage in deployment.plan.stages for name in stage.devices), *deployment.holders)
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
        return [
            Route(deployment=deployment, manifest=manifest)
            for name in download.names
            if (deployment := self._serving.get(name)) is not None
            and deployment.manifest is not None
            and deployment.manifest.digest == digest
        ]

    def _give_up(self, digest: str, error: ShardwireError) -> list[CatalogueAction]:
        download = self._downloads.pop(digest, None)
        return [Unusable(name=name, error=error) for name in download.names] if download is not None else []
