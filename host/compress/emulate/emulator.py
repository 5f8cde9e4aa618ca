"""A model's answers on another processor: onnxruntime for aarch64, under qemu on this machine.

Right for answers, wrong for time: an emulated processor rounds as the real one does and takes the same kernels, but how
long it takes says nothing of a board. So nothing here reports a time.

Seen with EfficientNet-Lite0, each operator given the same inputs on both: the fused 8-bit convolutions and the fully
connected layer have the bits of an x86 with VNNI; an 8-bit addition differs by one step in 0.07 % of its elements, and
sums in fp32 in their last bits. Through the network that becomes up to 2.5 % of the largest logit.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from edge.formats.profile import DeviceProfile
from edge.formats.tensor import Array
from host.compress.emulate import program as emulated_runner
from host.compress.emulate.root import Cpu, EmulationError, Say, emulated_command, find_root, prepare_root
from host.errors import RuntimeRefusedError
from host.model import Model, Tensors, to_bytes
from host.processes import start_child, stop_child
from host.reference import Mode

_ANSWER_SECONDS = 900.0
_END_SECONDS = 5.0

# Same instruction set as a Cortex-A72, but onnxruntime knows it for its narrow loads and takes other kernels.
_NARROW = ("rpi3", "rpi-zero2w")


@dataclass(frozen=True, kw_only=True, slots=True)
class Emulator:
    """An emulated aarch64 system on this machine.

    Attributes:
        cpu: The processor to be, a name of qemu.
        cache: Where the system is kept; None stands for the user's cache folder.
    """

    cpu: Cpu = "cortex-a72"
    cache: Path | None = None

    @classmethod
    def for_profile(cls, profile: DeviceProfile, *, cache: Path | None = None) -> Emulator:
        """The emulator of the processor that a device profile describes.

        Raises:
            EmulationError: If the device is no aarch64.
        """
        if profile.arch != "aarch64":
            raise EmulationError(
                f"profile {profile.id} is {profile.arch}, and only aarch64 can be emulated: leave out --measure-on"
            )
        if "i8mm" in profile.isa or "bf16" in profile.isa:
            return cls(cpu="max", cache=cache)
        if "dotprod" in profile.isa or "fp16" in profile.isa:
            return cls(cpu="cortex-a76", cache=cache)
        return cls(cpu="cortex-a53" if profile.id in _NARROW else "cortex-a72", cache=cache)

    @property
    def folder(self) -> Path:
        """The cache folder that the system is kept in."""
        return self.cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shardwire"

    def find_root(self) -> Path | None:
        """The system, if `prepare_root` made it before for the versions of numpy and onnxruntime installed here."""
        return find_root(self.folder)

    def prepare_root(self, say: Say) -> Path:
        """Make the system, once: fetches about 120 MB, keeps 180 MB.

        Args:
            say: Told what is being done, a line a step.

        Raises:
            EmulationError: If this machine lacks what is needed, or something cannot be fetched.
        """
        return prepare_root(self.folder, say)

    def runner(
        self, model: Model, *, mode: Mode = "default", answer_seconds: float = _ANSWER_SECONDS
    ) -> EmulatedRunner:
        """A model loaded on the emulated processor, to be used as a context manager.

        Args:
            model: What to run.
            mode: As for `host.reference.Reference`: ``"default"`` is what a device does.
            answer_seconds: Longest wait for one answer; the child is ended after it.

        Raises:
            EmulationError: If the system is not there: `prepare_root` makes it.
        """
        root = self.find_root()
        if root is None:
            raise EmulationError(
                f"there is no emulated aarch64 with the installed numpy and onnxruntime in {self.folder}: "
                "make it with Emulator.prepare_root"
            )
        return EmulatedRunner(model, root=root, cpu=self.cpu, mode=mode, answer_seconds=answer_seconds)


class EmulatedRunner:
    """One model in one long-lived emulated process, which dies with this one. Gives answers only, never timings.

    Enter, run and leave it in one thread: the process dies with the thread that started it.

    Attributes:
        inputs: The model's input names, once it is entered.
        outputs: The model's output names, once it is entered.
    """

    def __init__(
        self, model: Model, *, root: Path, cpu: Cpu, mode: Mode = "default", answer_seconds: float = _ANSWER_SECONDS
    ) -> None:
        self.inputs: tuple[str, ...] = ()
        self.outputs: tuple[str, ...] = ()
        self._model = model
        self._root = root
        self._cpu: Cpu = cpu
        self._mode = mode
        self._answer_seconds = answer_seconds
        self._cleanup = contextlib.ExitStack()
        self._child: subprocess.Popen[bytes] | None = None
        self._log: Path = root

    def __enter__(self) -> Self:
        """Start the process and load the model.

        Raises:
            RuntimeRefusedError: If onnxruntime refuses the model there, or the process ends.
        """
        with contextlib.ExitStack() as stack:
            # The child works in this folder, where the dump of a crash is tidied up too.
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shardwire-")))
            path = folder / "model.onnx"
            path.write_bytes(to_bytes(self._model.ir))
            self._log = folder / "log"
            program = (str(Path(emulated_runner.__file__).resolve()), str(path), self._mode)
            child = start_child(
                [*emulated_command(self._root, self._cpu), *program],
                log=self._log,
                env={**os.environ, "LC_ALL": "C.UTF-8", "ORT_DISABLE_TELEMETRY": "1"},
                folder=folder,
                piped=True,
            )
            stack.callback(_end, child)
            self._child = child
            with self._conversation() as (_, answers):
                self.inputs, self.outputs = self._names(answers)
            self._cleanup = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the process."""
        self._child = None
        self._cleanup.close()

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """Run once.

        Args:
            inputs: Array by input name.

        Returns:
            Array by output name.

        Raises:
            RuntimeRefusedError: If onnxruntime refuses the inputs or fails, or the process ends.
        """
        with self._conversation() as (requests, answers):
            try:
                emulated_runner.write_tensors(requests, inputs)
            except emulated_runner.ProtocolError as error:
                raise RuntimeRefusedError(f"the emulated {self._cpu} cannot be given the inputs: {error}") from error
            kind = answers.read(1)
            if kind == emulated_runner.FAULT:
                text = emulated_runner.read_fault(answers)
                raise RuntimeRefusedError(f"onnxruntime on the emulated {self._cpu} could not run the model: {text}")
            if kind != emulated_runner.TENSORS:
                raise emulated_runner.ProtocolError(f"an answer of kind {kind!r}")
            return emulated_runner.read_tensors(answers)

    def _names(self, answers: BinaryIO) -> tuple[tuple[str, ...], tuple[str, ...]]:
        kind = answers.read(1)
        if kind == emulated_runner.FAULT:
            text = emulated_runner.read_fault(answers)
            raise RuntimeRefusedError(f"onnxruntime on the emulated {self._cpu} refuses the model: {text}")
        if kind != emulated_runner.NAMES:
            raise emulated_runner.ProtocolError(f"a greeting of kind {kind!r}")
        return emulated_runner.read_names(answers)

    @contextlib.contextmanager
    def _conversation(self) -> Iterator[tuple[BinaryIO, BinaryIO]]:
        """The pipes to and from the child; whatever ends it meanwhile becomes one line."""
        child = self._child
        if child is None or child.stdin is None or child.stdout is None:
            raise RuntimeRefusedError(f"the emulated {self._cpu} is not running: use it in a with block")
        overdue = threading.Event()

        def end() -> None:
            overdue.set()
            child.kill()

        timer = threading.Timer(self._answer_seconds, end)
        timer.daemon = True
        timer.start()
        try:
            yield child.stdin, child.stdout  # type: ignore[misc]  # Popen[bytes] declares IO[bytes] for its pipes
        except (emulated_runner.ProtocolError, OSError) as error:
            said = f"no answer after {self._answer_seconds:g} seconds" if overdue.is_set() else self._last_words(child)
            raise RuntimeRefusedError(f"the emulated {self._cpu} stopped: {said or error}") from error
        except KeyboardInterrupt:
            # Its answer would be taken for that to the next request.
            stop_child(child)
            raise
        finally:
            timer.cancel()

    def _last_words(self, child: subprocess.Popen[bytes]) -> str:
        """Why the child ended: the signal, else the last line of its log; nothing if it has not."""
        try:
            # Its pipes close a moment before it is gone.
            status = child.wait(timeout=_END_SECONDS)
        except subprocess.TimeoutExpired:
            stop_child(child)
            return ""
        if status < 0:
            return signal.strsignal(-status) or f"signal {-status}"
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")


def _end(child: subprocess.Popen[bytes]) -> None:
    stop_child(child)
    for pipe in (child.stdin, child.stdout):
        # What the child did not read any more is of no use to anybody.
        with contextlib.suppress(OSError):
            if pipe is not None:
                pipe.close()
