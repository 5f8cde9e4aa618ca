"""What the oracle of the fault runs counts, and when a promise counts as broken."""

import math

import pytest

from host.chaos.oracle import DEADLINE, POISON, Mark, Sample, judge, recovery, verdict


def answered(submitted: float, seconds: float = 0.1, *, right: bool = True, epoch: str = "1-a-1") -> Sample:
    return Sample(submitted=submitted, done=submitted + seconds, outcome="result", outcomes=1, epoch=epoch, right=right)


def ended(submitted: float, code: str, *, poisonous: bool = False) -> Sample:
    return Sample(submitted=submitted, done=submitted + 1, outcome=code, outcomes=1, poisonous=poisonous)


STEADY = [answered(float(second)) for second in range(10)]


def test_a_row_without_a_fault_is_kept() -> None:
    row = judge("nothing", STEADY)
    assert (row.offered, row.accepted, row.answered, row.epochs) == (10, 10, 10, 1)
    assert (row.lost, row.twice, row.wrong, row.recover_seconds, row.worst_seconds) == (0, 0, 0, 0.0, 0.1)
    assert verdict(row) == "kept"


@pytest.mark.parametrize(
    ("sample", "says"),
    [
        (Sample(submitted=3.5), "1 lost"),
        (ended(3.5, DEADLINE), "1 lost"),
        (answered(3.5, right=False), "1 wrong"),
        (Sample(submitted=3.5, done=4.0, outcome="result", outcomes=2), "1 answered twice"),
        (ended(3.5, "stage-failed"), "1 ended with stage-failed"),
        (ended(3.5, POISON), "1 ended with poison"),
    ],
    ids=["no outcome", "deadline", "wrong", "twice", "error", "poison"],
)
def test_one_bad_request_breaks_the_promise(sample: Sample, says: str) -> None:
    row = judge("fault", [*STEADY, sample])
    assert row.broken == (says,)
    assert verdict(row) == "broken"


def test_a_timed_out_request_counts_as_lost_too() -> None:
    row = judge("fault", [*STEADY, ended(3.5, DEADLINE), Sample(submitted=4.5)])
    assert (row.timed_out, row.lost) == (1, 2)


def test_poison_is_what_a_poisonous_request_should_end_with() -> None:
    assert judge("poison", [*STEADY, ended(3.5, POISON, poisonous=True)]).broken == ()
    assert judge("kill", [*STEADY, ended(3.5, POISON)], allowed=(POISON,)).broken == ()
    survivor = Sample(submitted=3.5, done=4.0, outcome="result", outcomes=1, poisonous=True)
    assert judge("poison", [*STEADY, survivor]).broken == ("1 poisonous requests were answered",)


def test_recovery_needs_a_later_answer_and_the_outcome_of_every_earlier_request() -> None:
    mark = Mark(at=2.5, since=2.5)
    assert recovery([answered(1), answered(3, 0.5)], mark) == 1.0
    assert recovery([answered(1, 4.0), answered(3, 0.5)], mark) == 2.5
    assert math.isinf(recovery([answered(1)], mark))
    assert math.isinf(recovery([Sample(submitted=1.0), answered(3)], mark))


def test_recovery_from_an_outage_counts_from_its_end() -> None:
    assert recovery([answered(1), answered(3, 60.0)], Mark(at=2.5, since=62.0)) == 1.0
    assert recovery([answered(1), answered(3, 1.0)], Mark(at=2.5, since=62.0)) == 0.0


def test_the_worst_of_several_faults_counts_and_is_held_to_the_limit() -> None:
    samples = [answered(1), answered(3, 1.0), answered(6, 3.0)]
    marks = [Mark(at=2.5, since=2.5), Mark(at=5.0, since=5.0)]
    row = judge("two", samples, marks, recover_within=1.5)
    assert row.recover_seconds == 4.0
    assert row.broken == ("recovered after 4.00 s, 1.5 s are allowed",)
    assert judge("two", samples, marks).broken == ()


def test_a_fleet_that_never_recovers_is_told() -> None:
    row = judge("kill", [answered(1)], [Mark(at=2.0, since=2.0)])
    assert row.recover_seconds == -1.0
    assert "never recovered" in row.broken


def test_a_row_of_refused_requests_says_nothing() -> None:
    refused = [Sample(submitted=second + 0.5, accepted=False, outcome="busy") for second in range(2)]
    row = judge("fault", [*STEADY, *refused])
    assert (row.offered, row.accepted, row.busy) == (12, 10, 2)
    assert row.broken == ("says nothing: 10 of 12 requests outside of outages were accepted",)
    outage = [Mark(at=0.4, since=0.4)]
    late = [answered(float(second)) for second in range(2, 10)]
    assert judge("fault", [answered(0), *refused, *late], outage).broken == ()
    assert judge("fault", []).broken != ()


def test_epochs_are_counted_by_their_names() -> None:
    assert judge("storm", [answered(0), answered(1, epoch="1-a-2"), answered(2)]).epochs == 2
