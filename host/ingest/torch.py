"""Read a PyTorch module by exporting it to ONNX: the only host module that imports torch."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import inspect
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.formats.tensor import Array
from host.compare import compare
from host.dotted import resolve
from host.errors import IngestError
from host.ingest.inputs import load_inputs
from host.ingest.onnx import from_model, with_bound_shapes, with_own_outputs
from host.model import Golden, Ingested, Model, Origin, Tensors, from_bytes, model_name
from host.passes.bind_shapes import Binding

if TYPE_CHECKING:
    import torch

OPSET = 18
# Export and torch differ by the order of sums; a wrong export differs by orders of magnitude more.
_EXPORT_TOLERANCE = 1e-3


def ingest_torch(source: str, *, shapes: Mapping[str, Binding], inputs: str | None) -> Ingested:
    """Export what a factory returns and find out what it answers.

    Args:
        source: ``package.module:factory``; the factory takes nothing and returns a module, or a module and example
            inputs: a tensor, a tuple of them, or a mapping of argument name to tensor.
        shapes: Sizes for dynamic dimensions, see `host.passes.bind_shapes`.
        inputs: ``file.npz`` or ``package.module:callable``; needed when the factory gives no example inputs.

    Raises:
        IngestError: If torch is missing, the factory fails, the module cannot be exported, or inputs do not fit.
    """
    module, arguments = torch_module(source, inputs=inputs)
    origin = Origin(format="torch", digest=state_digest(module, source), description=f"{source}, exported to ONNX")
    exporter = _Exporter(module=module, arguments=arguments, source=source, origin=origin, shapes=shapes)
    model = exporter.plain(module)
    if len(model.ir.graph.inputs) != len(arguments):
        raise IngestError(f"{source}: forward takes {len(arguments)} tensors, its export {len(model.ir.graph.inputs)}")
    found = from_model(
        model, shapes=shapes, inputs=inputs, given=None if inputs else [value.numpy() for value in arguments.values()]
    )
    golden = tuple(_golden(module, pair, tuple(arguments), source) for pair in found.golden)
    return dataclasses.replace(found, golden=golden, torch=exporter)


def torch_module(source: str, *, inputs: str | None) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """What a factory makes: a module in evaluation mode, and an example tensor by argument name of its ``forward``.

    Args:
        source: ``package.module:factory``, see `ingest_torch`.
        inputs: ``file.npz`` or ``package.module:callable``; needed when the factory gives no example inputs.

    Raises:
        IngestError: If torch is missing, the factory fails, or the inputs do not fit.
    """
    require_torch()
    module, example = _made(source)
    if example is None:
        if inputs is None:
            raise IngestError(
                f"{source} returns no example inputs: return (module, inputs), or pass --inputs with one array for "
                "each argument of its forward"
            )
        example = load_inputs(inputs, None)[0]
    return module, _arguments(module, example, source)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Exporter:
    """A module and how it is exported, see `host.model.TorchSource`."""

    module: torch.nn.Module
    arguments: dict[str, torch.Tensor]
    source: str
    origin: Origin
    shapes: Mapping[str, Binding]

    def plain(self, module: torch.nn.Module) -> Model:
        data = export(module, self.arguments, self.source)
        return Model(name=model_name(self.source.partition(":")[2]), ir=from_bytes(data), origin=self.origin)

    def exported(self, module: torch.nn.Module) -> Model:
        return with_own_outputs(with_bound_shapes(self.plain(module), self.shapes))


def require_torch() -> None:
    """Raise an error that says how to get torch if it is missing.

    Raises:
        IngestError: If torch or what its exporter needs is not installed.
    """
    missing = [name for name in ("torch", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise IngestError(f"a PyTorch model needs {' and '.join(missing)}: pip install 'shardwire[torch]'")


def load_state(module: torch.nn.Module, path: Path) -> None:
    """Load a checkpoint that holds nothing but tensors.

    Raises:
        IngestError: If the file is no such checkpoint or does not fit the module.
    """
    import torch

    try:
        module.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:
        raise IngestError(f"{path}: cannot be loaded: {error}") from error


def export(module: torch.nn.Module, arguments: Mapping[str, torch.Tensor], source: str) -> bytes:
    """Export a module in evaluation mode.

    Args:
        module: Changed to evaluation mode.
        arguments: Example tensor by argument name of ``forward``, in the order of its parameters.
        source: Name for messages.

    Returns:
        Serialised ONNX.

    Raises:
        IngestError: If the module cannot be exported.
    """
    import torch

    module.eval()
    try:
        with no_chatter():
            program = torch.onnx.export(
                module, kwargs=dict(arguments), dynamo=True, opset_version=OPSET, verbose=False, optimize=True
            )
    except Exception as error:
        reason = str(error.__cause__ or error).strip().splitlines()
        raise IngestError(
            f"{source}: torch cannot export it to ONNX: {reason[0] if reason else type(error).__name__}"
        ) from error
    if program is None:
        raise IngestError(f"{source}: torch returned nothing from its export to ONNX")
    data: bytes = program.model_proto.SerializeToString(deterministic=True)
    return data


def evaluate(module: torch.nn.Module, inputs: Mapping[str, Array]) -> list[Array]:
    """Run a module in evaluation mode on one thread.

    Args:
        module: Changed to evaluation mode.
        inputs: Array by argument name of ``forward``.

    Returns:
        The tensors of its result, in order.
    """
    import torch

    module.eval()
    threads = torch.get_num_threads()
    # How a sum is split over threads changes its last bits, and golden outputs are signed.
    torch.set_num_threads(1)
    try:
        with torch.no_grad(), no_chatter():
            result = module(**{name: torch.from_numpy(np.array(array)) for name, array in inputs.items()})
    finally:
        torch.set_num_threads(threads)
    return [leaf.detach().cpu().numpy() for leaf in _leaves(result)]


def _leaves(result: Any) -> list[torch.Tensor]:
    """The tensors of a nested result, in the order in which the exporter makes them outputs."""
    import torch

    if isinstance(result, torch.Tensor):
        return [result]
    if isinstance(result, Mapping):
        # Torch orders a plain dict by insertion.
        return [leaf for value in result.values() for leaf in _leaves(value)]
    if isinstance(result, Sequence) and not isinstance(result, str):
        return [leaf for value in result for leaf in _leaves(value)]
    return []


def _made(source: str) -> tuple[torch.nn.Module, Any]:
    import torch

    factory = resolve(source, fault=IngestError, option="model")
    try:
        with no_chatter():
            made = factory()
    except (Exception, SystemExit) as error:
        reason = " ".join(str(error).split())
        raise IngestError(f"{source}: the factory failed: {type(error).__name__}: {reason}") from error
    module, example = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(module, torch.nn.Module):
        raise IngestError(
            f"{source} returned a {type(module).__name__}; it must return a torch.nn.Module, or one and example inputs"
        )
    return module.eval(), example


def _arguments(module: torch.nn.Module, example: Any, source: str) -> dict[str, torch.Tensor]:
    import torch

    parameters = list(inspect.signature(module.forward).parameters)
    if isinstance(example, Mapping):
        if unknown := sorted(set(example) - set(parameters)):
            raise IngestError(f"{source}: inputs name {unknown[0]!r}; forward takes {', '.join(parameters)}")
        named = {name: example[name] for name in parameters if name in example}
    else:
        values = example if isinstance(example, Sequence) else (example,)
        if len(values) > len(parameters):
            raise IngestError(f"{source}: {len(values)} example inputs, but forward takes {', '.join(parameters)}")
        named = dict(zip(parameters, values, strict=False))
    # Copies: an exporter that meets one tensor twice makes one input of two.
    return {name: torch.as_tensor(value).clone() for name, value in named.items()}


def _golden(module: torch.nn.Module, pair: Golden, arguments: tuple[str, ...], source: str) -> Golden:
    # The graph's inputs stand in the order of the arguments, whatever the exporter calls them.
    by_argument: Tensors = dict(zip(arguments, pair.inputs.values(), strict=True))
    answers = evaluate(module, by_argument)
    if len(answers) != len(pair.outputs):
        raise IngestError(f"{source}: torch gives {len(answers)} tensors, its export {len(pair.outputs)}")
    outputs = dict(zip(pair.outputs, answers, strict=True))
    if fault := compare(pair.outputs, outputs, tolerance=_EXPORT_TOLERANCE):
        raise IngestError(f"{source}: the export to ONNX answers differently from torch: {fault}")
    return Golden(inputs=pair.inputs, outputs=outputs)


def state_digest(module: torch.nn.Module, source: str) -> str:
    """Digest of the factory's name and of the module's weights: ``sha256:…``."""
    digest = hashlib.sha256(source.encode())
    for name, tensor in sorted(module.state_dict().items()):
        array = tensor.detach().cpu().contiguous()
        digest.update(f"\n{name} {array.dtype} {list(array.shape)}\n".encode())
        digest.update(array.flatten().view(_byte_type()).numpy().tobytes() if array.numel() else b"")
    return f"sha256:{digest.hexdigest()}"


def _byte_type() -> torch.dtype:
    import torch

    return torch.uint8


@contextlib.contextmanager
def no_chatter() -> Iterator[None]:
    """Keep the exporter's progress, warnings and logs away from the user's terminal."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
