"""The parts of an OCI image layout: records, media types, and how its files are written."""

import json
import os
from pathlib import Path
from typing import Any, Literal

import msgspec

from edge.formats.bundle import digest_of

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
ARTIFACT_TYPE = "application/vnd.cncf.model.manifest.v1+json"
CONFIG_TYPE = "application/vnd.cncf.model.config.v1+json"
WEIGHT_TYPE = "application/vnd.cncf.model.weight.v1.raw"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
SIGNATURE_ARTIFACT = "application/vnd.shardwire.signature.v1"
SIGNATURE_TYPE = "application/vnd.shardwire.signature.v1+json"
REPORT_ARTIFACT = "application/vnd.shardwire.report.v1"
REPORT_TYPE = "application/vnd.shardwire.report.v1+json"
MAX_OCI_JSON_BYTES = 16 * 1024 * 1024


class Signature(msgspec.Struct, frozen=True, kw_only=True):
    """An Ed25519 signature over the bytes of the bundle's OCI manifest.

    Attributes:
        algorithm: `ed25519`.
        public_key: 32 raw bytes.
        signature: 64 raw bytes.
    """

    algorithm: Literal["ed25519"] = "ed25519"
    public_key: bytes
    signature: bytes


class Descriptor(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What an OCI file says of a blob: media type, digest and size in bytes."""

    media_type: str
    digest: str
    size: int
    annotations: dict[str, str] = {}
    artifact_type: str | None = None


class OciManifest(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The part of an OCI image manifest that is read back."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    artifact_type: str | None = None
    subject: Descriptor | None = None


class OciIndex(msgspec.Struct, frozen=True, kw_only=True):
    """The entries of `index.json`."""

    manifests: tuple[Descriptor, ...]


def write_file(path: Path, data: bytes) -> None:
    """Write a new file and sync it."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def attach(blobs_folder: Path, subject: dict[str, Any], artifact: str, media_type: str, data: bytes) -> dict[str, Any]:
    """Write an OCI manifest that refers to the bundle, with one layer; return its entry for the index."""
    empty = b"{}"
    manifest = canonical_json(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "artifactType": artifact,
            "config": descriptor(EMPTY_TYPE, empty),
            "layers": [descriptor(media_type, data)],
            "subject": {key: subject[key] for key in ("mediaType", "digest", "size")},
        }
    )
    for content in (empty, data, manifest):
        path = blobs_folder / digest_of(content).removeprefix("sha256:")
        if not path.exists():
            write_file(path, content)
    return descriptor(OCI_MANIFEST, manifest) | {"artifactType": artifact}


def canonical_json(value: Any) -> bytes:
    """Encode JSON with sorted keys and no white space."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def descriptor(media_type: str, data: bytes, annotations: dict[str, str] | None = None) -> dict[str, Any]:
    """Describe `data` as OCI files do."""
    entry: dict[str, Any] = {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}
    return entry | ({"annotations": annotations} if annotations else {})
