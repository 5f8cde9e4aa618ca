"""How far every device of a plan is, while a command runs."""

import pytest

from edge.formats.message import Message, Progress, Ready, encode_message
from edge.formats.plan import Deployment, encode_deployment
from edge.formats.topics import Topics
from edge.transport import Channel, Received
from host.fleet.command import Course, _Progress
from tests.tiny_bundle import make_deployment, make_diamond_bundle

TOPICS = Topics(fleet="default")
TWICE = make_deployment(make_diamond_bundle(), ("pi-0", "pi-1", "pi-2", "pi-0"), beside=(2,), replicas={1: ("pi-4",)})


class Watched:
    """A command that hears of one deployment."""

    def __init__(self, deployment: Deployment) -> None:
        self.courses: list[Course] = []
        self.progress = _Progress(Course(name="tiny"), TOPICS, self.courses.append)
        self.hear(TOPICS.desired("tiny"), encode_deployment(deployment))

    def hear(self, topic: str, payload: bytes) -> None:
        self.progress.watch(Received(channel=Channel.CONTROL, topic=topic, payload=payload, retained=False))

    def say(self, device: str, message: Message) -> str:
        """Return the phase of a device after it said something."""
        self.hear(TOPICS.event(device), encode_message(message))
        return self.courses[-1].devices[device].phase


@pytest.fixture
def watched() -> Watched:
    return Watched(TWICE)


def ready(stage: int, fetched_bytes: int = 7) -> Ready:
    return Ready(
        deployment="tiny", epoch="1-a-1", stage=stage, fetched_bytes=fetched_bytes, load_seconds=0.1, rss_bytes=0
    )


def test_replicas_are_shown_and_a_device_with_two_stages_once(watched: Watched) -> None:
    devices = watched.courses[-1].devices
    assert {name: shipping.stages for name, shipping in devices.items()} == {
        "pi-0": (0, 3),
        "pi-1": (1,),
        "pi-4": (1,),
        "pi-2": (2,),
    }


def test_a_device_with_two_stages_is_ready_when_both_are(watched: Watched) -> None:
    fetching = Progress(deployment="tiny", epoch="1-a-1", stage=0, phase="fetching", done_bytes=3, total_bytes=7)
    assert watched.say("pi-4", ready(1)) == "ready"
    assert watched.say("pi-0", fetching) == "fetching"
    assert watched.say("pi-0", ready(3)) == "fetching"
    assert watched.say("pi-0", ready(3)) == "fetching"
    assert watched.say("pi-0", ready(0)) == "ready"
    assert watched.say("pi-0", fetching) == "ready"
    assert watched.courses[-1].devices["pi-0"].done_bytes == 7
