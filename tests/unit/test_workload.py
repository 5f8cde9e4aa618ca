"""From a manifest to what the planner places: bytes by codec, and pins of layers as pins of shards."""

from __future__ import annotations

import re

import msgspec
import pytest

from edge.formats.bundle import Manifest
from edge.formats.plan import Constraints, Pin
from host.errors import PlanError
from host.planning.workload import shard_constraints, workload_of
from tests.dag_bundle import INPUT, manifest_of_reads


def _chain(layers: int = 6, *, per_shard: int = 2) -> Manifest:
    """A chain of layers, so many in each shard."""
    manifest = manifest_of_reads([[INPUT], *([index] for index in range(layers - 1))])
    shards = tuple(
        msgspec.structs.replace(
            manifest.shards[first],
            first_layer=first,
            stop_layer=first + per_shard,
        )
        for first in range(0, layers, per_shard)
    )
    return msgspec.structs.replace(manifest, shards=shards)


def test_cut_bytes_are_those_of_the_tensors_as_they_are() -> None:
    workload = workload_of(_chain())

    assert [shard.received_bytes for shard in workload.shards] == [8, 32, 128]
    assert [shard.sent_bytes for shard in workload.shards] == [32, 128, 512]


def test_with_deflate_a_tensor_counts_as_small_as_it_became_where_that_was_measured() -> None:
    manifest = _chain()
    deflated = {"x": 5, "t1": 0, "t3": 200, "t5": 100}
    tensors = tuple(
        msgspec.structs.replace(tensor, deflated_bytes=deflated.get(tensor.spec.name, 0)) for tensor in manifest.tensors
    )
    manifest = msgspec.structs.replace(manifest, tensors=tensors)

    workload = workload_of(manifest, codec="deflate")

    assert [shard.received_bytes for shard in workload.shards] == [5, 32, 128]
    assert workload.shards[-1].sent_bytes == 100


def _pins(*pairs: tuple[int, str]) -> tuple[Pin, ...]:
    return tuple(Pin(layer=layer, device=device) for layer, device in pairs)


def test_pins_of_layers_become_pins_of_the_shards_that_hold_them() -> None:
    asked = Constraints(pins=_pins((-1, "b"), (0, "a"), (1, "a")), forbidden=_pins((3, "a")), use_all=True)

    found = shard_constraints(_chain(), asked)

    assert found == Constraints(pins=_pins((0, "a"), (2, "b")), forbidden=_pins((1, "a")), use_all=True)


@pytest.mark.parametrize(
    ("constraints", "said"),
    [
        (
            Constraints(pins=_pins((6, "a"))),
            "layer 6 of 'dag' for 'a': it has the layers 0 to 5",
        ),
        (
            Constraints(forbidden=_pins((-7, "a"))),
            "layer -7 of 'dag' for 'a': it has the layers 0 to 5",
        ),
        (
            Constraints(pins=_pins((2, "b"), (3, "a"))),
            "layers 2 to 3 of 'dag' are one shard, which is pinned on 'a' and on 'b': pin one of them",
        ),
        (
            Constraints(pins=_pins((0, "a")), forbidden=_pins((1, "a"))),
            (
                "layers 0 to 1 of 'dag' are one shard, which is pinned on 'a' and forbidden there: "
                "leave one of the two out"
            ),
        ),
        (
            Constraints(pins=_pins((0, "a")), without=("a",)),
            (
                "layers 0 to 1 of 'dag' are one shard, which is pinned on 'a', which may not take part: "
                "let it, or pin another device"
            ),
        ),
        (
            Constraints(pins=_pins((0, "a")), devices=("b",)),
            (
                "layers 0 to 1 of 'dag' are one shard, which is pinned on 'a', which may not take part: "
                "let it, or pin another device"
            ),
        ),
    ],
)
def test_pins_that_cannot_be_kept_are_refused_in_one_line(constraints: Constraints, said: str) -> None:
    with pytest.raises(PlanError, match=f"^{re.escape(said)}$"):
        shard_constraints(_chain(), constraints)


def test_a_layer_alone_in_its_shard_is_called_so() -> None:
    with pytest.raises(PlanError, match=r"^layer 5 of 'dag' is pinned on 'a' and on 'b': pin one of them$"):
        shard_constraints(_chain(per_shard=1), Constraints(pins=_pins((5, "a"), (-1, "b"))))
