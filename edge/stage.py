"""From shards to a stage: choose the tensors that cross it and join the fragments."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edge.errors import BundleError, InvalidInput, UnsupportedOperator
from edge.formats.bundle import Blob, Manifest, decode_graph_part
from edge.formats.tensor import Array, TensorSpec, matches, spec_of
from edge.routes import Route, route_alone, stage_reads
from edge.runtimes.base import Runtime, StageModel, StageOptions, StageSession

ReadBlob = Callable[[Blob], bytes]


@dataclass(frozen=True, kw_only=True, slots=True)
class StageTensors:
    """Which tensors cross the borders of a stage, and which enter its session.

    Attributes:
        received: what comes to the stage, of all parts of a join together.
        session_inputs: those that its nodes read.
        session_outputs: those that its nodes make and someone after it needs.
        sent: what leaves it; what is in `received` too is forwarded unchanged.
    """

    received: tuple[str, ...]
    session_inputs: tuple[str, ...]
    session_outputs: tuple[str, ...]
    sent: tuple[str, ...]


def stage_tensors(manifest: Manifest, first_shard: int, stop_shard: int, route: Route | None = None) -> StageTensors:
    """Work out the tensors of the stage `[first_shard, stop_shard)`; without a `route` it is alone in its step.

    Raises:
        BundleError: the range is not one of the bundle's, or a shard reads what nobody sends.
    """
    if route is None:
        route = route_alone(manifest, first_shard, stop_shard)
    reads = stage_reads(manifest, first_shard, stop_shard)
    return StageTensors(
        received=route.received,
        session_inputs=tuple(name for name in route.received if name in reads),
        session_outputs=tuple(name for name in route.sent if name not in route.received),
        sent=route.sent,
    )


def compose(
    manifest: Manifest,
    first_shard: int,
    stop_shard: int,
    *,
    route: Route | None = None,
    read_blob: ReadBlob,
    weights_folder: Path,
) -> StageModel:
    """Join base header, boundary fragments, constants and nodes of consecutive shards.

    Serialised protobuf messages that are concatenated parse as their merge, so joining bytes is enough. Without a
    `route` the stage is alone in its step.

    Raises:
        BundleError: a shard is malformed.
    """
    crossing = stage_tensors(manifest, first_shard, stop_shard, route)
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
    """A loaded stage: takes what its route receives, gives what it sends."""

    def __init__(self, manifest: Manifest, crossing: StageTensors, session: StageSession | None) -> None:
        self._expected: dict[str, TensorSpec] = {name: manifest.tensor(name).spec for name in crossing.received}
        self._crossing = crossing
        self._session = session

    @property
    def received(self) -> tuple[str, ...]:
        """Names of the tensors that the frames for this stage carry together."""
        return self._crossing.received

    def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Run the stage once.

        Args:
            tensors: what the stage receives, by name.

        Returns:
            What the stage sends, by name.

        Raises:
            InvalidInput: the tensors are not those that it receives; the text says which and how.
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
    route: Route | None = None,
    runtime: Runtime,
    options: StageOptions,
    read_blob: ReadBlob,
    weights_folder: Path,
) -> Stage:
    """Compose the stage `[first_shard, stop_shard)` and load it; without a `route` it is alone in its step.

    Raises:
        BundleError: a shard is malformed.
        UnsupportedOperator: the bundle needs another runtime or a newer one.
        StageError: the runtime refuses it.
    """
    _check_runtime(manifest, runtime)
    model = compose(manifest, first_shard, stop_shard, route=route, read_blob=read_blob, weights_folder=weights_folder)
    crossing = stage_tensors(manifest, first_shard, stop_shard, route)
    return Stage(manifest, crossing, runtime.load(model, options))
