"""Folders that are there whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from host.errors import PackageError


def check_target(target: Path, *, marker: str, what: str, replace: bool) -> None:
    """Check the place of a new folder before the work for it begins.

    Args:
        target: Where it should go.
        marker: Name of a file that every such folder has: others are never replaced.
        what: Such a folder for people, such as ``bundle``.
        replace: Whether one that is there may be replaced.

    Raises:
        PackageError: The place is taken, or its folder cannot be written.
    """
    if target.exists() and not replace:
        raise PackageError(f"{target} is there already: remove it, choose another --out, or give --force")
    if target.exists() and not (target / marker).is_file():
        raise PackageError(f"{target} is there already and is no {what}: --force replaces {what}s only")
    parent = next(folder for folder in target.absolute().parents if folder.exists())
    if not parent.is_dir():
        raise PackageError(f"{target}: cannot be written ({parent.name} is a file)")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise PackageError(f"{target}: cannot be written (no permission in {parent})")


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Give a folder that becomes `target` when the block ends well, and vanishes when it does not."""
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        staging.chmod(0o755)
        yield staging
        sync(staging)
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
            target.rename(old / "old")
            staging.rename(target)
            shutil.rmtree(old)
        else:
            staging.rename(target)
        sync(target.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def sync(folder: Path) -> None:
    """Have the names in a folder on disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
