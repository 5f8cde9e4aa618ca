"""Preprocessing and postprocessing as data: recipes of steps of a small fixed set; `edge.processing` runs them."""

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec

from edge.errors import BundleError
from edge.formats.answers import (
    MAKES,
    AnswerStep,
    Keep,
    Made,
    MeanPool,
    Suppress,
    Top,
    answer_step_fault,
    rule_fault,
)
from edge.formats.shard import Blob, check_digest
from edge.formats.steps import GIVES, TAKES, InputStep, Kind, Name, Tokenise, step_fault
from edge.formats.tensor import TensorSpec

MAX_RECIPES = 64
MAX_STEPS = 32

Source = Literal["image", "audio", "text", "tensor", "nothing"]

_SOURCES: dict[Kind, Source] = {"photo": "image", "sound": "audio", "text": "text", "nothing": "nothing"}


class InputRecipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one input of the model is made.

    Attributes:
        name: of the input.
        steps: the first says what is given: a photo, a sound, a text, nothing, or an array of that name.
    """

    name: Name
    steps: Annotated[tuple[InputStep, ...], msgspec.Meta(min_length=1, max_length=MAX_STEPS)]

    @property
    def source(self) -> Source:
        """What it is made of."""
        return _SOURCES.get(TAKES.get(type(self.steps[0]), "array"), "tensor")


class AnswerRecipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one answer is made of the outputs.

    Attributes:
        name: of the answer, for people and programs.
        steps: the first names an output.
    """

    name: Name
    steps: Annotated[tuple[AnswerStep, ...], msgspec.Meta(min_length=1, max_length=MAX_STEPS)]

    @property
    def makes(self) -> Made:
        """What kind of items it has; `arrays` for an array."""
        return next((MAKES[type(step)] for step in self.steps if type(step) in MAKES), "arrays")


class Processing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is done before and after a model.

    Attributes:
        inputs: at most one recipe an input; an input without one is given as an array.
        answers: in the order in which they are shown.
    """

    inputs: Annotated[tuple[InputRecipe, ...], msgspec.Meta(max_length=MAX_RECIPES)] = ()
    answers: Annotated[tuple[AnswerRecipe, ...], msgspec.Meta(max_length=MAX_RECIPES)] = ()

    @property
    def blobs(self) -> tuple[Blob, ...]:
        """The files that its steps read, each once."""
        files = (step.file for recipe in self.inputs for step in recipe.steps if isinstance(step, Tokenise))
        return tuple({blob.digest: blob for blob in files}.values())

    @property
    def photo(self) -> InputRecipe | None:
        """The recipe of the first input that is made of a photo."""
        return next((recipe for recipe in self.inputs if recipe.source == "image"), None)

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The names of the first answer with labels, in order; None without."""
        steps = (step for recipe in self.answers for step in recipe.steps if isinstance(step, Top))
        return next((step.names for step in steps), None)


NO_PROCESSING = Processing()
"""Arrays in, arrays out."""


def check_processing(
    processing: Processing, *, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], where: str
) -> None:
    """Raise `BundleError` where recipes do not fit the model, or their steps do not follow from each other."""
    given, made = [spec.name for spec in inputs], [spec.name for spec in outputs]
    for kind, names in (
        ("input", [r.name for r in processing.inputs]),
        ("answer", [r.name for r in processing.answers]),
    ):
        if twice := [name for index, name in enumerate(names) if name in names[:index]]:
            raise BundleError(f"{where}: processing: {kind} {twice[0][:80]!r} is there twice")
    for place, recipe in enumerate(processing.inputs):
        if recipe.name not in given:
            raise BundleError(f"{where}: processing.inputs[{place}]: the model has no input {recipe.name[:80]!r}")
        _check_input(recipe, f"{where}: processing.inputs[{place}]")
    for place, answer in enumerate(processing.answers):
        _check_answer(answer, given, made, f"{where}: processing.answers[{place}]")


def _check_input(recipe: InputRecipe, where: str) -> None:
    have: Kind = TAKES.get(type(recipe.steps[0]), "array")
    for index, step in enumerate(recipe.steps):
        wants: Kind = TAKES.get(type(step), "array")
        tag = step.__struct_config__.tag
        if have != wants and (have, wants) != ("image", "array"):
            raise BundleError(
                f"{where}.steps[{index}]: {tag} takes a value of kind {wants}, and there is one of {have}"
            )
        if fault := step_fault(step):
            raise BundleError(f"{where}.steps[{index}]: {tag}: {fault}")
        if isinstance(step, Tokenise):
            check_digest(step.file.digest, where=f"{where}.steps[{index}]")
        have = GIVES.get(type(step), "array")


def _check_answer(recipe: AnswerRecipe, inputs: Sequence[str], outputs: Sequence[str], where: str) -> None:
    have: Made = "arrays"
    for index, step in enumerate(recipe.steps):
        tag, place = step.__struct_config__.tag, f"{where}.steps[{index}]"
        wants: tuple[Made, ...] = ("arrays",)
        if isinstance(step, Suppress):
            wants = ("boxes",)
        elif isinstance(step, Keep):
            wants = ("labels", "boxes", "line", "segments")
        if have not in wants:
            raise BundleError(f"{place}: {tag} takes {' or '.join(wants)}, and there are {have}")
        for name in (getattr(step, "output", None), getattr(step, "scores", None)):
            if name is not None and name not in outputs:
                raise BundleError(f"{place}: the model has no output {name[:80]!r}")
        if isinstance(step, MeanPool) and step.mask not in inputs:
            raise BundleError(f"{place}: the model has no input {step.mask[:80]!r}")
        fault = rule_fault(step.when, have) if isinstance(step, Keep) else answer_step_fault(step)
        if fault:
            raise BundleError(f"{place}: {tag}: {fault}")
        have = MAKES.get(type(step), have)
