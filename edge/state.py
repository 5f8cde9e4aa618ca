"""What an agent must remember across its own death: few small files, replaced atomically.

::

    lock                   held while an agent uses the folder
    boot.json              how often an agent started here
    serving-<name>.json    newest serving plan of each deployment, or its tombstone
    speed.json             what was measured of this device
    running                the request that is being run right now, and of which epoch
    loading                the epoch that is being loaded right now
    poison.json            requests that were being run when the agent died
    deaths.json            how often the agent died while it loaded or ran an epoch
    marks.json             what no message can set back, see `edge.protocol.marks`
"""

import contextlib
import fcntl
import logging
import os
import random
import time
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import msgspec

from edge.errors import FormatError, StoreError
from edge.formats.message import Speed, check_speed
from edge.formats.plan import MAX_DEPLOYMENT_BYTES, Deployment, decode_deployment, encode_deployment
from edge.formats.topics import check_name
from edge.protocol.marks import Marks
from edge.slot import Slot

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_MAX_POISON = 64
_MAX_DEATHS = 64
_MAX_FILE_BYTES = 64 * 1024
MAX_SPEED_BYTES = 8 * 1024 * 1024
MAX_MARKS_BYTES = 1024 * 1024


class _Boot(msgspec.Struct, frozen=True, kw_only=True):
    boot: int


class _Poison(msgspec.Struct, frozen=True, kw_only=True):
    request_ids: tuple[str, ...] = ()


class _Death(msgspec.Struct, frozen=True, kw_only=True):
    deployment: str
    epoch: str
    times: int


class _Deaths(msgspec.Struct, frozen=True, kw_only=True):
    epochs: tuple[_Death, ...] = ()


class StateFolder:
    """The folder of one agent; a second agent is refused while the first lives."""

    def __init__(self, folder: Path) -> None:
        """Open or make the folder and take its lock.

        Raises:
            StoreError: it cannot be used, or another agent uses it.
        """
        self._folder = folder
        self._rests = False
        with contextlib.ExitStack() as undo:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                self._lock = undo.enter_context((folder / "lock").open("wb"))
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._slot = undo.enter_context(contextlib.closing(Slot(folder / "running")))
                self._loading = undo.enter_context(contextlib.closing(Slot(folder / "loading")))
            except BlockingIOError as error:
                raise StoreError(f"{folder} is in use by another process: give each its own --folder") from error
            except OSError as error:
                raise StoreError(f"{folder} cannot be used: {error.strerror}") from error
            undo.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def next_boot(self) -> int:
        """Raise the boot counter and return it.

        Raises:
            StoreError: the disk fails.
        """
        before = self._read(self._folder / "boot.json", _Boot)
        # The first number is the clock's, so that a device that was set up anew compares newer than its old
        # self; the random part tells apart two new agents that were given one name.
        boot = before.boot + 1 if before else (int(time.time()) + random.randrange(600)) & 0x7FFFFFFF  # noqa: S311
        self._replace(self._folder / "boot.json", msgspec.json.encode(_Boot(boot=boot)))
        return boot

    def serving(self) -> tuple[Deployment, ...]:
        """Return the newest serving plan of every deployment; a file that cannot be read is passed over."""
        found = []
        for path in sorted(self._folder.glob("serving-*.json")):
            try:
                if path.stat().st_size <= MAX_DEPLOYMENT_BYTES:
                    found.append(decode_deployment(path.read_bytes()))
            except (OSError, FormatError) as error:
                _log.warning("%s passed over: %s", path.name, error)
        return tuple(found)

    def save_serving(self, deployment: Deployment) -> None:
        """Remember a serving plan.

        Raises:
            StoreError: the disk fails.
        """
        name = check_name(deployment.name, what="deployment name")
        self._replace(self._folder / f"serving-{name}.json", encode_deployment(deployment))

    def speed(self) -> Speed | None:
        """Return what was measured of this device; None when nothing was or the file cannot be read."""
        found = self._read(self._folder / "speed.json", Speed, limit_bytes=MAX_SPEED_BYTES)
        if found is None:
            return None
        try:
            return check_speed(found)
        except FormatError as error:
            _log.warning("speed.json passed over: %s", error)
            return None

    def save_speed(self, speed: Speed) -> None:
        """Remember what was measured of this device.

        Raises:
            StoreError: the disk fails.
        """
        self._replace(self._folder / "speed.json", msgspec.json.encode(speed))

    def poisoned(self) -> frozenset[str]:
        """Return the requests that were being run when an agent died here, and remember them.

        Of what ran while a stage was being loaded nothing is said: loading is the likelier cause, and a request that is
        to blame brings down the next agent, too. Ask this before `deaths`, which empties the note of that.
        """
        known = self._read(self._folder / "poison.json", _Poison) or _Poison()
        if not any(self._loading.read()):
            died = self._slot.read()[0]
            if died and died not in known.request_ids:
                known = _Poison(request_ids=(*known.request_ids, died)[-_MAX_POISON:])
                self._replace(self._folder / "poison.json", msgspec.json.encode(known))
            self._note_death(self._slot.read()[1:])
        self.leave()
        return frozenset(known.request_ids)

    def deaths(self) -> dict[tuple[str, str], int]:
        """Return how often the agent died while it loaded or ran an epoch, by deployment and epoch."""
        self._note_death(self._loading.read()[1:])
        self.loaded()
        known = self._read(self._folder / "deaths.json", _Deaths) or _Deaths()
        return {(death.deployment, death.epoch): death.times for death in known.epochs}

    def forget_deaths(self, deployment: str, epoch: str) -> None:
        """Forget how often the agent died of an epoch.

        Raises:
            StoreError: the disk fails.
        """
        known = self._read(self._folder / "deaths.json", _Deaths) or _Deaths()
        kept = tuple(death for death in known.epochs if (death.deployment, death.epoch) != (deployment, epoch))
        if kept != known.epochs:
            self._replace(self._folder / "deaths.json", msgspec.json.encode(_Deaths(epochs=kept)))

    def marks(self) -> Marks:
        """Return what no message can set back; nothing when the file cannot be read."""
        return self._read(self._folder / "marks.json", Marks, limit_bytes=MAX_MARKS_BYTES) or Marks()

    def save_marks(self, marks: Marks) -> None:
        """Remember what no message can set back.

        Raises:
            StoreError: the disk fails.
        """
        self._replace(self._folder / "marks.json", msgspec.json.encode(marks))

    def enter(self, request_id: str, deployment: str = "", epoch: str = "") -> None:
        """Note the request that is about to run.

        The slot is a mapped file: a write costs a microsecond and survives the death of the process, though
        not of the machine, which no input of a request brings down.
        """
        if not self._rests:
            self._slot.write(request_id, deployment, epoch)

    def leave(self) -> None:
        """Note that no request runs."""
        if not self._slot.closed:
            self._slot.write()

    def rest(self) -> None:
        """Note that the agent ends as it should: whatever its threads still do is not what ended it."""
        self._rests = True
        self.leave()
        self.loaded()

    def loading(self, deployment: str, epoch: str) -> None:
        """Note the epoch that is about to be loaded; on the disk, as loading may take the machine down."""
        if self._rests or self._loading.closed:
            return
        self._loading.write("", deployment, epoch)
        self._loading.sync()

    def loaded(self) -> None:
        """Note that nothing is being loaded; also while the agent ends, and the folder is given back already."""
        if self._loading.closed:
            return
        self._loading.write()
        self._loading.sync()

    def _note_death(self, died: tuple[str, ...]) -> None:
        """Count a death of (deployment, epoch); of nothing when that is empty."""
        if len(died) != 2 or not all(died):
            return
        known = self._read(self._folder / "deaths.json", _Deaths) or _Deaths()
        others = [death for death in known.epochs if (death.deployment, death.epoch) != died]
        times = 1 + sum(death.times for death in known.epochs if (death.deployment, death.epoch) == died)
        epochs = (*others, _Death(deployment=died[0], epoch=died[1], times=times))[-_MAX_DEATHS:]
        self._replace(self._folder / "deaths.json", msgspec.json.encode(_Deaths(epochs=epochs)))

    def close(self) -> None:
        """Give the folder back."""
        self._slot.close()
        self._loading.close()
        self._lock.close()

    def _read(self, path: Path, type_: type[_T], *, limit_bytes: int = _MAX_FILE_BYTES) -> _T | None:
        try:
            if path.stat().st_size > limit_bytes:
                return None
            return msgspec.json.decode(path.read_bytes(), type=type_)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            _log.warning("%s passed over: %s", path.name, error)
            return None

    def _replace(self, path: Path, data: bytes) -> None:
        temporary = path.with_name(f".{path.name}.new")
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            descriptor = os.open(self._folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise StoreError(f"{path} cannot be written: {error.strerror}") from error
