"""Random mixed plans: each tensor is converted at most once on its way, and every stage gets what its session holds."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import msgspec
import numpy as np

from edge.errors import FormatError
from edge.formats.bundle import BoundaryTensor, Build, Form, Manifest, RuntimeNeed, ShardFormat
from edge.formats.plan import Plan, Stage
from edge.formats.tensor import Array, TensorSpec
from edge.forms import convert, same_form
from edge.protocol.builds import crossing_formats, format_by, planned_format
from edge.routes import Route, routes, stage_reads
from edge.stage import Stage as LoadedStage
from edge.stage import StageForms, StageTensors, stage_forms
from host.planning.forms import with_takes
from host.planning.workload import workload_of
from tests.plans import device
from tests.tiny_bundle import make_diamond_bundle

DIAMOND = make_diamond_bundle().manifest
SHAPE = (2, 3)
CASES = 400


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model with two builds, a plan of it with the form that each step takes, and its routes."""

    manifest: Manifest
    plan: Plan
    ways: tuple[Route, ...]


def random_form(rng: random.Random, name: str) -> Form | None:
    axes = rng.choice([(), (1, 0)])
    quantized = rng.random() < 0.4
    if not axes and not quantized:
        return None
    if quantized:
        return Form(name=name, dtype="int8", axes=axes, scale=0.05, zero_point=rng.randrange(-9, 9))
    return Form(name=name, dtype=rng.choice(["float32", "float16"]), axes=axes)


def random_manifest(rng: random.Random) -> Manifest:
    count = rng.randint(2, 7)
    names = ["x", *(f"t{index}" for index in range(count))]
    reads = [tuple(rng.sample(names[: index + 1], rng.randint(1, min(3, index + 1)))) for index in range(count)]
    outputs = sorted({name for name in names[1:] if not any(name in one for one in reads)} | {rng.choice(names)})
    cuts: list[tuple[str, ...]] = [("x",)]
    for stop in range(1, count):
        later = {name for one in reads[stop:] for name in one} | set(outputs)
        cuts.append(tuple(name for name in names[: stop + 1] if name in later))
    shards = tuple(
        msgspec.structs.replace(DIAMOND.shards[0], first_layer=index, stop_layer=index + 1, reads=one)
        for index, one in enumerate(reads)
    )
    tensors = {
        name: BoundaryTensor(
            spec=TensorSpec(name=name, dtype="float32", shape=SHAPE), size_bytes=24, as_input=b"", as_output=b""
        )
        for name in names
    }
    forms = (random_form(rng, name) for name in names)
    build = Build(
        runtimes=(RuntimeNeed(name="litert", least_version="1.0"),),
        operators=(),
        shards=shards,
        forms=tuple(form for form in forms if form is not None),
    )
    return msgspec.structs.replace(
        DIAMOND,
        layers=DIAMOND.layers[:1] * count,
        shards=shards,
        cuts=(*cuts, tuple(outputs)),
        tensors=tuple(tensors.values()),
        inputs=(tensors["x"].spec,),
        outputs=tuple(tensors[name].spec for name in outputs),
        builds=(build,),
    )


def random_case(seed: int) -> Case | None:
    """Return a case, None where the stages that shall run side by side read from each other."""
    rng = random.Random(seed)
    manifest = random_manifest(rng)
    count = len(manifest.shards)
    stops = [*sorted(rng.sample(range(1, count), rng.randint(0, count - 1))), count]
    stages = tuple(
        Stage(
            index=index,
            device=f"d{index}",
            first_shard=first,
            stop_shard=stop,
            replicas=(f"r{index}",) if rng.random() < 0.2 else (),
            beside=1 < index < len(stops) - 1 and rng.random() < 0.4,
            predicted_seconds=rng.choice([0.1, 0.2, 0.3]),
        )
        for index, (first, stop) in enumerate(zip([0, *stops], stops, strict=False))
    )
    runtimes = {name: rng.choice(["onnxruntime", "litert"]) for stage in stages for name in stage.runners}
    plan = Plan(
        objective="throughput", stages=stages, bottleneck_seconds=1, latency_seconds=1, binds="", runtimes=runtimes
    )
    try:
        routes(manifest, plan)
    except FormatError:
        return None
    workload, steps = workload_of(manifest), plan.steps()
    devices = {name: replace(device(name, *(0.1,) * count), runtime=runtime) for name, runtime in runtimes.items()}
    plan = msgspec.structs.replace(
        plan,
        stages=with_takes(
            steps,
            workload,
            devices,
            lambda place, form: workload.of(form).shards[steps[place][0].first_shard].received_bytes,
        ),
    )
    return Case(manifest=manifest, plan=plan, ways=routes(manifest, plan))


def value_of(name: str) -> Array:
    """The one right value of a tensor, in the manifest's own form."""
    return np.random.default_rng(sum(name.encode())).uniform(-3, 3, SHAPE).astype(np.float32)


def has_value(manifest: Manifest, name: str, array: Array, form: Form) -> bool:
    """Whether an array in some form is the right value, but for what the coarser of both forms rounds away."""
    own = manifest.form(name, "onnx")
    other = manifest.form(name, "tflite")
    slack = other.scale or (0.002 if other.dtype == "float16" else 0.0)
    return array.dtype == form.dtype and np.abs(convert(array, form, own) - value_of(name)).max() <= slack


@dataclass(frozen=True, kw_only=True)
class Session:
    """Checks that what it gets is in the form of its build, and gives what is."""

    manifest: Manifest
    runs: ShardFormat
    outputs: tuple[str, ...]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        for name, array in feeds.items():
            assert has_value(self.manifest, name, array, self.manifest.form(name, self.runs)), (name, self.runs)
        return {
            name: convert(value_of(name), self.manifest.form(name, "onnx"), self.manifest.form(name, self.runs))
            for name in self.outputs
        }

    def close(self) -> None:
        """Nothing to free."""


@dataclass(kw_only=True)
class Device:
    """A stage on one of its runners, and which tensors it converted at which border."""

    stage: LoadedStage
    runs: ShardFormat
    crossing: StageTensors
    came: Counter[str] = field(default_factory=Counter)
    went: Counter[str] = field(default_factory=Counter)


def counting(
    changes: Mapping[str, Callable[[Array], Array]], count: Counter[str]
) -> dict[str, Callable[[Array], Array]]:
    def counted(name: str, change: Callable[[Array], Array]) -> Callable[[Array], Array]:
        def call(array: Array) -> Array:
            count[name] += 1
            return change(array)

        return call

    return {name: counted(name, change) for name, change in changes.items()}


def loaded(case: Case, stage: Stage, name: str) -> Device:
    manifest, way = case.manifest, case.ways[stage.index]
    reads = stage_reads(manifest, stage.first_shard, stage.stop_shard)
    crossing = StageTensors(
        received=way.received,
        session_inputs=tuple(one for one in way.received if one in reads),
        session_outputs=tuple(one for one in way.sent if one not in way.received),
        sent=way.sent,
    )
    arrives, leaves = crossing_formats(manifest, case.plan, stage)
    runs = format_by(case.plan.runtimes[name])
    forms = stage_forms(manifest, crossing, arrives=arrives, runs=runs, leaves=leaves)
    came, went = Counter[str](), Counter[str]()
    counted = StageForms(
        arriving=forms.arriving,
        entering=counting(forms.entering, came),
        passing=counting(forms.passing, went),
        leaving=counting(forms.leaving, went),
    )
    session = Session(manifest=manifest, runs=runs, outputs=crossing.session_outputs)
    return Device(stage=LoadedStage(crossing, counted, session), runs=runs, crossing=crossing, came=came, went=went)


def run(case: Case, rng: random.Random) -> tuple[dict[int, Device], dict[str, Array]]:
    """Send a request through the plan, each stage on one of its runners; return these and the answer."""
    devices: dict[int, Device] = {}
    frames: dict[int, dict[str, Array]] = {0: {"x": value_of("x")}}
    sent: dict[str, Array] = {}
    for stage in case.plan.stages:
        devices[stage.index] = made = loaded(case, stage, rng.choice(stage.runners))
        sent = made.stage.run(frames[stage.index])
        for hand in case.ways[stage.index].hands:
            frames.setdefault(hand.stage, {}).update({name: sent[name] for name in hand.names})
    return devices, sent


def test_every_tensor_is_converted_at_most_once_between_two_stages_and_arrives_right() -> None:
    seen: Counter[str] = Counter()
    for seed in range(CASES):
        case = random_case(seed)
        if case is None:
            continue
        devices, answer = run(case, random.Random(seed))
        for name, array in answer.items():
            assert has_value(case.manifest, name, array, case.manifest.form(name, "onnx")), (seed, name)
        for sender, way in enumerate(case.ways):
            for hand in way.hands:
                alike = all(len(forms_of(case, index)) == 1 for index in (sender, hand.stage))
                seen.update(check(case, devices[sender], devices[hand.stage], hand.names, alike=alike))
    assert seen.keys() == {"as it is", "by the sender", "by the receiver"}, "every way occurs"


def forms_of(case: Case, index: int) -> set[str]:
    """The formats that run in the step of a stage."""
    step = next(step for step in case.plan.steps() if any(stage.index == index for stage in step))
    return {planned_format(case.plan, name) for stage in step for name in stage.runners}


def check(case: Case, sender: Device, receiver: Device, names: tuple[str, ...], *, alike: bool) -> list[str]:
    """Check one hand; where those side by side run several builds, some tensors may go there and back."""
    found: list[str] = []
    for name in names:
        out, back = sender.went[name], receiver.came[name]
        assert out <= 1
        assert back <= 1
        assert out + back <= 1 or not alike, name
        if alike and name in sender.crossing.session_outputs and name in receiver.crossing.session_inputs:
            unlike = not same_form(case.manifest.form(name, sender.runs), case.manifest.form(name, receiver.runs))
            assert out + back == unlike, name
        found.append("by the sender" if out else "by the receiver" if back else "as it is")
    return found


def test_where_all_run_one_build_of_the_bundles_own_form_nothing_is_converted() -> None:
    for seed in range(100):
        case = random_case(seed)
        if case is None:
            continue
        plan = case.plan
        stages = tuple(msgspec.structs.replace(stage, takes="") for stage in plan.stages)
        alike = msgspec.structs.replace(plan, stages=stages, runtimes=dict.fromkeys(plan.runtimes, "onnxruntime"))
        devices, _ = run(replace(case, plan=alike), random.Random(seed))
        assert not any(made.came or made.went for made in devices.values())
