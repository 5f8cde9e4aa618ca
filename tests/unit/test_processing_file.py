"""`--processing steps.toml`: recipes as people write them, with files and rules, and faults that name their place."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.formats.answers import AllOf, AnyOf, Compare, CtcText, Keep, Not, Rule, Top
from edge.formats.processing import NO_PROCESSING, Processing
from edge.formats.steps import DecodeImage, Tokenise
from edge.formats.tensor import TensorSpec
from host import processing as module
from host.errors import PackageError
from host.processing import processing_for, read_processing
from host.rules import parse_rule
from tests.processing_examples import write_example

INPUTS = (TensorSpec(name="x", dtype="float32", shape=(1,)),)
OUTPUTS = (TensorSpec(name="y", dtype="float32", shape=(1, 2)),)
TOKENISE = '[[input]]\nname = "x"\nsteps = [{ step = "tokenise", file = "words.json", most = 8 }]\n'


def read(folder: Path, text: str) -> Processing:
    """The recipes of a file."""
    (folder / "steps.toml").write_text(text)
    return read_processing(folder / "steps.toml").processing


def refusal(folder: Path, text: str) -> str:
    """What is said of a file, without its folder."""
    (folder / "steps.toml").write_text(text)
    with pytest.raises(PackageError) as caught:
        processing_for(folder / "steps.toml", NO_PROCESSING, inputs=INPUTS, outputs=OUTPUTS)
    return str(caught.value).replace(f"{folder}/", "")


def answer(steps: str) -> str:
    """A file with one answer."""
    return f'[[answer]]\nname = "it"\nsteps = [{steps}]\n'


@pytest.mark.parametrize("heading", ["Classification", "Sentences", "A line of text", "Faces", "Sounds"])
def test_every_example_of_the_documentation_can_be_read(heading: str, tmp_path: Path) -> None:
    declared = read_processing(write_example(heading, tmp_path))
    assert declared.processing.inputs
    assert set(declared.files) == {blob.digest for blob in declared.processing.blobs}


def test_a_file_beside_it_becomes_a_blob(tmp_path: Path) -> None:
    (tmp_path / "words.json").write_bytes(b"words")
    (tmp_path / "steps.toml").write_text(TOKENISE)
    declared = processing_for(tmp_path / "steps.toml", NO_PROCESSING, inputs=INPUTS, outputs=OUTPUTS)
    (step,) = declared.processing.inputs[0].steps
    assert isinstance(step, Tokenise)
    assert declared.files == {step.file.digest: b"words"}
    assert step.file.size_bytes == 5


def test_names_may_stand_in_a_file_one_a_line(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes("a\r\n \n\u2028\n".encode())
    found = read(tmp_path, answer('{ step = "ctc-text", output = "y", names_file = "names.txt" }'))
    assert found.answers[0].steps == (CtcText(output="y", names=("a", " ", "\u2028")),)


def test_a_rule_becomes_a_record(tmp_path: Path) -> None:
    steps = '{ step = "top", output = "y", names = ["a", "b"] }, { step = "keep", when = "score > 0.5" }'
    top, keep = read(tmp_path, answer(steps)).answers[0].steps
    assert top == Top(output="y", names=("a", "b"))
    assert keep == Keep(when=Compare(field="score", operator=">", value=0.5))


def test_without_a_file_what_is_known_stays() -> None:
    known = Processing(inputs=())
    assert processing_for(None, known, inputs=INPUTS, outputs=OUTPUTS).processing is known


TOP = '{ step = "top", output = "y", names = ["a", "b"] }'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[input", "steps.toml: no TOML: "),
        ("[[inputs]]", "steps.toml: 'inputs' is not known here; allowed: format, [[input]], [[answer]]"),
        ('format = "2.0"', "steps.toml: format '2.0'; this release reads 1.0"),
        ("input = 3", "steps.toml: Expected `array`, got `int` - at `input`"),
        (
            "[[input]]\nsteps = [{ step = 'expand' }]",
            "steps.toml: Object missing required field `name` - at `input[0]`",
        ),
        (answer("3"), "steps.toml: Expected `object`, got `int` - at `answer[0].steps[0]`"),
        (answer('{ step = "top" }'), "steps.toml: Object missing required field `output` - at `answer[0].steps[0]`"),
        (TOKENISE, "words.json: cannot be read (No such file or directory)"),
        (TOKENISE.replace("words.json", "."), ".: cannot be read (Is a directory)"),
        (
            answer('{ step = "top", output = "y", names = [], names_file = "a" }'),
            "steps.toml: answer[0].steps[0]: names and names_file: give one of them",
        ),
        (
            answer(f'{TOP}, {{ step = "keep", when = "score >" }}'),
            "steps.toml: answer[0].steps[1].when: rule 'score >': expected a value, found its end",
        ),
        (
            answer('{ step = "softmax", output = "z" }'),
            "steps.toml: answer[0].steps[0]: the model has no output 'z' (the model has inputs x; outputs y)",
        ),
        (
            '[[input]]\nname = "x"\nsteps = [{ step = "decode-image", colour = "pink" }]',
            "steps.toml: Invalid enum value 'pink' - at `input[0].steps[0].colour`",
        ),
        (
            '[[input]]\nname = "x"\nsteps = [{ step = "normalise", mean = [nan], std = [1.0] }]',
            "steps.toml: Expected `float` >=",
        ),
    ],
)
def test_a_fault_names_the_file_and_the_place_in_it(tmp_path: Path, text: str, said: str) -> None:
    found = refusal(tmp_path, text).replace(f"{tmp_path}", ".")
    assert found.startswith(said)
    assert "\n" not in found


def test_a_file_that_is_missing_or_absurd_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PackageError, match=r"steps.toml: cannot be read \(No such file or directory\)"):
        read_processing(tmp_path / "steps.toml")
    monkeypatch.setattr(module, "MAX_PROCESSING_BYTES", 3)
    assert refusal(tmp_path, "a = 1") == "steps.toml: has more than the 3 bytes that are allowed"


def test_the_steps_of_a_photo_may_be_written_in_full(tmp_path: Path) -> None:
    found = read(tmp_path, '[[input]]\nname = "x"\n[[input.steps]]\nstep = "decode-image"\ncolour = "L"\n')
    assert found.inputs[0].steps == (DecodeImage(colour="L"),)


# --------------------------------------------------------------------------------------------------------------- rules
PERSON = Compare(field="label", operator="==", value="person")
SURE = Compare(field="score", operator=">", value=0.8)
WIDE = Compare(field="width", operator=">=", value=0.5)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("label == person", PERSON),
        (" label=='person' ", PERSON),
        ('label == "a person, or two"', Compare(field="label", operator="==", value="a person, or two")),
        ("label == 7", Compare(field="label", operator="==", value="7")),
        ("score > 8e-1", SURE),
        ("label == person and score > 0.8", AllOf(rules=(PERSON, SURE))),
        ("label == person and score > .8 or width >= .5", AnyOf(rules=(AllOf(rules=(PERSON, SURE)), WIDE))),
        ("label == person and (score > 0.8 or width >= 0.5)", AllOf(rules=(PERSON, AnyOf(rules=(SURE, WIDE))))),
        ("not label == person and score > 0.8", AllOf(rules=(Not(inner=PERSON), SURE))),
        ("not not (score > 0.8)", Not(inner=Not(inner=SURE))),
        ("label == 'and'", Compare(field="label", operator="==", value="and")),
    ],
)
def test_rules_are_read_as_people_write_them(text: str, rule: Rule) -> None:
    assert parse_rule(text) == rule


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "rule '': expected a property (label, score, width, height, area), found its end"),
        ("score", "rule 'score': expected an operator (==, !=, <, <=, >, >=), found its end"),
        ("score > high", "rule 'score > high': expected a number, found 'high' at letter 9"),
        ("score > nan", "rule 'score > nan': Expected `"),
        ("score > 1 and", "rule 'score > 1 and': expected a property"),
        ("score > 1 score", "rule 'score > 1 score': expected 'and', 'or' or the end, found 'score' at letter 11"),
        ("(score > 1", "rule '(score > 1': expected ')', found its end"),
        ("size > 1", "rule 'size > 1': Invalid enum value 'size' - at `$.field`"),
        ("score ( 1", "rule 'score ( 1': Invalid enum value '(' - at `$.operator`"),
        ("label == 'a", 'rule "label == \'a": cannot be read from letter 9 on: " \'a"'),
        ("__import__('os')", "rule \"__import__('os')\": "),
        ("(" * 40 + "score > 1" + ")" * 40, "rule '((((((((((((((((((((((((((((((((((((((((score > 1)"),
        ("x" * 5000, "a rule of 5000 letters; at most 4096 are allowed"),
    ],
)
def test_what_is_no_rule_is_refused_with_what_was_expected(text: str, said: str) -> None:
    with pytest.raises(PackageError) as caught:
        parse_rule(text)
    assert str(caught.value).startswith(said)
