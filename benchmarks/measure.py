"""Measuring: CPU time of processes, paired interleaved runs, and how figures are printed."""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import resource
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from host.errors import UserError

Figure = float | int | bool | str
Work = Callable[[], object]

_KIB_PER_MB = 1000 / 1.024


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """What one figure means, for people.

    Attributes:
        name: In the JSON object.
        meaning: One line.
    """

    name: str
    meaning: str


def own_cpu_seconds() -> float:
    """CPU time of this process so far, all its threads, user and system."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def cpu_seconds(pid: int | str) -> float:
    """CPU time of the threads that a process has now, user and system.

    Taken from the scheduler, in nanoseconds; `stat` counts in hundredths of a second.
    """
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended just now
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def resident_mb(pid: int | str) -> float:
    """Resident memory of a process in megabytes, mapped files included."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / _KIB_PER_MB
    raise ProcessLookupError(f"process {pid} has no resident memory")


def interleaved(works: Mapping[str, Work], *, rounds: int, repeats: int) -> dict[str, list[float]]:
    """CPU seconds of one call of each piece of work, measured in turns so that a busy machine is busy for all.

    Args:
        works: What to measure, by name.
        rounds: How many turns each gets.
        repeats: Calls in one turn.

    Returns:
        A figure for each round, by name.
    """
    for work in works.values():
        work()
    spent: dict[str, list[float]] = {name: [] for name in works}
    order = random.Random(0)
    for _ in range(rounds):
        # Shuffled: what runs before leaves its traces in the caches.
        for name in order.sample(list(works), len(works)):
            before = own_cpu_seconds()
            for _ in range(repeats):
                works[name]()
            spent[name].append((own_cpu_seconds() - before) / repeats)
    return spent


def paired_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """Median over the rounds of one figure through the other of the same round."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` percent of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-len(ordered) * int(share) // 100) - 1))]


def arguments(description: str | None) -> bool:
    """Read the command line; return whether only JSON is wanted."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    return bool(parser.parse_args().json)


def say(line: str) -> None:
    """Tell how far the benchmark is."""
    print(line, file=sys.stderr, flush=True)


def report(figures: Mapping[str, Figure], keys: Sequence[Key], *, as_json: bool) -> None:
    """Print the figures: one JSON object on the last line, or a table with their meanings."""
    rounded = {name: _rounded(value) for name, value in figures.items()}
    if as_json:
        print(json.dumps(rounded))
        return
    meanings = {key.name: key.meaning for key in keys}
    width = max(map(len, rounded))
    for name, value in rounded.items():
        print(f"{name:<{width}}  {_shown(value):>12}  {meanings.get(name, '')}".rstrip())


def main_of(description: str | None, measure: Callable[[], Mapping[str, Figure]], keys: Sequence[Key]) -> None:
    """Run a benchmark from the command line: read its arguments, measure, print.

    What the user can put right, such as a package that is missing, is one line and exit status 1.
    """
    as_json = arguments(description)
    try:
        figures = measure()
    except UserError as error:
        sys.exit(f"error: {error}")
    report(figures, keys, as_json=as_json)


def _rounded(value: Figure) -> Figure:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _shown(value: Figure) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)
