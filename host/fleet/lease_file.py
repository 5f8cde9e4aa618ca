"""The largest lease that a coordinator has seen, on its disk: it claims a larger, whatever a broker forgot."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from edge.errors import ShardwireError, StoreError
from edge.formats.message import Lease, decode_message, encode_message

_log = logging.getLogger(__name__)
_NAME = "lease"
_MAX_BYTES = 64 * 1024


class LeaseFile:
    """Keeps one lease in a folder that is there."""

    def __init__(self, folder: Path) -> None:
        """Keep it in a folder.

        Args:
            folder: of the coordinator.
        """
        self._path = folder / _NAME

    def read(self) -> Lease | None:
        """Return the lease that was kept; None when there is none, or the disk spoiled it."""
        try:
            with self._path.open("rb") as file:
                return decode_message(file.read(_MAX_BYTES), Lease)
        except FileNotFoundError:
            return None
        except (OSError, ShardwireError) as error:
            _log.warning("%s is not read: %s", self._path, error)
            return None

    def save(self, lease: Lease) -> None:
        """Keep a lease instead of the one before; whole or not at all.

        Raises:
            StoreError: the disk is full, or the folder is gone.
        """
        fresh = self._path.with_name(f"{_NAME}.new")
        try:
            with fresh.open("wb") as file:
                file.write(encode_message(lease))
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self._path)
        except OSError as error:
            raise StoreError(f"{self._path}: {error.strerror or error}") from error
