"""A door from one machine's client to its own agent: a Unix socket, so that raw input does not pass the broker.

A camera's first layer may be pinned to the camera (`Constraints.pins`). A client there hands its frames to the agent
through this door; only what that stage makes of them travels. Results and acks come through the broker as ever.

What goes through is a sequence of records: u16 length of the topic, u32 length of the payload (big-endian), topic,
payload; each is one packet for a topic `run/<this node>/…`. The mode of the socket's file, 0600, says who may use it.
"""

import contextlib
import logging
import os
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path

from edge.errors import ShardwireError, TransportError
from edge.formats.packet import MAX_PACKET_BYTES
from edge.formats.topics import Topics
from edge.transport import Channel, OnEvent, Received

_log = logging.getLogger(__name__)

MAX_CALLERS = 8
MAX_TOPIC_BYTES = 512
MAX_PATH_BYTES = 100
_RECORD = struct.Struct(">HI")
_SEND_SECONDS = 1.0
"""How long a packet may take to be handed over: an agent that stands still must not hold its client for long."""


class Door:
    """The agent's side: takes packets for its own stages from clients on this machine."""

    def __init__(self, path: Path, *, topics: Topics, node: str, on_event: OnEvent) -> None:
        """Prepare; `open` starts to listen.

        Args:
            path: of the socket, at most `MAX_PATH_BYTES` long; one that nobody listens to any more is replaced.
            topics: of the fleet.
            node: name of this agent.
            on_event: gets each packet as if it had come from the broker.
        """
        self._path = path
        self._topics = topics
        self._node = node
        self._on_event = on_event
        self._socket: socket.socket | None = None
        self._callers: set[socket.socket] = set()
        self._lock = threading.Lock()

    def open(self) -> None:
        """Listen, in a thread of its own.

        Raises:
            TransportError: the path cannot be used, or another agent listens there.
        """
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._claim()
            # Before it has a name: Linux gives the file the mode of the socket.
            os.fchmod(listener.fileno(), 0o600)
            listener.bind(str(self._path))
            listener.listen(MAX_CALLERS)
        except OSError as error:
            listener.close()
            raise TransportError(f"door {self._path} cannot be opened: {error.strerror or error}") from error
        except TransportError:
            listener.close()
            raise
        self._socket = listener
        threading.Thread(target=self._accept, args=(listener,), name="door", daemon=True).start()

    def close(self) -> None:
        """Stop listening, hang up on everybody, and remove the socket. Idempotent."""
        with self._lock:
            listener, self._socket = self._socket, None
        if listener is None:
            return
        with contextlib.suppress(OSError):
            # Closing alone does not wake the thread that accepts.
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        with contextlib.suppress(OSError):
            self._path.unlink()
        with self._lock:
            callers = tuple(self._callers)
        for caller in callers:
            with contextlib.suppress(OSError):
                caller.shutdown(socket.SHUT_RDWR)

    def _claim(self) -> None:
        if len(os.fsencode(self._path)) > MAX_PATH_BYTES:
            raise TransportError(
                f"door {self._path}: its path is longer than {MAX_PATH_BYTES} bytes: use a shorter one"
            )
        if not self._path.is_socket():
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(_SEND_SECONDS)
            try:
                probe.connect(str(self._path))
            except ConnectionRefusedError:
                self._path.unlink()
                return
            except TimeoutError:
                pass  # it stands still, and is still somebody's
        raise TransportError(f"door {self._path} is in use by another agent")

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                caller, _ = listener.accept()
            except OSError:
                return
            with self._lock:
                # Looked at under the lock: `close` hangs up on those that it finds there.
                taken = len(self._callers) < MAX_CALLERS and self._socket is not None
                if taken:
                    self._callers.add(caller)
            if not taken:
                caller.close()
                continue
            threading.Thread(target=self._serve, args=(caller,), name="door-caller", daemon=True).start()

    def _serve(self, caller: socket.socket) -> None:
        warned = False
        try:
            with caller, caller.makefile("rb") as stream:
                while record := _read_record(stream.read):
                    topic, payload = record
                    levels = self._topics.parse(topic)
                    if levels is None or levels[:2] != ("run", self._node):
                        if not warned:
                            _log.warning("door: packets for %r and the like are dropped", topic[:120])
                        warned = True
                        continue
                    self._on_event(Received(channel=Channel.DATA, topic=topic, payload=payload))
        except ShardwireError as error:
            _log.warning("door: hung up: %s", error)
        except OSError as error:
            _log.info("door: a client went away: %s", error)
        finally:
            with self._lock:
                self._callers.discard(caller)


class DoorLine:
    """The client's side: a connection to one agent's door, made when there is something to send."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket: socket.socket | None = None

    def send(self, topic: str, payload: bytes) -> bool:
        """Hand over one packet; False when the door is shut (nothing is kept: whoever asked sends again)."""
        record = _RECORD.pack(len(topic.encode()), len(payload)) + topic.encode() + payload
        # An old connection may have died with an agent that is there again: then a new one is tried.
        for _ in range(1 if self._socket is None else 2):
            try:
                if self._socket is None:
                    self._socket = self._connect()
                self._socket.sendall(record)
            except OSError as error:
                self.close()
                if isinstance(error, TimeoutError):
                    break
            else:
                return True
        return False

    def close(self) -> None:
        """Hang up. Idempotent."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connect(self) -> socket.socket:
        line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            line.settimeout(_SEND_SECONDS)
            line.connect(str(self._path))
        except OSError:
            line.close()
            raise
        return line


def _read_record(read: Callable[[int], bytes]) -> tuple[str, bytes] | None:
    """Return the next (topic, payload), None at the end."""
    head = read(_RECORD.size)
    if len(head) < _RECORD.size:
        return None
    topic_bytes, payload_bytes = _RECORD.unpack(head)
    if not 0 < topic_bytes <= MAX_TOPIC_BYTES or payload_bytes > MAX_PACKET_BYTES:
        raise TransportError(f"a record of {topic_bytes} and {payload_bytes} bytes is more than a packet")
    topic, payload = read(topic_bytes), read(payload_bytes)
    if len(topic) + len(payload) < topic_bytes + payload_bytes:
        return None
    try:
        return topic.decode("ascii"), payload
    except UnicodeDecodeError as error:
        raise TransportError("a topic that is not ASCII") from error
