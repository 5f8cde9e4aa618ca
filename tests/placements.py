"""Every placement of a small workload and what it costs, written once more from the definitions in `docs/design.md`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace

from edge.formats.plan import Constraints, Objective, Plan
from host.planning.costs import DeviceCost, Medium, Network, Section, ShardCost, Workload

PACKET = 128 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """Shards `[first, stop)` on these devices, which take turns."""

    first: int
    stop: int
    on: tuple[DeviceCost, ...]


Step = tuple[Piece, ...]
Placement = tuple[Step, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """All that a placement is judged by."""

    period: float
    effective: float
    latency: float
    energy: float
    part: float
    devices: int
    memory: dict[str, int]

    def key(self, objective: Objective) -> tuple[float, ...]:
        return {
            "throughput": (self.effective, self.latency, self.devices),
            "latency": (self.latency,),
            "energy": (self.energy, self.latency),
            "memory": (self.part, self.period, self.latency),
        }[objective]


def placements(
    workload: Workload, devices: Sequence[DeviceCost], network: Network, rules: Constraints, objective: Objective
) -> Iterator[Placement]:
    """Yield every placement that keeps to the rules, whether it fits or not."""
    kinds = {device.name: kind(device, network, rules) for device in devices}
    most = rules.most_replicas if objective == "throughput" else 1
    for shape in shapes(workload, 0, rules.side_by_side, 2 * len(devices)):
        pieces = [span for step in shape for span in step]
        alone = [len(step) == 1 for step in shape for _ in step]
        for teams in assigned(tuple(devices), kinds, [most if one else 1 for one in alone], before_parts(shape)):
            if not all(keeps(span, team, rules) for span, team in zip(pieces, teams, strict=True)):
                continue
            if any(on.name in pair for on in bent(teams, alone) for pair in network.pairs):
                continue
            if rules.use_all and len({on.name for team in teams for on in team}) < len(devices):
                continue
            left = iter(teams)
            yield tuple(tuple(Piece(first=a, stop=b, on=next(left)) for a, b in step) for step in shape)


Shape = tuple[tuple[tuple[int, int], ...], ...]


def shapes(workload: Workload, start: int, divide: bool, room: int) -> Iterator[Shape]:
    """Yield the ways to go on from a shard: steps of one run, or of the parts of a section between two such."""
    count = len(workload.shards)
    if room < 1:
        return
    for stop in range(start + 1, count + 1):
        alone = (((start, stop),),)
        if stop == count:
            yield alone
            continue
        for rest in shapes(workload, stop, divide, room - 1):
            yield alone + rest
        for section in workload.sections if divide else ():
            if section.first == stop:
                for parts in divisions(section):
                    for rest in shapes(workload, section.stop, divide, room - 1 - len(parts)):
                        yield (*alone, parts, *rest)


def divisions(section: Section) -> Iterator[tuple[tuple[int, int], ...]]:
    inner = section.bounds[1:-1]
    for count in range(1, len(inner) + 1):
        for chosen in itertools.combinations(inner, count):
            yield tuple(itertools.pairwise((section.first, *chosen, section.stop)))


def before_parts(shape: Shape) -> list[int | None]:
    """For each piece that joins parts, how many pieces there are before the one that sends to them."""
    found: list[int | None] = []
    for number, step in enumerate(shape):
        joins = number > 1 and len(shape[number - 1]) > 1
        found += [len(found) - len(shape[number - 1]) - 1 if joins else None] * len(step)
    return found


Teams = tuple[tuple[DeviceCost, ...], ...]


def bent(teams: Teams, alone: Sequence[bool]) -> list[DeviceCost]:
    """The devices that have two pieces."""
    names = [on.name for team in teams for on in team]
    return [on for team in teams for on in team if names.count(on.name) > 1]


def assigned(
    devices: tuple[DeviceCost, ...],
    kinds: Mapping[str, object],
    most: Sequence[int],
    twins: Sequence[int | None],
    given: Teams = (),
) -> Iterator[Teams]:
    """Yield the teams of equal devices that may take each piece.

    No device has two, but one alone may have the piece before and the piece after parts side by side.
    """
    piece = len(given)
    if piece == len(most):
        yield given
        return
    for size in range(1, min(most[piece], len(devices)) + 1):
        for team in itertools.combinations(devices, size):
            if len({kinds[on.name] for on in team}) == 1:
                left = tuple(device for device in devices if device not in team)
                yield from assigned(left, kinds, most, twins, (*given, team))
    twin = twins[piece]
    if twin is not None and len(given[twin]) == 1 and given.count(given[twin]) == 1:
        yield from assigned(devices, kinds, most, twins, (*given, given[twin]))


def kind(device: DeviceCost, network: Network, rules: Constraints) -> tuple[object, ...]:
    """What devices that take turns have in common; one in a pair is like no other."""
    costs = tuple(
        getattr(device, field.name) for field in fields(DeviceCost) if field.name not in ("name", "source", "held")
    )
    media = tuple(device.name in medium.nodes for medium in network.media)
    barred = frozenset(pin.layer for pin in rules.forbidden if pin.device == device.name)
    elsewhere = frozenset(pin.layer for pin in rules.pins if pin.device != device.name)
    alone = device.name if any(device.name in pair for pair in network.pairs) else ""
    return costs, media, barred | elsewhere, alone


def keeps(span: tuple[int, int], team: Sequence[DeviceCost], rules: Constraints) -> bool:
    names = {device.name for device in team}
    for pin in rules.pins:
        if span[0] <= pin.layer < span[1] and names != {pin.device}:
            return False
    return not any(span[0] <= pin.layer < span[1] and pin.device in names for pin in rules.forbidden)


def bytes_of(workload: Workload, placement: Placement, number: int, piece: Piece) -> tuple[int, int]:
    """What one piece of a step receives and sends in all."""
    before = placement[number - 1] if number else ()
    after = placement[number + 1] if number + 1 < len(placement) else ()
    received, sent = own_bytes(workload, placement[number], piece)
    if len(before) > 1:
        received = sum(own_bytes(workload, before, other)[1] for other in before)
    if len(after) > 1:
        sent = sum(own_bytes(workload, after, other)[0] for other in after)
    return received, sent


def in_memory(workload: Workload) -> Workload:
    """The same workload with all tensors as they are before they are compressed."""

    def or_else(raw: int | None, wire: int) -> int:
        return wire if raw is None else raw

    return Workload(
        shards=tuple(
            replace(
                shard,
                received_bytes=or_else(shard.received_raw_bytes, shard.received_bytes),
                sent_bytes=or_else(shard.sent_raw_bytes, shard.sent_bytes),
            )
            for shard in workload.shards
        ),
        sections=tuple(
            replace(section, received=section.received_raw or section.received, sent=section.sent_raw or section.sent)
            for section in workload.sections
        ),
    )


def own_bytes(workload: Workload, step: Step, piece: Piece) -> tuple[int, int]:
    if len(step) == 1:
        return workload.shards[piece.first].received_bytes, workload.shards[piece.stop - 1].sent_bytes
    section = next(s for s in workload.sections if s.first == step[0].first)
    a, b = section.bounds.index(piece.first), section.bounds.index(piece.stop)
    return section.received[a][b], section.sent[a][b]


Hop = tuple[Piece | None, Piece | None, int]


def ends_in(medium: Medium, hop: Hop) -> int:
    """How many ends of a hop are in a medium, which carries its bytes so many times."""
    return sum((piece.on[0].name if piece else "client") in medium.nodes for piece in hop[:2])


def hop_latency(hop: Hop, together: Sequence[Hop], network: Network) -> float:
    """A hop, while what is shared carries also the others of these, into or out of the same parts."""
    sender, receiver, size = hop
    sent = sum(other[2] for other in together if other[0] == sender)
    got = sum(other[2] for other in together if other[1] == receiver)
    media = [medium for medium in network.media if ends_in(medium, hop)]
    busy = [sum(other[2] for other in together) / network.broker_bytes_per_second]
    busy += [sum(other[2] * ends_in(medium, other) for other in together) / medium.bytes_per_second for medium in media]
    pair = network.pairs.get((sender.on[0].name, receiver.on[0].name)) if sender and receiver else None
    if pair:
        return pair.latency_seconds + max(size / pair.bytes_per_second, *busy)
    from_, to = sender.on[0].link if sender else network.client, receiver.on[0].link if receiver else network.client
    up, down = from_.up_bytes_per_second, to.down_bytes_per_second
    rates = [up, down, network.broker_bytes_per_second]
    rates += [medium.bytes_per_second / ends_in(medium, hop) for medium in media]
    rates.remove(min(rates))
    through = max(sent / up, got / down, *busy)
    return from_.latency_seconds + to.latency_seconds + through + min(size, PACKET) / min(rates)


def need(workload: Workload, piece: Piece, received: int, sent: int, window: int) -> tuple[int, dict[str, int]]:
    """Memory of a piece, and its blobs."""
    shards: Sequence[ShardCost] = workload.of(piece.on[0].shard_format).shards[piece.first : piece.stop]
    blobs: dict[str, int] = {}
    for shard in shards:
        blobs.update(shard.blobs)
    stored = sum(blobs.values())
    peak = max(shard.peak_activation_bytes for shard in shards)
    extra = sum(shard.extra_bytes for shard in shards)
    return stored + extra + peak + window * received + sent + piece.on[0].session_bytes, blobs


def costs(workload: Workload, placement: Placement, network: Network, window: int) -> Costs | None:
    """Return what a placement costs, or None where it does not fit."""
    memory: dict[str, int] = {}
    flash: dict[str, dict[str, int]] = {}
    computing: dict[str, float] = {}
    busy: dict[Piece, float] = {}
    energy = 0.0
    for number, step in enumerate(placement):
        for piece in step:
            received, sent = bytes_of(workload, placement, number, piece)
            raw_received, raw_sent = bytes_of(in_memory(workload), placement, number, piece)
            needed, blobs = need(workload, piece, raw_received, raw_sent, window)
            device, share = piece.on[0], len(piece.on)
            for on in piece.on:
                memory[on.name] = memory.get(on.name, 0) + needed
                flash.setdefault(on.name, {}).update(blobs)
                if memory[on.name] > on.memory_bytes or sum(flash[on.name].values()) > on.flash_bytes:
                    return None
            seconds = device.session_seconds + sum(device.shard_seconds[piece.first : piece.stop])
            seconds += 2 * device.message_seconds + (received + sent) * device.message_seconds_per_byte
            seconds += raw_received * device.inflate_seconds_per_byte + raw_sent * device.deflate_seconds_per_byte
            busy[piece] = seconds
            for on in piece.on:
                computing[on.name] = computing.get(on.name, 0.0) + seconds / share
            energy += seconds * device.busy_watts
    loads = [*computing.values(), *link_loads(workload, placement, network)]
    room = {on.name: on.memory_bytes for step in placement for piece in step for on in piece.on}
    latency = latency_of(workload, placement, network, busy)
    return Costs(
        period=max(loads),
        effective=max(*loads, latency / window),
        latency=latency,
        energy=energy,
        part=max(memory[name] / max(room[name], 1) for name in memory),
        devices=len(memory),
        memory=memory,
    )


def hops(workload: Workload, placement: Placement) -> Iterator[Hop]:
    """Yield sender, receiver and bytes of every hop; None is the client."""
    yield None, placement[0][0], workload.shards[0].received_bytes
    for step, following in itertools.pairwise(placement):
        for sender, receiver in itertools.product(step, following):
            if len(following) > 1:
                yield sender, receiver, own_bytes(workload, following, receiver)[0]
            else:
                yield sender, receiver, own_bytes(workload, step, sender)[1]
    yield placement[-1][0], None, workload.shards[-1].sent_bytes


def link_loads(workload: Workload, placement: Placement, network: Network) -> Iterator[float]:
    up: dict[str, float] = {}
    down: dict[str, float] = {}
    links = {on.name: on.link for step in placement for piece in step for on in piece.on} | {"client": network.client}
    shared = dict.fromkeys(range(len(network.media)), 0.0)
    broker = 0
    for sender, receiver, size in hops(workload, placement):
        senders = ["client"] if sender is None else [on.name for on in sender.on]
        receivers = ["client"] if receiver is None else [on.name for on in receiver.on]
        broker += size
        for index, medium in enumerate(network.media):
            shared[index] += size * ((senders[0] in medium.nodes) + (receivers[0] in medium.nodes))
        if (pair := network.pairs.get((senders[0], receivers[0]))) and len(senders) == len(receivers) == 1:
            yield size / pair.bytes_per_second
            continue
        for name in senders:
            up[name] = up.get(name, 0.0) + size / len(senders)
        for name in receivers:
            down[name] = down.get(name, 0.0) + size / len(receivers)
    yield from (size / links[name].up_bytes_per_second for name, size in up.items())
    yield from (size / links[name].down_bytes_per_second for name, size in down.items())
    yield from (size / network.media[index].bytes_per_second for index, size in shared.items())
    yield broker / network.broker_bytes_per_second


def latency_of(workload: Workload, placement: Placement, network: Network, busy: dict[Piece, float]) -> float:
    every = list(hops(workload, placement))
    beside = [piece for step in placement if len(step) > 1 for piece in step]

    def taken(hop: Hop) -> float:
        if hop[1] in beside:
            return hop_latency(hop, [other for other in every if other[0] == hop[0]], network)
        if hop[0] in beside:
            return hop_latency(hop, [other for other in every if other[1] == hop[1]], network)
        return hop_latency(hop, [hop], network)

    total = sum(taken(hop) for hop in every if hop[0] not in beside and hop[1] not in beside)
    for step in placement:
        total += max(
            busy[piece] + sum(taken(hop) for hop in every if len(step) > 1 and piece in hop[:2]) for piece in step
        )
    return total


def placement_of(plan: Plan, devices: Sequence[DeviceCost]) -> Placement:
    """Return the placement that a plan says."""
    by_name = {device.name: device for device in devices}
    return tuple(
        tuple(
            Piece(first=stage.first_shard, stop=stage.stop_shard, on=tuple(by_name[name] for name in stage.runners))
            for stage in step
        )
        for step in plan.steps()
    )
