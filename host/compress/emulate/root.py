"""A small arm64 system in the user's cache folder: what an emulated Raspberry Pi needs to run onnxruntime.

::

    aarch64-DIGEST/
        qemu-aarch64-static     the emulator: a copy of the machine's own, or Debian's, for this processor
        tree/                   python3.11 and its libraries from Debian's arm64 packages, and in its dist-packages the
                                aarch64 wheels of numpy and onnxruntime, in the versions installed here
        cpus/NAME/              links into the tree, and what /proc and /sys say on a board with that processor:
                                onnxruntime crashes at import where they describe an x86

It is made without root rights and without changing the system: apt works on package lists of its own. A folder with
that name is complete: it is made beside its place and moved there by one rename.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from host.errors import UserError

Cpu = Literal["cortex-a53", "cortex-a72", "cortex-a76", "max"]
Say = Callable[[str], None]

QEMU = "qemu-aarch64-static"
PYTHON = Path("usr/bin/python3.11")

# Changed with anything below that makes another folder of the same versions.
_LAYOUT = "1"
_WHEELS = ("numpy", "onnxruntime")
# What the interpreter, numpy and onnxruntime load; the rest of their dependencies is for an installed system.
_PACKAGES = (
    "libc6",
    "libexpat1",
    "libffi8",
    "libgcc-s1",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "libstdc++6",
    "python3.11-minimal",
    "zlib1g",
)
_PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
_DIST_PACKAGES = Path("usr/lib/python3/dist-packages")
_SITE_PACKAGES_LIMIT_BYTES = 1 << 30

# The unpacked packages of every architecture's emulator are large for a moment.
_FREE_BYTES = 1 << 30
_STEP_SECONDS = 900.0

# The Debian whose packages these are; elsewhere its sources are named here, if the keys to check them are there.
_SUITE = "bookworm"
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_SOURCES = f"""\
deb [signed-by={_KEYRING}] http://deb.debian.org/debian {_SUITE} main
deb [signed-by={_KEYRING}] http://deb.debian.org/debian-security {_SUITE}-security main
"""
# Indexes that an apt may be told to fetch, and that nothing here reads.
_SURPLUS = ("Contents-deb", "DEP-11", "Translations")

_CORES = 4
_CPUINFO = """\
processor\t: {core}
BogoMIPS\t: 108.00
Features\t: {features}
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: {part}
CPU revision\t: 3

"""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Processor:
    """What the kernel of a board says about its processor.

    Attributes:
        qemu: The name that the emulator knows it by.
        part: Arm's part number.
        features: Names of /proc/cpuinfo.
    """

    qemu: str
    part: str
    features: str


_ARMV8_0 = "fp asimd evtstrm crc32 cpuid"
_ARMV8_2 = f"{_ARMV8_0} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"
# Part numbers: MIDR_EL1 in the Technical Reference Manuals of Arm (Cortex-A53, A72, A76, A710).
_PROCESSORS: Mapping[Cpu, _Processor] = {
    "cortex-a53": _Processor(qemu="cortex-a53", part="0xd03", features=_ARMV8_0),
    "cortex-a72": _Processor(qemu="cortex-a72", part="0xd08", features=_ARMV8_0),
    "cortex-a76": _Processor(qemu="cortex-a76", part="0xd0b", features=_ARMV8_2),
    # Everything that the emulator has but the scalable vectors, which no phone hands out.
    "max": _Processor(qemu="max,sve=off,sme=off", part="0xd47", features=f"{_ARMV8_2} i8mm bf16"),
}


class EmulationError(UserError):
    """There is no emulated system here, and it cannot be made or does not start."""


def find_root(cache: Path) -> Path | None:
    """The folder that `prepare_root` made in a cache folder, or None if it has not.

    Raises:
        EmulationError: If numpy or onnxruntime is not installed here, so that no version is known.
    """
    # Absolute: apt and the emulated process work in folders of their own.
    root = cache.absolute() / _folder_name()
    return root if root.is_dir() else None


def prepare_root(cache: Path, say: Say) -> Path:
    """Make the system, once; afterwards it is found.

    Needs Debian's apt-get and dpkg-deb, pip, a network, and 1 GB for a moment (180 MB in the end).

    Args:
        cache: Folder in which it is made; created if it is missing.
        say: Told what is being done, a line a step.

    Returns:
        The folder.

    Raises:
        EmulationError: If this machine lacks what is needed, or something cannot be fetched.
    """
    if (found := find_root(cache)) is not None:
        return found
    for program in ("apt-get", "dpkg", "dpkg-deb"):
        if shutil.which(program) is None:
            raise EmulationError(
                f"the emulated aarch64 is made of Debian's packages, and this machine has no {program}: "
                "measure on Debian or a container of it, or without --measure-on"
            )
    cache = cache.absolute()
    root = cache / _folder_name()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(cache).free < _FREE_BYTES:
            raise EmulationError(
                f"{cache} has less than {_FREE_BYTES >> 20} MiB free, which the emulated aarch64 needs"
            )
        with tempfile.TemporaryDirectory(prefix="aarch64-", suffix=".part", dir=cache) as work:
            made = _made(Path(work), say)
            try:
                made.rename(root)
            except OSError:
                # Another process may have been faster; its folder is as good.
                if not root.is_dir():
                    raise
    except OSError as error:
        raise EmulationError(f"{cache}: cannot make the emulated aarch64 there: {error.strerror}") from error
    say(f"Ready: {root}")
    return root


def emulated_command(root: Path, cpu: Cpu) -> tuple[str, ...]:
    """The command that starts the emulated Python; its arguments follow.

    Args:
        root: A folder from `prepare_root`.
        cpu: The processor to be.
    """
    system = root.absolute() / "cpus" / cpu
    # The variables name libraries of this machine, not of the emulated one.
    apart = ("-U", "LD_PRELOAD", "-U", "LD_LIBRARY_PATH")
    python = (str(system / PYTHON), "-I", "-B")
    return (str(root.absolute() / QEMU), "-L", str(system), "-cpu", _PROCESSORS[cpu].qemu, *apart, *python)


def _versions() -> dict[str, str]:
    try:
        return {name: metadata.version(name) for name in _WHEELS}
    except metadata.PackageNotFoundError as error:
        raise EmulationError(f"{error.name} is not installed, so its version for aarch64 is not known") from error


def _folder_name() -> str:
    versions = [f"{name} {version}" for name, version in _versions().items()]
    text = "\n".join((_LAYOUT, str(PYTHON), *_PACKAGES, *versions))
    return f"aarch64-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _made(work: Path, say: Say) -> Path:
    root = work / "root"
    tree = root / "tree"
    tree.mkdir(parents=True)
    present = shutil.which(QEMU)
    _fetch_packages(work, say, with_qemu=present is None)
    say("Unpacking")
    for package in sorted((work / "packages").glob("*.deb")):
        emulator = package.name.startswith("qemu-")
        _run(["dpkg-deb", "-x", str(package), str(work / "qemu" if emulator else tree)], "unpack a package")
        package.unlink()
    shutil.copy(present or work / "qemu" / "usr" / "bin" / QEMU, root / QEMU)
    _fetch_wheels(work, tree / _DIST_PACKAGES, say)
    for cpu in _PROCESSORS:
        _describe(root, cpu)
    say("Starting it once")
    # Without -B: what it compiles of Python is kept, and later starts are faster.
    command = [argument for argument in emulated_command(root, "cortex-a72") if argument != "-B"]
    _run([*command, "-c", "import numpy, onnxruntime"], "start the emulated aarch64")
    return root


def _fetch_packages(work: Path, say: Say, *, with_qemu: bool) -> None:
    machine = _run(["dpkg", "--print-architecture"], "ask dpkg for the architecture").strip()
    for folder in ("state/lists/partial", "cache/archives/partial", "packages"):
        (work / folder).mkdir(parents=True)
    # Nothing counts as installed, and of the system's apt only the sources and keys are used.
    (work / "status").touch()
    options = {
        "APT::Architecture": "arm64",
        "Dir::State": str(work / "state"),
        "Dir::State::status": str(work / "status"),
        "Dir::Cache": str(work / "cache"),
        "Debug::NoLocking": "1",
        "APT::Sandbox::User": "",
        "APT::Update::Post-Invoke": "",
        "APT::Update::Post-Invoke-Success": "",
        "Acquire::Languages": "none",
        "Acquire::Retries": "2",
        "Acquire::http::Timeout": "30",
        "Acquire::https::Timeout": "30",
        **{f"Acquire::IndexTargets::deb::{name}::DefaultEnabled": "false" for name in _SURPLUS},
        "Acquire::IndexTargets::deb-src::Sources::DefaultEnabled": "false",
        **_sources(work),
    }
    architectures = ("arm64", machine) if with_qemu else ("arm64",)
    apt = ["apt-get", "-q", "-o", "APT::Architectures="]
    for name, value in [*options.items(), *(("APT::Architectures::", name) for name in architectures)]:
        apt += ["-o", f"{name}={value}"]
    say("Fetching the package lists")
    # A source that fails need not be one that is needed, so it counts only if a package is missing afterwards.
    listed = _run([*apt, "update"], "fetch Debian's package lists")
    names = [f"{name}:arm64" for name in _PACKAGES]
    say("Fetching Debian's python3.11 for arm64" + (" and qemu (70 MB)" if with_qemu else " (8 MB)"))
    if with_qemu:
        names.append(f"qemu-user-static:{machine}")
    with _blaming(listed):
        _run([*apt, "download", *names], "fetch Debian's arm64 packages", folder=work / "packages")


def _sources(work: Path) -> dict[str, str]:
    with contextlib.suppress(OSError):
        if f"VERSION_CODENAME={_SUITE}" in Path("/etc/os-release").read_text(encoding="utf-8").splitlines():
            return {}
    if not _KEYRING.is_file():
        raise EmulationError(
            f"the emulated aarch64 is made of packages of Debian {_SUITE}, and {_KEYRING} is missing to check them: "
            "install debian-archive-keyring, or measure without --measure-on"
        )
    (work / "sources.list").write_text(_SOURCES, encoding="utf-8")
    return {"Dir::Etc::sourcelist": str(work / "sources.list"), "Dir::Etc::sourceparts": "-"}


@contextlib.contextmanager
def _blaming(listed: str) -> Iterator[None]:
    """A package that is not found is the fault of a list that could not be fetched, if one could not."""
    try:
        yield
    except EmulationError as error:
        cause = next((line for line in listed.splitlines() if line.startswith(("W: Failed to fetch", "E: "))), None)
        if cause is None:
            raise
        raise EmulationError(f"cannot fetch Debian's package lists: {cause[3:]}: is there a network?") from error


def _fetch_wheels(work: Path, target: Path, say: Say) -> None:
    versions = _versions()
    say("Fetching " + " and ".join(f"{name} {version}" for name, version in versions.items()) + " for aarch64")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--quiet"]
    pip += ["--no-deps", "--only-binary=:all:", "--implementation=cp", "--python-version=3.11"]
    for platform in _PLATFORMS:
        pip += ["--platform", platform]
    wanted = [f"{name}=={version}" for name, version in versions.items()]
    what = "fetch the wheels for aarch64 with pip (it needs a network, and an index that has them)"
    _run([*pip, "--dest", str(work / "wheels"), *wanted], what)
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted((work / "wheels").glob("*.whl")):
        with zipfile.ZipFile(path) as wheel:
            if sum(entry.file_size for entry in wheel.infolist()) > _SITE_PACKAGES_LIMIT_BYTES:
                raise EmulationError(f"{path.name} unpacks to more than {_SITE_PACKAGES_LIMIT_BYTES} bytes: not taken")
            wheel.extractall(target)


def _describe(root: Path, cpu: Cpu) -> None:
    system = root / "cpus" / cpu
    system.mkdir(parents=True)
    for entry in sorted((root / "tree").iterdir()):
        (system / entry.name).symlink_to(Path("..") / ".." / "tree" / entry.name)
    processor = _PROCESSORS[cpu]
    (system / "proc").mkdir()
    cores = [_CPUINFO.format(core=core, features=processor.features, part=processor.part) for core in range(_CORES)]
    (system / "proc" / "cpuinfo").write_text("".join(cores), encoding="ascii")
    folder = system / "sys" / "devices" / "system" / "cpu"
    folder.mkdir(parents=True)
    for name in ("online", "possible", "present"):
        (folder / name).write_text(f"0-{_CORES - 1}\n", encoding="ascii")


def _run(command: Sequence[str], what: str, *, folder: Path | None = None) -> str:
    """Run a tool to its end and give back what it printed; a failure is one line with its last complaint."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "LC_ALL": "C.UTF-8", "ORT_DISABLE_TELEMETRY": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_STEP_SECONDS,
            check=False,
        )
    except OSError as error:
        raise EmulationError(f"cannot {what}: {command[0]}: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise EmulationError(f"cannot {what}: not done after {_STEP_SECONDS:.0f} seconds") from error
    if done.returncode != 0:
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        complaints = [line for line in lines if line.startswith(("E: ", "ERROR: ", "dpkg-deb: "))] or lines[-1:]
        reason = complaints[0] if complaints else f"it ended with status {done.returncode}"
        raise EmulationError(f"cannot {what}: {reason}")
    return done.stdout
