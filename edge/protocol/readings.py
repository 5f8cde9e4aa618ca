"""Deployments as they come from the broker, decoded once for each change. Part of the session."""

from edge.errors import FormatError
from edge.formats.plan import Deployment, decode_deployment

_MOST_TOPICS = 64
_MOST_BYTES = 4 * 1024 * 1024


class Readings:
    """Decodes retained deployments, and remembers the last payload of each topic.

    After every hello a coordinator says again what is served: for a node that knows it, that is a comparison of bytes.
    """

    def __init__(self) -> None:
        self._last: dict[str, tuple[bytes, Deployment]] = {}
        self._bytes = 0

    def read(self, topic: str, payload: bytes, *, name: str) -> Deployment:
        """Return the deployment in a payload.

        Args:
            topic: that it came on.
            payload: not empty.
            name: of the deployment, from the topic.

        Raises:
            FormatError: malformed, or of another name.
            UnsupportedVersion: another major version.
        """
        last = self._last.get(topic)
        if last is not None and last[0] == payload:
            return last[1]
        deployment = decode_deployment(payload)
        if deployment.name != name:
            raise FormatError(f"deployment {deployment.name[:64]!r} on the topic of {name[:64]!r}")
        self._forget(topic)
        self._last[topic] = (payload, deployment)
        self._bytes += len(payload)
        while len(self._last) > _MOST_TOPICS or self._bytes > _MOST_BYTES:
            self._forget(next(iter(self._last)))
        return deployment

    def _forget(self, topic: str) -> None:
        last = self._last.pop(topic, None)
        self._bytes -= len(last[0]) if last is not None else 0
