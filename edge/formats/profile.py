"""Device profiles: what one kind of device has and can do.

A profile is a TOML file. It is parsed once, here; every fault of a file is reported in one line, each with
the path of the key, the value met and what is allowed.
"""

import tomllib
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from edge.errors import ProfileError, UnsupportedVersion
from edge.formats import faults
from edge.formats.version import check_version

FORMAT = "1.2"
"""Version of the profile format that this release reads and writes; 1.0 had no `power`, 1.1 no `tflite-runtime`."""

MAX_PROFILE_BYTES = 64 * 1024
SHARD_FRACTION = 8
"""A shard takes at most one part in so many of the usable memory, unless the profile says otherwise."""

ISA_BY_ARCH: Mapping[str, tuple[str, ...]] = {
    "aarch64": ("neon", "fp16", "dotprod", "i8mm", "bf16", "sve"),
    "armv7l": ("neon",),
    "x86_64": ("avx2", "avx512", "vnni", "amx"),
}
"""Instruction set extensions that the quantizer and the planner know, by architecture."""

_SOURCES_BESIDE_NUMBERS = ("isa", "system.min_glibc", "system.min_python")
_BY_MODEL = (
    ("Raspberry Pi Zero 2", "rpi-zero2w"),
    ("Raspberry Pi 3", "rpi3"),
    ("Raspberry Pi Compute Module 3", "rpi3"),
    ("Raspberry Pi 4", "rpi4"),
    ("Raspberry Pi Compute Module 4", "rpi4"),
    ("Raspberry Pi 5", "rpi5"),
    ("Raspberry Pi Compute Module 5", "rpi5"),
    ("Orin Nano", "jetson-orin-nano"),
    ("Jetson Nano", "jetson-nano"),
)
"""Text of the device tree to profile; `Raspberry Pi 4` also covers the 400, `Raspberry Pi 5` the 500."""

_32_BIT = {"rpi3": "rpi3-32bit"}  # the profile of a board under a 32-bit system, by that under a 64-bit one

_Id = Annotated[str, msgspec.Meta(pattern="^[a-z0-9][a-z0-9-]{0,62}$")]
_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]
_Version = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,3}\.[0-9]{1,3}$")]
_Count = Annotated[int, msgspec.Meta(ge=1, le=1024)]
_Bytes = Annotated[int, msgspec.Meta(ge=1, le=1 << 50)]
_Rate = Annotated[float, msgspec.Meta(ge=1, le=1e18)]
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=60)]
_Watts = Annotated[float, msgspec.Meta(ge=0.001, le=100_000)]
_Dtype = Literal["float32", "int8", "float16"]


class Provider(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One execution provider of a runtime.

    Attributes:
        name: the name the runtime knows it by, such as `CPUExecutionProvider`.
        in_pip_wheel: whether the wheel that pip installs on this device carries it.
        note: where it comes from when the wheel does not carry it.
    """

    name: _Text
    in_pip_wheel: bool
    note: str = ""


class Runtime(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One runtime of the device.

    Attributes:
        name: which runtime.
        package: what pip installs, as a requirement.
        providers: execution providers, the preferred one first; what stands behind another is its fallback.
        note: what to know about it on this device.
    """

    name: Literal["onnxruntime", "litert", "tflite-runtime"]
    package: _Text
    providers: Annotated[tuple[Provider, ...], msgspec.Meta(min_length=1, max_length=8)]
    note: str = ""

    @property
    def installable_providers(self) -> tuple[str, ...]:
        """Names of the providers that the wheel from pip carries, in order of preference."""
        return tuple(provider.name for provider in self.providers if provider.in_pip_wheel)


class System(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The operating system that the figures hold for, and whether the agent runs on it as it comes.

    Attributes:
        os: the stock image.
        stock_python: Python of that image, `major.minor`; None when it has none.
        stock_glibc: C library of that image, `major.minor`; None when it is not glibc.
        min_python: least Python the agent runs on.
        min_glibc: least glibc the wheels of the runtime load on.
        remedy: what to do where the stock image falls short; empty elsewhere.
    """

    os: _Text
    stock_python: _Version | None = None
    stock_glibc: _Version | None = None
    min_python: _Version
    min_glibc: _Version
    remedy: str = ""

    @property
    def runs_on_stock_image(self) -> bool:
        """Whether the stock image has the Python and the glibc that the agent needs."""
        return _at_least(self.stock_python, self.min_python) and _at_least(self.stock_glibc, self.min_glibc)


class MacsPerSecond(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Multiply-accumulates a second that a real network reaches with `threads` threads, by dtype.

    Attributes:
        float32: rate in float32.
        int8: rate in int8.
        float16: rate in float16; None where the processor has no float16 arithmetic and float32 is used.
    """

    float32: _Rate
    int8: _Rate
    float16: _Rate | None = None

    def of(self, dtype: str) -> float:
        """Return the rate for a tensor dtype; what has no kernels of its own runs at the float32 rate."""
        rates = {"int8": self.int8, "uint8": self.int8, "float16": self.float16}
        return rates.get(dtype) or self.float32


class Link(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The link between the device and the broker.

    Attributes:
        medium: what it runs on; devices on one Wi-Fi cell share its capacity.
        up_bytes_per_second: device to broker.
        down_bytes_per_second: broker to device.
        latency_seconds: one way, for a small packet.
    """

    medium: Literal["ethernet", "wifi"]
    up_bytes_per_second: _Rate
    down_bytes_per_second: _Rate
    latency_seconds: _Seconds


class Power(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the whole device draws: switched on with nothing to do, and while all its cores run a network."""

    idle_watts: _Watts
    busy_watts: _Watts


class Source(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where one figure comes from.

    Attributes:
        figure: path of the key in the file, such as `link.latency_seconds`.
        text: a page, or the word `derived` or `chosen` and how.
    """

    figure: str
    text: _Text


class DeviceProfile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one kind of device has and can do.

    Attributes:
        format: version of the file format.
        id: name of the profile; the file is `<id>.toml`.
        name: the device that the figures were taken from.
        arch: architecture as `uname -m` says it.
        isa: instruction set extensions, names of `ISA_BY_ARCH`.
        system: operating system and what the agent needs of it.
        cores: cores that run the network (the big ones, where they differ).
        threads: threads the runtime is given.
        memory_bytes: memory fitted.
        usable_memory_bytes: memory that is left for the agent beside the system.
        flash_bytes: storage that is left for blobs beside the system.
        runtimes: runtimes in order of preference.
        preferred_dtypes: dtypes to compute in, the fastest that is safe first.
        macs_per_second: compute throughput by dtype.
        memory_bytes_per_second: bytes read plus bytes written a second; the same for every dtype.
        link: the link to the broker.
        sources: where each figure comes from.
        max_shard_bytes: largest shard; None stands for a fixed part of the usable memory.
        power: what it draws; None when that is not known.
    """

    format: str
    id: _Id
    name: _Text
    arch: Literal["aarch64", "armv7l", "x86_64"]
    isa: Annotated[tuple[str, ...], msgspec.Meta(max_length=16)]
    system: System
    cores: _Count
    threads: _Count
    memory_bytes: _Bytes
    usable_memory_bytes: _Bytes
    flash_bytes: _Bytes
    runtimes: Annotated[tuple[Runtime, ...], msgspec.Meta(min_length=1, max_length=4)]
    preferred_dtypes: Annotated[tuple[_Dtype, ...], msgspec.Meta(min_length=1, max_length=3)]
    macs_per_second: MacsPerSecond
    memory_bytes_per_second: _Rate
    link: Link
    sources: tuple[Source, ...]
    max_shard_bytes: _Bytes | None = None
    power: Power | None = None

    @property
    def shard_limit_bytes(self) -> int:
        """The size in bytes that no shard for this device exceeds."""
        return self.max_shard_bytes or self.usable_memory_bytes // SHARD_FRACTION


def parse_profile(text: str, *, file: str) -> DeviceProfile:
    """Parse the text of a profile.

    Args:
        text: TOML.
        file: name of the file, for messages.

    Raises:
        ProfileError: not TOML, another major format version, or any number of faults, all named in one line.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ProfileError(f"{file}: not TOML: {error}") from error
    newer_minor = _check_format(data.get("format"), file=file)
    try:
        data["sources"] = _sources(data.get("sources", {}))
        profile = faults.convert(data, DeviceProfile, drop_unknown=newer_minor)
        if contradictions := tuple(_contradictions(profile)):
            raise faults.Faults(contradictions)
    except faults.Faults as error:
        raise ProfileError(f"{file}: {error}") from error
    return profile


def load_profile(id_or_path: str) -> DeviceProfile:
    """Load a profile by its id or from a file.

    Args:
        id_or_path: one of `profile_ids()`, or a path that ends in `.toml`.

    Raises:
        ProfileError: unknown id, unreadable file, or a file with faults.
    """
    if id_or_path.endswith(".toml"):
        return parse_profile(_read(Path(id_or_path)), file=Path(id_or_path).name)
    known = profile_ids()
    if id_or_path not in known:
        raise ProfileError(
            f"unknown profile {id_or_path!r}: choose one of {', '.join(known)}, or a path to a .toml file"
        )
    name = f"{id_or_path}.toml"
    return parse_profile(resources.files("firmware_profiles").joinpath(name).read_text(encoding="utf-8"), file=name)


def profile_ids() -> tuple[str, ...]:
    """Return the ids of the profiles that come with Shardwire, sorted."""
    names = (entry.name for entry in resources.files("firmware_profiles").iterdir())
    return tuple(sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml")))


def guess_profile(device_tree_model: str | None, machine: str) -> str:
    """Guess the profile of the device that this runs on, by its id.

    Args:
        device_tree_model: text of `/proc/device-tree/model`; None when there is no such file.
        machine: architecture as `platform.machine()` says it.

    Raises:
        ProfileError: nothing fits; the text says to pass `--profile`.
    """
    model = (device_tree_model or "").replace("\x00", "").strip()
    found = next((profile for text, profile in _BY_MODEL if text in model), None)
    if found is not None and machine in {"aarch64", "arm64"}:
        return found
    if found in _32_BIT and machine == "armv7l":
        return _32_BIT[found]
    if found is not None:
        raise ProfileError(
            f"{model!r} runs a 32-bit system ({machine}), and profile {found} is for a 64-bit one: "
            "install the 64-bit image, or pass --profile"
        )
    if machine in {"x86_64", "AMD64"}:
        return "x86-gateway"
    seen = f"device tree model {model!r}" if model else "no device tree model"
    raise ProfileError(
        f"cannot guess the device profile ({seen}, machine {machine!r}): "
        f"pass --profile with one of {', '.join(profile_ids())}, or a path to a .toml file"
    )


def _read(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_PROFILE_BYTES + 1)
        if len(content) > MAX_PROFILE_BYTES:
            raise ProfileError(f"{path}: more than {MAX_PROFILE_BYTES} bytes; this is no profile")
        return content.decode("utf-8")
    except OSError as error:
        raise ProfileError(f"{path}: cannot read the profile: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ProfileError(f"{path}: not UTF-8 text; this is no profile") from error


def _check_format(found: object, *, file: str) -> bool:
    """Refuse another major version; tell whether the file has a newer minor one."""
    if not isinstance(found, str):
        raise ProfileError(f"{file}: format: expected a version such as '{FORMAT}', got {found!r}")
    try:
        check_version(found, supported=FORMAT, what=file)
    except UnsupportedVersion as error:
        raise ProfileError(str(error)) from error
    return int(found.partition(".")[2]) > int(FORMAT.partition(".")[2])


def _sources(table: object) -> list[dict[str, object]]:
    """Turn the table of sources into rows, and refuse here what would lose its key in them."""
    if not isinstance(table, dict):
        raise faults.Faults((f"sources: expected table, got {table!r}",))
    if wrong := tuple(
        f"sources.{figure}: expected str, got {text!r}" for figure, text in table.items() if not isinstance(text, str)
    ):
        raise faults.Faults(wrong)
    return [{"figure": figure, "text": text} for figure, text in table.items()]


def _at_least(found: str | None, least: str) -> bool:
    return found is not None and [int(part) for part in found.split(".")] >= [int(part) for part in least.split(".")]


def _contradictions(profile: DeviceProfile) -> Iterator[str]:
    """Yield what is wrong between fields that are each well-formed."""
    allowed = ISA_BY_ARCH[profile.arch]
    for index, name in enumerate(profile.isa):
        if name not in allowed:
            yield f"isa[{index}]: expected one of {', '.join(allowed)} on {profile.arch}, got {name!r}"
    if profile.threads > 2 * profile.cores:
        yield f"threads: expected at most twice the {profile.cores} cores, got {profile.threads}"
    if profile.usable_memory_bytes > profile.memory_bytes:
        yield f"usable_memory_bytes: expected at most memory_bytes, got {profile.usable_memory_bytes}"
    if profile.shard_limit_bytes > profile.usable_memory_bytes:
        yield f"max_shard_bytes: expected at most usable_memory_bytes, got {profile.max_shard_bytes}"
    if profile.shard_limit_bytes == 0:
        yield f"usable_memory_bytes: expected at least {SHARD_FRACTION}, got {profile.usable_memory_bytes}"
    if "float16" in profile.preferred_dtypes and profile.macs_per_second.float16 is None:
        yield "preferred_dtypes: 'float16' needs macs_per_second.float16"
    if profile.power is not None and profile.power.busy_watts < profile.power.idle_watts:
        yield f"power.busy_watts: expected at least power.idle_watts, got {profile.power.busy_watts:g}"
    yield from _runtime_contradictions(profile)
    system = profile.system
    needs = f"Python {system.min_python} and glibc {system.min_glibc}"
    if system.runs_on_stock_image and system.remedy:
        yield f"system.remedy: expected none, as the stock image has {needs}"
    if not system.runs_on_stock_image and not system.remedy:
        yield f"system.remedy: missing; the stock image lacks {needs}: say what to do"
    yield from _source_contradictions(profile)


def _runtime_contradictions(profile: DeviceProfile) -> Iterator[str]:
    for index, runtime in enumerate(profile.runtimes):
        place = f"runtimes[{index}].providers"
        if not runtime.providers[-1].in_pip_wheel:
            yield f"{place}: the last one must be in pip's wheel, got {runtime.providers[-1].name!r}"
        if runtime.name == "onnxruntime" and runtime.providers[-1].name != "CPUExecutionProvider":
            yield f"{place}: expected 'CPUExecutionProvider' last, got {runtime.providers[-1].name!r}"
        for position, provider in enumerate(runtime.providers):
            if not provider.in_pip_wheel and not provider.note:
                yield f"{place}[{position}].note: must say where {provider.name!r} comes from, as pip's wheel lacks it"


def _source_contradictions(profile: DeviceProfile) -> Iterator[str]:
    figures = {*_numbers(msgspec.to_builtins(profile), ""), *_SOURCES_BESIDE_NUMBERS}
    given = {source.figure for source in profile.sources}
    for figure in sorted(figures - given):
        yield f"sources: no source for {figure}"
    for figure in sorted(given - figures):
        yield f"sources: {figure!r} is no figure of this profile"


def _numbers(value: object, path: str) -> Iterator[str]:
    """Yield the path of every number."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _numbers(item, f"{path}.{key}" if path else key)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path
