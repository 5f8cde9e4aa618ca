"""MQTT topics in a tree, so that a broker with thousands of subscriptions finds the few that match."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

_T = TypeVar("_T")
_REMEMBERED_TOPICS = 16_384


class _Branch(Generic[_T]):
    __slots__ = ("below", "here")

    def __init__(self) -> None:
        self.below: dict[str, _Branch[_T]] = {}
        self.here: dict[_T, None] = {}


class FilterTree(Generic[_T]):
    """Subscribers by topic filter; found in the order of their subscription within each filter."""

    def __init__(self) -> None:
        self._root: _Branch[_T] = _Branch()
        self._found: dict[str, list[_T]] = {}

    def _changed(self, filter: str) -> None:
        """Forget who was found for the topics that a filter covers, and maybe for others."""
        if "+" in filter or "#" in filter:
            self._found.clear()
        else:
            self._found.pop(filter, None)

    def add(self, filter: str, subscriber: _T) -> None:
        """Subscribe."""
        self._changed(filter)
        branch = self._root
        for level in filter.split("/"):
            branch = branch.below.setdefault(level, _Branch())
        branch.here[subscriber] = None

    def remove(self, filter: str, subscriber: _T) -> None:
        """Unsubscribe; nothing happens when it was not subscribed."""
        self._changed(filter)
        branch: _Branch[_T] | None = self._root
        for level in filter.split("/"):
            branch = branch.below.get(level) if branch is not None else None
        if branch is not None:
            branch.here.pop(subscriber, None)

    def find(self, topic: str) -> list[_T]:
        """Return everybody with a filter that covers a topic, each once; the list is not to be changed."""
        known = self._found.get(topic)
        if known is None:
            if len(self._found) >= _REMEMBERED_TOPICS:
                self._found.clear()
            known = self._found[topic] = self._look(topic)
        return known

    def _look(self, topic: str) -> list[_T]:
        found: dict[_T, None] = {}
        branches = [self._root]
        for level in topic.split("/"):
            below: list[_Branch[_T]] = []
            for branch in branches:
                below += (branch.below[key] for key in (level, "+") if key in branch.below)
                if (rest := branch.below.get("#")) is not None:
                    found |= rest.here
            branches = below
            if not branches:
                break
        for branch in branches:
            found |= branch.here
            if (rest := branch.below.get("#")) is not None:
                found |= rest.here
        return list(found)


class RetainedTree:
    """Retained messages by topic."""

    def __init__(self) -> None:
        self._root: _Branch[bytes] = _Branch()

    def keep(self, topic: str, payload: bytes) -> None:
        """Keep a payload; an empty one removes what was kept."""
        branch = self._root
        for level in topic.split("/"):
            branch = branch.below.setdefault(level, _Branch())
        branch.here.clear()
        if payload:
            branch.here[payload] = None

    def matching(self, filter: str) -> list[tuple[str, bytes]]:
        """Return topics and payloads that a filter covers, in the order in which the topics came first."""
        return list(_walk(self._root, filter.split("/"), ()))


def _walk(branch: _Branch[bytes], wanted: list[str], before: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    if not wanted or wanted[0] == "#":
        yield from (("/".join(before), payload) for payload in branch.here)
    if not wanted:
        return
    if wanted[0] in ("+", "#"):
        for level, child in branch.below.items():
            yield from _walk(child, wanted if wanted[0] == "#" else wanted[1:], (*before, level))
    elif (found := branch.below.get(wanted[0])) is not None:
        yield from _walk(found, wanted[1:], (*before, wanted[0]))
