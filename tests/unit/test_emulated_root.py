"""Making the emulated system: what is missing is said in one line, and nothing half-made stays."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from edge.formats.profile import load_profile
from host.compress.emulate import root as emulated_root
from host.compress.emulate.emulator import Emulator
from host.compress.emulate.root import EmulationError, emulated_command, find_root, prepare_root
from tests.graphs import conv_net, model_of

_NO_NETWORK = "W: Failed to fetch http://deb.debian.org/debian/dists/x/InRelease  Temporary failure resolving"


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder of PATH: nothing but a shell."""
    folder = tmp_path / "bin"
    folder.mkdir()
    shell = shutil.which("sh")
    assert shell is not None
    (folder / "sh").symlink_to(shell)
    monkeypatch.setenv("PATH", str(folder))
    return folder


def program(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f"#!{folder / 'sh'}\n{body}\n", encoding="utf-8")
    path.chmod(0o755)


def debian(folder: Path, *, update: str = "", download: str = "exit 0") -> None:
    """Stand-ins for Debian's tools."""
    program(folder, "dpkg", "echo amd64")
    program(folder, "dpkg-deb", "exit 0")
    program(folder, "apt-get", f'case "$*" in *" update") {update or ":"} ;; *) {download} ;; esac')


def fault_of(cache: Path) -> str:
    with pytest.raises(EmulationError) as caught:
        prepare_root(cache, lambda line: None)
    assert not cache.exists() or list(cache.iterdir()) == []
    return str(caught.value)


def test_another_system_than_debian_is_named(programs: Path, tmp_path: Path) -> None:
    assert fault_of(tmp_path / "cache") == (
        "the emulated aarch64 is made of Debian's packages, and this machine has no apt-get: "
        "measure on Debian or a container of it, or without --measure-on"
    )


def test_without_a_network_the_list_that_failed_is_named(programs: Path, tmp_path: Path) -> None:
    debian(
        programs, update=f"echo '{_NO_NETWORK}'", download="echo 'E: Unable to locate package libc6:arm64'; exit 100"
    )
    assert fault_of(tmp_path / "cache") == (
        f"cannot fetch Debian's package lists: {_NO_NETWORK.removeprefix('W: ')}: is there a network?"
    )


def test_a_package_that_is_not_offered_is_named(programs: Path, tmp_path: Path) -> None:
    debian(programs, download="echo 'E: Unable to locate package libc6:arm64'; exit 100")
    assert fault_of(tmp_path / "cache") == (
        "cannot fetch Debian's arm64 packages: E: Unable to locate package libc6:arm64"
    )


def test_a_tool_that_fails_without_a_word_is_named_with_its_status(programs: Path, tmp_path: Path) -> None:
    debian(programs, update="exit 7")
    assert fault_of(tmp_path / "cache") == "cannot fetch Debian's package lists: it ended with status 7"


def test_a_tool_that_does_not_end_is_ended(programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    debian(programs, update="while :; do :; done")
    monkeypatch.setattr(emulated_root, "_STEP_SECONDS", 0.2)
    assert fault_of(tmp_path / "cache") == "cannot fetch Debian's package lists: not done after 0 seconds"


def test_another_debian_without_the_keys_is_told(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    debian(programs)
    monkeypatch.setattr(emulated_root, "_SUITE", "another")
    monkeypatch.setattr(emulated_root, "_KEYRING", tmp_path / "keys.gpg")
    assert fault_of(tmp_path / "cache").endswith("install debian-archive-keyring, or measure without --measure-on")


def test_a_full_disk_is_told_before_anything_is_fetched(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    debian(programs, update="exit 7")
    monkeypatch.setattr(emulated_root, "_FREE_BYTES", 1 << 62)
    assert "MiB free, which the emulated aarch64 needs" in fault_of(tmp_path / "cache")


def test_a_cache_that_cannot_be_made_is_named(programs: Path, tmp_path: Path) -> None:
    debian(programs)
    (tmp_path / "file").touch()
    with pytest.raises(EmulationError, match=r"file/cache: cannot make the emulated aarch64 there: Not a directory$"):
        prepare_root(tmp_path / "file" / "cache", lambda line: None)


def test_an_interrupted_preparation_leaves_nothing(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    debian(programs)

    def interrupted(line: str) -> None:
        if line == "Unpacking":
            raise KeyboardInterrupt

    cache = tmp_path / "cache"
    with pytest.raises(KeyboardInterrupt):
        prepare_root(cache, interrupted)
    assert list(cache.iterdir()) == []
    assert find_root(cache) is None


def test_a_system_of_other_versions_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / emulated_root._folder_name()).mkdir()
    assert find_root(tmp_path) is not None
    monkeypatch.setattr(emulated_root, "_versions", lambda: {"numpy": "1.0", "onnxruntime": "1.0"})
    assert find_root(tmp_path) is None


def test_a_relative_cache_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache" / emulated_root._folder_name()).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    found = find_root(Path("cache"))
    assert found is not None
    assert found.is_absolute()
    assert Path(emulated_command(found, "cortex-a72")[0]).is_absolute()


def test_running_without_the_system_says_what_makes_it(tmp_path: Path) -> None:
    with pytest.raises(EmulationError) as caught:
        Emulator(cache=tmp_path).runner(model_of(conv_net()))
    assert str(caught.value) == (
        f"there is no emulated aarch64 with the installed numpy and onnxruntime in {tmp_path}: "
        "make it with Emulator.prepare_root"
    )


def test_the_system_is_kept_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Emulator().folder == tmp_path / "shardwire"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert Emulator().folder == Path.home() / ".cache" / "shardwire"


@pytest.mark.parametrize(
    ("profile", "cpu"),
    [
        ("rpi-zero2w", "cortex-a53"),
        ("rpi3", "cortex-a53"),
        ("rpi4", "cortex-a72"),
        ("jetson-nano", "cortex-a72"),
        ("rpi5", "cortex-a76"),
        ("jetson-orin-nano", "cortex-a76"),
        ("phone-high", "max"),
    ],
)
def test_the_processor_is_that_of_the_profile(profile: str, cpu: str) -> None:
    assert Emulator.for_profile(load_profile(profile)).cpu == cpu


def test_a_device_of_another_architecture_is_refused() -> None:
    with pytest.raises(EmulationError) as caught:
        Emulator.for_profile(load_profile("x86-gateway"))
    assert str(caught.value) == (
        "profile x86-gateway is x86_64, and only aarch64 can be emulated: leave out --measure-on"
    )
