"""Whether tensors should travel compressed: a plan for each way, and the better one. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edge.formats.bundle import Manifest
from edge.formats.plan import Codec, Constraints, Objective, Plan
from host.errors import PlanError
from host.planning.costs import DeviceCost, Network
from host.planning.explain import Planner, Question
from host.planning.left_out import effective_period
from host.planning.price import memory_of
from host.planning.workload import shard_constraints, workload_of

BOTH: tuple[Codec, ...] = ("raw", "deflate")
"""The codecs there are, the simplest first."""

# Seen on an x86-64 machine: zlib level 1 takes 14 ns for each byte of rectified normal values, int8 and float32, and
# 3.5 ns to have it back. A byte of a message counts as 1 ns on such a machine (`host.planning.devices`), and as more on
# one that is slower at both.
_DEFLATE_MESSAGES = 14.0
_INFLATE_MESSAGES = 3.5
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True, slots=True)
class CodecPlan:
    """A plan and how its tensors travel.

    Attributes:
        codec: of the plan.
        plan: the best with it.
        question: that it answers.
    """

    codec: Codec
    plan: Plan
    question: Question


def codec_question(
    manifest: Manifest,
    devices: Sequence[DeviceCost],
    *,
    network: Network,
    constraints: Constraints,
    objective: Objective,
    window: int,
    codec: Codec,
) -> Question:
    """Return what the planner is to be asked for a bundle whose tensors travel in one way.

    Args:
        manifest: of the bundle.
        devices: as they are with tensors that travel raw.
        network: between them.
        constraints: pins name layers.
        objective: what is least.
        window: requests in flight.
        codec: how tensors travel.
    """
    return Question(
        workload=workload_of(manifest, codec=codec),
        devices=tuple(devices) if codec == "raw" else deflating(devices),
        network=network,
        constraints=shard_constraints(manifest, constraints),
        objective=objective,
        window=window,
    )


def best_codec(
    manifest: Manifest,
    devices: Sequence[DeviceCost],
    planner: Planner,
    *,
    network: Network,
    constraints: Constraints,
    objective: Objective,
    window: int,
    codecs: Sequence[Codec] = BOTH,
) -> CodecPlan:
    """Plan with each codec and return the plan that is better by the objective; the first of those that are equal.

    Args:
        manifest: of the bundle.
        devices: as they are with tensors that travel raw.
        planner: makes the plans.
        network: between the devices.
        constraints: pins name layers.
        objective: what is least.
        window: requests in flight.
        codecs: to choose from, at least one.

    Raises:
        PlanError: nothing fits, with any of them.
    """
    best: CodecPlan | None = None
    failure: PlanError | None = None
    for codec in codecs:
        question = codec_question(
            manifest,
            devices,
            network=network,
            constraints=constraints,
            objective=objective,
            window=window,
            codec=codec,
        )
        try:
            plan = planner(
                question.workload,
                question.devices,
                objective=objective,
                window=window,
                network=network,
                constraints=question.constraints,
            )
        except PlanError as error:
            failure = failure or error
            continue
        found = CodecPlan(codec=codec, plan=plan, question=question)
        if best is None or _value(found) < _value(best) * (1 - _ROUNDING):
            best = found
    if best is None:
        raise failure or PlanError("no codec to plan with")
    return best


def plan_value(plan: Plan, objective: Objective, memory_bytes: Mapping[str, int], *, window: int) -> float:
    """Return what an objective minimises.

    Args:
        plan: any.
        objective: which.
        memory_bytes: that each device of the plan has for a stage, by name.
        window: requests in flight.
    """
    match objective:
        case "throughput":
            return effective_period(plan, window)
        case "latency":
            return plan.latency_seconds
        case "energy":
            return plan.energy_joules
        case "memory":
            return max(needed / max(1, memory_bytes[name]) for name, needed in memory_of(plan.stages).items())


def _value(found: CodecPlan) -> float:
    memory = {device.name: device.memory_bytes for device in found.question.devices}
    return plan_value(found.plan, found.question.objective, memory, window=found.question.window)


def deflating(devices: Sequence[DeviceCost]) -> tuple[DeviceCost, ...]:
    """Return devices that compress what they send and unpack what they receive.

    Who sends compresses every frame, also one that then travels as it is.

    Args:
        devices: as they are with tensors that travel raw.
    """
    return tuple(
        dataclasses.replace(
            device,
            deflate_seconds_per_byte=device.message_seconds_per_byte * _DEFLATE_MESSAGES,
            inflate_seconds_per_byte=device.message_seconds_per_byte * _INFLATE_MESSAGES,
        )
        for device in devices
    )
