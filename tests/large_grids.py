"""Random grids of assignment problems, from a few units to many devices."""

from __future__ import annotations

import numpy as np

from host.planning.search.assignment import Grid
from host.planning.search.forks import Floats, Fork, handings


def realistic_grid(seed: int, *, units: int, devices: int, types: int, links: bool = True) -> Grid:
    """Units that differ by 30, speeds by 10, memory and links that bind for some types."""
    draw = np.random.default_rng(seed)
    work = np.exp(draw.uniform(0, np.log(30), units))
    counts = 1 + draw.multinomial(devices - types, np.full(types, 1 / types))
    speed = np.exp(draw.uniform(0, np.log(10), types))
    scale = np.exp(draw.normal(0, 0.2, (types, units)))
    done = np.concatenate([np.zeros((types, 1)), np.cumsum(work * scale / speed[:, None], axis=1)], axis=1)
    ideal = 1 / float(np.sum(counts / done[:, -1]))
    cut = np.exp(draw.uniform(0, np.log(50), units + 1))
    weights = np.concatenate([[0.0], np.cumsum(np.exp(draw.uniform(0, np.log(100), units)))])
    room = weights[-1] / devices * np.exp(draw.uniform(np.log(0.8), np.log(6), types))
    fits = (weights[None, :] - weights[:, None])[None] <= room[:, None, None]
    index = np.arange(units + 1)
    run = done[:, None, :] - done[:, :, None] + 0.02 * ideal
    run = np.where(fits & (index[:, None] < index), run, np.inf)
    rates = cut.mean() / ideal * np.exp(draw.uniform(np.log(0.7), np.log(20), (2, types)))
    link = np.maximum(cut / rates[0][:, None, None], cut / rates[1][None, :, None])
    if not links:
        link = np.zeros_like(link)
    none = np.zeros(types)
    return Grid(run=run, link=link, entry=none, exit=none, counts=tuple(int(count) for count in counts))


def small_grids(seed: int) -> tuple[Grid, Grid]:
    """Two grids of one shape, with whole and broken costs, holes, and sometimes forks; hops that are free or not."""
    draw = np.random.default_rng(seed)
    units, types = int(draw.integers(3, 9)), int(draw.integers(1, 4))
    counts = tuple(int(count) for count in draw.integers(1, 4, types))
    holes = draw.choice([0.0, 0.15])

    def costs(shape: tuple[int, ...], most: int) -> tuple[Floats, Floats]:
        found = draw.uniform(0.1, most, (2, *shape)) if seed % 2 else draw.integers(0, most, (2, *shape)).astype(float)
        found[:, draw.random(shape) < holes] = np.inf
        return found[0], found[1]

    index = np.arange(units + 1)
    runs = [np.where(index[:, None] < index, run, np.inf) for run in costs((types, units + 1, units + 1), 12)]
    links, entries, exits = costs((types, types, units + 1), 6), costs((types,), 6), costs((types,), 6)
    enter = int(draw.integers(1, units - 1))
    places = tuple(cut + 2 * (cut > enter) for cut in range(units + 1))
    forks: list[list[Fork]] = [[], []]
    if draw.random() < 0.7:
        for bounds in ((0, 1, 3), (0, 2, 3), (0, 1, 2, 3)):
            ways = len(handings(counts, len(bounds) - 1))
            sides = types if draw.random() < 0.5 else 1
            for into, cost in zip(forks, costs((ways, sides, sides), 4), strict=True):
                at = tuple(enter + bound for bound in bounds)
                into.append(Fork(enter=enter, leave=enter + 1, bounds=at, cost=cost))
        if draw.random() < 0.7:
            for run in runs:
                run[:, : enter + 1, enter + 1 :] = np.inf  # only side by side is there a way across
    free = float(draw.random() < 0.7)
    first, second = (
        Grid(
            run=runs[which],
            link=np.where(np.isfinite(links[which]), links[which], 0.0) * free,
            entry=entries[which],
            exit=exits[which],
            counts=counts,
            places=places,
            forks=tuple(forks[which]),
        )
        for which in (0, 1)
    )
    return first, second
