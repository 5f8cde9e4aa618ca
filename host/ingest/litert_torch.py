"""Convert a PyTorch module to a TFLite file with litert-torch: the only host module that imports it.

The extra `[litert-torch]` is large: about 1 GB beside torch, most of it jaxlib and the converter itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from host.errors import IngestError
from host.ingest.converted import adopt
from host.ingest.inputs import load_inputs
from host.ingest.tflite import IngestedTflite
from host.ingest.torch import evaluate, no_chatter, require_torch, state_digest, torch_module
from host.model import Golden, Ingested, Origin, Tensors, distinct_sizes, model_name

if TYPE_CHECKING:
    import torch

INSTALL = "pip install 'shardwire[litert-torch]' (about 1 GB beside torch; best into a venv of its own)"


def is_installed() -> bool:
    """Whether litert-torch is there."""
    return importlib.util.find_spec("litert_torch") is not None


def require_litert_torch() -> None:
    """Raise an error that says how to get litert-torch if it is missing.

    Raises:
        IngestError: It, or torch, is not installed.
    """
    if not is_installed():
        raise IngestError(f"PyTorch to TFLite needs litert-torch: {INSTALL}")
    require_torch()


def tflite_from_factory(source: str, *, inputs: str | None) -> IngestedTflite:
    """Convert what a factory returns, and compare its answers with those of torch.

    Args:
        source: ``package.module:factory``, see `host.ingest.torch.ingest_torch`.
        inputs: ``file.npz`` or ``package.module:callable`` with one array for each argument of ``forward``, by its
            name; all of the same shape.

    Raises:
        IngestError: litert-torch or torch is missing, the factory fails, the module cannot be converted, or the file
            answers differently.
    """
    require_litert_torch()
    module, arguments = torch_module(source, inputs=inputs)
    samples: Sequence[Tensors] = [{name: value.numpy() for name, value in arguments.items()}]
    if inputs is not None:
        samples = load_inputs(inputs, None)
        for i, sample in enumerate(samples):
            if {name: array.shape for name, array in sample.items()} != {k: v.shape for k, v in arguments.items()}:
                raise IngestError(f"--inputs {inputs}: sample {i} has other inputs or shapes than the first one")
    data = tflite_from_module(module, arguments, source)
    origin = Origin(
        format="torch",
        digest=state_digest(module, source),
        description=_described(source),
    )
    golden = [_golden(module, {name: sample[name] for name in arguments}) for sample in distinct_sizes(samples)]
    return adopt(data, name=model_name(source.partition(":")[2]), origin=origin, samples=samples, golden=golden)


def tflite_from_default(ingested: Ingested) -> IngestedTflite:
    """Convert the default model, whose file takes what its ONNX graph takes.

    Args:
        ingested: From `host.ingest.zoo.ingest_efficientnet_lite0`.

    Raises:
        IngestError: As for `tflite_from_factory`.
    """
    require_litert_torch()
    import torch

    from host.ingest.zoo import efficientnet_lite0_module

    module = efficientnet_lite0_module()
    (argument,) = inspect.signature(module.forward).parameters
    example = next(iter(ingested.samples[0].values()))
    data = tflite_from_module(module, {argument: torch.from_numpy(np.array(example))}, ingested.model.name)
    origin = dataclasses.replace(ingested.model.origin, description=_described(ingested.model.origin.description))
    return adopt(
        data,
        name=ingested.model.name,
        origin=origin,
        samples=ingested.samples,
        golden=ingested.golden,
        source=ingested,
    )


def _described(source: str) -> str:
    return f"{source}, converted to TFLite by litert-torch {importlib.metadata.version('litert-torch')}"


def _golden(module: torch.nn.Module, inputs: Tensors) -> Golden:
    return Golden(inputs=inputs, outputs={f"output_{i}": array for i, array in enumerate(evaluate(module, inputs))})


def tflite_from_module(
    module: torch.nn.Module,
    arguments: Mapping[str, torch.Tensor],
    source: str,
    *,
    channels_last: Sequence[str] = (),
) -> bytes:
    """Convert a module in evaluation mode. Equal modules give equal bytes with equal versions of the converter.

    Args:
        module: Changed to evaluation mode.
        arguments: Example tensor by argument name of ``forward``, in the order of its parameters. The file takes inputs
            of exactly these shapes, by these names, in the layout of the module, which is NCHW for images.
        source: Name for messages.
        channels_last: Arguments that the file takes with the channels last instead, as in NHWC.

    Returns:
        A `.tflite` file.

    Raises:
        IngestError: litert-torch is missing, or cannot convert the module.
    """
    require_litert_torch()
    module.eval()
    try:
        with no_chatter(), _quiet_libraries():
            import litert_torch

            names = list(arguments)
            given = tuple(value.detach() for value in arguments.values())
            if places := [names.index(name) for name in channels_last]:
                # Its wrapper knows arguments by place only.
                module = litert_torch.to_channel_last_io(module, args=places).eval()
                given = tuple(value.movedim(1, -1) if i in places else value for i, value in enumerate(given))
                converted = litert_torch.convert(module, given)
            else:
                converted = litert_torch.convert(module, sample_kwargs=dict(zip(names, given, strict=True)))
            data: bytes = converted.model_content()
    except Exception as error:
        lines = str(error.__cause__ or error).strip().splitlines()
        reason = lines[0] if lines else type(error).__name__
        raise IngestError(f"{source}: litert-torch cannot convert it to TFLite: {reason}") from error
    return data


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Keep what the converter's libraries write past Python's `sys.stderr` away from the user's terminal."""
    try:
        kept = os.dup(2)
    except OSError:  # closed, as in a service
        yield
        return
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
