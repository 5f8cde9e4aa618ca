"""A share of the requests tries another plan, and whatever goes wrong there is answered by what serves."""

import msgspec
import pytest

from edge.errors import Poison
from edge.formats.canary import Canary
from edge.formats.plan import Deployment
from edge.protocol.catalogue import Catalogue, TrialEnded, Tried
from edge.protocol.fetch import AskBlock, answer_fetch
from edge.protocol.requests import InferenceResult, Route
from edge.protocol.ways import draw
from tests.request_harness import BUNDLE, Harness
from tests.tiny_bundle import make_deployment, make_input, make_tiny_bundle

OTHER = make_tiny_bundle(7)
SERVING = make_deployment(BUNDLE, ("pi-1", "pi-2"), window=500)
CANARY = msgspec.structs.replace(
    make_deployment(OTHER, ("pi-3", "pi-4"), epoch="1-a-2", window=500), canary=Canary(share=0.25)
)
DRAWN = next(f"r{index}" for index in range(100) if draw(f"r{index}") < 0.25)


@pytest.fixture
def client() -> Harness:
    client = Harness(Route(deployment=SERVING, manifest=BUNDLE.manifest))
    client.take(client.requests.set_canary(Route(deployment=CANARY, manifest=OTHER.manifest), 0.0))
    return client


def epochs(client: Harness) -> list[str]:
    return [send.header.epoch for send in client.sent]


def test_its_share_of_the_requests_goes_there_and_which_depends_on_nothing_but_their_ids(client: Harness) -> None:
    for index in range(400):
        client.submit(f"r{index}")
    tried = {send.header.request_id for send in client.sent if send.header.epoch == "1-a-2"}
    assert 70 <= len(tried) <= 130
    assert tried == {f"r{index}" for index in range(400) if draw(f"r{index}") < 0.25}


@pytest.mark.parametrize("code", ["busy", "gone", "stage-failed", "poison", "invalid-input", "something-new"])
def test_any_error_of_it_is_repaired_by_what_serves(client: Harness, code: str) -> None:
    client.submit(DRAWN)
    client.refuse(client.sent[0].header, code)
    assert epochs(client) == ["1-a-2", "1-a-1"]
    client.refuse(client.sent[0].header, "poison")
    assert client.outcomes == {}, "a late word of the canary says nothing"
    client.answer(client.sent[1].header)
    assert isinstance(client.outcomes[DRAWN], InferenceResult)


def test_its_silence_is_repaired_by_what_serves_and_spends_no_attempt(client: Harness) -> None:
    client.submit(DRAWN)
    client.wait(1.6)
    assert epochs(client) == ["1-a-2", "1-a-1"]
    assert client.requests._pending[DRAWN].spent == 0


def test_a_late_result_of_it_wins_as_any_other(client: Harness) -> None:
    client.submit(DRAWN)
    client.wait(1.6)
    client.answer(client.sent[0].header)
    result = client.outcomes[DRAWN]
    assert isinstance(result, InferenceResult)
    assert result.epoch == "1-a-2"


def test_its_result_is_held_against_its_own_manifest(client: Harness) -> None:
    client.submit(DRAWN)
    client.answer(client.sent[0].header, {"y": make_input(1)[:, :5]})
    assert client.outcomes == {}
    assert epochs(client) == ["1-a-2", "1-a-1"]


def test_an_error_of_what_serves_is_final_as_ever(client: Harness) -> None:
    client.submit(DRAWN)
    client.refuse(client.sent[0].header, "stage-failed")
    client.refuse(client.sent[1].header, "poison")
    assert isinstance(client.outcomes[DRAWN], Poison)


def test_when_it_ends_what_is_on_its_way_there_goes_to_what_serves(client: Harness) -> None:
    client.submit(DRAWN)
    client.take(client.requests.end_canary("tiny", client.now))
    client.wait(0.05)
    assert epochs(client) == ["1-a-2", "1-a-1"]


def test_when_it_comes_into_service_what_is_on_its_way_there_goes_on(client: Harness) -> None:
    client.submit(DRAWN)
    client.take(client.requests.set_route(Route(deployment=CANARY, manifest=OTHER.manifest), client.now))
    client.take(client.requests.end_canary("tiny", client.now))
    client.wait(0.9)
    assert epochs(client) == ["1-a-2"]
    client.refuse(client.sent[0].header, "poison")
    assert isinstance(client.outcomes[DRAWN], Poison), "it serves now, and is believed"


def test_one_that_is_not_newer_than_what_serves_is_ignored() -> None:
    client = Harness(Route(deployment=SERVING, manifest=BUNDLE.manifest))
    older = msgspec.structs.replace(CANARY, epoch="1-a-0")
    client.take(client.requests.set_canary(Route(deployment=older, manifest=OTHER.manifest), 0.0))
    client.submit(DRAWN)
    assert epochs(client) == ["1-a-1"]


class TestOfTheCatalogue:
    def catalogue(self) -> Catalogue:
        catalogue = Catalogue(reply_to="shardwire/default/blocks/cam")
        catalogue.want("tiny", 0.0)
        actions = catalogue.seen(SERVING, 0.0)
        for action in actions:
            assert isinstance(action, AskBlock)
            catalogue.block(answer_fetch(action.request, BUNDLE.read_block), 0.0)
        return catalogue

    def tried(self, catalogue: Catalogue, canary: Deployment = CANARY) -> list[object]:
        out: list[object] = []
        for action in catalogue.tried("tiny", canary, 0.0):
            assert isinstance(action, AskBlock)
            out += catalogue.block(answer_fetch(action.request, OTHER.read_block), 0.0)
        return out

    def test_its_manifest_is_fetched_too(self) -> None:
        (tried,) = self.tried(self.catalogue())
        assert tried == Tried(route=Route(deployment=CANARY, manifest=OTHER.manifest))

    def test_an_empty_value_ends_it(self) -> None:
        catalogue = self.catalogue()
        self.tried(catalogue)
        assert catalogue.tried("tiny", None, 0.0) == [TrialEnded(name="tiny")]
        assert catalogue.tried("tiny", None, 0.0) == []

    def test_a_plan_that_is_as_new_ends_it_after_it_serves(self) -> None:
        catalogue = self.catalogue()
        self.tried(catalogue)
        served = msgspec.structs.replace(CANARY, canary=None)
        assert catalogue.seen(served, 0.0) == [
            Route(deployment=served, manifest=OTHER.manifest),
            TrialEnded(name="tiny"),
        ]

    def test_one_that_is_older_than_what_serves_is_not_even_fetched(self) -> None:
        catalogue = self.catalogue()
        older = msgspec.structs.replace(CANARY, epoch="1-a-0")
        assert [action for action in catalogue.tried("tiny", older, 0.0) if isinstance(action, AskBlock)] == []
