"""Requests that survive the death of the client: kept on disk until their one outcome, and that until it is collected.

A row is committed before `submit` returns, and settled once: the first outcome stays, whoever brings another. After a
crash `resume` submits what has no outcome again, under the same request ids and the same client name, so that also
results that are still on their way are taken. Stages are pure, so running one twice is harmless.
"""

import contextlib
import secrets
import sqlite3
import threading
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from edge.client import Client
from edge.errors import (
    REQUEST_ERRORS,
    Cancelled,
    FormatError,
    InvalidInput,
    RequestError,
    ShardwireError,
    StoreError,
)
from edge.formats.frame import FrameHeader, Hop, decode_frame, encode_frame
from edge.formats.tensor import Array
from edge.formats.topics import check_name
from edge.protocol.requests import InferenceResult

MAX_ROW_BYTES = 256 * 1024 * 1024
_MAX_TAG = 1024
_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS client (name TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS requests (
    row INTEGER PRIMARY KEY AUTOINCREMENT,
    request_id TEXT NOT NULL UNIQUE,
    deployment TEXT NOT NULL,
    tag TEXT NOT NULL,
    deadline_seconds REAL NOT NULL,
    inputs BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS outcomes (
    row INTEGER PRIMARY KEY REFERENCES requests (row),
    code TEXT NOT NULL,
    message TEXT NOT NULL,
    result BLOB NOT NULL
);
"""


class _Result(msgspec.Struct, frozen=True, kw_only=True):
    frame: bytes
    trace: tuple[Hop, ...]
    latency_seconds: float
    attempts: int
    epoch: str


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Result)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One accepted request.

    Attributes:
        row: its number in the outbox, in the order of acceptance.
        tag: what the program noted with it, such as the name of a file.
        deadline_seconds: counted from its submission in this life of the client.
    """

    row: int
    request_id: str
    deployment: str
    tag: str
    deadline_seconds: float
    inputs: Mapping[str, Array]


@dataclass(frozen=True, kw_only=True, slots=True)
class Settled:
    """The one outcome of an accepted request."""

    row: int
    request_id: str
    tag: str
    outcome: InferenceResult | RequestError


class Outbox:
    """A file of requests and outcomes (SQLite, write-ahead log); one process uses it at a time. Thread-safe."""

    def __init__(self, path: Path) -> None:
        """Open or make the file.

        Raises:
            StoreError: it cannot be used, is no outbox, or another process uses it.
        """
        self._path = path
        self._lock = threading.Lock()
        with self._errors():
            self._base = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=0.5)
        try:
            with self._errors():
                # Exclusive: a second client of the same name would take the answers of the first.
                self._base.execute("PRAGMA locking_mode = EXCLUSIVE")
                self._base.execute("PRAGMA journal_mode = WAL")
                # A commit is on the disk when it returns: also the machine may lose its power.
                self._base.execute("PRAGMA synchronous = FULL")
                version = self._base.execute("PRAGMA user_version").fetchone()[0]
                tables = self._base.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
                if version != _VERSION and (version or tables):
                    raise StoreError(f"{path} is no outbox of this release: give another file")
                self._base.execute("BEGIN IMMEDIATE")
                for statement in _SCHEMA.split(";")[:-1]:
                    self._base.execute(statement)
                self._base.execute(f"PRAGMA user_version = {_VERSION}")
                if self._base.execute("SELECT count(*) FROM client").fetchone()[0] == 0:
                    self._base.execute("INSERT INTO client VALUES (?)", (f"client-{secrets.token_hex(4)}",))
                self._base.execute("COMMIT")
                self.client_name = check_name(
                    self._base.execute("SELECT name FROM client").fetchone()[0], what="client"
                )
        except BaseException:
            self._base.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._base.close()

    def add(self, deployment: str, inputs: Mapping[str, Array], *, deadline_seconds: float, tag: str = "") -> Row:
        """Commit a request.

        Raises:
            InvalidInput: it is larger than `MAX_ROW_BYTES`, or its tag is longer than 1,024 characters.
            StoreError: the disk fails; the request is not accepted.
        """
        request_id = uuid.uuid4().hex
        frame = encode_frame(_header(request_id, deployment), inputs)
        if len(frame) > MAX_ROW_BYTES or len(tag) > _MAX_TAG:
            raise InvalidInput(f"request of {len(frame)} bytes and a tag of {len(tag)} characters is too large")
        with self._lock, self._errors():
            row = self._base.execute(
                "INSERT INTO requests (request_id, deployment, tag, deadline_seconds, inputs) VALUES (?, ?, ?, ?, ?)",
                (request_id, deployment, tag, deadline_seconds, frame),
            ).lastrowid
        return Row(
            row=row or 0,
            request_id=request_id,
            deployment=deployment,
            tag=tag,
            deadline_seconds=deadline_seconds,
            inputs=inputs,
        )

    def unsettled(self) -> Iterator[Row]:
        """Yield the requests without an outcome, in the order of acceptance.

        Raises:
            StoreError: the file is damaged.
        """
        after = 0
        while (found := self._next_unsettled(after)) is not None:
            after = found.row
            yield found

    def settle(self, row: int, outcome: InferenceResult | RequestError) -> bool:
        """Commit the outcome of a request; return False when it has one already, which stays.

        Raises:
            StoreError: the disk fails.
        """
        code, message, result = "", "", b""
        if isinstance(outcome, InferenceResult):
            result = _encode_result(outcome)
        else:
            code, message = outcome.code, str(outcome)
        with self._lock, self._errors():
            return (
                self._base.execute(
                    "INSERT OR IGNORE INTO outcomes SELECT row, ?, ?, ? FROM requests WHERE row = ?",
                    (code, message, result, row),
                ).rowcount
                == 1
            )

    def settled(self) -> Iterator[Settled]:
        """Yield every outcome that was not forgotten, in the order of acceptance.

        Raises:
            StoreError: the file is damaged.
        """
        after = 0
        query = (
            "SELECT row, request_id, tag, code, message, result FROM outcomes JOIN requests USING (row) "
            "WHERE row > ? ORDER BY row LIMIT 1"
        )
        while True:
            with self._lock, self._errors():
                found = self._base.execute(query, (after,)).fetchone()
            if found is None:
                return
            after = found[0]
            yield Settled(row=found[0], request_id=found[1], tag=found[2], outcome=self._outcome(*found[3:]))

    def forget(self, row: int) -> None:
        """Drop a request that has an outcome, once the program has done with it.

        Raises:
            StoreError: the disk fails.
        """
        with self._lock, self._errors():
            self._base.execute("BEGIN IMMEDIATE")
            if self._base.execute("DELETE FROM outcomes WHERE row = ?", (row,)).rowcount:
                self._base.execute("DELETE FROM requests WHERE row = ?", (row,))
            self._base.execute("COMMIT")

    def _next_unsettled(self, after: int) -> Row | None:
        query = (
            "SELECT row, request_id, deployment, tag, deadline_seconds, inputs FROM requests "
            "WHERE row > ? AND row NOT IN (SELECT row FROM outcomes) ORDER BY row LIMIT 1"
        )
        with self._lock, self._errors():
            found = self._base.execute(query, (after,)).fetchone()
            if found is None:
                return None
            tensors = decode_frame(found[5], limit_bytes=MAX_ROW_BYTES).tensors
        return Row(
            row=found[0],
            request_id=found[1],
            deployment=found[2],
            tag=found[3],
            deadline_seconds=found[4],
            inputs=tensors,
        )

    def _outcome(self, code: str, message: str, result: bytes) -> InferenceResult | RequestError:
        if code:
            return REQUEST_ERRORS.get(code, RequestError)(message)
        with self._errors():
            kept = _decoder.decode(result)
            return InferenceResult(
                outputs=decode_frame(kept.frame, limit_bytes=MAX_ROW_BYTES).tensors,
                trace=kept.trace,
                latency_seconds=kept.latency_seconds,
                taken_seconds=tuple(None for _ in kept.trace),
                attempts=kept.attempts,
                epoch=kept.epoch,
            )

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            if "locked" in str(error):
                raise StoreError(f"{self._path} is in use by another process: give each its own outbox") from error
            raise StoreError(f"outbox {self._path}: {error}") from error
        except (FormatError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise StoreError(f"outbox {self._path} is damaged: {error}") from error


class DurableClient:
    """A client whose accepted requests have exactly one outcome on disk, also after its own death.

    ::

        with Outbox(Path("requests.db")) as outbox, Client.connect(url, name=outbox.client_name) as client:
            durable = DurableClient(client, outbox)
            durable.resume()
            durable.submit("effnet", {"input": image}, tag="photo-17").result()
    """

    def __init__(self, client: Client, outbox: Outbox) -> None:
        """Join a client, which has the name `outbox.client_name`, and an outbox."""
        self._client = client
        self._outbox = outbox

    def submit(
        self, name: str, inputs: Mapping[str, Array], *, deadline_seconds: float = 30.0, tag: str = ""
    ) -> "Future[InferenceResult]":
        """Accept a request: when this returns it is on the disk; its outcome is, before the future has it.

        Raises:
            InvalidInput, UnknownDeployment, TransportError: as `Client.submit`; it was not accepted.
            StoreError: the disk fails; it was not accepted.
        """
        self._client.check(name, inputs, deadline_seconds=deadline_seconds)
        return self._send(self._outbox.add(name, inputs, deadline_seconds=deadline_seconds, tag=tag))

    def resume(self) -> "dict[int, Future[InferenceResult]]":
        """Submit again what an earlier life left without an outcome; return the futures by row.

        Raises:
            StoreError: the file is damaged.
        """
        return {row.row: self._send(row) for row in self._outbox.unsettled()}

    def _send(self, row: Row) -> "Future[InferenceResult]":
        durable: Future[InferenceResult] = Future()
        durable.set_running_or_notify_cancel()
        try:
            sent = self._client.submit(
                row.deployment, row.inputs, deadline_seconds=row.deadline_seconds, request_id=row.request_id
            )
        except RequestError as error:
            # Accepted in an earlier life, for a model that has other inputs by now.
            self._settle(row.row, error, durable)
            return durable
        except ShardwireError as error:
            # Nothing serves under its name any more, or the client was closed: the next life may do better.
            durable.set_exception(error)
            return durable
        sent.add_done_callback(lambda done: self._done(row.row, done, durable))
        return durable

    def _done(self, row: int, done: "Future[InferenceResult]", durable: "Future[InferenceResult]") -> None:
        error = done.exception()
        if error is None:
            self._settle(row, done.result(), durable)
        elif isinstance(error, Cancelled) or not isinstance(error, RequestError):
            # The client was closed: the request stays in the outbox, for its next life.
            durable.set_exception(error)
        else:
            self._settle(row, error, durable)

    def _settle(self, row: int, outcome: InferenceResult | RequestError, durable: "Future[InferenceResult]") -> None:
        try:
            self._outbox.settle(row, outcome)
        except StoreError as error:
            durable.set_exception(error)
            return
        if isinstance(outcome, InferenceResult):
            durable.set_result(outcome)
        else:
            durable.set_exception(outcome)


def _header(request_id: str, deployment: str) -> FrameHeader:
    return FrameHeader(
        request_id=request_id, sender="", reply_to="", ttl_ms=0, deployment=deployment, epoch="", stage=0
    )


def _encode_result(result: InferenceResult) -> bytes:
    frame = encode_frame(_header("", ""), result.outputs)
    return _encoder.encode(
        _Result(
            frame=frame,
            trace=result.trace,
            latency_seconds=result.latency_seconds,
            attempts=result.attempts,
            epoch=result.epoch,
        )
    )
