"""The benchmarks print the figures that the documentation quotes, and measure what they say."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks import (
    cifar10,
    efficientnet_int8,
    epoch_switch,
    extras,
    footprint,
    hard_to_quantize,
    int4,
    mixed_fleet,
    pipeline,
    planner,
    sharding,
    simulate,
    single_point_cnn,
    tflite_shards,
    unequal_fleet,
    update,
)
from benchmarks.measure import (
    Figure,
    Key,
    cpu_seconds,
    interleaved,
    main_of,
    own_cpu_seconds,
    paired_ratio,
    percentile,
    report,
)
from host.errors import DatasetError

DOCS = Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        (
            sharding.KEYS,
            """max_abs_error_fp32 bit_equal_exact bit_equal_int8 cpu_ratio_int8_composed cpu_ratio_int8_two
            cpu_ratio_int8_all_cuts shards largest_shard_bytes max_shard_bytes""",
        ),
        (footprint.KEYS, "device_install_mb agent_rss_mb bare_runtime_rss_mb agent_start_seconds"),
        (
            extras.KEYS,
            """base_mb bare_cpu_seconds litert_mb litert_import_cpu_seconds litert_torch_mb tensorflow_mb
            tensorflow_import_cpu_seconds""",
        ),
        (update.KEYS, "changed_layer_bytes moved_bytes whole_bytes resent_blocks_per_interruption"),
        (pipeline.KEYS, "throughput_ratio cpu_ratio latency_ms_p50 latency_ms_p99"),
        (
            efficientnet_int8.KEYS,
            "agreement agreement_plain cosine_run cosine_unfused bytes_ratio cpu_ratio crops",
        ),
        (
            cifar10.KEYS,
            "top1_fp32 top1_int8 bytes_ratio_int8 top1_pruned macs_ratio_pruned speedup_pruned images",
        ),
        (single_point_cnn.KEYS, "conv_speedup pool_speedup fc_speedup latency_ratio memory_ratio top1_drop"),
        (hard_to_quantize.KEYS, "top1_fp32 top1_naive top1_searched within_budget"),
        (
            epoch_switch.KEYS,
            "requests lost twice steady_p99_ms switch_p99_ms steady_worst_ms switch_worst_ms",
        ),
        (simulate.KEYS, "devices requests lost duplicated wall_seconds"),
        (unequal_fleet.KEYS, "predicted_rps measured_rps even_split_rps memory_split_rps"),
        (
            mixed_fleet.KEYS,
            """photos right max_abs_difference right_onnx_onnx_litert max_abs_difference_onnx_onnx_litert
            right_litert_onnx_litert max_abs_difference_litert_onnx_litert""",
        ),
        (
            tflite_shards.KEYS,
            """cuts_selfie_segmentation bit_equal_selfie_segmentation cpu_ratio_selfie_segmentation
            cuts_blazeface_short bit_equal_blazeface_short cpu_ratio_blazeface_short
            cuts_face_landmark bit_equal_face_landmark cpu_ratio_face_landmark""",
        ),
        (int4.KEYS, "neighbour_agreement bytes_ratio latency_ratio_int8 latency_ratio_fp32"),
        (
            planner.KEYS,
            """instances worst_ratio_to_brute_force seconds_200x16 gap_200x16 seconds_1000x100 gap_1000x100
            even_split_ratio memory_split_ratio fixed_order_3_slow_1_fast""",
        ),
    ],
)
def test_each_benchmark_has_its_figures(keys: Sequence[Key], wanted: str) -> None:
    names = [key.name for key in keys]
    assert set(wanted.split()) <= set(names)
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("sharding", sharding.KEYS),
        ("footprint", footprint.KEYS),
        ("extras", extras.KEYS),
        ("pipeline", pipeline.KEYS),
        ("update", update.KEYS),
        ("epoch_switch", epoch_switch.KEYS),
        ("efficientnet_int8", efficientnet_int8.KEYS),
        ("cifar10", cifar10.KEYS),
        ("single_point_cnn", single_point_cnn.KEYS),
        ("hard_to_quantize", hard_to_quantize.KEYS),
        ("int4", int4.KEYS),
        ("simulate", simulate.KEYS),
        ("planner", planner.KEYS),
        ("unequal_fleet", unequal_fleet.KEYS),
        ("mixed_fleet", mixed_fleet.KEYS),
        ("tflite_shards", tflite_shards.KEYS),
    ],
)
def test_the_documentation_explains_every_figure(name: str, keys: Sequence[Key]) -> None:
    section = re.search(rf"^## `{name}`.*?(?=^## |\Z)", DOCS.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert section is not None, f"no section for {name}"
    explained = re.findall(r"^\| `([a-z0-9_]+)` \|", section.group(), flags=re.MULTILINE)
    # The pipeline prints its figures once for each kind of weights and each window; they are explained once.
    names = [base(key.name) if keys is pipeline.KEYS else key.name for key in keys]
    assert explained == list(dict.fromkeys(names))


def base(name: str) -> str:
    """The name of a figure of the pipeline without weights and window."""
    return re.sub(r"_(int8|fp32)(_window\d)?$", "", name)


def test_json_is_one_object_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    report({"share": 0.123456, "count": 123456789, "equal": True}, (), as_json=True)
    assert json.loads(capsys.readouterr().out) == {  # noqa: TID251 - read as any program would
        "share": 0.1235,
        "count": 123456789,
        "equal": True,
    }


def test_people_get_a_line_for_each_figure_with_its_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    report({"equal": True, "size": 1234567}, (Key(name="size", meaning="in bytes"),), as_json=False)
    assert capsys.readouterr().out == "equal           yes\nsize      1,234,567  in bytes\n"


def test_what_the_user_can_put_right_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure() -> dict[str, Figure]:
        raise DatasetError("npm is not installed")

    monkeypatch.setattr("sys.argv", ["benchmark"])
    with pytest.raises(SystemExit, match=r"^error: npm is not installed$"):
        main_of("What it measures.", measure, ())


def test_ratios_are_taken_round_by_round() -> None:
    # A machine twice as slow in one round is so for both: the ratio does not see it.
    assert paired_ratio([2.0, 4.0, 2.2], [1.0, 2.0, 1.0]) == 2.0


@pytest.mark.parametrize(("share", "value"), [(50, 2), (75, 3), (99, 4), (100, 4), (0, 1)])
def test_a_percentile_is_one_of_the_values(share: float, value: int) -> None:
    assert percentile([4, 1, 3, 2], share) == value


def test_every_piece_of_work_gets_its_turns() -> None:
    calls: list[str] = []
    spent = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3, repeats=2)
    assert {name: len(rounds) for name, rounds in spent.items()} == {"a": 3, "b": 3}
    assert calls[:2] == ["a", "b"]  # warming up
    assert sorted(calls) == ["a"] * 7 + ["b"] * 7
    assert all(calls[at] == calls[at + 1] for at in range(2, len(calls), 2))


def test_cpu_time_is_of_work_not_of_waiting() -> None:
    before, own = cpu_seconds("self"), own_cpu_seconds()
    child = subprocess.run(["true"], check=True)
    assert child.returncode == 0
    total = sum(number * number for number in range(300_000))
    assert total > 0
    assert cpu_seconds(os.getpid()) > before
    assert own_cpu_seconds() > own
