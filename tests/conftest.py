"""What every test may ask for by name."""

from __future__ import annotations

import pytest

from host.broker import choose_broker
from tests.brokers import amqtt_broker, any_broker, broker, broker_folder, persistent_mosquitto, use_unpacked_mosquitto

__all__ = ["amqtt_broker", "any_broker", "broker", "broker_folder", "persistent_mosquitto"]

# Set before any test or child process looks for a broker.
use_unpacked_mosquitto()


def pytest_report_header(config: pytest.Config) -> str:
    return f"broker: {choose_broker('auto')}"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep together, for `--dist loadgroup`, what shares what is slow to make: tests of one model, else of one file."""
    if not config.pluginmanager.hasplugin("xdist"):  # on a device there is none
        return
    for item in items:
        callspec = getattr(item, "callspec", None)
        model = callspec.params.get("cut") if callspec is not None else None
        item.add_marker(pytest.mark.xdist_group(f"{item.path.stem} {model}" if model else item.path.stem))
