"""The outbox: what is accepted is on the disk, and has one outcome, whatever happens to the client."""

import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from edge.client import Client
from edge.errors import Cancelled, DeadlineExceeded, InvalidInput, Poison, StoreError, UnknownDeployment
from edge.formats.frame import Hop
from edge.formats.tensor import Array
from edge.outbox import DurableClient, Outbox
from edge.protocol.requests import InferenceResult

INPUTS: dict[str, Array] = {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}
HOP = Hop(stage=0, device="pi-1", queued_seconds=0.1, run_seconds=0.2, received_bytes=24, sent_bytes=4)


def answer(value: float = 1.0) -> InferenceResult:
    return InferenceResult(
        outputs={"y": np.full(2, value, dtype=np.float32)},
        trace=(HOP,),
        latency_seconds=0.5,
        taken_seconds=(None,),
        attempts=2,
        epoch="1-a-1",
    )


class FakeClient:
    """Takes requests as a client does, and leaves their futures to the test."""

    def __init__(self) -> None:
        self.sent: dict[str, Future[InferenceResult]] = {}
        self.refuses: Exception | None = None

    def check(self, name: str, inputs: Mapping[str, Array], *, deadline_seconds: float) -> None:
        del name, inputs, deadline_seconds
        if self.refuses is not None:
            raise self.refuses

    def submit(
        self, name: str, inputs: Mapping[str, Array], *, deadline_seconds: float, request_id: str
    ) -> "Future[InferenceResult]":
        self.check(name, inputs, deadline_seconds=deadline_seconds)
        self.sent[request_id] = Future()
        return self.sent[request_id]


def durable(outbox: Outbox) -> tuple[FakeClient, DurableClient]:
    client = FakeClient()
    return client, DurableClient(cast("Client", client), outbox)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "requests.db"


def test_a_request_is_on_the_disk_when_submit_returns(path: Path) -> None:
    with Outbox(path) as outbox:
        _, client = durable(outbox)
        client.submit("net", INPUTS, deadline_seconds=7.0, tag="photo-1")
    with Outbox(path) as outbox:
        (row,) = outbox.unsettled()
    assert (row.deployment, row.tag, row.deadline_seconds) == ("net", "photo-1", 7.0)
    np.testing.assert_array_equal(row.inputs["x"], INPUTS["x"])


def test_what_cannot_be_sent_in_this_life_waits_for_the_next_and_holds_back_no_other(path: Path) -> None:
    with Outbox(path) as outbox:
        _, client = durable(outbox)
        client.submit("net", INPUTS)
        client.submit("net", INPUTS)
    with Outbox(path) as outbox:
        fake, client = durable(outbox)
        fake.refuses = UnknownDeployment("no deployment called 'net'")
        futures = client.resume()
        assert [type(future.exception()) for future in futures.values()] == [UnknownDeployment] * 2
        assert len(list(outbox.unsettled())) == 2


def test_what_cannot_be_accepted_leaves_no_row(path: Path) -> None:
    with Outbox(path) as outbox:
        fake, client = durable(outbox)
        fake.refuses = UnknownDeployment("no deployment called 'net'")
        with pytest.raises(UnknownDeployment):
            client.submit("net", INPUTS)
        assert not list(outbox.unsettled())


def test_the_result_is_on_the_disk_before_the_program_has_it(path: Path) -> None:
    with Outbox(path) as outbox:
        fake, client = durable(outbox)
        future = client.submit("net", INPUTS)
        seen: list[int] = []
        future.add_done_callback(lambda _: seen.append(len(list(outbox.settled()))))
        next(iter(fake.sent.values())).set_result(answer())
        assert seen == [1]
        assert future.result().outputs["y"].tolist() == [1.0, 1.0]


def test_a_result_comes_back_from_the_disk_as_it_was(path: Path) -> None:
    with Outbox(path) as outbox:
        row = outbox.add("net", INPUTS, deadline_seconds=1.0, tag="t")
        assert outbox.settle(row.row, answer(3.0))
    with Outbox(path) as outbox:
        (settled,) = outbox.settled()
    assert (settled.row, settled.request_id, settled.tag) == (row.row, row.request_id, "t")
    assert isinstance(settled.outcome, InferenceResult)
    assert settled.outcome.outputs["y"].tolist() == [3.0, 3.0]
    assert (settled.outcome.trace, settled.outcome.attempts, settled.outcome.epoch) == ((HOP,), 2, "1-a-1")


@pytest.mark.parametrize("error", [DeadlineExceeded("too late"), Poison("pi-1 died"), InvalidInput("x is int8")])
def test_an_error_is_an_outcome_too(path: Path, error: Exception) -> None:
    with Outbox(path) as outbox:
        fake, client = durable(outbox)
        future = client.submit("net", INPUTS)
        next(iter(fake.sent.values())).set_exception(error)
        assert future.exception() is error
        (settled,) = outbox.settled()
        assert (type(settled.outcome), str(settled.outcome)) == (type(error), str(error))
        assert not list(outbox.unsettled())


def test_the_first_outcome_stays(path: Path) -> None:
    with Outbox(path) as outbox:
        row = outbox.add("net", INPUTS, deadline_seconds=1.0)
        assert outbox.settle(row.row, answer(1.0))
        assert not outbox.settle(row.row, answer(2.0))
        (settled,) = outbox.settled()
        assert isinstance(settled.outcome, InferenceResult)
        assert settled.outcome.outputs["y"].tolist() == [1.0, 1.0]


def test_an_outcome_of_no_request_is_none(path: Path) -> None:
    with Outbox(path) as outbox:
        assert not outbox.settle(17, answer())
        assert not list(outbox.settled())


def test_the_next_life_sends_what_has_no_outcome_under_its_old_name_and_ids(path: Path) -> None:
    with Outbox(path) as outbox:
        name = outbox.client_name
        fake, client = durable(outbox)
        for tag in ("a", "b", "c"):
            client.submit("net", INPUTS, tag=tag)
        first = dict(fake.sent)
        first[list(first)[1]].set_result(answer())
    with Outbox(path) as outbox:
        assert outbox.client_name == name
        fake, client = durable(outbox)
        futures = client.resume()
        assert list(fake.sent) == list(first)[::2]
        for sent in fake.sent.values():
            sent.set_result(answer())
        assert all(future.result() for future in futures.values())
        assert [settled.tag for settled in outbox.settled()] == ["a", "b", "c"]


def test_a_request_that_a_closing_client_cancels_stays_for_its_next_life(path: Path) -> None:
    with Outbox(path) as outbox:
        fake, client = durable(outbox)
        future = client.submit("net", INPUTS)
        next(iter(fake.sent.values())).set_exception(Cancelled("the client was closed"))
        assert isinstance(future.exception(), Cancelled)
        assert len(list(outbox.unsettled())) == 1


def test_a_request_of_an_earlier_life_that_no_longer_fits_the_model_is_settled(path: Path) -> None:
    with Outbox(path) as outbox:
        outbox.add("net", INPUTS, deadline_seconds=1.0)
        fake, client = durable(outbox)
        fake.refuses = InvalidInput("input x has another shape")
        (future,) = client.resume().values()
        assert isinstance(future.exception(), InvalidInput)
        assert len(list(outbox.settled())) == 1


def test_only_settled_requests_are_forgotten(path: Path) -> None:
    with Outbox(path) as outbox:
        kept = outbox.add("net", INPUTS, deadline_seconds=1.0)
        done = outbox.add("net", INPUTS, deadline_seconds=1.0)
        outbox.settle(done.row, answer())
        for row in (kept, done):
            outbox.forget(row.row)
        assert [row.row for row in outbox.unsettled()] == [kept.row]
        assert not list(outbox.settled())


def test_a_row_number_is_never_used_again(path: Path) -> None:
    with Outbox(path) as outbox:
        first = outbox.add("net", INPUTS, deadline_seconds=1.0)
        outbox.settle(first.row, answer())
        outbox.forget(first.row)
        assert outbox.add("net", INPUTS, deadline_seconds=1.0).row > first.row


def test_two_processes_do_not_share_an_outbox(path: Path) -> None:
    with Outbox(path), pytest.raises(StoreError, match="in use by another process"):
        Outbox(path)


def test_a_file_that_is_no_outbox_is_refused_and_left_as_it_was(path: Path) -> None:
    path.write_bytes(b"hello, this is no database at all" * 40)
    with pytest.raises(StoreError, match="not a database"):
        Outbox(path)
    assert path.read_bytes().startswith(b"hello")
    other = path.with_name("other.db")
    with sqlite3.connect(other) as base:
        base.execute("CREATE TABLE something (x)")
    base.close()
    with pytest.raises(StoreError, match="no outbox of this release"):
        Outbox(other)


def test_a_damaged_row_is_said_in_one_line(path: Path) -> None:
    with Outbox(path) as outbox:
        row = outbox.add("net", INPUTS, deadline_seconds=1.0)
        outbox._base.execute("UPDATE requests SET inputs = x'00' WHERE row = ?", (row.row,))
        with pytest.raises(StoreError, match="damaged"):
            list(outbox.unsettled())


_KILLED = """
import os, sys
from pathlib import Path
import numpy as np
from edge.outbox import Outbox
outbox = Outbox(Path(sys.argv[1]))
for index in range(5):
    outbox.add("net", {"x": np.full(3, index, dtype=np.float32)}, deadline_seconds=1.0, tag=str(index))
os.kill(os.getpid(), 9)
"""


def test_rows_outlive_a_process_that_is_killed(path: Path) -> None:
    command: list[Any] = [sys.executable, "-c", _KILLED, path]
    assert subprocess.run(command, check=False).returncode == -9
    with Outbox(path) as outbox:
        assert [row.tag for row in outbox.unsettled()] == ["0", "1", "2", "3", "4"]
