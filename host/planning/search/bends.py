"""One device before and after a divided section: both its stages priced together, as they share its memory and links.

A device whose plan has links of its own to single others does not bend: what they carry would depend on the device
before it and on the one after it at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from host.planning.costs import ShardCost
from host.planning.search.cuts import Cuts
from host.planning.search.forks import Floats
from host.planning.search.kinds import Kinds

MAX_BENT_WORK = 150_000_000
"""Sets of used devices times pairs of stages around sections that one device may run, a few seconds of the search.

Where there are more, no device bends around the finest divisions of the last sections.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bent:
    """Every pair of stages on one device around a divided section, the first up to `enter`, the second from `leave`.

    All arrays are `[…, enter, cuts - leave - 1]`: by the cut at which the first starts, and by how many cuts after the
    next to `leave` the second ends. Memory and blobs have an axis of types only where kinds run different builds.

    Attributes:
        enter, leave: cuts of the section.
        memory: of both without the sessions' own.
        stored: blobs of both, each once.
        allowed: whether they may be there, room aside, `[types, …]`.
        seconds: processor time of both, infinity where they do not fit, `[types, …]`.
    """

    enter: int
    leave: int
    memory: Floats
    stored: Floats
    allowed: npt.NDArray[np.bool_]
    seconds: Floats

    def paired(self, before: Floats, after: Floats) -> Floats:
        """Return the sums of what the first stage takes and of what the second does.

        Args:
            before: of every stage, `[…, cuts, cuts]`.
            after: the same, or what is to be taken of the second instead.
        """
        firsts = before[..., : self.enter, self.enter][..., :, None]
        added: Floats = firsts + after[..., self.leave, self.leave + 1 :][..., None, :]
        return added


def bent_of(
    shards: Sequence[Sequence[ShardCost]],
    kinds: Kinds,
    cuts: Cuts,
    *,
    stored: Floats,
    memory: Floats,
    allowed: npt.NDArray[np.bool_],
    seconds: Floats,
) -> tuple[Bent, ...]:
    """Return what devices may run around each divided section.

    Args:
        shards: of the build of each kind.
        kinds: of devices.
        cuts: where stages start and end.
        stored: blobs of every stage, `[…, cuts, cuts]`; the first axis are the types where their builds differ.
        memory: of every stage without the session's own, the same shape.
        allowed: whether it may be there, `[types, cuts, cuts]`.
        seconds: processor time, infinity where it does not fit, `[types, cuts, cuts]`.
    """
    found: list[Bent] = []
    work = 0
    room = np.array([device.memory_bytes - 2 * device.session_bytes for device in kinds.devices])[:, None, None]
    flash = np.array([device.flash_bytes for device in kinds.devices])[:, None, None]
    bendable = ~np.array(kinds.paired)[:, None, None]
    around = dict.fromkeys((division.enter, division.leave) for division in cuts.divisions)
    for enter, leave in around:
        blank = Bent(enter=enter, leave=leave, memory=memory, stored=stored, allowed=allowed, seconds=seconds)
        both = allowed[:, :enter, enter][:, :, None] & allowed[:, leave, leave + 1 :][:, None, :] & bendable
        needed = blank.paired(memory, memory)
        of_kinds = shards if stored.ndim > 2 else shards[:1]
        twice = np.stack([_twice(each, cuts, enter, leave) for each in of_kinds])
        blobs = blank.paired(stored, stored) - (twice if stored.ndim > 2 else twice[0])
        fits = both & (needed <= room) & (blobs <= flash)
        spent = np.where(fits, blank.paired(seconds, seconds), np.inf)
        work += kinds.states * int(np.isfinite(spent).sum())
        if work > MAX_BENT_WORK:
            break
        found.append(Bent(enter=enter, leave=leave, memory=needed, stored=blobs, allowed=both, seconds=spent))
    return tuple(found)


def _twice(shards: Sequence[ShardCost], cuts: Cuts, enter: int, leave: int) -> Floats:
    """Bytes of the blobs that both stages have."""
    before, after = cuts.places[enter], cuts.places[leave]
    last = {digest: index for index, shard in enumerate(shards[:before]) for digest in shard.blobs}
    shared = np.zeros((before + 1, len(shards) + 1))
    for index, shard in enumerate(shards[after:], start=after):
        for digest, size in shard.blobs.items():
            if digest in last:
                shared[: last.pop(digest) + 1, index + 1 :] += size
    at = np.array(cuts.places)
    picked: Floats = shared[np.ix_(at[:enter], at[leave + 1 :])]
    return picked
