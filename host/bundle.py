"""Bundles on disk: an OCI image layout that is a valid CNCF ModelPack artefact. Needs no ML framework.

Layout: `oci-layout`, `index.json`, `blobs/sha256/<hex>`. Written to a temporary folder beside the target, synced, the
index last, and renamed: a bundle is there whole or not at all.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from edge.errors import BundleError, DigestMismatch
from edge.formats.bundle import (
    MANIFEST_MEDIA_TYPE,
    MAX_MANIFEST_BYTES,
    Blob,
    Manifest,
    check_bytes,
    check_digest,
    decode_manifest,
    digest_of,
    encode_manifest,
)
from edge.formats.message import BLOCK_BYTES
from host import staging
from host.errors import PackageError
from host.oci import (
    ARTIFACT_TYPE,
    CONFIG_TYPE,
    MAX_OCI_JSON_BYTES,
    OCI_INDEX,
    OCI_MANIFEST,
    REPORT_ARTIFACT,
    REPORT_TYPE,
    SIGNATURE_ARTIFACT,
    SIGNATURE_TYPE,
    WEIGHT_TYPE,
    Descriptor,
    OciIndex,
    OciManifest,
    Signature,
    attach,
    canonical_json,
    descriptor,
    write_file,
)

_T = TypeVar("_T")

_FILEPATH = "org.cncf.model.filepath"
_REF_NAME = "org.opencontainers.image.ref.name"
_TITLE = "org.opencontainers.image.title"


Signer = Callable[[bytes], Signature]


@dataclass(frozen=True, kw_only=True, slots=True)
class BundleContent:
    """A bundle before it is written.

    Attributes:
        manifest: of the shards.
        blobs: every blob it names, by digest.
        tag: name of the version in the index, e.g. `1.0.0`.
        parameter_count: weights of the source model, for the ModelPack config.
        report: JSON of what was measured while packaging; attached, not signed.
        signer: signs the OCI manifest; None leaves the bundle unsigned.
    """

    manifest: Manifest
    blobs: Mapping[str, bytes]
    tag: str
    parameter_count: int
    report: bytes = b"{}"
    signer: Signer | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenBundle:
    """A bundle on disk whose manifest has been read and checked.

    Attributes:
        folder: of the OCI layout.
        manifest: of the shards.
        manifest_blob: its blob, by which devices fetch it.
        artefact_digest: of the OCI manifest, the identity of the bundle.
        signatures: that are attached; whether one is right, `host.sign.check_signatures` says.
    """

    folder: Path
    manifest: Manifest
    manifest_blob: Blob
    artefact_digest: str
    signatures: tuple[Signature, ...]

    @property
    def blobs_folder(self) -> Path:
        """The folder of all blobs, real files named by their hex digest."""
        return self.folder / "blobs" / "sha256"

    def path(self, blob: Blob) -> Path:
        """Return the file of a blob."""
        return self.blobs_folder / check_digest(blob.digest, where=str(self.folder))

    def read(self, blob: Blob) -> bytes:
        """Read a blob and check its digest.

        Raises:
            DigestMismatch: the file is not what its name says.
            BundleError: the file is missing or has another size.
        """
        return _read_blob(self.blobs_folder, blob)

    def blobs(self) -> tuple[Blob, ...]:
        """Return every blob that the manifest names, itself first, each once."""
        wanted = {self.manifest_blob.digest: self.manifest_blob}
        for blob in manifest_blobs(self.manifest):
            wanted.setdefault(blob.digest, blob)
        return tuple(wanted.values())


def manifest_blobs(manifest: Manifest) -> Iterator[Blob]:
    """Yield every blob that a manifest names, with repetitions."""
    yield from fleet_blobs(manifest)
    if manifest.compression.learned is not None:
        yield manifest.compression.learned


def fleet_blobs(manifest: Manifest) -> Iterator[Blob]:
    """Yield every blob that a fleet needs, with repetitions: not the weights that only a replay of the recipe reads."""
    yield from manifest.blobs(0, len(manifest.shards))
    for build in manifest.builds:
        for shard in build.shards:
            yield from (shard.graph, *shard.weights)
    for pair in manifest.golden:
        yield from (pair.inputs, pair.outputs, pair.whole)
    yield from manifest.processing.blobs
    if manifest.compression.recipe is not None:
        yield manifest.compression.recipe


def blob_of(data: bytes) -> Blob:
    """Describe `data` as a blob, with the digests of its blocks when it has several."""
    blocks = b""
    if len(data) > BLOCK_BYTES:
        view = memoryview(data)
        digests = (digest_of(view[i : i + BLOCK_BYTES]) for i in range(0, len(data), BLOCK_BYTES))
        blocks = b"".join(bytes.fromhex(digest.removeprefix("sha256:")) for digest in digests)
    return Blob(digest=digest_of(data), size_bytes=len(data), block_digests=blocks)


def write_bundle(content: BundleContent, target: Path, *, replace: bool = False) -> OpenBundle:
    """Write a bundle; equal content gives equal bytes.

    Args:
        content: manifest and blobs.
        target: folder to make.
        replace: whether a bundle that is there already may be replaced.

    Raises:
        PackageError: the place is taken or cannot be written.
    """
    check_target(target, replace=replace)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with staging.staged(target) as folder:
            _write_layout(content, folder)
    except OSError as error:
        raise PackageError(f"{target}: cannot be written ({error.strerror or error})") from error
    return open_bundle(target)


def check_target(target: Path, *, replace: bool) -> None:
    """Check the place of a new bundle before the work for it begins.

    Raises:
        PackageError: the place is taken, or its folder cannot be written.
    """
    staging.check_target(target, marker="oci-layout", what="bundle", replace=replace)


def _write_layout(content: BundleContent, folder: Path) -> None:
    manifest = encode_manifest(content.manifest)
    blobs_folder = folder / "blobs" / "sha256"
    blobs_folder.mkdir(parents=True)
    layers = [descriptor(MANIFEST_MEDIA_TYPE, manifest, {_FILEPATH: "manifest.json"})]
    stored: dict[str, bytes] = {layers[0]["digest"]: manifest}
    for digest, data in content.blobs.items():
        if digest not in stored:
            stored[digest] = data
            layers.append(descriptor(WEIGHT_TYPE, data, {_FILEPATH: digest.removeprefix("sha256:")}))
    config = canonical_json(_config(content, [layer["digest"] for layer in layers]))
    artefact = canonical_json(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "artifactType": ARTIFACT_TYPE,
            "config": descriptor(CONFIG_TYPE, config),
            "layers": layers,
            "annotations": {_TITLE: content.manifest.name},
        }
    )
    for data in (config, artefact):
        stored[digest_of(data)] = data
    for digest, data in stored.items():
        write_file(blobs_folder / digest.removeprefix("sha256:"), data)
    entry = descriptor(OCI_MANIFEST, artefact, {_REF_NAME: content.tag}) | {"artifactType": ARTIFACT_TYPE}
    entries = [entry, attach(blobs_folder, entry, REPORT_ARTIFACT, REPORT_TYPE, content.report)]
    if content.signer is not None:
        signature = msgspec.json.encode(content.signer(artefact), order="sorted")
        entries.append(attach(blobs_folder, entry, SIGNATURE_ARTIFACT, SIGNATURE_TYPE, signature))
    staging.sync(blobs_folder)
    write_file(folder / "oci-layout", canonical_json({"imageLayoutVersion": "1.0.0"}))
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    write_file(folder / "index.json", canonical_json(index))


def _config(content: BundleContent, digests: list[str]) -> dict[str, Any]:
    """Return the ModelPack config: `descriptor`, `config` and `modelfs`, nothing added, no clock time."""
    manifest = content.manifest
    precision = {"none": "float32", "int8-dynamic": "int8", "int8-weights": "int8"}.get(
        manifest.compression.quantize, manifest.compression.quantize
    )
    return {
        "descriptor": {
            "name": manifest.name,
            "version": manifest.version,
            "title": manifest.origin.description or manifest.name,
            "licenses": [manifest.origin.licence],
        },
        "config": {
            "format": manifest.shard_format,
            "paramSize": str(content.parameter_count),
            "precision": precision,
            **({"quantization": manifest.compression.variant} if manifest.compression.variant else {}),
        },
        "modelfs": {"type": "layers", "diffIds": digests},
    }


def _read_limited(path: Path, limit_bytes: int) -> bytes:
    try:
        size = path.stat().st_size
        if size > limit_bytes:
            raise BundleError(f"{path}: {size} bytes are more than {limit_bytes}")
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror})") from error


def _read_blob(blobs_folder: Path, blob: Blob) -> bytes:
    path = blobs_folder / check_digest(blob.digest, where=str(blobs_folder))
    data = _read_limited(path, blob.size_bytes)
    if len(data) != blob.size_bytes:
        raise BundleError(f"{path}: has {len(data)} bytes, expected {blob.size_bytes}; package or copy it again")
    check_bytes(data, expected=blob.digest, where=str(path))
    return data


def open_bundle(path: Path | str) -> OpenBundle:
    """Open a bundle: read its index and both manifests, checking their digests.

    Raises:
        BundleError: no bundle, or a malformed one; the text names the file.
        DigestMismatch: an index or manifest is not what its digest says.
        UnsupportedVersion: another major version of the manifest.
    """
    folder = Path(path)
    if not (folder / "index.json").is_file():
        raise BundleError(f"{folder}: no bundle here (no index.json); make one with `shardwire package`")
    blobs_folder = folder / "blobs" / "sha256"
    index = _decode(OciIndex, _read_limited(folder / "index.json", MAX_OCI_JSON_BYTES), folder / "index.json")
    models = [entry for entry in index.manifests if entry.artifact_type == ARTIFACT_TYPE]
    if len(models) != 1:
        raise BundleError(f"{folder}/index.json: names {len(models)} model artefacts, expected 1")
    artefact = _read_json(OciManifest, blobs_folder, models[0])
    entries = [layer for layer in artefact.layers if layer.media_type == MANIFEST_MEDIA_TYPE]
    if len(entries) != 1:
        raise BundleError(f"{folder}: holds {len(entries)} layers of type {MANIFEST_MEDIA_TYPE}, expected 1")
    if entries[0].size > MAX_MANIFEST_BYTES:
        raise BundleError(f"{folder}: a manifest of {entries[0].size} bytes is more than {MAX_MANIFEST_BYTES}")
    data = _read_blob(blobs_folder, Blob(digest=entries[0].digest, size_bytes=entries[0].size))
    return OpenBundle(
        folder=folder,
        manifest=decode_manifest(data, where=f"{folder}: manifest"),
        manifest_blob=blob_of(data),
        artefact_digest=models[0].digest,
        signatures=tuple(_signatures(index, blobs_folder, models[0].digest)),
    )


def _signatures(index: OciIndex, blobs_folder: Path, subject: str) -> Iterator[Signature]:
    for entry in index.manifests:
        if entry.artifact_type != SIGNATURE_ARTIFACT:
            continue
        attached = _read_json(OciManifest, blobs_folder, entry)
        if attached.subject is None or attached.subject.digest != subject or len(attached.layers) != 1:
            raise BundleError(f"{blobs_folder}: signature {entry.digest} does not refer to this bundle")
        yield _read_json(Signature, blobs_folder, attached.layers[0])


def _read_json(kind: type[_T], blobs_folder: Path, entry: Descriptor) -> _T:
    if entry.size > MAX_OCI_JSON_BYTES:
        raise BundleError(f"{blobs_folder}: {entry.digest} of {entry.size} bytes is more than {MAX_OCI_JSON_BYTES}")
    data = _read_blob(blobs_folder, Blob(digest=entry.digest, size_bytes=entry.size))
    return _decode(kind, data, blobs_folder / entry.digest.removeprefix("sha256:"))


def _decode(kind: type[_T], data: bytes, path: Path) -> _T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{path}: {error}") from error


def rehash(bundle: OpenBundle) -> Iterator[Blob]:
    """Read every file of the layout again and check it; yield each blob that is right.

    Raises:
        DigestMismatch: a file is not what its name says.
        BundleError: a file is missing, or something is there that is no file.
    """
    seen: set[str] = set()
    for blob in (*bundle.blobs(), *_attached(bundle)):
        if blob.digest not in seen:
            seen.add(blob.digest)
            bundle.read(blob)
            yield blob
    for path in sorted(bundle.blobs_folder.iterdir()):
        if not path.is_file():
            raise BundleError(f"{path}: not a file; only blobs belong here")
        found = digest_of(path.read_bytes())
        if found.removeprefix("sha256:") != path.name:
            raise DigestMismatch(expected=f"sha256:{path.name[:64]}", found=found, where=str(path))


def _attached(bundle: OpenBundle) -> Iterator[Blob]:
    """Yield what the OCI files name: manifests, configs, weights, report and signatures."""
    index = _decode(OciIndex, _read_limited(bundle.folder / "index.json", MAX_OCI_JSON_BYTES), bundle.folder)
    for entry in index.manifests:
        manifest = _read_json(OciManifest, bundle.blobs_folder, entry)
        for part in (entry, manifest.config, *manifest.layers):
            yield Blob(digest=part.digest, size_bytes=part.size)
