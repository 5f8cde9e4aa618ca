"""The benchmark of the extras knows all of them, and what each installs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import extras


def test_every_extra_is_measured_by_what_it_is_for() -> None:
    _, declared = extras.declared()
    assert declared.keys() <= extras.MODULES.keys()
    assert set(extras.LARGE) <= extras.MODULES.keys()


def test_an_extra_installs_what_the_extras_that_it_names_install() -> None:
    declared = {
        "small": ("a>=1",),
        "both": ("shardwire[small,other]", "b"),
        "other": ("a>=1", "c; python_version > '3'"),
    }
    assert extras.requirements("both", declared) == ("a>=1", "c; python_version > '3'", "b")


def test_an_extra_is_installed_with_the_pinned_versions_that_it_goes_together_with() -> None:
    text = "# comment\nnumpy==2.4.6\ntorch==2.13.0\nmsgspec==0.22.0\n"
    assert extras.constraints("host", text) == "numpy==2.4.6\ntorch==2.13.0\nmsgspec==0.22.0\n"
    assert extras.constraints("tflite-runtime", text) == "torch==2.13.0\nmsgspec==0.22.0\n"
    assert extras.constraints("litert-torch", text) == "torch==2.13.0\n"


def test_the_import_of_a_module_costs_time_and_one_that_fails_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("sum(range(10_000_000))\n")
    (tmp_path / "broken.py").write_text("raise ImportError('no')\n")
    python = Path(sys.executable)
    assert extras.import_seconds(python, ("slow",), tmp_path) > extras.import_seconds(python, (), tmp_path)
    with pytest.raises(RuntimeError, match="import broken ended with status 1"):
        extras.import_seconds(python, ("broken",), tmp_path)
