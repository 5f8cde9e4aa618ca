"""What a client learns of deployments, and how it gets their manifests."""

import msgspec
import pytest

from edge.errors import BundleError
from edge.formats.plan import Deployment
from edge.protocol.catalogue import Catalogue, CatalogueAction, Removed, Unusable
from edge.protocol.fetch import AskBlock, answer_fetch
from edge.protocol.requests import Route
from tests.tiny_bundle import make_deployment, make_tiny_bundle

BUNDLE = make_tiny_bundle()
FIRST = make_deployment(BUNDLE, ("pi-1", "pi-2"), holders=("boss",))


@pytest.fixture
def catalogue() -> Catalogue:
    return Catalogue(reply_to="shardwire/default/blocks/cam")


def answer(catalogue: Catalogue, actions: list[CatalogueAction]) -> list[CatalogueAction]:
    out: list[CatalogueAction] = []
    for action in actions:
        assert isinstance(action, AskBlock)
        out += catalogue.block(answer_fetch(action.request, BUNDLE.read_block), 0.0)
    return out


def test_nothing_is_fetched_for_a_deployment_that_nobody_asked_for(catalogue: Catalogue) -> None:
    assert catalogue.seen(FIRST, 0.0) == []
    assert catalogue.deployments() == (FIRST,)


@pytest.mark.parametrize("seen_first", [True, False])
def test_the_manifest_comes_from_a_device_that_runs_it(catalogue: Catalogue, seen_first: bool) -> None:
    if seen_first:
        catalogue.seen(FIRST, 0.0)
        actions = catalogue.want("tiny", 0.0)
    else:
        catalogue.want("tiny", 0.0)
        actions = catalogue.seen(FIRST, 0.0)
    assert [action.holder for action in actions if isinstance(action, AskBlock)] == ["pi-1"]
    assert catalogue.fetching
    assert answer(catalogue, actions) == [Route(deployment=FIRST, manifest=BUNDLE.manifest)]
    assert not catalogue.fetching


def test_a_new_epoch_of_the_same_bundle_needs_no_fetch(catalogue: Catalogue) -> None:
    catalogue.want("tiny", 0.0)
    answer(catalogue, catalogue.seen(FIRST, 0.0))
    newer = msgspec.structs.replace(FIRST, epoch="1-a-2")
    assert catalogue.seen(newer, 1.0) == [Route(deployment=newer, manifest=BUNDLE.manifest)]
    assert catalogue.seen(FIRST, 2.0) == [], "an older epoch is ignored"


def test_the_next_holder_is_asked_when_one_is_silent(catalogue: Catalogue) -> None:
    catalogue.want("tiny", 0.0)
    catalogue.seen(FIRST, 0.0)
    actions = catalogue.tick(3.5)
    assert [action.holder for action in actions if isinstance(action, AskBlock)] == ["pi-2"]


def test_replicas_are_asked_too(catalogue: Catalogue) -> None:
    catalogue.want("tiny", 0.0)
    deployment = make_deployment(BUNDLE, ("pi-1", "pi-2"), replicas={0: ("pi-3",)}, holders=())
    asked = [action.holder for action in catalogue.seen(deployment, 0.0) if isinstance(action, AskBlock)]
    for now in (3.5, 7.0, 10.5):
        asked += [action.holder for action in catalogue.tick(now) if isinstance(action, AskBlock)]
    assert list(dict.fromkeys(asked)) == ["pi-1", "pi-3", "pi-2"]


def test_a_manifest_that_nobody_gives_makes_the_deployment_unusable(catalogue: Catalogue) -> None:
    catalogue.want("tiny", 0.0)
    catalogue.seen(FIRST, 0.0)
    actions: list[CatalogueAction] = []
    now = 0.0
    while not any(isinstance(action, Unusable) for action in actions):
        now += 4.0
        assert now < 200
        actions = catalogue.tick(now)
    (unusable,) = actions
    assert isinstance(unusable, Unusable)
    assert isinstance(unusable.error, BundleError)
    assert "boss does not answer" in str(unusable.error)
    assert catalogue.seen(FIRST, now), "when it is shown again, it is tried again"


def test_no_holder_is_blamed_while_the_connection_is_down(catalogue: Catalogue) -> None:
    catalogue.want("tiny", 0.0)
    catalogue.seen(FIRST, 0.0)
    catalogue.paused()
    assert [catalogue.tick(now) for now in range(4, 200, 4)] == [[]] * 49
    (route,) = answer(catalogue, catalogue.resumed(200.0))
    assert isinstance(route, Route)


def test_bytes_that_are_no_manifest_are_told_as_such(catalogue: Catalogue) -> None:
    graph = BUNDLE.manifest.shards[0].graph
    catalogue.want("tiny", 0.0)
    wrong = msgspec.structs.replace(FIRST, manifest=graph)
    (unusable,) = answer(catalogue, catalogue.seen(wrong, 0.0))
    assert isinstance(unusable, Unusable)
    assert str(unusable.error).startswith("manifest: JSON is malformed")


def test_an_absurd_manifest_is_not_even_begun(catalogue: Catalogue) -> None:
    catalogue.want("tiny", 0.0)
    huge = msgspec.structs.replace(BUNDLE.manifest_blob, size_bytes=1 << 40)
    (unusable,) = catalogue.seen(msgspec.structs.replace(FIRST, manifest=huge), 0.0)
    assert isinstance(unusable, Unusable)
    assert str(unusable.error) == f"manifest of tiny has {1 << 40} bytes"


def test_a_tombstone_removes(catalogue: Catalogue) -> None:
    catalogue.want("tiny", 0.0)
    answer(catalogue, catalogue.seen(FIRST, 0.0))
    gone = Deployment(name="tiny", epoch="1-a-2", manifest=None, plan=None)
    assert catalogue.seen(gone, 0.0) == [Removed(name="tiny")]
    assert catalogue.deployments() == ()
    assert catalogue.want("tiny", 0.0) == [Removed(name="tiny")]
