"""What a stage needs of a device, and whether the device has it; pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from edge.errors import OutOfMemory, UnsupportedOperator
from edge.formats.bundle import Manifest
from edge.formats.frame import ALIGNMENT_BYTES, MAX_FRAME_BYTES, MAX_HEADER_BYTES
from edge.formats.message import RuntimeOffer
from edge.formats.plan import Stage

_MIB = 1 << 20
_DYNAMIC_SLACK = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Capacity:
    """What a device can give to stages.

    Attributes:
        memory_bytes: RAM that all stages may take together.
        runtimes: what is installed.
    """

    memory_bytes: int
    runtimes: tuple[RuntimeOffer, ...]


def check_memory(name: str, stages: Iterable[Stage], free_bytes: int) -> None:
    """Refuse stages that do not fit together.

    Raises:
        OutOfMemory: the text says what is needed and what is free.
    """
    for stage in stages:
        if stage.memory_bytes > free_bytes:
            raise OutOfMemory(
                f"stage {stage.index} of {name} needs {_mib(stage.memory_bytes)}, "
                f"this device has {_mib(free_bytes)} free"
            )
        free_bytes -= stage.memory_bytes


def usable_runtimes(manifest: Manifest, offers: Iterable[RuntimeOffer]) -> tuple[str, ...]:
    """Return the runtimes that are installed and new enough for one of the bundle's builds, the preferred one first."""
    installed = {offer.name: _version(offer.version) for offer in offers}
    return tuple(
        need.name
        for need in manifest.needs
        if need.name in installed and installed[need.name] >= _version(need.least_version)
    )


def choose_runtime(manifest: Manifest, offers: Iterable[RuntimeOffer], *, wanted: str | None = None) -> str:
    """Return the first runtime of the bundle that is installed and new enough.

    Args:
        manifest: of the bundle, all its builds included.
        offers: what is installed.
        wanted: the only one that will do; None where any will.

    Raises:
        UnsupportedOperator: there is none; the text says what is needed and what is there.
    """
    offers = tuple(offers)
    for name in usable_runtimes(manifest, offers):
        if wanted in (None, name):
            return name
    needs = " or ".join(
        f"{need.name} {need.least_version} or newer" for need in manifest.needs if wanted in (None, need.name)
    )
    has = ", ".join(f"{offer.name} {offer.version}" for offer in offers) or "no runtime"
    needs = needs or (f"another runtime than {wanted}" if wanted else "no runtime")
    raise UnsupportedOperator(f"{manifest.name} needs {needs}, this device has {has}")


def frame_limit_bytes(manifest: Manifest, names: Iterable[str]) -> int:
    """Return a bound on the size of a frame with these tensors, in bytes."""
    total = MAX_HEADER_BYTES
    for name in names:
        tensor = manifest.tensor(name)
        slack = _DYNAMIC_SLACK if any(dim is None for dim in tensor.spec.shape) else 1
        total += tensor.size_bytes * slack + ALIGNMENT_BYTES
    return min(total, MAX_FRAME_BYTES)


def _version(text: str) -> tuple[int, ...]:
    parts = []
    for part in text.split(".")[:3]:
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        parts.append(int(digits) if digits else 0)
    return tuple(parts)


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / _MIB:.0f} MiB"
