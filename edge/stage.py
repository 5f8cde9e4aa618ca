"""From shards to a stage: choose the tensors that cross it and join their files.

ONNX shards are fragments of one model; TFLite shards are models of their own, which run one after another. Where frames
come, or must go, in the form of another build, the stage converts what enters and leaves it (`edge.forms`).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

from edge.errors import BundleError, InvalidInput, StreamLost, UnsupportedOperator
from edge.formats.bundle import (
    SHARD_FORMATS,
    Blob,
    Form,
    Manifest,
    Shard,
    ShardFormat,
    decode_graph_part,
    decode_tflite_part,
)
from edge.formats.streams import ELSEWHERE, StreamState, is_elsewhere
from edge.formats.tensor import Array, TensorSpec, matches, spec_of, zeros_of
from edge.forms import check_forms, convert, same_form
from edge.routes import Route, route_alone, stage_reads
from edge.runtimes.base import ModelPart, Runtime, StageModel, StageOptions, StageSession

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
    """Join the files of consecutive shards of one format.

    Args:
        manifest: its own shards are taken; `Manifest.in_format` gives that of another build.
        first_shard: of the stage.
        stop_shard: after its last.
        route: of the stage; without one it is alone in its step.
        read_blob: gives verified blobs.
        weights_folder: where ONNX Runtime finds the weights.

    Raises:
        BundleError: a shard is malformed.
    """
    crossing = stage_tensors(manifest, first_shard, stop_shard, route)
    join = _join_tflite if manifest.shard_format == "tflite" else _join_onnx
    return StageModel(
        parts=join(manifest, first_shard, stop_shard, crossing, read_blob),
        weights_folder=weights_folder,
        inputs=crossing.session_inputs,
        outputs=crossing.session_outputs,
        operators=frozenset(operator.name for operator in manifest.operators),
    )


def _join_onnx(
    manifest: Manifest, first_shard: int, stop_shard: int, crossing: StageTensors, read_blob: ReadBlob
) -> tuple[ModelPart, ...]:
    """Join base header, boundary fragments, constants and nodes.

    Serialised protobuf messages that are concatenated parse as their merge, so joining bytes is enough.
    """
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
    model = b"".join((*pieces, *constants.values(), *nodes))
    return (ModelPart(model=model, inputs=crossing.session_inputs, outputs=crossing.session_outputs),)


def _join_tflite(
    manifest: Manifest, first_shard: int, stop_shard: int, crossing: StageTensors, read_blob: ReadBlob
) -> tuple[ModelPart, ...]:
    """Join the pieces of each sub-model; check that each finds what it takes."""
    parts = [_tflite_part(manifest.shards[i], f"shard {i}", read_blob) for i in range(first_shard, stop_shard)]
    there = set(crossing.session_inputs)
    for part in parts:
        if lacking := [name for name in part.inputs if name not in there]:
            raise BundleError(f"{part.where}: it takes {lacking[0][:80]!r}, which nothing before it makes")
        there.update(part.outputs)
    if lacking := [name for name in crossing.session_outputs if name not in there]:
        raise BundleError(f"shard {stop_shard - 1}: {lacking[0][:80]!r} must leave the stage, no shard of it makes it")
    # A shard that only lets tensors pass has no operators, and so no file.
    return tuple(part for part in parts if part.outputs)


def _tflite_part(shard: Shard, where: str, read_blob: ReadBlob) -> ModelPart:
    part = decode_tflite_part(read_blob(shard.graph), weights=len(shard.weights), where=where)
    model = b"".join(piece if isinstance(piece, bytes) else read_blob(shard.weights[piece]) for piece in part.pieces)
    return ModelPart(model=model, inputs=part.inputs, outputs=part.outputs, where=where)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Change:
    """From one form to another."""

    have: Form
    want: Form

    def __call__(self, array: Array) -> Array:
        return convert(array, self.have, self.want)


@dataclass(frozen=True, kw_only=True, slots=True)
class StageForms:
    """In which form tensors are at the borders of a stage, and what must be done with those that differ.

    Attributes:
        arriving: specs of what the frames for the stage carry together.
        entering: changes for the session, by name.
        passing: changes of what is only forwarded.
        leaving: changes of what the session made.
    """

    arriving: Mapping[str, TensorSpec]
    entering: Mapping[str, Callable[[Array], Array]]
    passing: Mapping[str, Callable[[Array], Array]]
    leaving: Mapping[str, Callable[[Array], Array]]


def stage_forms(
    manifest: Manifest, crossing: StageTensors, *, arrives: ShardFormat, runs: ShardFormat, leaves: ShardFormat
) -> StageForms:
    """Work out what a stage converts; nothing where all three formats are one.

    Args:
        manifest: the whole one, with all builds.
        crossing: which tensors cross the borders of the stage.
        arrives: format in whose form tensors come.
        runs: that of its shards.
        leaves: in whose form they go.

    Raises:
        BundleError: the bundle has no build in one of these formats, or its forms do not fit each other.
    """

    def changes(names: tuple[str, ...], source: ShardFormat, target: ShardFormat) -> dict[str, _Change]:
        found: dict[str, _Change] = {}
        for name in names if source != target else ():
            change = _Change(have=manifest.form(name, source), want=manifest.form(name, target))
            check_forms(change.have, change.want)
            if not same_form(change.have, change.want):
                found[name] = change
        return found

    came = manifest.in_format(arrives)
    passed = tuple(name for name in crossing.sent if name in crossing.received)
    return StageForms(
        arriving={name: came.tensor(name).spec for name in crossing.received},
        entering=changes(crossing.session_inputs, arrives, runs),
        passing=changes(passed, arrives, leaves),
        leaving=changes(crossing.session_outputs, runs, leaves),
    )


class Stage:
    """A loaded stage: takes what its route receives, gives what it sends."""

    def __init__(
        self,
        crossing: StageTensors,
        forms: StageForms,
        session: StageSession | None,
        states: Sequence[StreamState] = (),
    ) -> None:
        self._crossing = crossing
        self._forms = forms
        self._session = session
        self._states = frozenset(name for state in states for name in (state.input, state.output))
        self._keeps = tuple(
            state
            for state in states
            if state.input in crossing.session_inputs
            and state.output in crossing.session_outputs
            and state.input not in forms.entering
            and state.output not in forms.leaving
        )

    @property
    def arriving(self) -> Mapping[str, TensorSpec]:
        """Specs of the tensors that the frames for this stage carry together, by name."""
        return self._forms.arriving

    @property
    def received(self) -> tuple[str, ...]:
        """Names of the tensors that the frames for this stage carry together."""
        return self._crossing.received

    @property
    def keeps(self) -> tuple[StreamState, ...]:
        """The states that may stay here between two requests of a stream: this stage both reads and makes them."""
        return self._keeps

    def zeros(self) -> dict[str, Array]:
        """Return what `keeps` begins with, by input name."""
        specs = [self._forms.arriving[state.input] for state in self._keeps]
        return {spec.name: zeros_of(spec.dtype, [dim or 0 for dim in spec.shape]) for spec in specs}

    def run_in_stream(
        self, tensors: Mapping[str, Array], before: Mapping[str, Array]
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Run the stage once, with states that were kept in the place of those that came as `ELSEWHERE`.

        Args:
            tensors: what the stage receives, by name; where a state is kept elsewhere it stays `ELSEWHERE`.
            before: value of each of `keeps`, by input name.

        Returns:
            What the stage sends, by name, `ELSEWHERE` for the states that are kept here; and those, by input name.

        Raises:
            InvalidInput, StageError: as `run`.
        """
        here = [state for state in self._keeps if is_elsewhere(tensors.get(state.input))]
        given = {**tensors, **{state.input: before[state.input] for state in here}}
        away = frozenset(name for name in self._states if is_elsewhere(given.get(name)))
        sent = self._run(given, away)
        after = {state.input: sent[state.output] for state in here}
        return {**sent, **{state.output: ELSEWHERE for state in here}}, after

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
        return self._run(tensors, frozenset())

    def _run(self, tensors: Mapping[str, Array], away: AbstractSet[str]) -> dict[str, Array]:
        """Run once; tensors in `away` are kept by another stage, and only pass."""
        if self._session is None:
            raise RuntimeError("the stage is closed")
        self._check(tensors, away)
        made: dict[str, Array] = {}
        if self._crossing.session_outputs:
            wanted = {name: tensors[name] for name in self._crossing.session_inputs}
            made = _changed(self._session.run(_changed(wanted, self._forms.entering)), self._forms.leaving)
        passed = {name: tensors[name] for name in self._crossing.sent if name not in made}
        passing = {name: change for name, change in self._forms.passing.items() if name not in away}
        both = _changed(passed, passing) | made
        return {name: both[name] for name in self._crossing.sent}

    def _check(self, tensors: Mapping[str, Array], away: AbstractSet[str]) -> None:
        arriving = self._forms.arriving
        if tensors.keys() != arriving.keys():
            raise InvalidInput(f"stage takes the tensors {sorted(arriving)}, the frame has {sorted(tensors)}")
        if read := sorted(away & set(self._crossing.session_inputs)):
            raise StreamLost(f"state {read[0]!r} is not kept by this stage")
        for name, expected in arriving.items():
            if name in away:
                continue
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


def _changed(tensors: dict[str, Array], changes: Mapping[str, Callable[[Array], Array]]) -> dict[str, Array]:
    return {name: changes[name](array) if name in changes else array for name, array in tensors.items()}


def _check_runtime(manifest: Manifest, runtime: Runtime) -> ShardFormat:
    """Return which shards a runtime takes.

    Raises:
        UnsupportedOperator: the bundle cannot run on this runtime, or needs a newer one.
    """
    offer = runtime.offer()
    needs = {need.name: need.least_version for need in manifest.needs}
    if offer.name not in needs:
        raise UnsupportedOperator(f"{manifest.name} runs on {', '.join(sorted(needs))}; this device has {offer.name}")
    if _release(offer.version) < _release(needs[offer.name]):
        raise UnsupportedOperator(
            f"{manifest.name} needs {offer.name} {needs[offer.name]} or newer; this device has {offer.version}"
        )
    return SHARD_FORMATS.get(offer.name, "onnx")


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def load_stage(  # noqa: PLR0913 - all that a stage is made of, given by name
    manifest: Manifest,
    first_shard: int,
    stop_shard: int,
    *,
    route: Route | None = None,
    runtime: Runtime,
    options: StageOptions,
    read_blob: ReadBlob,
    weights_folder: Path,
    arrives: ShardFormat | None = None,
    leaves: ShardFormat | None = None,
) -> Stage:
    """Compose the stage `[first_shard, stop_shard)` and load it.

    Args:
        manifest: the whole one; which of its builds is loaded follows from the runtime.
        first_shard: of the stage.
        stop_shard: after its last.
        route: of the stage; without one it is alone in its step.
        runtime: that loads it.
        options: how.
        read_blob: gives verified blobs.
        weights_folder: where ONNX Runtime finds the weights.
        arrives: format in whose form tensors come; None for the manifest's own.
        leaves: in whose form they go; None for the manifest's own.

    Raises:
        BundleError: a shard is malformed, or the bundle has no such form.
        UnsupportedOperator: the bundle needs another runtime or a newer one.
        StageError: the runtime refuses it.
    """
    runs = _check_runtime(manifest, runtime)
    view, own = manifest.in_format(runs), manifest.shard_format
    crossing = stage_tensors(view, first_shard, stop_shard, route)
    forms = stage_forms(manifest, crossing, arrives=arrives or own, runs=runs, leaves=leaves or own)
    model = compose(view, first_shard, stop_shard, route=route, read_blob=read_blob, weights_folder=weights_folder)
    return Stage(crossing, forms, runtime.load(model, options), [state for state in manifest.states if state.kept])
