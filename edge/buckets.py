"""Padding inputs to the sizes that a bundle names, and cutting the outputs back; pure."""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np

from edge.errors import InvalidInput
from edge.formats.bundle import Manifest
from edge.formats.tensor import Array, check_inputs


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """What is taken off an output again.

    Attributes:
        output: of the model.
        axis: which of its dimensions.
        size: what is left of it.
    """

    output: str
    axis: int
    size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Padded:
    """Inputs as a model takes them.

    Attributes:
        inputs: by name; what was not padded is what was given.
        cuts: what is taken off the answer.
    """

    inputs: dict[str, Array]
    cuts: tuple[Cut, ...] = ()

    def cut(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return an answer without what only padding made; views."""
        return cut_back(outputs, self.cuts)


def pad(inputs: Mapping[str, Array], manifest: Manifest, *, kept: AbstractSet[str] = frozenset()) -> Padded:
    """Pad each input at its end to the smallest size of its bucket that holds it, and check what comes of it.

    Args:
        inputs: every input of the model by name.
        manifest: of the bundle; one without buckets changes nothing.
        kept: inputs that are states and kept by devices; what stands in their place is not looked at.

    Raises:
        InvalidInput: an input is larger than every size of its bucket, or they do not fit the model.
    """
    arrays = dict(inputs)
    cuts: dict[tuple[str, int], Cut] = {}
    for bucket in manifest.buckets:
        array = arrays.get(bucket.input)
        if array is None or bucket.axis >= array.ndim:
            continue  # the check below says what is wrong
        size = array.shape[bucket.axis]
        wanted = next((known for known in bucket.sizes if known >= size), None)
        if wanted is None:
            raise InvalidInput(
                f"input {bucket.input!r} has {size} along dimension {bucket.axis}, "
                f"the largest that {manifest.name} takes is {bucket.sizes[-1]}: shorten it or split it"
            )
        arrays[bucket.input] = _padded(array, bucket.axis, wanted, bucket.value)
        for output, axis in bucket.outputs:
            before = cuts.setdefault((output, axis), Cut(output=output, axis=axis, size=size))
            if before.size != size:
                raise InvalidInput(
                    f"input {bucket.input!r} has {size} along dimension {bucket.axis}, "
                    f"another input that belongs to it has {before.size}"
                )
    if lacking := [state.input for state in manifest.states if state.input not in arrays]:
        raise InvalidInput(
            f"input {lacking[0]!r} is the state of a stream: open one with Client.open_stream, or give it"
        )
    looked_at = {name: array for name, array in arrays.items() if name not in kept}
    if problem := check_inputs(looked_at, [spec for spec in manifest.inputs if spec.name not in kept]):
        raise InvalidInput(problem)
    return Padded(inputs=arrays, cuts=tuple(cuts.values()))


def cut_back(outputs: Mapping[str, Array], cuts: tuple[Cut, ...]) -> dict[str, Array]:
    """Return an answer without what only padding made; views of `outputs`."""
    kept = dict(outputs)
    for cut in cuts:
        array = kept.get(cut.output)
        if array is not None and cut.axis < array.ndim:
            kept[cut.output] = array[(slice(None),) * cut.axis + (slice(cut.size),)]
    return kept


def _padded(array: Array, axis: int, size: int, value: float) -> Array:
    if array.shape[axis] == size:
        return array
    width = [(0, size - have if place == axis else 0) for place, have in enumerate(array.shape)]
    return np.pad(array, width, constant_values=np.asarray(value).astype(array.dtype))
