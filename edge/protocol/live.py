"""Which blobs a device must keep: those of what serves here and of what served before. Part of the session."""

from collections.abc import Callable, Iterable

from edge.formats.plan import Deployment
from edge.protocol.local_epoch import LocalEpoch

Keeps = Callable[[], frozenset[str] | None]
"""Returns the digests that somebody needs; None while that is not known."""


class LiveBlobs:
    """Knows what is held, and what of it nobody needs.

    Of each deployment live is what the serving epoch needs here, also when it failed to load just now: the cause may
    pass, and nobody else may hold its blobs. Then what the epoch before it needed, and what the bundle before it did,
    so that it can be served again.

    Attributes:
        held: digests of the blobs that are here.
        also: what else is needed.
        kept_before: what was kept for others of the epochs before, by deployment.
    """

    def __init__(self, held: Iterable[str]) -> None:
        self.held = set(held)
        self.also: list[Keeps] = []
        self.kept_before: dict[str, frozenset[str]] = {}
        self._served: dict[str, frozenset[str]] = {}
        self._previous: dict[str, frozenset[str]] = {}
        self._other_bundle: dict[str, frozenset[str]] = {}

    def superseded(self, old: LocalEpoch, deployment: Deployment) -> None:
        """Note that an epoch that served no longer does.

        Args:
            old: the epoch.
            deployment: what serves now.
        """
        name, digests = deployment.name, _digests(old)
        if digests is None:
            return
        self._previous[name] = digests
        if deployment.manifest is None or deployment.manifest.digest != old.manifest_digest:
            self._other_bundle[name] = digests

    def removed(self, name: str) -> None:
        """A deployment is gone for good."""
        for kept in (self._served, self._previous, self._other_bundle):
            kept.pop(name, None)

    def give_up(self) -> tuple[dict[str, frozenset[str]], ...]:
        """Keep nothing any more of what served before; return that, for `take_back`."""
        kept = tuple(dict(before) for before in self._before)
        for before in self._before:
            before.clear()
        return kept

    def take_back(self, kept: tuple[dict[str, frozenset[str]], ...]) -> None:
        """Keep what was given up after all."""
        for before, digests in zip(self._before, kept, strict=True):
            before.update(digests)

    @property
    def _before(self) -> tuple[dict[str, frozenset[str]], ...]:
        return self._previous, self._other_bundle, self.kept_before

    def collect(
        self, serving: Iterable[tuple[str, LocalEpoch | None]], local: Iterable[LocalEpoch]
    ) -> frozenset[str] | None:
        """Forget the blobs that nobody needs.

        Args:
            serving: name and local epoch of each deployment that the device has a stage of.
            local: all epochs that are here.

        Returns:
            What to keep; None when there is nothing to drop, or some manifest is unread and it is not known yet.
        """
        keep: set[str] = set()
        for name, epoch in serving:
            digests = _digests(epoch) if epoch is not None else None
            if digests is not None:
                self._served[name] = digests
            if name not in self._served:
                return None
            keep |= self._served[name]
        for kept in (*self._previous.values(), *self._other_bundle.values()):
            keep |= kept
        for digests in (*map(_digests, local), *(needs() for needs in self.also)):
            if digests is None:
                return None
            keep |= digests
        if self.held <= keep:
            return None
        self.held &= keep
        return frozenset(keep)


def _digests(epoch: LocalEpoch) -> frozenset[str] | None:
    blobs = epoch.blobs()
    return frozenset(blob.digest for blob in blobs) if blobs is not None else None
