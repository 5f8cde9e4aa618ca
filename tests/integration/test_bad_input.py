"""What is wrong with the input is said in one line; the exit code tells it too, and nothing half-written stays."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from edge.formats.profile import profile_ids
from host.package import PackageRequest, package
from tests.command_line import ROOT, environment, shardwire
from tests.graphs import conv_net, parsed

_PROFILES = ", ".join(profile_ids())
# Port 1 is nobody's: the connection is refused at once.
_NOWHERE = "mqtt://127.0.0.1:1"
_NO_BROKER = f"no broker at {_NOWHERE}: connection refused; start one (mosquitto -p 1) or give --broker"
_PURE = "export it in evaluation mode, or make the random values an input"
_ADDRESS = "write mqtt://[user:password@]host[:port]"
_NAMES = "use 1 to 63 of a-z, 0-9 and '-', starting with a letter or digit"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a good model, a bundle of it, and files that are good for nothing."""
    folder = tmp_path_factory.mktemp("bad")
    onnx.save(conv_net(), folder / "net.onnx")
    whole = (folder / "net.onnx").read_bytes()
    (folder / "half.onnx").write_bytes(whole[: len(whole) // 2])
    (folder / "text.onnx").write_text("hello")
    (folder / "photo.jpg").write_text("hello")
    (folder / "empty.npz").write_bytes(b"")
    np.savez(folder / "small.npz", x=np.zeros((1, 3, 4, 4), np.float32))
    (folder / "half.npz").write_bytes((folder / "small.npz").read_bytes()[:200])
    np.savez(folder / "objects.npz", x=np.array([{}], dtype=object), allow_pickle=True)
    (folder / "broken.toml").write_text("cores = [")
    profile = (ROOT / "firmware_profiles" / "rpi4.toml").read_text()
    (folder / "typed.toml").write_text(profile.replace("cores = 4", 'cores = "four"'))
    noisy = parsed("noisy (float[1, 4] x) => (float[1, 4] y) { r = RandomNormalLike (x) \n y = Add (x, r) }")
    onnx.save(noisy, folder / "noisy.onnx")
    package(PackageRequest(source=str(folder / "net.onnx"), profile="rpi4", quantize="none", target=folder / "bundle"))
    damaged = Path(shutil.copytree(folder / "bundle", folder / "damaged"))
    (damaged / "index.json").write_text("{}")
    return folder


def state_of(folder: Path) -> dict[str, str]:
    """Every file below a folder with the digest of its bytes, and every folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


_PACKAGING = {
    "missing model": ("missing.onnx", "missing.onnx: no such file"),
    "model cut short": ("half.onnx", "half.onnx: not an ONNX file, or a damaged one"),
    "model of text": ("text.onnx", "text.onnx: not an ONNX file, or a damaged one"),
    "random model": (
        "noisy.onnx",
        f"model 'noisy' does not answer the same input the same way twice: node '' is RandomNormalLike; {_PURE}",
    ),
    "no such TFLite file": ("net.tflite", "net.tflite: no such file"),
    "no model at all": (
        "weights",
        "'weights' is no model: give a path that ends in .onnx, package.module:factory, or efficientnet-lite0",
    ),
    "missing module": (
        "no_such_thing:make",
        "model no_such_thing:make: cannot import no_such_thing: ModuleNotFoundError: No module named 'no_such_thing'",
    ),
    "unknown profile": (
        "net.onnx --profile rpi99",
        f"unknown profile 'rpi99': choose one of {_PROFILES}, or a path to a .toml file",
    ),
    "missing profile": (
        "net.onnx --profile mine.toml",
        "mine.toml: cannot read the profile: No such file or directory",
    ),
    "profile of a wrong type": (
        "net.onnx --profile typed.toml",
        "typed.toml: cores: expected int, got 'four'",
    ),
    "profile that is no TOML": (
        "net.onnx --profile broken.toml",
        "broken.toml: not TOML: Invalid value (at end of document)",
    ),
    "recipe that is no TOML": (
        "net.onnx --recipe broken.toml",
        "broken.toml: not TOML: Invalid value (at end of document)",
    ),
    "unknown quantization": (
        "net.onnx --quantize int3",
        "--quantize int3: choose int8, int8-dynamic, int8-weights, int4, float16 or none",
    ),
    "shape without size": (
        "net.onnx --shape side",
        "--shape 'side': expected NAME=SIZE, such as batch=1 or image=1x3x224x224",
    ),
    "shape of nothing": (
        "net.onnx --shape side=3",
        "--shape side: the model has no such input or dimension; it has x[1, 3, 8, 8]",
    ),
    "shape that contradicts": (
        "net.onnx --shape x=2x3x8x8",
        "--shape x: got [2, 3, 8, 8], but the input has [1, 3, 8, 8]",
    ),
    "missing inputs": ("net.onnx --inputs none.npz", "--inputs none.npz: no such file"),
    "inputs of no use": (
        "net.onnx --inputs photo.jpg",
        "--inputs 'photo.jpg': give a file that ends in .npz, or package.module:callable",
    ),
    "name of spaces": (
        "net.onnx --name My.Net",
        f"model name 'My.Net' is not allowed: {_NAMES}",
    ),
    "version of signs": (
        "net.onnx --version v/1",
        "version 'v/1': use letters, digits, '.', '_' and '-', at most 64",
    ),
    "expiry in a month thirteen": ("net.onnx --expires 2027-13-01", "expiry '2027-13-01' is no date: give YYYY-MM-DD"),
    "recipe and quantization": (
        "net.onnx --recipe none.toml --quantize none",
        "--recipe none.toml says how to quantize: leave out --quantize none",
    ),
    "expiry of words": ("net.onnx --expires soon", "expiry 'soon' is no date: give YYYY-MM-DD"),
    "missing key": ("net.onnx --key none.pem", "none.pem: the key cannot be read (No such file or directory)"),
    "taken target": (
        "net.onnx --out bundle",
        "bundle is there already: remove it, choose another --out, or give --force",
    ),
    "target that is a file": (
        "net.onnx --out net.onnx --force",
        "net.onnx is there already and is no bundle: --force replaces bundles only",
    ),
    "target below a file": (
        "net.onnx --out net.onnx/bundle",
        "net.onnx/bundle: cannot be written (net.onnx is a file)",
    ),
}

_READING = {
    "verify nothing": ("verify none", "none: no bundle here (no index.json); make one with `shardwire package`"),
    "inspect nothing": ("inspect none", "none: no bundle here (no index.json); make one with `shardwire package`"),
    "open a damaged one": (
        "inspect damaged",
        "damaged/index.json: Object missing required field `manifests`",
    ),
    "compare with nothing": (
        "inspect --diff bundle",
        "--diff takes two bundles: shardwire inspect --diff OLD NEW",
    ),
    "photo for a model of tensors": (
        "run bundle photo.jpg",
        "photo.jpg: model 'net' takes no photos; give an .npz with the arrays x",
    ),
    "missing tensors": ("run bundle none.npz", "none.npz: cannot be read (No such file or directory)"),
    "tensors that are none": ("run bundle empty.npz", "empty.npz: cannot be read (no .npz of plain arrays)"),
    "tensors cut short": ("run bundle half.npz", "half.npz: cannot be read (no .npz of plain arrays)"),
    "tensors that would be code": ("run bundle objects.npz", "objects.npz: cannot be read (no .npz of plain arrays)"),
    "tensors of another shape": (
        "run bundle small.npz",
        "small.npz: input 'x' is float32[1, 3, 4, 4], expected float32[1, 3, 8, 8]",
    ),
    "export to nowhere": (
        "export bundle --onnx net.onnx/out.onnx",
        "net.onnx/out.onnx: cannot be written (Not a directory)",
    ),
    "export over a file": (
        "export bundle --onnx net.onnx",
        "net.onnx is there already: remove it or give --force",
    ),
    "show an unknown profile": (
        "profiles rpi99",
        f"unknown profile 'rpi99': choose one of {_PROFILES}, or a path to a .toml file",
    ),
}

_FLEET = {
    "deploy to nobody": (
        "deploy bundle --devices ,",
        f"device name '' is not allowed: {_NAMES}",
    ),
    "deploy nothing": ("deploy none", "none: no bundle here (no index.json); make one with `shardwire package`"),
    "address of nothing": (
        "fleet --broker nonsense",
        f"'nonsense' is no broker address: it starts with neither mqtt:// nor mqtts://; {_ADDRESS}",
    ),
    "fleet of dots": ("fleet --fleet a.b", f"fleet name 'a.b' is not allowed: {_NAMES}"),
    "deploy without broker": (f"deploy bundle --broker {_NOWHERE}", _NO_BROKER),
    "fleet without broker": (f"fleet --broker {_NOWHERE}", _NO_BROKER),
    "status without broker": (f"status --broker {_NOWHERE}", _NO_BROKER),
    "undeploy without broker": (f"undeploy net --broker {_NOWHERE}", _NO_BROKER),
    "infer without broker": (f"infer net --inputs none.npz --broker {_NOWHERE}", _NO_BROKER),
}

_MISUSE = {
    "unknown command": ("frobnicate net.onnx", "No such command 'frobnicate'", "shardwire"),
    "missing argument": ("verify", "Missing argument 'bundle'", "shardwire verify"),
    "number out of range": (
        "package net.onnx --max-shards 0",
        "Invalid value for '--max-shards': Input should be greater than or equal to 1",
        "shardwire package",
    ),
}


def check(folder: Path, words: str, *, line: str, code: int) -> None:
    """Run a command in the folder: it must say one line, end with the code, and leave the folder as it was."""
    before = state_of(folder)
    ran = shardwire(*words.split(), cwd=folder)
    assert ran.complaint == f"shardwire: {line}"
    assert "Traceback" not in ran.err
    assert ran.out == ""
    assert ran.code == code
    assert state_of(folder) == before


@pytest.mark.parametrize("case", _PACKAGING)
def test_what_cannot_be_packaged(case: str, folder: Path) -> None:
    words, line = _PACKAGING[case]
    target = "" if "--out" in words else " --out out"
    check(folder, f"package {words}{target}", line=line, code=1)


@pytest.mark.parametrize("case", _READING)
def test_what_cannot_be_read(case: str, folder: Path) -> None:
    words, line = _READING[case]
    check(folder, words, line=line, code=1)


@pytest.mark.slow
@pytest.mark.parametrize("case", _FLEET)
def test_what_no_fleet_answers(case: str, folder: Path) -> None:
    words, line = _FLEET[case]
    check(folder, words, line=line, code=1)


@pytest.mark.parametrize("case", _MISUSE)
def test_what_no_command_understands(case: str, folder: Path) -> None:
    words, line, command = _MISUSE[case]
    check(folder, words, line=f"{line}; see {command} --help", code=2)


@pytest.mark.slow
def test_a_photo_that_is_no_image(folder: Path) -> None:
    package(PackageRequest(source="", profile="rpi4", quantize="none", target=folder / "lite"))
    check(folder, "run lite photo.jpg", line="photo.jpg: not an image", code=1)


def test_no_command_prints_its_help_and_ends_well() -> None:
    ran = shardwire()
    assert (ran.code, ran.err) == (0, "")
    assert "package" in ran.out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--name Pi.1 --profile rpi4", f"device name 'Pi.1' is not allowed: {_NAMES}"),
        (
            "--name pi-1 --profile rpi99",
            f"unknown profile 'rpi99': choose one of {_PROFILES}, or a path to a .toml file",
        ),
        ("--name pi-1 --profile rpi4 --connect-timeout 0.1", _NO_BROKER),
    ],
)
def test_an_agent_that_cannot_start(words: str, line: str, tmp_path: Path) -> None:
    program = "import sys; from edge.cli import main; sys.exit(main())"
    arguments = ["--broker", _NOWHERE, "--folder", str(tmp_path / "agent"), *words.split()]
    ran = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    said = [each for each in ran.stderr.splitlines() if not each.startswith("time=")]
    assert said == [f"shardwire-agent: {line}"]
    assert ran.returncode == 2
