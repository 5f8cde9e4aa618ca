"""What cannot be compressed is said in one line: what is wrong, where, and what to do; nothing half-written stays."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from edge.formats.profile import profile_ids
from host.cli.main import app, main
from host.compress.recipe import PruneChannels, Quantize, Recipe, dump_recipe
from host.compress.request import CompressRequest
from host.compression import compress_model
from tests.command_line import Finished, environment
from tests.graphs import conv_net, photos
from tests.integration.test_bad_input import state_of

_EXAMPLES = "top1-drop<=0.005, top5-drop<=1%, agreement>=0.99, cosine>=0.99"
_LIMIT = f"write METRIC<=NUMBER or METRIC>=NUMBER, as in {_EXAMPLES}"
_DECIDES = "a budget decides by itself how to compress: leave out --recipe and --quantize"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_POSSIBLE = (
    "possible are top1, top5 or topK for any K, agreement, agreement-topK, cosine, snr, iou, package.module:function; "
    "top1-drop, topK-drop, iou-drop and package.module:function-drop; each with @OUTPUT behind it for one output"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a good model, data, a compression of it, and files that are good for nothing."""
    folder = tmp_path_factory.mktemp("bad")
    onnx.save(conv_net(), folder / "net.onnx")
    arrays = np.stack([sample["x"] for sample in photos(40)])
    np.savez(folder / "inputs.npz", x=arrays)
    np.savez(folder / "data.npz", x=arrays[:30] * 2)
    np.savez(folder / "labelled.npz", x=arrays[:30] * 2, label=np.arange(30) % 4)
    np.savez(folder / "far.npz", x=arrays[:30] * 2, label=np.arange(30) + 7)
    np.savez(folder / "small.npz", x=np.zeros((30, 3, 4, 4), np.float32))
    np.savez(folder / "named.npz", image=arrays)
    np.savez(folder / "uneven.npz", x=arrays, label=np.arange(7))
    (folder / "half.npz").write_bytes((folder / "data.npz").read_bytes()[:500])
    (folder / "nothing").mkdir()
    (folder / "words.csv").write_text("a,b\nc,d\n")
    _write_recipes(folder)
    request = CompressRequest(
        source=str(folder / "net.onnx"),
        profile="rpi4",
        inputs=str(folder / "inputs.npz"),
        target=folder / "there",
        recipe=folder / "prune.toml",
    )
    compress_model(request)
    found = {path.suffix: path.read_bytes() for path in (folder / "there").iterdir() if path.stem == "recipe"}
    for name, weights in (
        ("missing", None),
        ("damaged", found[".safetensors"][:-1] + b"\x01"),
        ("cut", found[".safetensors"][:100]),
        ("other", (folder / "net.onnx").read_bytes()),
    ):
        (folder / f"{name}.toml").write_bytes(found[".toml"])
        if weights is not None:
            (folder / f"{name}.safetensors").write_bytes(weights)
    return folder


def _write_recipes(folder: Path) -> None:
    def write(name: str, *steps: object, **plan: object) -> None:
        recipe = Recipe(prune=steps, quantize=Quantize(**plan))  # type: ignore[arg-type]  # one of several fields each
        (folder / f"{name}.toml").write_text(dump_recipe(recipe))

    write("prune", PruneChannels(ratio=0.5, multiple=2), correct_bias=True)
    write("exclude", exclude=("conv9",))
    write("exclude-prune", PruneChannels(exclude=("conv9",)))
    texts = {
        "torch": '[[prune]]\nkind = "torch-channels"\n',
        "groups": '[[prune]]\nkind = "channels"\n[[prune.groups]]\nnodes = ["conv9"]\nkeep = [0]\n',
        "ratio": '[[prune]]\nkind = "channels"\nratio = 1.5\n',
        "kind": '[[prune]]\nkind = "layers"\n',
        "weights": '[[prune]]\nkind = "weights"\nratio = 0.5\npattern = "2:4"\n',
        "method": '[[recover]]\nmethod = "hope"\n',
        "calibrated": '[quantize]\ncalibrated_for = "sha256:' + "0" * 64 + '"\n'
        '[[quantize.ranges]]\ntensor = "x"\ndtype = "uint8"\nlow = 0.0\nhigh = 1.0\n',
    }
    for name, text in texts.items():
        (folder / f"{name}.toml").write_text(f'format = "1.1"\n{text}')
    (folder / "newer.toml").write_text('format = "2.0"\n')


_CASES: dict[str, tuple[str, str]] = {
    "budget without a number": (
        "--budget top1-drop",
        f"budget: 'top1-drop' is no limit; {_LIMIT}",
    ),
    "budget of nothing": (
        "--budget=",
        f"the budget is empty; give limits such as {_EXAMPLES}",
    ),
    "budget with a wrong sign": (
        "--budget top1=0.9",
        f"budget: 'top1=0.9' is no limit; {_LIMIT}",
    ),
    "budget of a number that is none": (
        "--budget top1>=1.2.3",
        "budget: 'top1>=1.2.3': '1.2.3' is no number",
    ),
    "unknown metric": (
        "--budget accuracy>=0.9",
        f"budget: 'accuracy>=0.9': metric 'accuracy': there is no such one; {_POSSIBLE}",
    ),
    "drop of what compares already": (
        "--budget cosine-drop<=0.1",
        "budget: 'cosine-drop<=0.1': metric 'cosine-drop': cosine compares with the original already; write cosine>=…",
    ),
    "metric of a missing module": (
        "--budget no_such_thing:score>=1",
        (
            "budget: 'no_such_thing:score>=1': no_such_thing:score: cannot import no_such_thing: "
            "ModuleNotFoundError: No module named 'no_such_thing'"
        ),
    ),
    "metric of an output that is not there": (
        "--budget cosine@logits>=0.9 --data data.npz",
        "data.npz: row 0: cosine@logits: there is no output 'logits'; there are y",
    ),
    "budget that needs data": (
        "--budget top1>=0.9",
        "--budget 'top1>=0.9' needs labelled data to judge on: pass --data",
    ),
    "budget that needs labels": (
        "--budget top1>=0.9 --data data.npz",
        "data.npz: row 0 has no label, which top1>=0.9 needs; agreement, cosine and snr need none",
    ),
    "labels of other classes": (
        "--budget top1>=0.9 --data far.npz",
        "far.npz: row 0: top1: a label is 7 to 7; there are 4 classes",
    ),
    "budget and recipe": (
        "--budget cosine>=0.9 --recipe prune.toml",
        _DECIDES,
    ),
    "budget and mode": (
        "--budget cosine>=0.9 --quantize int8",
        _DECIDES,
    ),
    "recipe and mode": (
        "--recipe prune.toml --quantize int8",
        "--recipe prune.toml says how to quantize: leave out --quantize int8",
    ),
    "unknown mode": (
        "--quantize int3",
        "--quantize int3: choose int8, int8-dynamic, int8-weights, int4, float16 or none",
    ),
    "missing data": (
        "--data none.npz",
        "none.npz: no such file",
    ),
    "data of no form": (
        "--data photos/",
        (
            "photos/: no such folder, and no other form of samples: give a file that ends in .npz, a .csv of "
            "token ids, package.module:function or a folder of images"
        ),
    ),
    "data cut short": (
        "--data half.npz",
        "half.npz: not a readable .npz file: File is not a zip file",
    ),
    "data of another shape": (
        "--data small.npz",
        "small.npz: input 'x' is float32[1, 3, 4, 4], expected float32[1, 3, 8, 8]",
    ),
    "data of another input": (
        "--data named.npz",
        "named.npz lacks input 'x'; the model takes x",
    ),
    "data with few labels": (
        "--data uneven.npz",
        "uneven.npz: the arrays hold different numbers of samples: {'x': 40, 'labels': 7}",
    ),
    "folder of images for a model of tensors": (
        "--data nothing",
        "nothing: images need the preprocessing of the model; without it give an .npz file",
    ),
    "table of words": (
        "--data words.csv",
        "words.csv:1: column 'a' is no input of the model; it takes x; label and group may stand beside them",
    ),
    "missing inputs": (
        "--inputs none.npz",
        "--inputs none.npz: no such file",
    ),
    "missing training data": (
        "--budget cosine>=0.9 --data data.npz --train-data none.npz",
        "none.npz: no such file",
    ),
    "calibrated with what it is judged on": (
        "--data data.npz --inputs ./data.npz",
        "--inputs ./data.npz is --data, too: what is calibrated with is no proof; give other samples or leave it out",
    ),
    "trained on what it is judged on": (
        "--data data.npz --train-data data.npz",
        "--train-data data.npz is --data, too: what is trained with is no proof; give other samples or leave it out",
    ),
    "missing recipe": (
        "--recipe none.toml",
        "none.toml: cannot read the recipe: No such file or directory",
    ),
    "recipe of another format": (
        "--recipe newer.toml",
        (
            "newer.toml: format version 2.0 cannot be read; this release reads 1.x: "
            "use the release of Shardwire that wrote it"
        ),
    ),
    "learned weights that are missing": (
        "--recipe missing.toml",
        (
            "missing.safetensors: cannot read the weights that missing.toml names: No such file or directory; "
            "they belong beside it"
        ),
    ),
    "learned weights that are damaged": (
        "--recipe damaged.toml",
        "damaged.safetensors: has digest sha256:…, the recipe names sha256:…: take the file that came with it",
    ),
    "learned weights that are cut short": (
        "--recipe cut.toml",
        "cut.safetensors: has digest sha256:…, the recipe names sha256:…: take the file that came with it",
    ),
    "learned weights that are something else": (
        "--recipe other.toml",
        "other.safetensors: has digest sha256:…, the recipe names sha256:…: take the file that came with it",
    ),
    "torch-channels of an ONNX model": (
        "--recipe torch.toml",
        "prune: torch-channels need a PyTorch model, given as package.module:factory; use channels",
    ),
    "unknown node in exclude": (
        "--recipe exclude.toml --inputs inputs.npz",
        "quantize.exclude: the model has no node 'conv9'",
    ),
    "unknown node in exclude of a step": (
        "--recipe exclude-prune.toml",
        "prune: exclude: 'conv9' is no node of this model; names are those after optimisation",
    ),
    "unknown node in groups": (
        "--recipe groups.toml",
        "prune: 'conv9' is no group of tied channels of this model: decide the groups again",
    ),
    "ratio out of range": (
        "--recipe ratio.toml",
        "ratio.toml: prune[0].ratio: expected float from 0 below 1, got 1.5",
    ),
    "unknown kind": (
        "--recipe kind.toml",
        "kind.toml: prune[0].kind: expected one of channels, torch-channels, weights, blocks, got 'layers'",
    ),
    "two ways at once": (
        "--recipe weights.toml",
        "weights.toml: prune[0]: give one of threshold, ratio and pattern, got ratio, pattern",
    ),
    "unknown method": (
        "--recipe method.toml",
        "method.toml: recover[0].method: expected one of batch-norm, bias, distill, low-rank, reconstruct, got 'hope'",
    ),
    "ranges of another model": (
        "--recipe calibrated.toml",
        (
            "the ranges of the recipe were calibrated for model sha256:…, this one is sha256:…: "
            "take quantize.calibrated_for and quantize.ranges out of the recipe to calibrate again"
        ),
    ),
    "share of all channels": (
        "--budget cosine>=0.9 --prune 1",
        "--prune 1: give a share from 0 below 1",
    ),
    "unknown profile": (
        "--profile rpi99",
        f"unknown profile 'rpi99': choose one of {', '.join(profile_ids())}, or a path to a .toml file",
    ),
    "emulation of another processor": (
        "--profile x86-gateway --measure-on aarch64",
        "profile x86-gateway is x86_64, and only aarch64 can be emulated: leave out --measure-on",
    ),
    "taken target": (
        "--out there",
        "there is there already: remove it, choose another --out, or give --force",
    ),
    "target that is something else": (
        "--out nothing --force",
        "nothing is there already and is no compression: --force replaces compressions only",
    ),
    "target below a file": (
        "--out net.onnx/out",
        "net.onnx/out: cannot be written (net.onnx is a file)",
    ),
}


def _run(words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Finished:
    """Run `shardwire compress` in this process, because a new one would take longer than all that it does."""
    monkeypatch.setattr(sys, "argv", ["shardwire", "compress", *words.split()])
    monkeypatch.setattr(app, "registered_commands", [])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    return Finished(code=int(ended.value.code or 0), out=said.out, err=said.err)


@pytest.mark.parametrize("case", _CASES)
def test_what_cannot_be_compressed(
    case: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words, line = _CASES[case]
    monkeypatch.chdir(folder)
    before = state_of(folder)
    ran = _run(f"net.onnx {words}{'' if '--out' in words else ' --out out'}", capsys, monkeypatch)
    assert _DIGEST.sub("sha256:…", ran.complaint) == f"shardwire: {line}"
    assert "Traceback" not in ran.err
    assert (ran.code, ran.out) == (1, "")
    assert state_of(folder) == before


def test_a_missing_model(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    ran = _run("missing.onnx --budget cosine>=0.9", capsys, monkeypatch)
    assert (ran.code, ran.complaint) == (1, "shardwire: missing.onnx: no such file")
    assert not (folder / "compressions").exists()


def _without(package: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `shardwire compress` where a package is not installed."""
    program = (
        "import sys\n"
        f"sys.modules[{package!r}] = None\n"  # any import of it fails from here on, and looking for it finds nothing
        "from host.cli.main import main\n"
        "main()\n"
    )
    return subprocess.run(
        [sys.executable, "-c", program, "compress", "net.onnx", *arguments],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("package", "words", "line"),
    [
        (
            "torch",
            "--data data.npz --train-data labelled.npz --budget cosine>=0.9",
            "--train-data needs torch: pip install 'shardwire[torch]', or leave it out",
        ),
        ("tensorboardX", "--tensorboard runs", "--tensorboard needs tensorboardX: pip install 'shardwire[tracking]'"),
        ("wandb", "--wandb runs", "--wandb needs wandb: pip install 'shardwire[tracking]'"),
    ],
)
def test_a_missing_package_is_missed_before_the_work(package: str, words: str, line: str, folder: Path) -> None:
    before = state_of(folder)
    ran = _without(package, folder, *words.split(), "--out", "out")
    assert (ran.returncode, ran.stdout, ran.stderr) == (1, "", f"shardwire: {line}\n")
    assert state_of(folder) == before


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_without_what_draws_there_is_no_page(package: str, folder: Path, tmp_path: Path) -> None:
    ran = _without(package, folder, "--inputs", "inputs.npz", "--out", str(tmp_path / "out"))
    assert ran.returncode == 0, ran.stderr
    found = {path.name for path in (tmp_path / "out").iterdir()}
    assert found == {"model.onnx", "recipe.toml", "recipe.safetensors", "report.json"}
