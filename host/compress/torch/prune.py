"""Remove channels from a PyTorch module before it is exported, by torch-pruning's dependency graph.

Deciding looks at the weights; what was decided is replayed from the recipe without looking at them (Fang et al. 2023,
"DepGraph: Towards Any Structural Pruning").
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import torch
from torch import Tensor

from host.compress.recipe import PruneTorch, TorchGroup
from host.errors import RecipeError

Examples = Tensor | Sequence[Tensor] | Mapping[str, Tensor]
"""What ``forward`` is called with: a tensor, several in order, or several by name."""


_NORMS = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d)
_TRANSPOSED = (torch.nn.ConvTranspose1d, torch.nn.ConvTranspose2d, torch.nn.ConvTranspose3d)
_LAYERS = (
    torch.nn.Linear,
    torch.nn.Conv1d,
    torch.nn.Conv2d,
    torch.nn.Conv3d,
    *_TRANSPOSED,
)


def decide(module: torch.nn.Module, example_inputs: Examples, step: PruneTorch) -> PruneTorch:
    """Choose the channels that leave each layer.

    Layers whose output is the module's answer keep all their channels.

    Args:
        module: In evaluation mode; stays as it is.
        example_inputs: Inputs that ``forward`` runs with.
        step: What to do; its groups are chosen again.

    Returns:
        The step with its groups.

    Raises:
        RecipeError: If torch-pruning is missing, a name is no module, or the module cannot be pruned.
    """
    library = _library()
    # Frozen parameters are pruned like others, and what answers is found by its gradient.
    trial = copy.deepcopy(module).eval().requires_grad_()
    excluded = [inner for name in step.exclude for inner in _submodule(trial, name).modules()]
    excluded += _answering(trial, example_inputs)
    importance = _importance(library, step, trial)
    with _quiet():
        try:
            graph = library.DependencyGraph().build_dependency(trial, _called_with(example_inputs))
            groups = _chosen(graph, trial, importance, step, excluded)
            for group in groups:
                _prune(graph, _submodule(trial, group.layer), group)
        except (RuntimeError, ValueError, KeyError, IndexError, TypeError, AttributeError, AssertionError) as error:
            raise RecipeError(f"{type(module).__name__}: torch-pruning cannot prune it: {_line(error)}") from error
    _runs(trial, module, example_inputs)
    return msgspec.structs.replace(step, groups=groups)


def _chosen(
    graph: Any, module: torch.nn.Module, importance: Any, step: PruneTorch, excluded: list[torch.nn.Module]
) -> tuple[TorchGroup, ...]:
    """The least important channels of each group of layers.

    The library's own pruner is not used: it rounds a grouped convolution's channels as if it had one group.
    """
    names = {layer: name for name, layer in module.named_modules()}
    chosen = []
    with torch.no_grad():
        for group in graph.get_all_groups(ignored_layers=excluded, root_module_types=_LAYERS):
            root = group[0].dep.target.module
            scores = importance(group)
            if scores is None or root not in names:
                continue
            parts = _parts(graph, group, names)
            size = len(scores) // parts
            drop = size - _kept(size, parts, step)
            if drop:
                # Groups of one convolution stay alike: the same place leaves each.
                order = torch.argsort(scores.reshape(parts, size).mean(0), stable=True)
                places = sorted(int(place) for place in order[:drop])
                gone = tuple(part * size + place for part in range(parts) for place in places)
                chosen.append(TorchGroup(layer=names[root], is_output=True, drop=gone))
    return tuple(chosen)


def _parts(graph: Any, group: Any, names: Mapping[torch.nn.Module, str]) -> int:
    """Into how many groups of channels the layers of a group are divided; depthwise convolutions do not count."""
    found = 1
    for dependency, _ in group:
        layer = dependency.target.module
        if layer in names and not (hasattr(layer, "out_channels") and layer.groups == layer.out_channels):
            pruner, is_output = graph.get_pruner_of_module(layer), graph.is_out_channel_pruning_fn(dependency.handler)
            count = pruner.get_out_channel_groups(layer) if is_output else pruner.get_in_channel_groups(layer)
            found = max(found, count)
    return found


def _kept(size: int, parts: int, step: PruneTorch) -> int:
    """How many of ``size`` channels stay in each of ``parts``: all together the nearest multiple, at least one."""
    unit = step.multiple // math.gcd(step.multiple, parts)
    wanted = max(round(size * (1 - step.ratio) / unit), 1) * unit
    return min(wanted, size)


def apply(module: torch.nn.Module, example_inputs: Examples, step: PruneTorch) -> torch.nn.Module:
    """Remove the channels that a decided step names.

    Args:
        module: Stays as it is.
        example_inputs: Inputs that ``forward`` runs with; only their shapes matter.
        step: Decided.

    Returns:
        A smaller copy in evaluation mode.

    Raises:
        RecipeError: If torch-pruning is missing or the step does not fit the module.
    """
    library = _library()
    smaller = copy.deepcopy(module).eval()
    if not step.groups:
        return smaller
    with _quiet():
        graph = library.DependencyGraph().build_dependency(smaller, _called_with(example_inputs))
        for group in step.groups:
            layer = _submodule(smaller, group.layer)
            _prune(graph, layer, group)
    _runs(smaller, module, example_inputs)
    return smaller


def kept_channels(module: torch.nn.Module, example_inputs: Examples, step: PruneTorch) -> dict[str, tuple[int, ...]]:
    """Which output channels each convolution and linear layer keeps, by dotted name; those that keep all included.

    Args:
        module: Before pruning; stays as it is.
        example_inputs: Inputs that ``forward`` runs with.
        step: Decided.

    Raises:
        RecipeError: As for `apply`.
    """
    marked = copy.deepcopy(module).eval()
    with torch.no_grad():
        for layer in marked.modules():
            if isinstance(layer, _LAYERS):
                # Each weight says which output channel it belongs to, and says it still after pruning.
                outputs = layer.weight.transpose(0, 1) if isinstance(layer, _TRANSPOSED) else layer.weight
                numbers = torch.arange(len(outputs), dtype=outputs.dtype)
                outputs.copy_(numbers.reshape(-1, *(1,) * (outputs.ndim - 1)).expand_as(outputs))
    found = {}
    for name, layer in apply(marked, example_inputs, step).named_modules():
        if isinstance(layer, _LAYERS):
            outputs = layer.weight.transpose(0, 1) if isinstance(layer, _TRANSPOSED) else layer.weight
            found[name] = tuple(int(channel) for channel in outputs.flatten(1)[:, 0])
    return found


def _prune(graph: Any, layer: torch.nn.Module, group: TorchGroup) -> None:
    pruner = graph.get_pruner_of_module(layer)
    if pruner is None or layer not in graph.module2node:
        raise RecipeError(f"layer {group.layer!r} of the recipe has no channels; it belongs to another module")
    count = graph.get_out_channels(layer) if group.is_output else graph.get_in_channels(layer)
    if not group.drop or count is None or group.drop[-1] >= count or len(set(group.drop)) >= count:
        raise RecipeError(
            f"layer {group.layer!r} has {count} channels; the recipe's do not fit: it is another module's"
        )
    function = pruner.prune_out_channels if group.is_output else pruner.prune_in_channels
    found = graph.get_pruning_group(layer, function, list(group.drop))
    if not graph.check_pruning_group(found):
        raise RecipeError(f"layer {group.layer!r} would lose all its channels; the recipe belongs to another module")
    found.prune(record_history=False)


def _library() -> Any:
    if importlib.util.find_spec("torch_pruning") is None:
        raise RecipeError("pruning a PyTorch module needs torch-pruning: pip install 'shardwire[torch]'")
    return importlib.import_module("torch_pruning")


def _importance(library: Any, step: PruneTorch, module: torch.nn.Module) -> Any:
    if step.criterion == "batch-norm":
        if not any(isinstance(layer, _NORMS) for layer in module.modules()):
            raise RecipeError("criterion batch-norm needs batch norms, and the module has none: choose l1 or l2")
        return library.importance.BNScaleImportance()
    return library.importance.GroupMagnitudeImportance(p=1 if step.criterion == "l1" else 2)


def _submodule(module: torch.nn.Module, name: str) -> torch.nn.Module:
    try:
        return module.get_submodule(name)
    except AttributeError as error:
        raise RecipeError(
            f"{type(module).__name__} has no module {name!r}; its recipe belongs to another one"
        ) from error


def _answering(module: torch.nn.Module, example_inputs: Examples) -> list[torch.nn.Module]:
    """Layers without which an answer would have another shape: found by where each answer's gradient comes from."""
    made: dict[Any, torch.nn.Module] = {}
    hooks = [
        layer.register_forward_hook(
            lambda layer, _, output: made.__setitem__(output.grad_fn, layer) if isinstance(output, Tensor) else None
        )
        for layer in module.modules()
        if isinstance(layer, _LAYERS)
    ]
    try:
        with torch.enable_grad(), _quiet():
            answers = _answers(_called(module, example_inputs))
    finally:
        for hook in hooks:
            hook.remove()
    found, waiting, seen = [], [answer.grad_fn for answer in answers if answer.grad_fn is not None], set()
    while waiting:
        function = waiting.pop()
        if function in seen:
            continue
        seen.add(function)
        if function in made:
            found.append(made[function])
        else:
            waiting.extend(before for before, _ in function.next_functions if before is not None)
    return found


def _runs(smaller: torch.nn.Module, module: torch.nn.Module, example_inputs: Examples) -> None:
    with torch.no_grad(), _quiet():
        try:
            found = [answer.shape for answer in _answers(_called(smaller, example_inputs))]
        except RuntimeError as error:
            raise RecipeError(
                f"{type(module).__name__}: does not run with these channels removed ({_line(error)}): name the module "
                "that computes with sizes of its own in exclude"
            ) from error
        wanted = [answer.shape for answer in _answers(_called(module, example_inputs))]
    if found != wanted:
        raise RecipeError(f"{type(module).__name__}: its answer would be {found}, not {wanted}: exclude its last layer")


def _called_with(example_inputs: Examples) -> Any:
    # The library unpacks lists and dicts, and takes a tensor as it is.
    if isinstance(example_inputs, Mapping):
        return dict(example_inputs)
    return example_inputs if isinstance(example_inputs, Tensor) else list(example_inputs)


def _called(module: torch.nn.Module, example_inputs: Examples) -> Any:
    if isinstance(example_inputs, Mapping):
        return module(**example_inputs)
    return module(example_inputs) if isinstance(example_inputs, Tensor) else module(*example_inputs)


def _answers(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, Mapping):
        return [answer for value in result.values() for answer in _answers(value)]
    if isinstance(result, Sequence) and not isinstance(result, str):
        return [answer for value in result for answer in _answers(value)]
    return []


class _quiet(warnings.catch_warnings):  # noqa: N801 - used like the function that it is
    """The library warns about parameters that it does not know; what matters is checked by running the result."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore")


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
