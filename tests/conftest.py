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
