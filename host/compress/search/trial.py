"""One candidate of a search: made, measured, judged; and kept, so that the same question is never worked out twice."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from host.compress.judge.budget import Judgement
from host.compress.judge.evaluate import Evaluation, Runner
from host.compress.judge.score import Score
from host.compress.learned import Learned, decode_learned
from host.compress.recipe import Recipe, dump_recipe, parse_recipe
from host.errors import RecipeError

# Part of every key: raise it when the same recipe may give another model.
_CACHE_VERSION = "1"
_MAX_STORED_BYTES = 64 * 1024 * 1024


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    """What a candidate asks of a device.

    Attributes:
        size_bytes: Of the whole model as one file.
        predicted_seconds: One run on the device, by the profile.
        latency_seconds: CPU time of one run here, one thread.
        latency_ratio: That through the CPU time of the original, fused, measured side by side.
    """

    size_bytes: int
    predicted_seconds: float
    latency_seconds: float
    latency_ratio: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """A candidate that could be made.

    Attributes:
        recipe: Decided.
        learned: Weights that data changed.
        learned_bytes: The same as a file; empty when there are none.
        runner: Loads it as it is judged.
        costs: Measures what it asks of the device.
    """

    recipe: Recipe
    learned: Learned = field(default_factory=Learned)
    learned_bytes: bytes = b""
    runner: Callable[[], Runner]
    costs: Callable[[], Costs]


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """A candidate and what became of it.

    Attributes:
        name: For people.
        family: The idea it belongs to.
        recipe: Decided where it could be made, else as it was tried.
        learned: Weights that data changed.
        costs: None where it could not be made or run.
        scores: On the evaluation data, unfused.
        judgement: Of the budget; None where it could not be made.
        failure: Why it could not be made or run; empty otherwise.
    """

    name: str
    family: str
    recipe: Recipe
    learned: Learned = field(default_factory=Learned)
    costs: Costs | None = None
    scores: tuple[Score, ...] = ()
    judgement: Judgement | None = None
    failure: str = ""

    @property
    def keeps_budget(self) -> bool:
        """Whether the measured figures are within every limit."""
        return self.judgement is not None and self.judgement.status != "broken"

    @property
    def margin(self) -> float:
        """How far inside the budget it is, negative outside; minus infinity where it could not be made."""
        return self.judgement.margin if self.judgement is not None else float("-inf")


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """A trial on disk: everything but what can be worked out again.

    Attributes:
        recipe: TOML of the decided recipe.
        learned: Digest of the learned weights, in a file of that name; empty when there are none.
        scores: On the evaluation data.
        samples: How many those were.
        has_groups: Whether several of them came from one source.
        costs: As measured.
    """

    recipe: str
    learned: str
    scores: tuple[Score, ...]
    samples: int
    has_groups: bool
    costs: Costs


class TrialCache:
    """Trials by content: model, recipe, data and metrics. A damaged or foreign entry counts as absent.

    Args:
        folder: Where the entries lie; None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def get(self, context: Iterable[str], recipe: Recipe) -> tuple[Stored, Recipe, Learned] | None:
        """What was found before, or None.

        Args:
            context: What the result rests on beside the recipe: digests of model and data, metrics, versions.
            recipe: As it was tried.
        """
        if self._folder is None:
            return None
        path = self._folder / f"{_key(context, recipe)}.json"
        try:
            if path.stat().st_size > _MAX_STORED_BYTES:
                return None
            stored = msgspec.json.decode(path.read_bytes(), type=Stored)
            decided = parse_recipe(stored.recipe, file=path.name)
            learned = Learned()
            if stored.learned:
                data = (self._folder / stored.learned.removeprefix("sha256:")).read_bytes()
                learned = decode_learned(data, digest=stored.learned, where=str(path))
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecipeError):
            return None
        return stored, decided, learned

    def put(self, context: Iterable[str], recipe: Recipe, made: Made, evaluation: Evaluation, costs: Costs) -> None:
        """Keep what was found; a disk that cannot be written only costs time."""
        if self._folder is None:
            return
        learned = made.learned_bytes
        stored = Stored(
            recipe=dump_recipe(made.recipe),
            learned=made.recipe.learned,
            scores=evaluation.scores,
            samples=evaluation.samples,
            has_groups=evaluation.has_groups,
            costs=costs,
        )
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if learned:
                _write(self._folder / made.recipe.learned.removeprefix("sha256:"), learned)
            _write(self._folder / f"{_key(context, recipe)}.json", msgspec.json.encode(stored))
        except OSError:
            return


def default_cache_folder() -> Path:
    """Where searches keep their trials."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shardwire" / "search"


def _key(context: Iterable[str], recipe: Recipe) -> str:
    return hashlib.sha256("\0".join((_CACHE_VERSION, *context, dump_recipe(recipe))).encode()).hexdigest()


def _write(path: Path, data: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        try:
            file.write(data)
            file.flush()
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
