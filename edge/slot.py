"""A note of a few words in a mapped file: written in a microsecond, and there after the process has died."""

import mmap
import os
from pathlib import Path

SLOT_BYTES = 256


class Slot:
    """One note, empty or some texts without line breaks."""

    def __init__(self, path: Path) -> None:
        """Open the file, and make it where there is none.

        Raises:
            OSError: the disk fails.
        """
        self._file = path.open("a+b")
        try:
            self._file.truncate(SLOT_BYTES)
            self._map = mmap.mmap(self._file.fileno(), SLOT_BYTES)
        except OSError:
            self._file.close()
            raise

    @property
    def closed(self) -> bool:
        """Whether it was given back."""
        return self._map.closed

    def write(self, *texts: str) -> None:
        """Replace the note; without texts it is empty."""
        self._map[:] = "\n".join(texts).encode()[:SLOT_BYTES].ljust(SLOT_BYTES, b"\0")

    def read(self) -> tuple[str, ...]:
        """Return the texts, at least one; an empty one when nothing is noted."""
        return tuple(bytes(self._map[:]).rstrip(b"\0").decode(errors="replace").split("\n"))

    def sync(self) -> None:
        """Put the note on the disk, so that it outlives the machine, too.

        `mmap.flush` would do, but holds up every other thread of the process while the disk writes.
        """
        os.fdatasync(self._file.fileno())

    def close(self) -> None:
        """Give the file back."""
        self._map.close()
        self._file.close()
