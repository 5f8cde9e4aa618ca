"""The state of a training as one safetensors file, so that it goes on where it was stopped. Nothing in it executes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import safetensors
import safetensors.torch
from torch import Tensor

from host.compress.recover import RecoverError

FORMAT = "1"
_KEY = "state"


class Progressed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a training stands.

    Attributes:
        format: Version of the file.
        job: Digest of everything that decides the result: models, samples, numbers.
        epoch: Epochs done.
        best: Smallest loss on the holdout so far; None without a holdout.
        waited: Epochs since then.
    """

    format: str = FORMAT
    job: str
    epoch: int
    best: float | None
    waited: int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Checkpoint:
    """A training that was stopped after an epoch.

    Attributes:
        progressed: Where it stands.
        tensors: Present values, best values and the optimizer's, by name.
    """

    progressed: Progressed
    tensors: Mapping[str, Tensor]


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint so that a crash at any time leaves the old file or the new one.

    Raises:
        RecoverError: If it cannot be written.
    """
    data = safetensors.torch.save(
        {name: tensor.detach().contiguous() for name, tensor in checkpoint.tensors.items()},
        metadata={_KEY: msgspec.json.encode(checkpoint.progressed).decode()},
    )
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    except OSError as error:
        raise RecoverError(f"{path}: cannot write the checkpoint: {error.strerror}") from error


def load(path: Path, *, job: str) -> Checkpoint | None:
    """Read a checkpoint.

    Args:
        path: Of the file.
        job: Digest that it must have.

    Returns:
        None if there is no such file.

    Raises:
        RecoverError: If the file is damaged or belongs to another training.
    """
    if not path.exists():
        return None
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY, "")
            progressed = msgspec.json.decode(text.encode(), type=Progressed)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except (OSError, safetensors.SafetensorError, msgspec.DecodeError) as error:
        raise RecoverError(f"{path}: not a checkpoint of a training: delete it to start again ({error})") from error
    if progressed.format != FORMAT or progressed.job != job:
        raise RecoverError(
            f"{path}: the checkpoint of another training (other models, samples or numbers): delete it to start again"
        )
    return Checkpoint(progressed=progressed, tensors=tensors)
