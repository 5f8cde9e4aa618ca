"""A wire between a node and its broker that can be cut, slowed and made lossy; needs no root.

Each `Wire` is a TCP port on the loopback address. What arrives there goes on to the broker, in both directions, as the
wire allows at that moment. A cut is silent: neither side sees a FIN, new connections are taken and never answered, and
what was sent waits until the wire is healed, as TCP would keep it. Loss is emulated above TCP: a segment of 1,460 bytes
that is lost costs the stream max(200 ms, 2 round trips), and all behind it waits, as with a retransmission.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

Link = Literal["both", "control", "data"]

SEGMENT_BYTES = 1460
LEAST_RETRANSMIT_SECONDS = 0.2
_CHUNK_BYTES = 64 * 1024
_MAX_CHUNKS = 512
_HEAD_BYTES = 4096
_CONNECT = 0x10
_MQTT_5 = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Condition:
    """What a wire does to what passes.

    Attributes:
        delay_seconds: one way.
        loss: part of the segments that are lost.
        bytes_per_second: in each direction of each connection; 0 for no limit.
    """

    delay_seconds: float = 0.0
    loss: float = 0.0
    bytes_per_second: float = 0.0


PERFECT = Condition()


def stall_seconds(size_bytes: int, condition: Condition, draw: Callable[[], float]) -> float:
    """Return how long losses hold up a chunk.

    Args:
        size_bytes: of the chunk.
        condition: of the wire.
        draw: random numbers in [0, 1).
    """
    segments = -(-size_bytes // SEGMENT_BYTES)
    lost = sum(draw() < condition.loss for _ in range(segments)) if condition.loss else 0
    return max(LEAST_RETRANSMIT_SECONDS, 4 * condition.delay_seconds) if lost else 0.0


def client_id(head: bytes) -> str | None:
    """Return the client id in an MQTT CONNECT, None while it is not all there or when this is none."""
    if len(head) < 2 or head[0] != _CONNECT:
        return None
    at = 1
    while at < len(head) and head[at] & 0x80:
        at += 1
    at += 1
    protocol = _length_at(head, at)
    at += 2 + protocol
    level = head[at] if at < len(head) else 0
    at += 4  # level, flags, keep-alive
    if level == _MQTT_5 and at < len(head):
        at += 1 + head[at]  # properties of a CONNECT are short here: one byte tells their length
    length = _length_at(head, at)
    name = head[at + 2 : at + 2 + length]
    return name.decode(errors="replace") if at + 2 <= len(head) and len(name) == length else None


def _length_at(head: bytes, at: int) -> int:
    return int.from_bytes(head[at : at + 2], "big")


class Wire:
    """One node's way to the broker; every method may be called from any thread."""

    def __init__(self, name: str, upstream: tuple[str, int], loop: asyncio.AbstractEventLoop, seed: int) -> None:
        self.name = name
        self.port = 0
        self._upstream = upstream
        self._loop = loop
        self._random = random.Random(f"{seed} {name}")  # noqa: S311 - losses are drawn, nothing is kept secret
        self._condition = PERFECT
        self._cut: set[str] = set()
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        # Connections of a node that lost its power: they stay silent for ever.
        self._generation = 0
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """Where the node connects to."""
        return f"mqtt://127.0.0.1:{self.port}"

    def cut(self, link: Link = "both") -> None:
        """Let nothing pass, silently, on one link or both."""
        self._do(lambda: self._cut.update(("control", "data") if link == "both" else (link,)))

    def heal(self) -> None:
        """Let everything pass again, what waits first."""
        self._do(self._cut.clear)

    def abandon(self) -> None:
        """Let nothing pass on the connections that stand, for ever and silently; new ones are as good as before."""

        def forget() -> None:
            self._generation += 1

        self._do(forget)

    def set_condition(self, condition: Condition) -> None:
        """Slow what passes from now on."""

        def change() -> None:
            self._condition = condition

        self._do(change)

    def _do(self, change: Callable[[], object]) -> None:
        done = threading.Event()

        def act() -> None:
            change()
            self._changed.set()
            self._changed = asyncio.Event()
            done.set()

        self._loop.call_soon_threadsafe(act)
        done.wait(5.0)

    async def open(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop listening and drop every connection."""
        if self._server is not None:
            self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._relay(reader, writer))
        self._tasks.add(task)
        try:
            await task
        except (OSError, asyncio.CancelledError):
            pass  # it ended, or the wire did
        finally:
            self._tasks.discard(task)
            with contextlib.suppress(OSError, RuntimeError):
                writer.close()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        generation = self._generation
        head = b""
        while client_id(head) is None and len(head) < _HEAD_BYTES:
            more = await reader.read(_HEAD_BYTES)
            if not more:
                return
            head += more
        link = "data" if ".data" in (client_id(head) or "") else "control"
        await self._pass(link, generation)
        up_reader, up_writer = await asyncio.open_connection(*self._upstream)
        try:
            there = asyncio.create_task(self._pump(reader, up_writer, link, generation, head))
            back = asyncio.create_task(self._pump(up_reader, writer, link, generation, b""))
            try:
                # One end of a TCP connection that is gone ends it whole: MQTT has no half-closed connections.
                await asyncio.wait((there, back), return_when=asyncio.FIRST_COMPLETED)
            finally:
                there.cancel()
                back.cancel()
                await asyncio.gather(there, back, return_exceptions=True)
        finally:
            with contextlib.suppress(OSError, RuntimeError):
                up_writer.close()

    async def _pass(self, link: str, generation: int) -> None:
        """Wait until something may pass."""
        while link in self._cut or generation < self._generation:
            await self._changed.wait()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: str, generation: int, first: bytes
    ) -> None:
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_MAX_CHUNKS)
        sender = asyncio.create_task(self._send(waiting, writer, link, generation))
        due, chunk = 0.0, first
        try:
            while not sender.done():
                if chunk:
                    due = self._due(due, len(chunk))
                    await waiting.put((due, chunk))
                try:
                    chunk = await reader.read(_CHUNK_BYTES)
                except OSError:
                    chunk = b""
                if not chunk:
                    break
            await waiting.put((due, b""))  # the FIN, which has to wait like everything before it
            await sender
        finally:
            sender.cancel()

    def _due(self, before: float, size: int) -> float:
        condition, now = self._condition, self._loop.time()
        if condition is PERFECT:
            return max(before, now)
        rate = condition.bytes_per_second
        begin = max(before, now + condition.delay_seconds)
        return begin + stall_seconds(size, condition, self._random.random) + (size / rate if rate else 0.0)

    async def _send(
        self, waiting: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter, link: str, generation: int
    ) -> None:
        while True:
            due, chunk = await waiting.get()
            if (pause := due - self._loop.time()) > 0:
                await asyncio.sleep(pause)
            await self._pass(link, generation)
            if not chunk:
                return
            writer.write(chunk)
            await writer.drain()


class Wires:
    """All wires of a fleet and the thread that runs them, for the length of a `with` block."""

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._wires: dict[str, Wire] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="chaos-wires", daemon=True)

    def __enter__(self) -> Self:
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Drop every connection and end the thread."""
        for wire in self._wires.values():
            asyncio.run_coroutine_threadsafe(wire.close(), self._loop).result(5.0)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5.0)
        self._loop.close()

    def add(self, name: str, upstream: tuple[str, int]) -> Wire:
        """Lay a wire from a new port to a broker's address."""
        wire = Wire(name, upstream, self._loop, self._seed)
        asyncio.run_coroutine_threadsafe(wire.open(), self._loop).result(5.0)
        self._wires[name] = wire
        return wire

    def __getitem__(self, name: str) -> Wire:
        """Return the wire of a node."""
        return self._wires[name]

    def __iter__(self) -> Iterator[str]:
        """Yield the names of the nodes, in the order in which they came."""
        return iter(self._wires)
