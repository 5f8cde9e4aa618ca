"""What a device remembers for good beside its serving plans: one small record, replaced as a whole."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from edge.formats.message import Lease

MAX_VERSIONS = 256
_PARTS = re.compile(r"\d+|-?[^\W\d_]+")
_PRE_RELEASES = {"dev": "", "alpha": "a", "beta": "b", "a": "a", "b": "b"} | dict.fromkeys(
    ("c", "pre", "preview", "rc"), "rc"
)
_MAX_TEXT = 200


class Marks(msgspec.Struct, frozen=True, kw_only=True):
    """What outlives the process, and no message can set back.

    Attributes:
        cordoned: whether new plans leave the device out.
        lease: largest that was seen.
        issued: newest `Deployment.issued` that was seen; the device's clock is not asked.
        versions: highest version that was served here, by `model_of`; the newest `MAX_VERSIONS`.
    """

    cordoned: bool = False
    lease: Lease | None = None
    issued: str = ""
    versions: dict[str, str] = {}

    def with_version(self, model: str, version: str) -> "Marks":
        """Return the marks after `version` of a model was served."""
        model, version = model[:_MAX_TEXT], version[:_MAX_TEXT]
        known = self.versions.get(model)
        if known is not None and natural_order(version) <= natural_order(known):
            return self
        versions = {name: known for name, known in self.versions.items() if name != model}
        kept = dict([*versions.items(), (model, version)][-MAX_VERSIONS:])
        return msgspec.structs.replace(self, versions=kept)


Deaths = Mapping[tuple[str, str], int]
"""How often the agent died while it loaded or ran an epoch, by deployment and epoch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SaveMarks:
    """Effect: remember the marks on disk."""

    marks: Marks


@dataclass(frozen=True, kw_only=True, slots=True)
class ForgetDeaths:
    """Effect: an epoch did well, or is gone; forget on disk how often the agent died of it."""

    deployment: str
    epoch: str


def model_of(deployment: str, model: str) -> str:
    """Return the name under which `Marks.versions` keeps a model of a deployment."""
    return f"{deployment} {model}"[:_MAX_TEXT]


def natural_order(version: str) -> tuple[tuple[int, int, str], ...]:
    """Return a key that orders versions by their parts, numbers as numbers: 1.9 before 1.10 before 1.10.1.

    A word after a dash, and those that PEP 440 names, make a pre-release: `1.0-rc1` and `1.0b2` come before `1.0`,
    which comes before `1.0.post1`. What follows a plus sign says nothing of the order.
    """
    public = version[:_MAX_TEXT].partition("+")[0]
    if public[:1] in "vV" and public[1:2].isdigit():
        public = public[1:]
    return (*map(_order_of, _PARTS.findall(public)), (1, 0, ""))


def _order_of(part: str) -> tuple[int, int, str]:
    if part.isdigit():
        return 3, int(part), ""
    word = part.lstrip("-").lower()
    is_before = word in _PRE_RELEASES or (part.startswith("-") and word != "post")
    return (0, 0, _PRE_RELEASES.get(word, word)) if is_before else (2, 0, word)
