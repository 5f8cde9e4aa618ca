"""The history of a fleet: who did what, and why. JSON Lines on the coordinator's disk, and a topic for who listens."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from edge.errors import StoreError
from edge.formats.message import FleetEvent

FILE = "history.jsonl"
MAX_FILE_BYTES = 1024 * 1024
FILES = 4
"""Of so many files of at most `MAX_FILE_BYTES` the oldest is dropped."""

KINDS = (
    "lease",  # a coordinator took over
    "joined",  # a device is there
    "left",  # a device went away: its last will, its silence, or it is stuck
    "preparing",  # an epoch is prepared
    "serving",  # an epoch is committed
    "abandoned",  # an epoch is not
    "canary",  # an epoch gets a part of the requests
    "rolled-back",  # what was served before serves again
    "removed",  # a deployment is
    "degraded",  # a deployment cannot answer
    "recovered",  # it can again
    "at-risk",  # blobs have one holder only
    "safe",  # they have two again
    "cordoned",
    "uncordoned",
    "drained",
    "forgotten",
    "broker",  # the fleet goes over to another broker
)


class HistoryLog:
    """One line an event, on the disk at once; of a line that was torn by a power loss nothing is read."""

    def __init__(self, folder: Path) -> None:
        """Keep a history in a folder that is there.

        Args:
            folder: of the coordinator.
        """
        self._folder = folder

    def append(self, *events: FleetEvent) -> None:
        """Write events down; those of one moment wait for the disk once.

        Raises:
            StoreError: the disk is full, or the folder is gone.
        """
        lines = b"".join(msgspec.json.encode(event) + b"\n" for event in events)
        path = self._path(0)
        try:
            if path.exists() and path.stat().st_size + len(lines) > MAX_FILE_BYTES:
                self._rotate()
            with path.open("a+b") as file:
                if _is_torn(file.seek(0, os.SEEK_END), path):
                    file.write(b"\n")
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror or error}") from error

    def read(self, limit: int) -> list[FleetEvent]:
        """Return the newest events, the oldest of them first; lines that are none are passed over.

        Args:
            limit: how many at most.

        Raises:
            StoreError: a file cannot be read.
        """
        found: list[FleetEvent] = []
        for number in range(FILES):
            path = self._path(number)
            try:
                lines = path.read_bytes().splitlines() if path.exists() else []
            except OSError as error:
                raise StoreError(f"{path}: {error.strerror or error}") from error
            for line in reversed(lines):
                if len(found) >= limit:
                    return found[::-1]
                try:
                    found.append(msgspec.json.decode(line, type=FleetEvent))
                except (msgspec.DecodeError, UnicodeDecodeError):
                    continue
        return found[::-1]

    def _path(self, number: int) -> Path:
        return self._folder / (FILE if number == 0 else f"{FILE}.{number}")

    def _rotate(self) -> None:
        for number in reversed(range(FILES - 1)):
            if self._path(number).exists():
                self._path(number).replace(self._path(number + 1))


def _is_torn(size: int, path: Path) -> bool:
    if size == 0:
        return False
    with path.open("rb") as file:
        file.seek(size - 1)
        return file.read(1) != b"\n"
