"""How long shards take on a device: measured there, else fitted to operators, else from its profile.

Nothing that a device says of itself is believed without a look: a time that is no number, negative or beyond a day, or
that makes a device a thousand times faster than its profile, counts as not measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edge.formats.bundle import Manifest
from edge.formats.message import Speed
from edge.formats.plan import Source
from edge.formats.roofline import covers, fit, predict
from edge.formats.speed import MOST_SECONDS, LinkSpeed, ModelSpeed, OperatorSpeed

_MOST_TIMES_FASTER = 1000.0
_MOST_PER_SECOND = 1e18
_MOST_MESSAGE_SECONDS = 60.0
_MOST_SECONDS_PER_BYTE = 0.01

__all__ = ["ShardTimes", "believed_link", "believed_messages", "fit", "predict", "shard_times"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardTimes:
    """What a device takes for the shards of a bundle.

    Attributes:
        shard_seconds: operator time of each shard.
        session_seconds: of a call of the session beyond it; None when that was not measured.
        source: where the times come from.
    """

    shard_seconds: tuple[float, ...]
    session_seconds: float | None
    source: Source


def shard_times(
    manifest: Manifest,
    digest: str,
    by_profile: Sequence[float],
    *,
    mode: str,
    speed: Speed | None,
    kin: Sequence[Speed] = (),
    runtime: str = "",
) -> ShardTimes:
    """Return the best that is known of the times of a bundle on a device.

    Args:
        manifest: of the bundle.
        digest: of the manifest's blob.
        by_profile: seconds of each shard by the device's profile.
        mode: how the stages will be run.
        speed: what the device measured of itself, None when it did not.
        kin: what other devices of the same profile measured.
        runtime: name of the one that runs the stages; empty where there is one only.
    """
    rough = tuple(by_profile)
    fitted = None if speed is None else _fitted(manifest, speed.operators, rough)
    own = None if speed is None else _model(speed, digest, mode, rough, runtime)
    if own is not None and all(seconds >= 0 for seconds in own.shard_seconds):
        return ShardTimes(
            shard_seconds=own.shard_seconds, session_seconds=_session(own.session_seconds), source="measured"
        )
    if fitted is None:
        fitted = _of_kin(manifest, digest, rough, mode=mode, kin=kin, runtime=runtime)
    if own is not None:
        return ShardTimes(
            shard_seconds=_filled(own.shard_seconds, fitted or rough),
            session_seconds=_session(own.session_seconds),
            source="fitted",
        )
    if fitted is not None:
        return ShardTimes(shard_seconds=fitted, session_seconds=None, source="fitted")
    return ShardTimes(shard_seconds=rough, session_seconds=None, source="profile")


def believed_messages(speed: Speed | None) -> tuple[float, float] | None:
    """Return the seconds of a message and of each of its bytes, None when they were not measured."""
    if speed is None:
        return None
    seconds, per_byte = speed.message_seconds, speed.message_seconds_per_byte
    good = 0 <= seconds <= _MOST_MESSAGE_SECONDS and 0 <= per_byte <= _MOST_SECONDS_PER_BYTE
    return (seconds, per_byte) if good else None


def believed_link(speed: Speed | None) -> LinkSpeed | None:
    """Return what a device measured of its link, None when it did not."""
    link = None if speed is None else speed.link
    if link is None:
        return None
    good = 1 <= link.bytes_per_second <= _MOST_PER_SECOND and 0 <= link.latency_seconds <= _MOST_MESSAGE_SECONDS
    return link if good else None


def _session(seconds: float) -> float | None:
    return seconds if 0 <= seconds <= _MOST_MESSAGE_SECONDS else None


def _model(speed: Speed, digest: str, mode: str, rough: Sequence[float], runtime: str) -> ModelSpeed | None:
    """Return what was measured of a model, None when nothing was or it cannot be."""
    for model in speed.models:
        same = not runtime or model.runtime_name == runtime
        if same and (model.manifest, model.mode) == (digest, mode):
            known = [(seconds, less) for seconds, less in zip(model.shard_seconds, rough, strict=False) if seconds >= 0]
            numbers = all(math.isfinite(seconds) and seconds <= MOST_SECONDS for seconds in model.shard_seconds)
            if len(model.shard_seconds) != len(rough) or not known or not numbers:
                return None
            return model if _can_be(*map(sum, zip(*known, strict=True))) else None
    return None


def _can_be(seconds: float, by_profile: float) -> bool:
    return seconds >= by_profile / _MOST_TIMES_FASTER and 0 < seconds <= MOST_SECONDS


def _fitted(manifest: Manifest, operators: Sequence[OperatorSpeed], rough: Sequence[float]) -> tuple[float, ...] | None:
    """Return times by fitted operators, None when they do not cover the bundle or cannot be."""
    for found in operators:
        for value in (found.macs_per_second, found.memory_bytes_per_second, found.call_seconds):
            if not (math.isfinite(value) and 0 <= value <= _MOST_PER_SECOND):
                return None
    if not covers(manifest, operators):
        return None
    seconds = predict(manifest, operators)
    return seconds if _can_be(sum(seconds), sum(rough)) else None


def _of_kin(
    manifest: Manifest, digest: str, rough: Sequence[float], *, mode: str, kin: Sequence[Speed], runtime: str
) -> tuple[float, ...] | None:
    """Return the mean times of devices of the same profile: of this model where they measured it, else fitted."""
    ordered = sorted(kin, key=lambda speed: speed.node)
    models = [model for speed in ordered if (model := _model(speed, digest, mode, rough, runtime)) is not None]
    vectors = [model.shard_seconds for model in models if all(seconds >= 0 for seconds in model.shard_seconds)]
    if not vectors:
        fits = (_fitted(manifest, speed.operators, rough) for speed in ordered)
        vectors = [found for found in fits if found is not None]
    return tuple(math.fsum(column) / len(vectors) for column in zip(*vectors, strict=True)) if vectors else None


def _filled(measured: Sequence[float], others: Sequence[float]) -> tuple[float, ...]:
    """Fill in shards that were not measured, as much slower than `others` says as those that were."""
    known = [(seconds, other) for seconds, other in zip(measured, others, strict=True) if seconds >= 0]
    of_others = sum(other for _, other in known)
    ratio = sum(seconds for seconds, _ in known) / of_others if of_others > 0 else 1.0
    return tuple(seconds if seconds >= 0 else other * ratio for seconds, other in zip(measured, others, strict=True))
