"""The agent's protocol: who is here, late last wills, and rivals of the same name; on a virtual clock."""

import pytest

from edge.formats.message import About, Heartbeat, Hello, Session, State
from edge.protocol.presence import ANSWER_SECONDS, BIRTH_SECONDS
from edge.transport import Channel, MemoryBroker
from tests.virtual_agent import INSTANCE, TOPICS, Ear, VirtualAgent


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker()


@pytest.fixture
def ear(broker: MemoryBroker) -> Ear:
    return Ear(broker)


@pytest.fixture
def agent(broker: MemoryBroker, ear: Ear) -> VirtualAgent:
    agent = VirtualAgent(broker)
    agent.start()
    return agent


def test_a_new_agent_says_that_it_is_online_what_it_is_and_hello(agent: VirtualAgent, ear: Ear) -> None:
    session = Session(boot=1, connect=1)
    assert ear.messages(State) == [
        State(node="pi-1", role="agent", online=True, session=session, instance=INSTANCE, uptime_seconds=10.0)
    ]
    about = ear.messages(About)[0]
    assert (about.profile, about.memory_bytes, about.cores) == ("rpi4", 1 << 30, 4)
    assert ear.messages(Hello) == [Hello(node="pi-1", role="agent")]


def test_it_is_born_when_frames_can_arrive_or_soon_after(broker: MemoryBroker, ear: Ear) -> None:
    agent = VirtualAgent(broker, "pi-2")
    agent.transport.connect(Channel.CONTROL)
    agent.pump()
    assert ear.messages(State) == []
    agent.transport.connect(Channel.DATA)
    agent.pump()
    assert [(state.node, state.online) for state in ear.messages(State)] == [("pi-2", True)]


def test_without_a_data_connection_it_is_born_too(broker: MemoryBroker, ear: Ear) -> None:
    agent = VirtualAgent(broker, "pi-2")
    agent.transport.connect(Channel.CONTROL)
    agent.pump()
    agent.wait(BIRTH_SECONDS)
    assert [(state.node, state.online) for state in ear.messages(State)] == [("pi-2", True)]
    assert ear.messages(Hello) == [Hello(node="pi-2", role="agent")]


def test_its_last_will_says_that_it_is_offline(agent: VirtualAgent, ear: Ear) -> None:
    agent.transport.cut(Channel.CONTROL)
    assert ear.messages(State)[-1].online is False


def test_a_late_last_will_of_an_earlier_connection_is_corrected(agent: VirtualAgent, ear: Ear) -> None:
    agent.transport.cut(Channel.CONTROL)
    agent.transport.connect(Channel.CONTROL)
    agent.pump()
    agent.wait(2)
    late = State(node="pi-1", role="agent", online=False, session=Session(boot=1, connect=1))
    ear.say(TOPICS.state("pi-1"), late, retain=True)
    agent.pump()
    state = ear.messages(State)[-1]
    assert (state.online, state.session) == (True, Session(boot=1, connect=2))


def test_a_correction_that_comes_too_soon_is_made_with_a_later_tick(agent: VirtualAgent, ear: Ear) -> None:
    late = State(node="pi-1", role="agent", online=False, session=Session(boot=0, connect=9))
    ear.say(TOPICS.state("pi-1"), late, retain=True)
    agent.pump()
    assert ear.messages(State)[-1].online is False
    agent.wait(1.25)
    assert ear.messages(State)[-1].online is True


def rival(connect: int, *, instance: str = "f", uptime_seconds: float = 1000.0, boot: int = 2) -> State:
    return State(
        node="pi-1",
        role="agent",
        online=False,
        session=Session(boot=boot, connect=connect),
        instance=instance,
        uptime_seconds=uptime_seconds,
    )


def test_it_stops_when_an_older_agent_of_its_name_shows_up_three_times(agent: VirtualAgent, ear: Ear) -> None:
    for connect in range(3):
        ear.say(TOPICS.state("pi-1"), rival(connect))
        agent.pump()
        assert bool(agent.stopped) == (connect == 2)
    assert agent.stopped == "another agent is called pi-1: give each its own --name"


def test_a_newcomer_of_its_name_does_not_end_an_agent_that_works(agent: VirtualAgent, ear: Ear) -> None:
    for connect in range(9):
        ear.say(TOPICS.state("pi-1"), rival(connect, uptime_seconds=1.0, boot=9), retain=True)
        agent.pump()
    assert agent.stopped == ""


@pytest.mark.parametrize(("instance", "stops"), [("f", True), ("0", False)])
def test_of_two_devices_that_started_together_one_stops(
    agent: VirtualAgent, ear: Ear, instance: str, stops: bool
) -> None:
    for connect in range(4):
        ear.say(TOPICS.state("pi-1"), rival(connect, instance=instance, uptime_seconds=10.0, boot=1), retain=True)
        agent.pump()
    assert bool(agent.stopped) == stops


def test_a_rival_that_shows_up_seldom_is_outlived(agent: VirtualAgent, ear: Ear) -> None:
    for connect in range(4):
        ear.say(TOPICS.state("pi-1"), rival(connect))
        agent.pump()
        agent.wait(16, step=4)
    assert agent.stopped == ""


def test_what_the_broker_kept_of_a_former_self_is_no_rival(broker: MemoryBroker, ear: Ear) -> None:
    former = State(node="pi-1", role="agent", online=False, session=Session(boot=50, connect=1))
    ear.say(TOPICS.state("pi-1"), former, retain=True)
    agent = VirtualAgent(broker)
    for _ in range(4):
        agent.start()
        agent.wait(2)
    assert agent.stopped == ""
    assert ear.messages(State)[-1].online is True


def test_it_answers_hello_within_half_a_second_and_the_tick_after(agent: VirtualAgent, ear: Ear) -> None:
    agent.wait(2)
    for _ in range(20):
        ear.forget()
        ear.say(TOPICS.hello(), Hello(node="boss"))
        agent.wait(ANSWER_SECONDS + 0.25)
        assert len(ear.messages(State)) == 1
        agent.wait(1)
        assert len(ear.messages(State)) == 1


def test_hellos_that_come_before_it_answers_are_answered_together(agent: VirtualAgent, ear: Ear) -> None:
    agent.wait(2)
    ear.forget()
    for _ in range(10):
        ear.say(TOPICS.hello(), Hello(node="boss"))
    agent.pump()
    assert ear.messages(State) == []
    agent.wait(3)
    assert len(ear.messages(State)) == len(ear.messages(About)) == 1


def test_a_flood_of_hellos_gets_an_answer_a_second(agent: VirtualAgent, ear: Ear) -> None:
    agent.wait(2)
    ear.forget()
    for _ in range(40):
        ear.say(TOPICS.hello(), Hello(node="boss"))
        agent.wait(0.25)
    assert 7 <= len(ear.messages(State)) <= 10


def test_devices_answer_a_hello_at_moments_of_their_own(broker: MemoryBroker, ear: Ear) -> None:
    agents = [VirtualAgent(broker, f"pi-{number}") for number in range(40)]
    for agent in agents:
        agent.start()
    for agent in agents:
        agent.wait(2)
    ear.forget()
    ear.say(TOPICS.hello(), Hello(node="boss"))
    answered = []
    for _ in range(3):
        for agent in agents:
            agent.wait(0.25)
        answered.append(len(ear.messages(State)))
    assert answered[-1] == 40
    assert 10 <= answered[1] - answered[0] <= 30


def test_a_hello_of_before_its_connection_was_lost_is_answered_by_its_coming_back(broker: MemoryBroker) -> None:
    said = []
    for asked in (True, False):
        ear, agent = Ear(broker), VirtualAgent(broker)
        agent.start()
        agent.wait(2)
        if asked:
            ear.say(TOPICS.hello(), Hello(node="boss"))
            agent.pump()
        agent.transport.cut(Channel.CONTROL)
        agent.wait(2)
        ear.forget()
        agent.transport.connect(Channel.CONTROL)
        agent.wait(3)
        said.append([state.session.connect for state in ear.messages(State)])
    assert said[0] == said[1] != []


def test_every_beat_of_the_compute_loop_is_a_heartbeat(agent: VirtualAgent, ear: Ear) -> None:
    agent.beat()
    agent.transport.cut(Channel.DATA)
    agent.beat()
    assert [beat.data_up for beat in ear.messages(Heartbeat)] == [True, False, False], "at once, and then as always"


def test_without_a_beat_there_is_no_heartbeat(agent: VirtualAgent, ear: Ear) -> None:
    agent.wait(5)
    assert ear.messages(Heartbeat) == []
