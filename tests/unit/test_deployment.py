"""Deployments are checked as they are read: names, bounds, steps, and which places a device has."""

from typing import Any

import msgspec
import pytest

from edge.errors import FormatError
from edge.formats.canary import Canary
from edge.formats.plan import (
    MAX_CONSTRAINTS,
    MAX_REPLICAS,
    MAX_WINDOW,
    Constraints,
    Deployment,
    LeftOut,
    Pin,
    Stage,
    decode_deployment,
    encode_deployment,
)
from tests.tiny_bundle import make_deployment, make_diamond_bundle

DEVICES = ("pi-0", "pi-1", "pi-2", "pi-3")
DEPLOYMENT = make_deployment(
    make_diamond_bundle(), DEVICES, beside=(2,), replicas={1: ("pi-4", "pi-5")}, codec="deflate"
)
assert DEPLOYMENT.plan is not None
PLAN = DEPLOYMENT.plan


def changed(stage: int, **fields: Any) -> Deployment:
    """The deployment with other fields in one stage."""
    stages = list(PLAN.stages)
    stages[stage] = msgspec.structs.replace(stages[stage], **fields)
    return msgspec.structs.replace(DEPLOYMENT, plan=msgspec.structs.replace(PLAN, stages=tuple(stages)))


def constrained(**fields: Any) -> Deployment:
    return msgspec.structs.replace(DEPLOYMENT, constraints=Constraints(**fields))


def refusal(deployment: Deployment) -> str:
    with pytest.raises(FormatError) as caught:
        decode_deployment(encode_deployment(deployment))
    return str(caught.value)


def test_everything_is_read_back_as_it_was_written() -> None:
    full = msgspec.structs.replace(
        DEPLOYMENT,
        constraints=Constraints(
            devices=DEVICES,
            without=("pi-9",),
            pins=(Pin(layer=0, device="pi-0"),),
            forbidden=(Pin(layer=3, device="pi-0"),),
            use_all=True,
            most_replicas=2,
            side_by_side=False,
        ),
    )
    assert decode_deployment(encode_deployment(full)) == full


def test_a_document_of_the_first_release_is_still_read() -> None:
    old = {
        "format": "1.0",
        "name": "tiny",
        "epoch": "1-a-1",
        "manifest": msgspec.to_builtins(DEPLOYMENT.manifest),
        "holders": ["boss"],
        "window": 8,
        "plan": {
            "objective": "latency",
            "bottleneck_seconds": 0.1,
            "latency_seconds": 0.2,
            "binds": "compute of pi-0",
            "stages": [
                {"index": 0, "device": "pi-0", "first_shard": 0, "stop_shard": 2, "standbys": ["pi-7"]},
                {"index": 1, "device": "pi-1", "first_shard": 2, "stop_shard": 4, "predicted_seconds": 0.1},
            ],
        },
    }
    deployment = decode_deployment(msgspec.json.encode(old))
    assert deployment.plan is not None
    assert [stage.devices for stage in deployment.plan.stages] == [("pi-0", "pi-7"), ("pi-1",)]
    assert (deployment.codec, deployment.constraints) == ("raw", Constraints())


@pytest.mark.parametrize("name", ["a/b", "+", "", "A"])
@pytest.mark.parametrize(
    "make",
    [
        lambda name: changed(1, replicas=(name,)),
        lambda name: changed(1, standbys=(name,)),
        lambda name: constrained(devices=(name,)),
        lambda name: constrained(without=(name,)),
        lambda name: constrained(pins=(Pin(layer=0, device=name),)),
        lambda name: constrained(forbidden=(Pin(layer=0, device=name),)),
        lambda name: msgspec.structs.replace(
            DEPLOYMENT,
            plan=msgspec.structs.replace(PLAN, left_out=(LeftOut(device=name, reason="slow"),)),
        ),
    ],
    ids=["replica", "standby", "device", "without", "pin", "forbidden", "left out"],
)
def test_names_that_would_break_out_of_a_topic_are_refused(make: Any, name: str) -> None:
    assert "is not allowed: use 1 to 63 of a-z, 0-9 and '-'" in refusal(make(name))


@pytest.mark.parametrize(
    ("deployment", "text"),
    [
        (changed(0, beside=True), "the first and the last step must have one stage each"),
        (changed(3, beside=True), "the first and the last step must have one stage each"),
        (changed(1, replicas=("pi-3",)), "pi-3 has two places in its plan"),
        (changed(1, replicas=("pi-1",)), "pi-1 has two places in its plan"),
        (changed(0, standbys=("pi-0",)), "stage 0 names a device twice, or too many"),
        (changed(0, standbys=("pi-2",), keepers=("pi-2",)), "stage 0 names a device twice, or too many"),
        (changed(0, swaps=("pi-2",)), "stage 0: 'pi-2' swaps, and has no part in it"),
        (
            msgspec.structs.replace(DEPLOYMENT, canary=Canary(share=1.0)),
            "a canary gets more than none and less than all requests, not 1",
        ),
        (
            msgspec.structs.replace(DEPLOYMENT, canary=Canary(share=0.1, seconds=-1.0)),
            "a canary takes 0 to 604800 s, not -1",
        ),
        (msgspec.structs.replace(DEPLOYMENT, issued="today"), "issued 'today' is not YYYY-MM-DDTHH:MM:SSZ"),
        (constrained(standbys=9), "standbys 9 is not within 0 and 8"),
        (changed(2, device="pi-0"), "pi-0 has two places in its plan"),
        (changed(1, first_shard=0), "stage 1 does not continue shard 1"),
        (changed(2, index=1), "stage 2 does not continue shard 2"),
        (
            changed(1, replicas=tuple(f"d{index}" for index in range(MAX_REPLICAS + 1))),
            "4097 replicas; at most 4096 are allowed",
        ),
        (msgspec.structs.replace(DEPLOYMENT, window=0), "window 0 is not within 1 and 4096"),
        (
            msgspec.structs.replace(DEPLOYMENT, window=MAX_WINDOW + 1),
            "window 4097 is not within 1 and 4096",
        ),
        (constrained(most_replicas=0), "most_replicas 0 is not within 1 and 4096"),
        (constrained(most_replicas=MAX_REPLICAS + 1), "most_replicas 4097 is not within 1 and 4096"),
        (constrained(pins=(Pin(layer=-1, device="pi-0"),)), "constraints name layer -1"),
        (
            constrained(without=("pi-0",) * (MAX_CONSTRAINTS + 1)),
            "4097 constraints; at most 4096 are allowed",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_out_of_bounds_is_refused(deployment: Deployment, text: str) -> None:
    assert refusal(deployment) == f"deployment 'tiny': {text}"


def test_a_codec_that_is_not_known_is_refused() -> None:
    data = encode_deployment(DEPLOYMENT).replace(b'"codec":"deflate"', b'"codec":"zstd"')
    with pytest.raises(FormatError, match="Invalid enum value 'zstd'"):
        decode_deployment(data)


def placed(*devices: str, beside: tuple[int, ...], replicas: dict[int, tuple[str, ...]] | None = None) -> Deployment:
    """A deployment of one shard a stage."""
    more = replicas or {}
    stages = tuple(
        Stage(
            index=index,
            device=device,
            first_shard=index,
            stop_shard=index + 1,
            beside=index in beside,
            replicas=more.get(index, ()),
        )
        for index, device in enumerate(devices)
    )
    return msgspec.structs.replace(DEPLOYMENT, plan=msgspec.structs.replace(PLAN, stages=stages))


@pytest.mark.parametrize(
    "deployment",
    [
        placed("a", "b", "c", "a", beside=(2,)),
        placed("a", "b", "c", "d", "a", beside=(2, 3)),
        placed("a", "b", "c", "d", "a", beside=(3,)),
        placed("a", "b", "c", "d", "a", beside=(2,)),
        placed("a", "b", "c", "d", "a", "b", beside=(3,)),
        placed("a", "b", "c", "d", "e", "f", "d", "a", beside=(2, 5)),
        placed("a", "b", "c", "a", beside=(2,), replicas={1: ("d",), 2: ("e", "f")}),
    ],
    ids=lambda deployment: " ".join(stage.device for stage in deployment.plan.stages),
)
def test_a_device_may_stand_alone_on_both_sides_of_others_that_run_side_by_side(deployment: Deployment) -> None:
    assert decode_deployment(encode_deployment(deployment)) == deployment


@pytest.mark.parametrize(
    "deployment",
    [
        placed("a", "a", beside=()),
        placed("a", "b", "a", beside=()),
        placed("a", "a", "b", "c", "d", beside=(3,)),
        placed("b", "c", "d", "a", "a", beside=(2,)),
        placed("b", "a", "a", "c", beside=(2,)),
        placed("a", "a", "b", "c", beside=(2,)),
        placed("a", "b", "a", "c", beside=(2,)),
        placed("b", "a", "c", "d", "a", "e", "f", beside=(2, 4)),
        placed("a", "b", "c", "a", "d", "e", "a", beside=(2, 5)),
        placed("a", "b", "c", "a", beside=(2,), replicas={0: ("d",)}),
        placed("a", "b", "c", "a", beside=(2,), replicas={3: ("d",)}),
        placed("d", "b", "c", "a", beside=(2,), replicas={0: ("a",)}),
        placed("a", "b", "c", "d", beside=(2,), replicas={1: ("a",)}),
        placed("a", "b", "c", "a", beside=(2,), replicas={1: ("a",)}),
        placed("d", "b", "c", "e", beside=(2,), replicas={0: ("a",), 3: ("a",)}),
        placed("d", "b", "c", "e", beside=(2,), replicas={0: ("a", "a")}),
    ],
    ids=lambda deployment: " ".join("+".join(stage.devices) for stage in deployment.plan.stages),
)
def test_any_other_second_place_is_refused(deployment: Deployment) -> None:
    assert refusal(deployment) == "deployment 'tiny': a has two places in its plan"


@pytest.mark.parametrize("stages", [{0: ("d",)}, {3: ("b",)}, {1: ("a",)}, {0: ("d",), 3: ("e",)}], ids=str)
def test_a_standby_may_run_another_stage(stages: dict[int, tuple[str, ...]]) -> None:
    twice = placed("a", "b", "c", "a", beside=(2,))
    assert twice.plan is not None
    changed = tuple(msgspec.structs.replace(stage, standbys=stages.get(stage.index, ())) for stage in twice.plan.stages)
    deployment = msgspec.structs.replace(twice, plan=msgspec.structs.replace(twice.plan, stages=changed))
    assert decode_deployment(encode_deployment(deployment)) == deployment
