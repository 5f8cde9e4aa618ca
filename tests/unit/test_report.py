"""A report is written as canonical JSON and read back; other versions are met as the format promises."""

from __future__ import annotations

import logging
import math

import msgspec
import pytest

from edge.errors import UnsupportedVersion
from host.compress.report.records import (
    FORMAT,
    INFINITE,
    STATUS_MEANINGS,
    Candidate,
    NodeSensitivity,
    PassRow,
    Report,
    ReportError,
    TensorHistogram,
    decode_report,
    encode_report,
    sparsity_note,
)
from host.errors import InternalError, UserError
from tests.example_report import example_report


def test_a_report_is_read_back_as_it_was_written() -> None:
    report = example_report()
    assert decode_report(encode_report(report)) == report


def test_equal_reports_are_equal_bytes_with_sorted_keys() -> None:
    data = encode_report(example_report())
    assert data == encode_report(example_report())
    keys = list(msgspec.json.decode(data, type=dict[str, object]))
    assert keys == sorted(keys)
    assert b" :" not in data
    assert b'": ' not in data


def test_a_report_says_its_format() -> None:
    assert Report().format == FORMAT == "1.1"


def test_a_newer_minor_version_is_read_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    data = b'{"format":"1.9","model":"net","colour":"blue"}'
    with caplog.at_level(logging.WARNING):
        assert decode_report(data, where="report.json").model == "net"
    assert "report.json: format version 1.9 is newer than 1.1" in caplog.text


def test_another_major_version_is_refused() -> None:
    with pytest.raises(UnsupportedVersion, match=r"report\.json: format version 2\.0 cannot be read"):
        decode_report(b'{"format":"2.0"}', where="report.json")


def test_an_old_report_keeps_its_passes_and_says_its_fidelity() -> None:
    fidelity = {
        "mode": "exact",
        "samples": 12,
        "cosine": 0.9931,
        "worst_cosine": 0.98,
        "max_relative_error": 0.1,
        "top1_agreement": 0.97,
    }
    outcome = {
        "name": "fuse",
        "kept": True,
        "reason": "done",
        "nodes_before": 9,
        "nodes_after": 7,
        "weight_bytes_before": 1,
        "weight_bytes_after": 1,
    }
    old = {"format": "1.0", "fidelity_unfused": None, "fidelity_as_run": fidelity, "passes": [outcome]}
    report = decode_report(msgspec.json.encode(old))
    assert report.passes == (PassRow(name="fuse", kept=True, reason="done"),)
    assert report.notes == ("Fidelity as run: cosine 0.99310 (worst 0.98000), top-1 agreement 97.0%, 12 inputs",)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "truncated"),
        (b"[]", "Expected `object`"),
        (b"{}", "format"),
        (b'{"format":"1.1","passes":[{"name":1}]}', r"passes\[0\]\.name"),
        (b'{"format":"1.1","candidates":[{"name":"a","summary":"","status":"lucky"}]}', "lucky"),
        (b'{"format":"1.1","model":"\xff"}', "not a compression report"),
    ],
)
def test_what_is_no_report_is_refused_in_one_line(data: bytes, said: str) -> None:
    with pytest.raises(ReportError, match=said) as caught:
        decode_report(data, where="report.json")
    assert str(caught.value).startswith("report.json: ")
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, UserError)


def test_a_histogram_has_as_many_bins_before_as_after() -> None:
    bad = TensorHistogram(tensor="w", kind="weight", low=0, high=1, before=(1, 2), after=(1,))
    with pytest.raises(ReportError, match=r"histograms\[0\]: 2 bins before and 1 after"):
        decode_report(encode_report(Report(histograms=(bad,))))


def test_a_histogram_has_room_between_its_edges() -> None:
    bad = TensorHistogram(tensor="w", kind="weight", low=1, high=1, before=(1,), after=(1,))
    with pytest.raises(ReportError, match="no bins between"):
        decode_report(encode_report(Report(histograms=(bad,))))


def test_an_infinite_figure_is_written_as_a_very_large_one() -> None:
    perfect = NodeSensitivity(node="a", operator="Conv", snr_db=math.inf, precision="int8")
    (read,) = decode_report(encode_report(Report(sensitivity=(perfect,)))).sensitivity
    assert read.snr_db == INFINITE


def test_a_figure_that_is_no_number_is_our_fault_and_named() -> None:
    wrong = NodeSensitivity(node="a", operator="Conv", snr_db=math.nan, precision="int8")
    with pytest.raises(InternalError, match=r"report\.sensitivity\[0\]\.snr_db is not a number"):
        encode_report(Report(sensitivity=(wrong,)))


def test_a_failed_candidate_needs_no_figure() -> None:
    report = Report(candidates=(Candidate(name="int4", summary="", status="failed"),))
    assert decode_report(encode_report(report)).candidates[0].size_bytes is None


def test_every_status_has_a_meaning() -> None:
    assert [*STATUS_MEANINGS] == ["proven", "held", "broken", "failed"]


def test_the_sparsity_note_says_that_only_transfer_is_saved() -> None:
    note = sparsity_note(zeros=50, weights=200, stored_bytes=800, packed_bytes=650, pattern="2:4")
    assert "saves transfer only" in note
    assert "50 of 200 weights (25.0%) are zero in the pattern 2:4" in note
    assert "800 bytes pack into 650" in note
    assert "latency, multiply-accumulates and memory are what they were" in note


def test_the_sparsity_note_of_a_model_without_weights() -> None:
    assert "0 of 0 weights (0.0%)" in sparsity_note(zeros=0, weights=0, stored_bytes=0, packed_bytes=0)
