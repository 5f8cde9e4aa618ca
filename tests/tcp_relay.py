"""A relay between a node and its broker that can fall silent without a word, as a link whose packets are dropped."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from collections.abc import Iterator


class TcpRelay:
    """Hands bytes on both ways between whoever connects to `port` and one target; one thread."""

    def __init__(self, target: tuple[str, int], *, port: int = 0) -> None:
        self._target = target
        self._server = socket.create_server(("127.0.0.1", port))
        self.port: int = self._server.getsockname()[1]
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._lock = threading.Lock()
        self._silent: set[socket.socket] = set()
        self._all_silent = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tcp-relay", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    def silence(self, place: int | None = None) -> None:
        """Hand nothing on any more, on all links that stand and come, or on one: they stand in order of connecting."""
        with self._lock:
            links = list(self._pairs)
            self._all_silent = place is None
            self._silent.update(links if place is None else links[2 * place : 2 * place + 2])

    def heal(self) -> None:
        """Let new links through; what stood stays silent."""
        with self._lock:
            self._all_silent = False

    def cut(self) -> None:
        """End all links."""
        with self._lock:
            for link in self._pairs:
                with contextlib.suppress(OSError):
                    link.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._closing.set()
        self._thread.join(5)

    def _run(self) -> None:
        with selectors.DefaultSelector() as ready:
            ready.register(self._server, selectors.EVENT_READ)
            while not self._closing.is_set():
                for key, _ in ready.select(0.05):
                    if key.fileobj is self._server:
                        self._join(ready)
                    elif isinstance(key.fileobj, socket.socket):
                        self._hand_on(ready, key.fileobj)
        for link in (*self._pairs, self._server):
            link.close()

    def _join(self, ready: selectors.BaseSelector) -> None:
        near, _ = self._server.accept()
        try:
            far = socket.create_connection(self._target, timeout=2)
        except OSError:
            near.close()
            return
        far.settimeout(None)
        with self._lock:
            self._pairs |= {near: far, far: near}
            if self._all_silent:
                self._silent |= {near, far}
        for link in (near, far):
            ready.register(link, selectors.EVENT_READ)

    def _hand_on(self, ready: selectors.BaseSelector, link: socket.socket) -> None:
        with self._lock:
            other = self._pairs.get(link)
            silent = link in self._silent
        if other is None:
            return
        data = b""
        with contextlib.suppress(OSError):
            data = link.recv(65536)
        if data and silent:
            return
        if data:
            with contextlib.suppress(OSError):
                other.sendall(data)
                return
        if silent:
            # The end of a link that is cut does not reach the other side either.
            ready.unregister(link)
            return
        with self._lock:
            for end in (link, other):
                self._pairs.pop(end, None)
                with contextlib.suppress(KeyError):
                    ready.unregister(end)
                end.close()


@contextlib.contextmanager
def relay_to(port: int) -> Iterator[TcpRelay]:
    """A relay to a broker on this machine for the length of a `with` block."""
    relay = TcpRelay(("127.0.0.1", port))
    try:
        yield relay
    finally:
        relay.close()
