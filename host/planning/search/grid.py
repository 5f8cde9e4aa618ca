"""Every run and hop of a workload on every kind of device, priced by each thing that a plan can be judged by.

- *load*: what a device, a link or the client's link is busy for, one request (of a stage with replicas: one in r);
- *latency*: what one request alone takes;
- *energy*: what it costs;
- *part*: used of available memory;
- *shared*: what it takes of each thing that all hops share, media and the broker, as time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from host.planning.hops import hop_seconds, shared_rates
from host.planning.search.assignment import Grid
from host.planning.search.bends import Bent
from host.planning.search.forks import Bend, Floats, Fork, Ints
from host.planning.search.kinds import CLIENT, Kinds
from host.planning.search.parts import chosen, hop_latency, hop_load, part_latency, part_loads
from host.planning.search.tables import Tables, by_part

_OfParts = Callable[[Tables, int, Ints], Floats]
_OfBent = Callable[[Bent], Floats]


def load_grid(tables: Tables) -> Grid:
    """Return the largest load of each stage; the hops have those of devices with links of their own, and the client's.

    All loads of a stage on devices that take turns are divided by how many these are; those of a kind of one device,
    as every one in a pair is, never are, so that the hops' need not be.
    """
    kinds, cuts, network = tables.kinds, tables.cuts, tables.network
    run = tables.seconds.copy()
    for busy, device, paired in zip(run, kinds.devices, kinds.paired, strict=True):
        if not paired:
            np.maximum(busy, (cuts.sizes / device.link.down_bytes_per_second)[:, None], out=busy)
            np.maximum(busy, cuts.sizes / device.link.up_bytes_per_second, out=busy)
    link = _between(kinds, lambda u, v: hop_load(tables, u, v, cuts.sizes))
    entry = [cuts.sizes[0] / network.client.up_bytes_per_second for _ in kinds.devices]
    exit_ = [cuts.sizes[-1] / network.client.down_bytes_per_second for _ in kinds.devices]
    for index, (device, paired) in enumerate(zip(kinds.devices, kinds.paired, strict=True)):
        if paired:
            entry[index] = max(entry[index], cuts.sizes[0] / device.link.down_bytes_per_second)
            exit_[index] = max(exit_[index], cuts.sizes[-1] / device.link.up_bytes_per_second)

    def of_bent(bent: Bent) -> Floats:
        busy = bent.seconds.copy()
        for of_type, device in zip(busy, kinds.devices, strict=True):
            received = (cuts.sizes[: bent.enter] + cuts.sizes[bent.leave]) / device.link.down_bytes_per_second
            sent = (cuts.sizes[bent.leave + 1 :] + cuts.sizes[bent.enter]) / device.link.up_bytes_per_second
            np.maximum(of_type, np.maximum(received[:, None], sent), out=of_type)
        return busy

    return _grid(tables, run, link, np.array(entry), np.array(exit_), part_loads, of_bent)


def latency_grid(tables: Tables) -> Grid:
    """Return what one request alone takes."""
    kinds, cuts, network = tables.kinds, tables.cuts, tables.network
    client, around = network.client, {i for i, medium in enumerate(network.media) if CLIENT in medium.nodes}
    shared = [shared_rates(network, around, media) for media in kinds.media]
    ends = [(device.link, rates) for device, rates in zip(kinds.devices, shared, strict=True)]
    return _grid(
        tables,
        tables.seconds,
        _between(kinds, lambda u, v: hop_latency(tables, u, v, cuts.sizes)),
        np.array([float(hop_seconds(client, link, cuts.sizes[0], shared=rates)) for link, rates in ends]),
        np.array([float(hop_seconds(link, client, cuts.sizes[-1], shared=rates)) for link, rates in ends]),
        part_latency,
        lambda bent: bent.seconds,
    )


def energy_grid(tables: Tables) -> Grid:
    """Return the joules of one request."""
    watts = np.array([device.busy_watts for device in tables.kinds.devices])

    def of_parts(_: Tables, division: int, ways: Ints) -> Floats:
        return _of_ways(chosen(_times(tables.part_seconds[division], watts), ways).sum(axis=1))

    each = watts[:, None, None]
    return _of_runs(tables, _times(tables.seconds, each), of_parts, lambda bent: _times(bent.seconds, each))


def part_grid(tables: Tables) -> Grid:
    """Return the part of its device's memory that each stage uses."""
    session = np.array([device.session_bytes for device in tables.kinds.devices], dtype=np.float64)
    room = np.array([max(device.memory_bytes, 1) for device in tables.kinds.devices], dtype=np.float64)

    def of_parts(_: Tables, division: int, ways: Ints) -> Floats:
        used = (tables.part_memory[division] + session) / room
        used = np.where(np.isfinite(tables.part_seconds[division]), used, np.inf)
        return _of_ways(chosen(used, ways).max(axis=1))

    def of_bent(bent: Bent) -> Floats:
        used = (bent.memory + 2 * session[:, None, None]) / room[:, None, None]
        return np.where(np.isfinite(bent.seconds), used, np.inf)

    used = (tables.memory + session[:, None, None]) / room[:, None, None]
    used = np.where(np.isfinite(tables.seconds), used, np.inf)
    return _of_runs(tables, used, of_parts, of_bent)


def shared_grids(tables: Tables) -> tuple[Grid, ...]:
    """Return what a request takes of each medium, in the order of the network, and of the broker where it has a limit.

    In seconds, which add up over the runs: each is charged what its device receives and sends.
    """
    kinds, network = tables.kinds, tables.network
    grids = []
    for index, medium in enumerate(network.media):
        rate = medium.bytes_per_second
        weight = np.array([1 / rate if index in media else 0.0 for media in kinds.media])
        grids.append(_shared(tables, weight, weight, 1 / rate if CLIENT in medium.nodes else 0.0))
    if np.isfinite(network.broker_bytes_per_second):
        weight = np.full(len(kinds.devices), 1 / network.broker_bytes_per_second)
        grids.append(_shared(tables, weight, 0 * weight, 0.0, last=1 / network.broker_bytes_per_second))
    return tuple(grids)


def shortfall_grid(tables: Tables, what: Literal["memory", "flash"]) -> Grid:
    """Return the bytes that each stage lacks on each kind, of memory or of flash."""
    cuts, devices = tables.cuts, tables.kinds.devices
    at = np.array(cuts.places)
    needed = tables.memory if what == "memory" else tables.stored[..., at[:, None], at]
    room = np.array(
        [device.memory_bytes - device.session_bytes if what == "memory" else device.flash_bytes for device in devices]
    )
    run = np.where(tables.allowed, np.maximum(needed - room[:, None, None], 0.0), np.inf)

    def of_parts(_: Tables, division: int, ways: Ints) -> Floats:
        bounds = np.array(cuts.divisions[division].bounds)
        stored = tables.stored[..., bounds[:-1], bounds[1:]]
        needed = tables.part_memory[division] if what == "memory" else by_part(stored)
        lacking = np.maximum(needed - room, 0.0)
        lacking = np.where(tables.part_allowed[division], lacking, np.inf)
        return _of_ways(chosen(lacking, ways).max(axis=1))

    def of_bent(bent: Bent) -> Floats:
        sessions = np.array([device.session_bytes for device in devices])
        needed, left = (bent.memory, room - sessions) if what == "memory" else (bent.stored, room)
        return np.where(bent.allowed, np.maximum(needed - left[:, None, None], 0.0), np.inf)

    return _of_runs(tables, run, of_parts, of_bent)


def _shared(tables: Tables, received: Floats, sent: Floats, client: float, *, last: float = 0.0) -> Grid:
    sizes = tables.cuts.sizes
    run = received[:, None, None] * sizes[:, None] + sent[:, None, None] * sizes
    run = np.where(np.isfinite(tables.seconds), run, np.inf)

    def of_parts(_: Tables, division: int, ways: Ints) -> Floats:
        parts = tables.cuts.divisions[division]
        taken = np.outer(parts.received, received) + np.outer(parts.sent, sent)
        taken = np.where(np.isfinite(tables.part_seconds[division]), taken, np.inf)
        return _of_ways(chosen(taken, ways).sum(axis=1))

    def of_bent(bent: Bent) -> Floats:
        return np.where(np.isfinite(bent.seconds), bent.paired(run, run), np.inf)

    ends = np.ones(len(tables.kinds.devices))
    entry, exit_ = ends * client * sizes[0], ends * (client + last) * sizes[-1]
    return _grid(tables, run, _no_links(tables), entry, exit_, of_parts, of_bent)


def _of_runs(tables: Tables, run: Floats, of_parts: _OfParts, of_bent: _OfBent) -> Grid:
    none = np.zeros(len(tables.kinds.devices))
    return _grid(tables, run, _no_links(tables), none, none, of_parts, of_bent)


def _of_ways(costs: Floats) -> Floats:
    """The same cost whatever is before and after."""
    return costs.reshape(-1, 1, 1)


def _no_links(tables: Tables) -> Floats:
    kinds = len(tables.kinds.devices)
    return np.zeros((kinds, kinds, len(tables.cuts.sizes)))


def _grid(
    tables: Tables,
    run: Floats,
    link: Floats,
    entry: Floats,
    exit_: Floats,
    of_parts: _OfParts,
    of_bent: _OfBent,
) -> Grid:
    divisions = enumerate(tables.cuts.divisions)
    return Grid(
        run=run,
        link=link,
        entry=entry,
        exit=exit_,
        counts=tables.kinds.counts,
        places=tables.cuts.places,
        forks=tuple(
            Fork(
                enter=division.enter,
                leave=division.leave,
                bounds=division.bounds,
                cost=of_parts(tables, index, tables.ways[len(division.received)]),
            )
            for index, division in divisions
        ),
        bends=tuple(Bend(enter=bent.enter, leave=bent.leave, cost=of_bent(bent)) for bent in tables.bent),
    )


def _times(costs: Floats, factor: Floats) -> Floats:
    """A product in which what is impossible stays so at no price."""
    return np.where(np.isfinite(costs), np.where(np.isfinite(costs), costs, 0.0) * factor, np.inf)


def _between(kinds: Kinds, of_hop: Callable[[int, int], Floats]) -> Floats:
    every = range(len(kinds.devices))
    return np.array([[of_hop(u, v) for v in every] for u in every])
