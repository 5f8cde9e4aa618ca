"""From shards to a stage: choose the tensors that cross it and join the fragments."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edge.errors import BundleError, InvalidInput, UnsupportedOperator
from edge.formats.bundle import Blob, Manifest, decode_graph_part
from edge.formats.tensor import Array, TensorSpec, matches, spec_of
from edge.runtimes.base import Runtime, StageModel, StageOptions, StageSession

ReadBlob = Callable[[Blob], bytes]


@dataclass(frozen=True, kw_only=True, slots=True)
class StageTensors:
    """Which tensors cross the borders of a stage, and which enter its session.

    Attributes:
        received: the cut set before the stage.
        session_inputs: those that its nodes read.
        session_outputs: those that its nodes make and someone after it needs.
        sent: the cut set after the stage; what is in `received` too is forwarded unchanged.
    """

    received: tuple[str, ...]
    session_inputs: tuple[str, ...]
    session_outputs: tuple[str, ...]
    sent: tuple[str, ...]


def stage_tensors(manifest: Manifest, first_shard: int, stop_shard: int) -> StageTensors:
    """Work out the tensors of the stage `[first_shard, stop_shard)`.

    Raises:
        BundleError: the range is not one of the bundle's, or a shard reads what nobody sends.
    """
    if not 0 <= first_shard < stop_shard <= len(manifest.shards):
        raise BundleError(f"stage [{first_shard}, {stop_shard}) is not within {len(manifest.shards)} shards")
    received = manifest.cut_before(first_shard)
    sent = manifest.cut_before(stop_shard)
    reads = {name for shard in manifest.shards[first_shard:stop_shard] for name in shard.reads}
    return StageTensors(
        received=received,
        session_inputs=tuple(name for name in received if name in reads),
        session_outputs=tuple(name for name in sent if name not in received),
        sent=sent,
    )


def compose(
    manifest: Manifest, first_shard: int, stop_shard: int, *, read_blob: ReadBlob, weights_folder: Path
) -> StageModel:
    """Join base header, boundary fragments, constants and nodes of consecutive shards.

    Serialised protobuf messages that are concatenated parse as their merge, so joining bytes is enough.

    Raises:
        BundleError: a shard is malformed.
    """
    crossing = stage_tensors(manifest, first_shard, stop_shard)
    pieces = [manifest.header]
    pieces += [manifest.tensor(name).as_input for name in crossing.session_inputs]
    pieces += [manifest.tensor(name).as_output for name in crossing.session_outputs]
    constants: dict[str, bytes] = {}
    nodes: list[bytes] = []
    for index in range(first_shard, stop_shard):
        part = decode_graph_part(read_blob(manifest.shards[index].graph), where=f"shard {index}")
        for constant in part.constants:
            # A name that stands twice in one graph does not fail in the runtime: the later one silently wins.
            if constants.setdefault(constant.name, constant.fragment) != constant.fragment:
                raise BundleError(f"shard {index}: constant {constant.name!r} differs from an earlier shard's")
        nodes.append(part.nodes)
    return StageModel(
        model=b"".join((*pieces, *constants.values(), *nodes)),
        weights_folder=weights_folder,
        inputs=crossing.session_inputs,
        outputs=crossing.session_outputs,
    )


class Stage:
    """A loaded stage: takes the cut set before it, gives the cut set after it."""

    def __init__(self, manifest: Manifest, crossing: StageTensors, session: StageSession | None) -> None:
        self._expected: dict[str, TensorSpec] = {name: manifest.tensor(name).spec for name in crossing.received}
        self._crossing = crossing
        self._session = session

    @property
    def received(self) -> tuple[str, ...]:
        """Names of the tensors that a frame for this stage carries."""
        return self._crossing.received

    def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Run the stage once.

        Args:
            tensors: the cut set before the stage, by name.

        Returns:
            The cut set after the stage, by name.

        Raises:
            InvalidInput: the tensors do not fit the cut set; the text says which and how.
            StageError: the runtime failed.
        """
        if self._session is None:
            raise RuntimeError("the stage is closed")
        self._check(tensors)
        made = self._session.run(tensors) if self._crossing.session_outputs else {}
        return {name: made[name] if name in made else tensors[name] for name in self._crossing.sent}

    def _check(self, tensors: Mapping[str, Array]) -> None:
        if tensors.keys() != self._expected.keys():
            raise InvalidInput(f"stage takes the tensors {sorted(self._expected)}, the frame has {sorted(tensors)}")
        for name, expected in self._expected.items():
            found = spec_of(name, tensors[name])
            if not matches(found, expected):
                shape = ["?" if dim is None else dim for dim in expected.shape]
                raise InvalidInput(
                    f"tensor {name!r} is {found.dtype}{list(found.shape)}, expected {expected.dtype}{shape}"
                )

    def close(self) -> None:
        """Free the session."""
        if self._session is not None:
            self._session.close()
            self._session = None


def _check_runtime(manifest: Manifest, runtime: Runtime) -> None:
    """Raise `UnsupportedOperator` when the bundle cannot run on this runtime, or needs a newer one."""
    offer = runtime.offer()
    needs = {need.name: need.least_version for need in manifest.runtimes}
    if offer.name not in needs:
        raise UnsupportedOperator(f"{manifest.name} runs on {', '.join(sorted(needs))}; this device has {offer.name}")
    if _release(offer.version) < _release(needs[offer.name]):
        raise UnsupportedOperator(
            f"{manifest.name} needs {offer.name} {needs[offer.name]} or newer; this device has {offer.version}"
        )


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def load_stage(
    manifest: Manifest,
    first_shard: int,
    stop_shard: int,
    *,
    runtime: Runtime,
    options: StageOptions,
    read_blob: ReadBlob,
    weights_folder: Path,
) -> Stage:
    """Compose the stage `[first_shard, stop_shard)` and load it.

    Raises:
        BundleError: a shard is malformed.
        UnsupportedOperator: the bundle needs another runtime or a newer one.
        StageError: the runtime refuses it.
    """
    _check_runtime(manifest, runtime)
    model = compose(manifest, first_shard, stop_shard, read_blob=read_blob, weights_folder=weights_folder)
    crossing = stage_tensors(manifest, first_shard, stop_shard)
    return Stage(manifest, crossing, runtime.load(model, options))
