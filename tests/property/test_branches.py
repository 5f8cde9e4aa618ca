"""Branches that may run side by side, against trying every run of shards, and against what the stages do hand on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise

from hypothesis import given
from hypothesis import strategies as st

from edge.formats.bundle import Manifest, decode_manifest, encode_manifest
from edge.formats.plan import Plan, Stage
from edge.routes import routes
from host.planning.branches import find_branches, sections_of, units_of
from host.planning.workload import wire_bytes
from tests.dag_bundle import INPUT, manifest_of_reads

Reads = list[list[int]]


@st.composite
def graphs(draw: st.DrawFn) -> tuple[Reads, list[int]]:
    """What each unit reads, and its work; what nobody else reads, the last unit does."""
    count = draw(st.integers(3, 9))
    reads = [
        draw(st.lists(st.integers(INPUT, index - 1), min_size=1, max_size=2, unique=True)) for index in range(count)
    ]
    read = {source for sources in reads for source in sources}
    reads[-1] = sorted({*reads[-1], *(index for index in range(count - 1) if index not in read)})
    return reads, draw(st.lists(st.integers(1, 9), min_size=count, max_size=count))


def independent(reads: Reads, bounds: Sequence[int]) -> bool:
    """Whether no branch reads from another."""
    branch_of = {unit: index for index, (a, b) in enumerate(pairwise(bounds)) for unit in range(a, b)}
    return all(branch_of.get(source, branch) == branch for unit, branch in branch_of.items() for source in reads[unit])


def _runs(reads: Reads, macs: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Every run with branches, without the first and last unit, and what is saved in it at best."""
    total = sum(macs)
    shares = [work * 1_000_000 // total for work in macs]
    for first, stop in combinations(range(1, len(reads)), 2):
        best = 0
        for inner in range(1, stop - first):
            for breaks in combinations(range(first + 1, stop), inner):
                bounds = (first, *breaks, stop)
                if independent(reads, bounds):
                    best = max(best, sum(shares[first:stop]) - max(sum(shares[a:b]) for a, b in pairwise(bounds)))
        if best >= 1_000:
            yield first, stop, best


def _most(runs: Sequence[tuple[int, int, int]], start: int) -> int:
    """The most that runs which do not overlap save together."""
    return max((saved + _most(runs, stop) for first, stop, saved in runs if first >= start), default=0)


@given(graphs())
def test_sections_are_independent_do_not_overlap_and_are_worth_the_most(graph: tuple[Reads, list[int]]) -> None:
    reads, macs = graph
    manifest = decode_manifest(encode_manifest(manifest_of_reads(reads, macs)))

    sections = sections_of(manifest, wire_bytes(manifest))

    assert all(independent(reads, section.bounds) and len(section.bounds) >= 3 for section in sections)
    assert all(section.first >= 1 and section.stop <= len(reads) - 1 for section in sections)
    assert all(before.stop <= after.first for before, after in pairwise(sections))
    units = units_of(manifest.cuts, [shard.reads for shard in manifest.shards], macs, [0] * len(macs))
    assert find_branches(units).worth == _most(list(_runs(reads, macs)), 0)


def _plans(manifest: Manifest, bounds: Sequence[int]) -> Iterator[tuple[Plan, list[tuple[int, int]]]]:
    """A plan for every way to share the branches out to two stages or more, and the branches of each stage."""
    branches = len(bounds) - 1
    for inner in range(1, branches):
        for breaks in combinations(range(1, branches), inner):
            shares = list(pairwise((0, *breaks, branches)))
            ranges = [(0, bounds[0]), *((bounds[a], bounds[b]) for a, b in shares), (bounds[-1], len(manifest.shards))]
            stages = tuple(
                Stage(
                    index=index,
                    device=f"d{index}",
                    first_shard=first,
                    stop_shard=stop,
                    beside=1 < index <= len(shares),
                )
                for index, (first, stop) in enumerate(ranges)
            )
            yield Plan(objective="latency", stages=stages, bottleneck_seconds=1, latency_seconds=1, binds=""), shares


@given(graphs())
def test_a_section_says_what_its_stages_receive_and_send(graph: tuple[Reads, list[int]]) -> None:
    manifest = manifest_of_reads(*graph)
    sizes = wire_bytes(manifest)

    for section in sections_of(manifest, sizes):
        for plan, shares in _plans(manifest, section.bounds):
            found = routes(manifest, plan)
            for place, (first, stop) in enumerate(shares):
                route = found[1 + place]
                assert section.received[first][stop] == sum(sizes[name] for name in route.received)
                assert section.sent[first][stop] == sum(sizes[name] for name in route.sent)
