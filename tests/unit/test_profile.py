"""A profile file is parsed once; an error names file, key, value met and what is allowed, all faults at once."""

import logging
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import ProfileError
from edge.formats.profile import (
    MAX_PROFILE_BYTES,
    DeviceProfile,
    load_profile,
    parse_profile,
    profile_ids,
)

MINIMAL = """\
format = "1.0"
id = "toy"
name = "a toy"
arch = "aarch64"
isa = ["neon"]
cores = 4
threads = 4
memory_bytes = 1000
usable_memory_bytes = 800
flash_bytes = 5000
preferred_dtypes = ["int8", "float32"]
memory_bytes_per_second = 2.5e9

[system]
os = "Toy OS"
stock_python = "3.11"
stock_glibc = "2.36"
min_python = "3.11"
min_glibc = "2.28"

[macs_per_second]
float32 = 1e9
int8 = 2e9

[link]
medium = "wifi"
up_bytes_per_second = 1e6
down_bytes_per_second = 2e6
latency_seconds = 0.002

[[runtimes]]
name = "onnxruntime"
package = "onnxruntime>=1.32"

[[runtimes.providers]]
name = "CPUExecutionProvider"
in_pip_wheel = true

[sources]
isa = "chosen: a toy"
cores = "chosen: a toy"
threads = "chosen: a toy"
memory_bytes = "chosen: a toy"
usable_memory_bytes = "chosen: a toy"
flash_bytes = "chosen: a toy"
memory_bytes_per_second = "chosen: a toy"
"system.min_python" = "chosen: a toy"
"system.min_glibc" = "chosen: a toy"
"macs_per_second.float32" = "chosen: a toy"
"macs_per_second.int8" = "chosen: a toy"
"link.up_bytes_per_second" = "chosen: a toy"
"link.down_bytes_per_second" = "chosen: a toy"
"link.latency_seconds" = "chosen: a toy"
"""


def parse(text: str = MINIMAL) -> DeviceProfile:
    return parse_profile(text, file="toy.toml")


def fault_of(old: str, new: str) -> str:
    assert MINIMAL.count(old) >= 1, f"{old!r} is not in the minimal profile"
    with pytest.raises(ProfileError) as caught:
        parse(MINIMAL.replace(old, new, 1))
    return str(caught.value)


def outcome(text: str) -> DeviceProfile | str:
    try:
        return parse(text)
    except ProfileError as error:
        return str(error)


def test_a_complete_profile_is_read() -> None:
    profile = parse()
    assert (profile.id, profile.arch, profile.isa) == ("toy", "aarch64", ("neon",))
    assert profile.link.latency_seconds == 0.002
    assert profile.system.runs_on_stock_image
    assert profile.runtimes[0].installable_providers == ("CPUExecutionProvider",)


def test_the_shard_limit_is_an_eighth_of_the_usable_memory_unless_stated() -> None:
    assert parse().shard_limit_bytes == 100
    stated = MINIMAL.replace("cores = 4", "cores = 4\nmax_shard_bytes = 640", 1)
    stated += 'max_shard_bytes = "chosen: a toy"\n'
    assert parse(stated).shard_limit_bytes == 640


def test_a_dtype_without_kernels_of_its_own_runs_at_the_float32_rate() -> None:
    rates = parse().macs_per_second
    assert {dtype: rates.of(dtype) for dtype in ("float32", "int8", "uint8", "float16", "int64")} == {
        "float32": 1e9,
        "int8": 2e9,
        "uint8": 2e9,
        "float16": 1e9,
        "int64": 1e9,
    }


@pytest.mark.parametrize("field", ["cores", "colour"])
def test_a_profile_cannot_be_changed(field: str) -> None:
    with pytest.raises(AttributeError):
        setattr(parse(), field, 5)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("cores = 4", "cores = 'four'", "toy.toml: cores: expected int, got 'four'"),
        ("cores = 4", "cores = 4.0", "toy.toml: cores: expected int, got 4.0"),
        ("cores = 4", "cores = true", "toy.toml: cores: expected int, got True"),
        ("cores = 4", "cores = 0", "toy.toml: cores: expected int from 1 to 1024, got 0"),
        ("cores = 4\n", "", "toy.toml: cores: missing; expected int"),
        (
            "flash_bytes = 5000\n",
            "flash_bytes = -1\n",
            f"toy.toml: flash_bytes: expected int from 1 to {1 << 50}, got -1",
        ),
        (
            "latency_seconds = 0.002",
            "latency_seconds = nan",
            "toy.toml: link.latency_seconds: expected float from 0 to 60, got nan",
        ),
        (
            "int8 = 2e9",
            "int8 = inf",
            "toy.toml: macs_per_second.int8: expected float from 1 to 1e+18, got inf",
        ),
        (
            'medium = "wifi"',
            'medium = "string"',
            "toy.toml: link.medium: expected one of ethernet, wifi, got 'string'",
        ),
        (
            'arch = "aarch64"',
            'arch = "arm"',
            "toy.toml: arch: expected one of aarch64, armv7l, x86_64, got 'arm'",
        ),
        (
            'preferred_dtypes = ["int8", "float32"]',
            'preferred_dtypes = ["int8", "int4"]',
            "toy.toml: preferred_dtypes[1]: expected one of float16, float32, int8, got 'int4'",
        ),
        ('isa = ["neon"]', 'isa = "neon"', "toy.toml: isa: expected list, got 'neon'"),
        ('isa = ["neon"]', "isa = [7]", "toy.toml: isa[0]: expected str, got 7"),
        (
            'isa = ["neon"]',
            'isa = ["neon", "avx2"]',
            "toy.toml: isa[1]: expected one of neon, fp16, dotprod, i8mm, bf16, sve on aarch64, got 'avx2'",
        ),
        (
            'id = "toy"',
            'id = "Toy.1"',
            "toy.toml: id: expected text that matches ^[a-z0-9][a-z0-9-]{0,62}$, got 'Toy.1'",
        ),
        (
            'min_python = "3.11"',
            'min_python = "3"',
            r"toy.toml: system.min_python: expected text that matches ^[0-9]{1,3}\.[0-9]{1,3}$, got '3'",
        ),
        (
            "in_pip_wheel = true",
            "in_pip_wheel = 1",
            "toy.toml: runtimes[0].providers[0].in_pip_wheel: expected bool, got 1",
        ),
        (
            "in_pip_wheel = true",
            "in_pip_wheel = true\nwhere = 1",
            "toy.toml: runtimes[0].providers[0].where: unknown key; allowed: name, in_pip_wheel, note",
        ),
        (
            "threads = 4",
            "threads = 9",
            "toy.toml: threads: expected at most twice the 4 cores, got 9",
        ),
        (
            "usable_memory_bytes = 800",
            "usable_memory_bytes = 1001",
            "toy.toml: usable_memory_bytes: expected at most memory_bytes, got 1001",
        ),
        (
            "usable_memory_bytes = 800",
            "usable_memory_bytes = 7",
            "toy.toml: usable_memory_bytes: expected at least 8, got 7",
        ),
        (
            '["int8", "float32"]',
            '["float16"]',
            "toy.toml: preferred_dtypes: 'float16' needs macs_per_second.float16",
        ),
        (
            'name = "CPUExecutionProvider"',
            'name = "CUDAExecutionProvider"',
            "toy.toml: runtimes[0].providers: expected 'CPUExecutionProvider' last, got 'CUDAExecutionProvider'",
        ),
        (
            "in_pip_wheel = true",
            'in_pip_wheel = false\nnote = "built by hand"',
            "toy.toml: runtimes[0].providers: the last one must be in pip's wheel, got 'CPUExecutionProvider'",
        ),
        (
            '[[runtimes.providers]]\nname = "CPU',
            '[[runtimes.providers]]\nname = "CUDA"\nin_pip_wheel = false\n\n[[runtimes.providers]]\nname = "CPU',
            "toy.toml: runtimes[0].providers[0].note: must say where 'CUDA' comes from, as pip's wheel lacks it",
        ),
        (
            'stock_python = "3.11"',
            'stock_python = "3.6"',
            "toy.toml: system.remedy: missing; the stock image lacks Python 3.11 and glibc 2.28: say what to do",
        ),
        (
            'stock_glibc = "2.36"\n',
            "",
            "toy.toml: system.remedy: missing; the stock image lacks Python 3.11 and glibc 2.28: say what to do",
        ),
        (
            'os = "Toy OS"',
            'os = "Toy OS"\nremedy = "pray"',
            "toy.toml: system.remedy: expected none, as the stock image has Python 3.11 and glibc 2.28",
        ),
        ('cores = "chosen: a toy"\n', "", "toy.toml: sources: no source for cores"),
        (
            'cores = "chosen: a toy"\n',
            'cores = "chosen: a toy"\nwheels = "chosen"\n',
            "toy.toml: sources: 'wheels' is no figure of this profile",
        ),
        ('cores = "chosen: a toy"\n', "cores = 4\n", "toy.toml: sources.cores: expected str, got 4"),
    ],
)
def test_one_fault_is_named_with_file_key_value_and_what_is_allowed(old: str, new: str, message: str) -> None:
    assert fault_of(old, new) == message


def test_a_list_where_a_table_belongs_is_shown_in_part() -> None:
    message = fault_of("[link]", "[[link]]")
    assert message.startswith("toy.toml: link: expected table, got [{'medium': 'wifi', ")
    assert message.endswith("...")


def test_all_faults_are_named_at_once_in_one_line() -> None:
    text = MINIMAL.replace("cores = 4", "cores = 'four'").replace("threads = 4", "thread = 4").replace("1e9", "'fast'")
    with pytest.raises(ProfileError) as caught:
        parse(text)
    first, *others = str(caught.value).split("; ")
    assert first == "toy.toml: cores: expected int, got 'four'"
    assert "macs_per_second.float32: expected float, got 'fast'" in others
    assert "threads: missing" in others
    assert "\n" not in str(caught.value)


def test_a_flood_of_faults_is_cut_short() -> None:
    flood = "".join(f"k{number} = 1\n" for number in range(500))
    with pytest.raises(ProfileError, match=r"; and 480 more$"):
        parse(flood + MINIMAL)


def test_a_key_with_a_line_break_stays_on_one_line() -> None:
    with pytest.raises(ProfileError) as caught:
        parse('"two\\nlines" = 1\n' + MINIMAL)
    assert str(caught.value).startswith(r"toy.toml: 'two\nlines': unknown key; allowed: format, id, ")


def test_a_long_value_is_shown_in_part() -> None:
    message = fault_of("cores = 4", f"cores = '{'x' * 5000}'")
    assert message == f"toy.toml: cores: expected int, got '{'x' * 56}..."


def test_text_that_is_no_toml_is_refused() -> None:
    with pytest.raises(ProfileError, match=r"^toy\.toml: not TOML: .*line 2"):
        parse("cores = 4\nthreads 4\n")


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ('"2.0"', "toy.toml: format version 2.0 cannot be read; this release reads 1.x"),
        ('"one"', "toy.toml: format version 'one' is no '<major>.<minor>'"),
        ("1", "toy.toml: format: expected a version such as '1.2', got 1"),
    ],
)
def test_another_major_format_is_refused(found: str, message: str) -> None:
    assert fault_of('"1.0"', found).startswith(message)


def test_a_newer_minor_format_is_read_with_a_warning_and_its_new_keys_are_ignored(
    caplog: pytest.LogCaptureFixture,
) -> None:
    newer = MINIMAL.replace('"1.0"', '"1.7"', 1).replace("[link]", '[link]\ncolour = "blue"', 1)
    with caplog.at_level(logging.WARNING):
        profile = parse(newer)
    assert msgspec.structs.replace(profile, format="1.0") == parse()
    assert "toy.toml: format version 1.7 is newer than 1.2" in caplog.text


_POWER = "[power]\nidle_watts = 2\nbusy_watts = 6.5\n\n[sources]\n"
_POWER_SOURCES = '"power.idle_watts" = "chosen: a toy"\n"power.busy_watts" = "chosen: a toy"\n'


def test_a_profile_says_what_its_device_draws_or_nothing_of_it() -> None:
    assert parse().power is None
    power = parse(MINIMAL.replace("[sources]\n", _POWER, 1) + _POWER_SOURCES).power
    assert power is not None
    assert (power.idle_watts, power.busy_watts) == (2, 6.5)


def test_a_power_needs_its_sources() -> None:
    fault = fault_of("[sources]\n", _POWER)
    assert fault == "toy.toml: sources: no source for power.busy_watts; sources: no source for power.idle_watts"


def test_a_device_draws_no_less_when_it_is_busy() -> None:
    with pytest.raises(ProfileError, match=r"power\.busy_watts: expected at least power\.idle_watts, got 1$"):
        parse(MINIMAL.replace("[sources]\n", _POWER.replace("6.5", "1"), 1) + _POWER_SOURCES)


def test_a_profile_is_loaded_from_a_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(MINIMAL, encoding="utf-8")
    assert load_profile(str(path)) == parse()


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "gone.toml"
    with pytest.raises(ProfileError) as caught:
        load_profile(str(missing))
    assert str(caught.value) == f"{missing}: cannot read the profile: No such file or directory"


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "photo.toml"
    path.write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(ProfileError, match="not UTF-8 text"):
        load_profile(str(path))


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge.toml"
    path.write_bytes(b"#" * (MAX_PROFILE_BYTES + 1))
    with pytest.raises(ProfileError, match=f"more than {MAX_PROFILE_BYTES} bytes"):
        load_profile(str(path))


@pytest.mark.parametrize("wrong", ["rpi9", "", "..", "../firmware_profiles/rpi4", "rpi4 "])
def test_an_unknown_id_is_refused_with_the_choice(wrong: str) -> None:
    with pytest.raises(ProfileError) as caught:
        load_profile(wrong)
    choice = ", ".join(profile_ids())
    assert str(caught.value) == f"unknown profile {wrong!r}: choose one of {choice}, or a path to a .toml file"


_TOML = st.sampled_from(["[]", "{}", "1", "-1", "1.5", "nan", "'x'", "true", "[[1]]", "2026-01-01", "{a = [1]}"])


@given(line=st.integers(min_value=0, max_value=MINIMAL.count("\n") - 1), value=_TOML)
def test_no_value_at_any_key_gets_past_as_anything_but_a_profile_error(line: int, value: str) -> None:
    lines = MINIMAL.splitlines()
    key, equals, _ = lines[line].partition(" = ")
    lines[line] = f"{key}{equals}{value}" if equals else lines[line]
    result = outcome("\n".join(lines))
    assert isinstance(result, DeviceProfile) or result.startswith("toy.toml: ")
    assert isinstance(result, DeviceProfile) or "\n" not in result


@given(st.text(max_size=200))
def test_no_text_gets_past_as_anything_but_a_profile_error(text: str) -> None:
    with pytest.raises(ProfileError):
        parse(text)
