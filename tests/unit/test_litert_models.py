"""The `.tflite` files that device tests load are those that their script makes."""

from __future__ import annotations

from tests.litert_models import FOLDER
from tests.litert_models.make_models import make_models


def test_the_files_are_what_the_script_makes() -> None:
    assert {path.stem: path.read_bytes() for path in FOLDER.glob("*.tflite")} == make_models()
