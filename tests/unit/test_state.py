"""What an agent remembers across its own death."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from edge.errors import StoreError
from edge.formats.message import Lease, Session, Speed
from edge.formats.plan import Deployment
from edge.formats.speed import MAX_KINDS, OperatorSpeed
from edge.protocol.marks import MAX_VERSIONS, Marks
from edge.state import MAX_SPEED_BYTES, StateFolder


def tombstone(name: str, epoch: str = "1-a-1") -> Deployment:
    return Deployment(name=name, epoch=epoch, manifest=None, plan=None)


class Lives:
    """One agent's folder, opened again at every start."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = StateFolder(folder)

    def start_again(self) -> StateFolder:
        self.state.close()
        self.state = StateFolder(self.folder)
        return self.state


@pytest.fixture
def lives(tmp_path: Path) -> Iterator[Lives]:
    lives = Lives(tmp_path)
    yield lives
    lives.state.close()


def test_the_boot_counter_rises_by_one_at_every_start(lives: Lives) -> None:
    first = lives.state.next_boot()
    assert lives.start_again().next_boot() == first + 1


def test_a_damaged_boot_counter_is_begun_anew_by_the_clock(lives: Lives) -> None:
    (lives.folder / "boot.json").write_bytes(b"{")
    assert lives.state.next_boot() > 1_600_000_000


def test_the_newest_plan_of_each_deployment_is_kept(lives: Lives) -> None:
    lives.state.save_serving(tombstone("a"))
    lives.state.save_serving(tombstone("b"))
    lives.state.save_serving(tombstone("a", "2-a-1"))
    assert lives.start_again().serving() == (tombstone("a", "2-a-1"), tombstone("b"))


def test_a_damaged_plan_is_passed_over(lives: Lives) -> None:
    lives.state.save_serving(tombstone("a"))
    (lives.folder / "serving-b.json").write_bytes(b"\xff")
    assert lives.state.serving() == (tombstone("a"),)


def test_a_request_that_was_running_at_death_is_poison_for_ever(lives: Lives) -> None:
    assert lives.state.poisoned() == frozenset()
    lives.state.enter("bad")
    assert lives.start_again().poisoned() == {"bad"}
    lives.state.enter("good")
    lives.state.leave()
    assert lives.start_again().poisoned() == {"bad"}


def test_what_still_runs_while_an_agent_ends_as_it_should_is_not_to_blame(lives: Lives) -> None:
    lives.state.enter("r1", "net", "1-a-1")
    lives.state.rest()
    lives.state.enter("r2", "net", "1-a-1")
    lives.state.loading("net", "1-a-1")
    again = lives.start_again()
    assert (again.poisoned(), again.deaths()) == (frozenset(), {})


def test_no_name_of_a_model_is_so_long_that_the_marks_are_lost(lives: Lives) -> None:
    marks = Marks(cordoned=True)
    for index in range(MAX_VERSIONS):
        marks = marks.with_version(f"{index} {'model' * 100}", "9" * 1000)
    lives.state.save_marks(marks)
    assert lives.start_again().marks() == marks


def test_only_so_many_poisonous_requests_are_remembered(lives: Lives) -> None:
    for index in range(70):
        lives.state.enter(f"r{index}")
        found = lives.state.poisoned()
    assert len(found) == 64
    assert "r69" in found
    assert "r5" not in found


def test_a_second_agent_in_the_same_folder_is_refused(lives: Lives) -> None:
    with pytest.raises(StoreError) as caught:
        StateFolder(lives.folder)
    assert str(caught.value) == f"{lives.folder} is in use by another process: give each its own --folder"
    assert lives.start_again().serving() == ()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"file cannot be used: (File exists|Not a directory)"):
        StateFolder(tmp_path / "file")


def test_what_was_measured_is_remembered(lives: Lives) -> None:
    speed = Speed(node="pi-1", profile="rpi4", message_seconds=0.5)
    assert lives.state.speed() is None
    lives.state.save_speed(speed)
    assert lives.start_again().speed() == speed


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"x" * (MAX_SPEED_BYTES + 1),
        msgspec.json.encode(
            Speed(node="pi-1", profile="rpi4", operators=(OperatorSpeed(
                kind="conv", macs_per_second=1.0, memory_bytes_per_second=1.0, call_seconds=0.0
            ),) * (MAX_KINDS + 1))
        ),
    ],
    ids=["torn", "huge", "too many"],
)  # fmt: skip
def test_a_speed_file_that_cannot_be_is_passed_over(lives: Lives, content: bytes) -> None:
    (lives.folder / "speed.json").write_bytes(content)
    assert lives.state.speed() is None


class TestDeaths:
    def test_a_death_while_an_epoch_is_loaded_counts(self, lives: Lives) -> None:
        for times in (1, 2, 3):
            lives.state.loading("tiny", "1-a-1")
            assert lives.start_again().deaths() == {("tiny", "1-a-1"): times}
        assert lives.start_again().deaths() == {("tiny", "1-a-1"): 3}

    def test_so_does_one_while_a_request_of_it_runs(self, lives: Lives) -> None:
        lives.state.enter("r1", "tiny", "1-a-1")
        again = lives.start_again()
        assert again.poisoned() == {"r1"}
        assert again.deaths() == {("tiny", "1-a-1"): 1}

    def test_what_ran_beside_loading_is_not_blamed(self, lives: Lives) -> None:
        lives.state.enter("r1", "tiny", "1-a-1")
        lives.state.loading("tiny", "1-a-2")
        again = lives.start_again()
        assert again.poisoned() == frozenset()
        assert again.deaths() == {("tiny", "1-a-2"): 1}

    def test_what_ended_well_does_not(self, lives: Lives) -> None:
        lives.state.loading("tiny", "1-a-1")
        lives.state.loaded()
        lives.state.enter("r1", "tiny", "1-a-1")
        lives.state.leave()
        again = lives.start_again()
        assert (again.poisoned(), again.deaths()) == (frozenset(), {})

    def test_they_can_be_forgotten(self, lives: Lives) -> None:
        for epoch in ("1-a-1", "1-a-2"):
            lives.state.loading("tiny", epoch)
            lives.start_again().deaths()
        lives.state.forget_deaths("tiny", "1-a-1")
        assert lives.start_again().deaths() == {("tiny", "1-a-2"): 1}

    def test_only_the_last_64_epochs_are_remembered(self, lives: Lives) -> None:
        for index in range(66):
            lives.state.loading("tiny", f"1-a-{index}")
            lives.state.deaths()
        assert len(lives.state.deaths()) == 64

    def test_the_loader_may_end_after_the_folder_is_given_back(self, tmp_path: Path) -> None:
        state = StateFolder(tmp_path / "other")
        state.close()
        state.loading("tiny", "1-a-1")
        state.loaded()


def test_marks_are_kept_and_a_damaged_file_is_none(lives: Lives) -> None:
    marks = Marks(
        cordoned=True,
        lease=Lease(coordinator="boss", term=3, session=Session(boot=1, connect=2)),
        issued="2030-01-01T00:00:00Z",
        versions={"tiny tiny": "1.2"},
    )
    lives.state.save_marks(marks)
    assert lives.start_again().marks() == marks
    (lives.folder / "marks.json").write_bytes(b"{")
    assert lives.state.marks() == Marks()


def test_the_highest_versions_of_the_newest_models_are_kept() -> None:
    marks = Marks()
    for index in range(MAX_VERSIONS + 1):
        marks = marks.with_version(f"m{index}", "1.10")
    assert len(marks.versions) == MAX_VERSIONS
    assert "m0" not in marks.versions
    assert marks.with_version("m1", "1.9") is marks
