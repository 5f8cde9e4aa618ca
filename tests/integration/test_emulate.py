"""A model on an emulated Raspberry Pi: the same answers as here, and every end of the process in one line.

The system is made once, of Debian's packages and wheels from PyPI, in the folder of the virtual environment.
"""

from __future__ import annotations

import dataclasses
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from host.compare import compare
from host.compress.emulate.emulator import EmulatedRunner, Emulator
from host.compress.emulate.root import Cpu
from host.compress.quantize import quantize
from host.compress.recipe import Quantize, Variant
from host.errors import RuntimeRefusedError
from host.model import Model, from_bytes, to_bytes
from host.passes.fuse import fuse
from host.passes.normalise import normalise
from host.reference import Mode, Reference
from tests.graphs import conv_net, model_of, photos

pytestmark = pytest.mark.slow

_CACHE = Path(__file__).resolve().parents[2] / ".venv" / "aarch64"
# DESIGN §4: the same model on two processors.
_ACROSS_PROCESSORS = 1e-4


@pytest.fixture(scope="module")
def emulator() -> Emulator:
    """The emulated system, made here if `make test` has not made it before."""
    found = Emulator(cache=_CACHE)
    found.prepare_root(print)
    return found


@pytest.fixture(scope="module")
def model() -> Model:
    return normalise(model_of(conv_net(side=16)))


def int8(model: Model, variant: Variant) -> Model:
    samples = photos(4, side=16)
    quantized = quantize(model, Quantize(variant=variant), samples).model
    return fuse(quantized, samples)[0]


def child_of(runner: EmulatedRunner) -> subprocess.Popen[bytes]:
    assert runner._child is not None
    return runner._child


def test_it_is_made_once(emulator: Emulator) -> None:
    said: list[str] = []
    assert emulator.prepare_root(said.append) == emulator.find_root()
    assert said == []
    assert [path.name for path in _CACHE.iterdir() if path.name.endswith(".part")] == []


@pytest.mark.parametrize(
    ("cpu", "mode"),
    [
        ("cortex-a72", "exact"),
        ("cortex-a53", "default"),
        ("cortex-a72", "default"),
        ("cortex-a76", "default"),
        ("max", "default"),
    ],
)
def test_answers_in_fp32_are_close_to_those_here(emulator: Emulator, model: Model, cpu: Cpu, mode: Mode) -> None:
    samples = photos(3, side=16)
    with dataclasses.replace(emulator, cpu=cpu).runner(model, mode=mode) as runner:
        assert (runner.inputs, runner.outputs) == (("x",), ("y",))
        found = [runner.run(sample) for sample in samples]
    for answer, expected in zip(found, Reference(model, mode=mode).run_all(samples), strict=True):
        assert compare(answer, expected, tolerance=_ACROSS_PROCESSORS) is None


def test_convolutions_in_int8_of_a_reduced_range_have_the_same_bits_as_here(emulator: Emulator) -> None:
    small = int8(normalise(model_of(convolutions())), "u8s8-reduce-range")
    samples = photos(8, seed=7, side=16)
    with emulator.runner(small) as runner:
        found = [runner.run(sample)["c2"] for sample in samples]
    expected = [answer["c2"] for answer in Reference(small, mode="default").run_all(samples)]
    np.testing.assert_array_equal(np.stack(found), np.stack(expected))


def test_additions_in_int8_are_close_to_those_here(emulator: Emulator, model: Model) -> None:
    # Their kernels may round the last of the 8 bits to the other side, here and there.
    small = int8(model, "u8s8-reduce-range")
    samples = photos(8, seed=7, side=16)
    with emulator.runner(small) as runner:
        found = [runner.run(sample) for sample in samples]
    for answer, expected in zip(found, Reference(small, mode="default").run_all(samples), strict=True):
        assert compare(answer, expected, tolerance=0.03) is None


def convolutions() -> onnx.ModelProto:
    """The two convolutions of `conv_net`, without its addition."""
    proto = conv_net(side=16)
    del proto.graph.node[3:]
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("c2", onnx.TensorProto.FLOAT, [1, 8, 16, 16]))
    return proto


def test_a_process_that_is_killed_is_one_line(emulator: Emulator, model: Model) -> None:
    with emulator.runner(model) as runner:
        child_of(runner).kill()
        with pytest.raises(RuntimeRefusedError) as caught:
            runner.run(photos(1, side=16)[0])
    assert str(caught.value) == "the emulated cortex-a72 stopped: Killed"


def test_a_crash_of_the_process_is_one_line(emulator: Emulator, model: Model) -> None:
    with emulator.runner(model) as runner:
        os.kill(child_of(runner).pid, signal.SIGILL)
        with pytest.raises(RuntimeRefusedError) as caught:
            runner.run(photos(1, side=16)[0])
    assert str(caught.value) == "the emulated cortex-a72 stopped: Illegal instruction"


def test_an_answer_that_does_not_come_is_one_line(emulator: Emulator, model: Model) -> None:
    with (
        pytest.raises(RuntimeRefusedError) as caught,
        emulator.runner(model, answer_seconds=0.01),
    ):
        pass
    assert str(caught.value) == "the emulated cortex-a72 stopped: no answer after 0.01 seconds"


def test_a_refused_input_is_one_line_and_the_next_is_answered(emulator: Emulator, model: Model) -> None:
    (sample,) = photos(1, side=16)
    with emulator.runner(model) as runner:
        with pytest.raises(RuntimeRefusedError) as caught:
            runner.run({"x": sample["x"][:, :2]})
        assert list(runner.run(sample)) == ["y"]
        with pytest.raises(RuntimeRefusedError, match="cannot be given the inputs: tensor 'x' has dtype object"):
            runner.run({"x": np.array([None])})
        assert list(runner.run(sample)) == ["y"]
    text = str(caught.value)
    assert text.startswith("onnxruntime on the emulated cortex-a72 could not run the model: ")
    assert "\n" not in text


def test_a_refused_model_is_one_line(emulator: Emulator) -> None:
    sound = model_of("main (float[1,3] x) => (float[1,3] y) { y = Relu (x) }")
    unknown = sound.with_ir(from_bytes(_renamed(sound)))
    with pytest.raises(RuntimeRefusedError) as caught, emulator.runner(unknown):
        pass
    text = str(caught.value)
    assert text.startswith("onnxruntime on the emulated cortex-a72 refuses the model: ")
    assert "\n" not in text


def _renamed(model: Model) -> bytes:
    """The model with an operator that nobody has."""
    return to_bytes(model.ir).replace(b"Relu", b"Rolu")


def test_a_runner_works_in_its_with_block_only(emulator: Emulator, model: Model) -> None:
    runner = emulator.runner(model)
    with runner:
        child = child_of(runner)
    assert child.poll() is not None
    with pytest.raises(RuntimeRefusedError) as caught:
        runner.run(photos(1, side=16)[0])
    assert str(caught.value) == "the emulated cortex-a72 is not running: use it in a with block"


def test_the_process_dies_with_this_one(emulator: Emulator) -> None:
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from host.compress.emulate.emulator import Emulator\n"
        "from tests.graphs import conv_net, model_of\n"
        "with Emulator(cache=Path(sys.argv[1])).runner(model_of(conv_net())) as runner:\n"
        "    os.write(1, b'%d' % runner._child.pid)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(_CACHE)], cwd=_CACHE.parents[1], capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert _ends(int(done.stdout))


def _ends(pid: int) -> bool:
    """Whether a process that is no child of this one ends soon."""
    try:
        watch = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([watch], [], [], 10.0)[0])
    finally:
        os.close(watch)
