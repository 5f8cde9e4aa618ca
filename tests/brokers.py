"""Real brokers for tests, each a process of its own on a free port of the loopback address."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from host.broker import MOSQUITTO_VARIABLE, RunningBroker, choose_broker, find_mosquitto, start_broker

_UNPACKED = Path(__file__).resolve().parent.parent / ".venv" / "mosquitto" / "mosquitto"


def use_unpacked_mosquitto() -> None:
    """Let this process and its children use the mosquitto that `make test` unpacked, if there is no other."""
    if find_mosquitto() is None and _UNPACKED.is_file():
        os.environ[MOSQUITTO_VARIABLE] = str(_UNPACKED)


@pytest.fixture
def broker_folder(tmp_path: Path) -> Path:
    """Where a broker of this test keeps its configuration, log and database."""
    return tmp_path / "broker"


@pytest.fixture
def broker(broker_folder: Path) -> Iterator[RunningBroker]:
    """The best broker of this machine: mosquitto, else amqtt."""
    with start_broker("auto", folder=broker_folder) as running:
        yield running


@pytest.fixture
def amqtt_broker(broker_folder: Path) -> Iterator[RunningBroker]:
    """The broker that comes with pip."""
    with start_broker("amqtt", folder=broker_folder) as running:
        yield running


@pytest.fixture
def persistent_mosquitto(broker_folder: Path) -> Iterator[RunningBroker]:
    """A broker that keeps retained messages over a restart where mosquitto is there; else one that does not."""
    with start_broker("auto", folder=broker_folder, persistence=True) as running:
        yield running


@pytest.fixture
def rabbitmq_broker(broker_folder: Path) -> Iterator[RunningBroker]:
    """RabbitMQ with its MQTT plugin; a machine without it is told what to install."""
    with start_broker("rabbitmq", folder=broker_folder) as running:
        yield running


@pytest.fixture(params=["auto", "amqtt"])
def any_broker(request: pytest.FixtureRequest, broker_folder: Path) -> Iterator[RunningBroker]:
    """Each kind of broker in turn; twice amqtt where there is no mosquitto."""
    kind = choose_broker(request.param)
    with start_broker(kind, folder=broker_folder) as running:
        yield running
