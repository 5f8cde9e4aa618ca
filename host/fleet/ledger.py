"""What is known of deployments: the newest serving value of each, what is prepared or tried, the newest epoch seen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum

from edge.errors import FormatError
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
        self._desired: dict[str, Deployment] = {}
        self._canaries: dict[str, Deployment] = {}
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
        """Take a `desired`, `serving` or `canary` from the broker; return a serving value and what it is to us.

        Raises:
            FormatError: malformed, or under another name.
            UnsupportedVersion: another major version.
        """
        kept = {"desired": self._desired, "canary": self._canaries}.get(kind)
        if not payload and kept is not None:
            kept.pop(name, None)
        if not payload or (kept is None and kind != "serving"):
            return None
        value = self._readings.read(f"{name}/{kind}", payload, name=name)
        if kept is None:
            return value, self.keep(value)
        if kind == "canary" and value.canary is None and not value.removed:
            raise FormatError(f"{name}/canary: names no terms of its trial")
        self._note(value)
        before = kept.get(name)
        if before is None or parse_epoch(value.epoch) >= parse_epoch(before.epoch):
            kept[name] = value
        return None

    def is_outdated(self, name: str, payload: bytes) -> bool:
        """Tell whether a `desired` that the broker shows is older than what serves, which it was replaced by.

        Raises:
            FormatError: malformed, or under another name.
            UnsupportedVersion: another major version.
        """
        serving = self._serving.get(name)
        if not payload or serving is None:
            return False
        value = self._readings.read(f"{name}/desired", payload, name=name)
        return parse_epoch(value.epoch) < parse_epoch(serving.epoch)

    def desired(self, name: str) -> Deployment | None:
        """Return what is prepared and newer than what serves; None when nothing is."""
        return self._newer(self._desired.get(name))

    def canary(self, name: str) -> Deployment | None:
        """Return what is tried on a part of the requests and newer than what serves; None when nothing is."""
        return self._newer(self._canaries.get(name))

    def _newer(self, value: Deployment | None) -> Deployment | None:
        if value is None or value.removed:
            return None
        serving = self._serving.get(value.name)
        newer = serving is None or parse_epoch(value.epoch) > parse_epoch(serving.epoch)
        return value if newer else None

    def prepared(self) -> Sequence[str]:
        """Return the names under which something is prepared or tried."""
        return sorted(self._desired.keys() | self._canaries.keys())

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
