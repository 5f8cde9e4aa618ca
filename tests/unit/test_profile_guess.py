"""The agent guesses its profile from the device tree; what it cannot know it asks for."""

import pytest

from edge.errors import ProfileError
from edge.formats.profile import guess_profile, profile_ids


@pytest.mark.parametrize(
    ("model", "machine", "profile"),
    [
        ("Raspberry Pi Zero 2 W Rev 1.0\x00", "aarch64", "rpi-zero2w"),
        ("Raspberry Pi 3 Model B Plus Rev 1.3\x00", "aarch64", "rpi3"),
        ("Raspberry Pi 3 Model B Plus Rev 1.3\x00", "armv7l", "rpi3-32bit"),
        ("Raspberry Pi 4 Model B Rev 1.4\x00", "aarch64", "rpi4"),
        ("Raspberry Pi 400 Rev 1.0", "aarch64", "rpi4"),
        ("Raspberry Pi Compute Module 4 Rev 1.0", "aarch64", "rpi4"),
        ("Raspberry Pi 5 Model B Rev 1.0", "aarch64", "rpi5"),
        ("Raspberry Pi 500 Rev 1.0", "aarch64", "rpi5"),
        ("NVIDIA Jetson Nano Developer Kit", "aarch64", "jetson-nano"),
        ("NVIDIA Jetson Orin Nano Developer Kit", "aarch64", "jetson-orin-nano"),
        ("NVIDIA Orin Nano Developer Kit", "arm64", "jetson-orin-nano"),
        (None, "x86_64", "x86-gateway"),
        (None, "AMD64", "x86-gateway"),
    ],
)
def test_the_device_tree_names_the_profile(model: str | None, machine: str, profile: str) -> None:
    assert guess_profile(model, machine) == profile
    assert profile in profile_ids()


@pytest.mark.parametrize(
    ("model", "machine", "seen"),
    [
        (
            "Raspberry Pi Zero W Rev 1.1\x00",
            "armv6l",
            "device tree model 'Raspberry Pi Zero W Rev 1.1', machine 'armv6l'",
        ),
        ("Qualcomm SM8550", "aarch64", "device tree model 'Qualcomm SM8550', machine 'aarch64'"),
        (None, "riscv64", "no device tree model, machine 'riscv64'"),
    ],
)
def test_a_device_that_is_not_known_must_be_named(model: str | None, machine: str, seen: str) -> None:
    with pytest.raises(ProfileError) as caught:
        guess_profile(model, machine)
    assert str(caught.value) == (
        f"cannot guess the device profile ({seen}): "
        f"pass --profile with one of {', '.join(profile_ids())}, or a path to a .toml file"
    )


def test_a_board_under_a_32_bit_system_is_told_so() -> None:
    with pytest.raises(ProfileError) as caught:
        guess_profile("Raspberry Pi 4 Model B Rev 1.4\x00", "armv7l")
    assert str(caught.value) == (
        "'Raspberry Pi 4 Model B Rev 1.4' runs a 32-bit system (armv7l), and profile rpi4 is for a 64-bit one: "
        "install the 64-bit image, or pass --profile"
    )
