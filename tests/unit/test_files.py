"""The files of bundles that a client reads itself: fetched from who holds them, checked, and remembered."""

from __future__ import annotations

import msgspec
import pytest

from edge.errors import BundleError
from edge.formats.bundle import Blob
from edge.formats.message import Block, FetchRequest
from edge.formats.plan import Holding
from edge.formats.steps import MAX_TOKENIZER_BYTES
from edge.protocol.fetch import AskBlock, answer_fetch
from edge.protocol.files import Files, holders_of_files
from host.bundle import blob_of
from tests.tiny_bundle import make_deployment, make_tiny_bundle

CONTENT = bytes(range(256)) * 1024  # two blocks
FILE = blob_of(CONTENT)


@pytest.fixture
def files() -> Files:
    return Files(reply_to="shardwire/default/blocks/cam")


def block_of(request: FetchRequest, content: bytes | None = CONTENT) -> Block:
    """What a holder answers; None for one that has nothing."""

    def read(_digest: str, index: int) -> tuple[int, bytes] | None:
        return None if content is None else (len(content), content[index * 131_072 : (index + 1) * 131_072])

    return answer_fetch(request, read)


def serve(files: Files, asks: list[AskBlock], content: bytes | None = CONTENT) -> list[AskBlock]:
    """Answer everything that is asked; return what is asked then."""
    return [more for ask in asks for more in files.block(block_of(ask.request, content), 0.0)]


def test_a_file_comes_block_by_block_and_is_remembered(files: Files) -> None:
    asks = files.want(FILE, ("pi-1", "pi-2"), 0.0)
    assert {ask.holder for ask in asks} == {"pi-1"}
    assert files.want(FILE, ("pi-1",), 0.0) == [], "it is on its way"
    serve(files, asks)
    assert files.found == {FILE.digest: CONTENT}
    assert not files.fetching
    assert files.want(FILE, ("pi-1",), 0.0) == []


def test_who_does_not_hold_it_is_passed_over(files: Files) -> None:
    asks = files.want(FILE, ("pi-1", "pi-2"), 0.0)
    again = serve(files, asks[:1], None)
    assert {ask.holder for ask in again} == {"pi-2"}


def test_a_holder_that_is_silent_is_passed_over(files: Files) -> None:
    files.want(FILE, ("pi-1", "pi-2"), 0.0)
    assert {ask.holder for ask in files.tick(5.0)} == {"pi-2"}


def test_a_file_that_nobody_holds_is_a_fault_until_it_is_wanted_again(files: Files) -> None:
    files.want(FILE, (), 0.0)
    assert isinstance(files.faults[FILE.digest], BundleError)
    assert files.want(FILE, ("pi-1",), 0.0)
    assert FILE.digest not in files.faults


def test_bytes_that_are_not_what_the_digest_says_are_never_given_out(files: Files) -> None:
    short = Blob(digest=FILE.digest, size_bytes=4)
    serve(files, files.want(short, ("pi-1",), 0.0), b"evil")
    assert not files.found


def test_a_file_of_absurd_size_is_refused_before_memory_is_taken(files: Files) -> None:
    huge = Blob(digest=FILE.digest, size_bytes=MAX_TOKENIZER_BYTES + 1)
    assert files.want(huge, ("pi-1",), 0.0) == []
    assert str(files.faults[FILE.digest]).endswith(f"has {MAX_TOKENIZER_BYTES + 1} bytes")


def test_nothing_is_asked_without_a_connection(files: Files) -> None:
    asks = files.want(FILE, ("pi-1",), 0.0)
    files.paused()
    assert files.tick(60.0) == []
    assert len(files.resumed(61.0)) == len(asks)


def test_the_devices_of_the_first_stage_are_asked_first() -> None:
    holdings = (Holding(node="keeper", first_shard=0, stop_shard=0, golden=True),)
    deployment = make_deployment(make_tiny_bundle(), ("pi-1", "pi-2"), holders=("boss",))
    deployment = msgspec.structs.replace(deployment, holdings=holdings)
    assert holders_of_files(deployment) == ("pi-1", "keeper", "boss", "pi-2")
