"""What is known of deployments: the newest serving value of each, and the newest epoch ever seen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum

from edge.formats.plan import Deployment, Epoch, parse_epoch
from edge.protocol.readings import Readings


class News(Enum):
    """What a value from the broker was to us."""

    NEWER = "newer"
    SAME = "same"
    OLDER = "older"


class Ledger:
    """Keeps the largest value of each deployment, in the order of epochs."""

    def __init__(self, known: Iterable[Deployment] = ()) -> None:
        self._serving: dict[str, Deployment] = {}
        self._epochs: dict[str, Epoch] = {}
        self._readings = Readings()
        for value in known:
            self.keep(value)

    def keep(self, value: Deployment) -> News:
        """Take a serving value; smaller ones than the one known are ignored."""
        epoch = self._note(value)
        before = self._serving.get(value.name)
        if before is not None and epoch < parse_epoch(before.epoch):
            return News.OLDER
        self._serving[value.name] = value
        return News.SAME if value == before else News.NEWER

    def receive(self, name: str, kind: str, payload: bytes) -> tuple[Deployment, News] | None:
        """Take a `desired` or `serving` from the broker; return a serving value and what it is to us.

        Raises:
            FormatError: malformed, or under another name.
            UnsupportedVersion: another major version.
        """
        if not payload or kind not in ("desired", "serving"):
            return None
        value = self._readings.read(f"{name}/{kind}", payload, name=name)
        if kind == "serving":
            return value, self.keep(value)
        self._note(value)
        return None

    def serving(self, name: str) -> Deployment | None:
        """Return the newest serving value of a deployment, which may be a tombstone."""
        return self._serving.get(name)

    def values(self) -> Sequence[Deployment]:
        """Return the newest serving value of every deployment."""
        return [value for _, value in sorted(self._serving.items())]

    def names(self) -> Sequence[str]:
        """Return the names of those that are served."""
        return [value.name for value in self.values() if not value.removed]

    def newest(self, name: str) -> Epoch | None:
        """Return the newest epoch seen of a deployment, prepared or served."""
        return self._epochs.get(name)

    def _note(self, value: Deployment) -> Epoch:
        epoch = parse_epoch(value.epoch)
        before = self._epochs.get(value.name)
        if before is None or epoch > before:
            self._epochs[value.name] = epoch
        return epoch
