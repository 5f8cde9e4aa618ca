"""What each extra costs: the size of what it adds to an install, and the CPU time of importing what it is for.

The packages of an extra are installed with pip into a temporary folder of their own, with the versions of
`constraints.txt` as far as they go together, and imported by an interpreter that sees nothing else. Those that need
gigabytes (`torch`, `litert-torch`, `tensorflow`) are left out unless `--all` is given.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import tomllib
import venv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.measure import Figure, Key, report, say

ROOT = Path(__file__).resolve().parent.parent
ROUNDS = 5

MODULES: Mapping[str, tuple[str, ...]] = {
    "onnxruntime": ("onnxruntime",),
    "litert": ("ai_edge_litert.interpreter",),
    "tflite-runtime": ("tflite_runtime.interpreter",),
    "image": ("PIL.Image",),
    "text": ("tokenizers",),
    "fleet": ("highspy", "rich.console", "typer"),
    "host": ("onnx", "onnx_ir", "onnxruntime"),
    "tflite": ("ai_edge_litert.interpreter", "ai_edge_quantizer"),
    "report": ("jinja2", "matplotlib.figure"),
    "tracking": ("tensorboardX", "wandb"),
    "broker": ("amqtt.broker",),
    "dev": ("hypothesis", "pytest"),
    "torch": ("torch",),
    "litert-torch": ("litert_torch",),
    "tensorflow": ("tensorflow", "tf2onnx"),
}
"""What an extra is for: the modules that Shardwire imports when it is used."""

LARGE = ("torch", "litert-torch", "tensorflow")
"""Left out unless asked for."""

_OTHER_NUMPY = {"tflite-runtime": ("numpy",)}
"""Packages that an extra needs in another version than `constraints.txt` has."""

_OTHER_ALL = {"litert-torch": ("torch",)}
"""Extras that go together with these of its versions only."""


def _word(extra: str) -> str:
    return extra.replace("-", "_")


KEYS = (
    Key(name="base_mb", meaning="what every device installs, without a runtime"),
    Key(name="bare_cpu_seconds", meaning="CPU time of an interpreter that imports nothing"),
    *(
        key
        for extra, modules in MODULES.items()
        for key in (
            Key(name=f"{_word(extra)}_mb", meaning=f"what [{extra}] adds to the base"),
            Key(
                name=f"{_word(extra)}_import_cpu_seconds", meaning=f"of importing {', '.join(modules)}, beyond the bare"
            ),
        )
    ),
)


def declared() -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """The project's dependencies, and those of each extra."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    extras = {name: tuple(words) for name, words in project["optional-dependencies"].items()}
    return tuple(project["dependencies"]), extras


def requirements(extra: str, extras: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """What an extra installs, its references to other extras of the project followed."""
    return tuple(dict.fromkeys(_followed(extra, extras)))


def _followed(extra: str, extras: Mapping[str, Sequence[str]]) -> Iterator[str]:
    for word in extras[extra]:
        own = re.fullmatch(r"shardwire\[([a-z,-]+)\]", word)
        if own is None:
            yield word
            continue
        for name in own[1].split(","):
            yield from _followed(name, extras)


def constraints(extra: str, text: str) -> str:
    """The lines of `constraints.txt` that an extra goes together with."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    names = [line.partition("==")[0] for line in lines]
    dropped, only = _OTHER_NUMPY.get(extra, ()), _OTHER_ALL.get(extra)
    kept = [
        line for line, name in zip(lines, names, strict=True) if name not in dropped and (only is None or name in only)
    ]
    return "\n".join(kept) + "\n"


def install(python: Path, wanted: Sequence[str], pinned: str, folder: Path) -> float:
    """Install packages for an interpreter into a folder; return its size in megabytes."""
    folder.mkdir()
    pins = folder.with_suffix(".txt")
    pins.write_text(pinned, encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", "--quiet", "--quiet"]
    command = [*pip, "install", "--target", str(folder), "-c", str(pins), *wanted]
    ran = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if ran.returncode != 0:
        # Otherwise it only warns of packages that lie elsewhere.
        raise RuntimeError(f"pip cannot install {', '.join(wanted)}: {ran.stdout.strip()[-2000:]}")
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink()) / 1e6


def import_seconds(python: Path, modules: Sequence[str], folder: Path) -> float:
    """CPU time of a child that imports modules from a folder, user and system."""
    program = "; ".join(f"import {name}" for name in modules) or "pass"
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([str(python), "-c", program], env=environment, stderr=subprocess.DEVNULL) as child:
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        raise RuntimeError(f"{program} ended with status {child.returncode}")
    return used.ru_utime + used.ru_stime


def extra_figures(extra: str, python: Path, folder: Path, base_mb: float) -> dict[str, Figure]:
    """Size and import time of one extra."""
    dependencies, extras = declared()
    say(f"[{extra}]")
    pinned = constraints(extra, (ROOT / "constraints.txt").read_text(encoding="utf-8"))
    size = install(python, [*dependencies, *requirements(extra, extras)], pinned, folder)
    import_seconds(python, MODULES[extra], folder)  # compiled, and in the page cache
    spent = [import_seconds(python, MODULES[extra], folder) - import_seconds(python, (), folder) for _ in range(ROUNDS)]
    return {
        f"{_word(extra)}_mb": max(0.0, size - base_mb),
        f"{_word(extra)}_import_cpu_seconds": statistics.median(spent),
    }


def measure(names: Sequence[str]) -> dict[str, Figure]:
    """Take the figures of some extras."""
    dependencies, _ = declared()
    with tempfile.TemporaryDirectory(prefix="shardwire-bench-") as name:
        folder = Path(name)
        venv.create(folder / "bare", with_pip=False)
        python = folder / "bare" / "bin" / "python"
        say("the base")
        pinned = constraints("", (ROOT / "constraints.txt").read_text(encoding="utf-8"))
        base_mb = install(python, dependencies, pinned, folder / "base")
        bare = statistics.median(import_seconds(python, (), folder / "base") for _ in range(ROUNDS))
        figures: dict[str, Figure] = {"base_mb": base_mb, "bare_cpu_seconds": bare}
        for extra in names:
            with tempfile.TemporaryDirectory(dir=folder) as own:
                figures |= extra_figures(extra, python, Path(own) / "packages", base_mb)
    return figures


def main() -> None:
    """Print them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    parser.add_argument("--all", action="store_true", help=f"also {', '.join(LARGE)}: several GB and some minutes")
    given = parser.parse_args()
    _, extras = declared()
    names = [extra for extra in MODULES if extra in extras and (given.all or extra not in LARGE)]
    report(measure(names), KEYS, as_json=given.json)


if __name__ == "__main__":
    main()
