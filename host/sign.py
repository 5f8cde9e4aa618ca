"""Ed25519 signatures of bundles."""

import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from edge.errors import BundleError
from host.bundle import OpenBundle, Signer
from host.errors import PackageError
from host.oci import Signature

MAX_KEY_BYTES = 16 * 1024
_PURPOSE = b"shardwire-bundle-v1\n"
"""Signed before the manifest, so that a signature cannot be taken for one of something else."""


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_KEY_BYTES)
    except OSError as error:
        raise PackageError(f"{path}: the key cannot be read ({error.strerror})") from error


def make_key(path: Path) -> Path:
    """Write a new private key (mode 600) and beside it, with `.pub` added, its public key.

    Raises:
        PackageError: a file is there already or cannot be written.
    """
    key = Ed25519PrivateKey.generate()
    public = path.with_name(path.name + ".pub")
    private_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public_pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for target, mode, data in ((path, 0o600, private_pem), (public, 0o644, public_pem)):
        try:
            with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                file.write(data)
        except OSError as error:
            raise PackageError(f"{target}: the key cannot be written ({error.strerror})") from error
    return public


def signer(path: Path) -> Signer:
    """Return what signs with the private key in a PEM file.

    Raises:
        PackageError: no file, or no Ed25519 private key without a passphrase.
    """
    try:
        key = load_pem_private_key(_read(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise PackageError(
            f"{path}: no private key in PEM without a passphrase; make one with shardwire keygen"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise PackageError(f"{path}: not an Ed25519 key; make one with shardwire keygen")
    public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    def sign(data: bytes) -> Signature:
        return Signature(public_key=public, signature=key.sign(_PURPOSE + data))

    return sign


def check_signatures(bundle: OpenBundle, trusted: Path) -> None:
    """Check that a bundle is signed by the key in a PEM file.

    Raises:
        BundleError: it is unsigned, signed by others only, or the signature is wrong.
        PackageError: the file holds no Ed25519 public key.
    """
    try:
        key = load_pem_public_key(_read(trusted))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise PackageError(f"{trusted}: no public key in PEM") from error
    if not isinstance(key, Ed25519PublicKey):
        raise PackageError(f"{trusted}: not an Ed25519 key")
    raw = key.public_bytes(Encoding.Raw, PublicFormat.Raw)
    own = [signature for signature in bundle.signatures if signature.public_key == raw]
    if not own:
        state = "signed by another key" if bundle.signatures else "unsigned"
        raise BundleError(f"{bundle.folder}: the bundle is {state}, not by {trusted}")
    path = bundle.blobs_folder / bundle.artefact_digest.removeprefix("sha256:")
    try:
        key.verify(own[0].signature, _PURPOSE + path.read_bytes())
    except InvalidSignature as error:
        raise BundleError(f"{bundle.folder}: the signature is wrong: the bundle was changed after signing") from error


def signature_text(bundle: OpenBundle) -> str:
    """Say who signed a bundle, for people."""
    if not bundle.signatures:
        return "unsigned"
    return "signed by ed25519 " + ", ".join(signature.public_key.hex() for signature in bundle.signatures)
