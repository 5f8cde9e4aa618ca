"""The parts below a simulated fleet: its clock, its broker, its links and its stand-in bundle."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edge.errors import InvalidInput
from edge.formats.bundle import digest_of
from edge.formats.packet import MAX_PACKET_BYTES
from edge.transport import Channel, Connected, Disconnected, Publication, Received, Subscribed, TransportEvent
from host.planning.costs import LinkCost, Medium, Network, PairLink
from host.simulate.clock import Clock
from host.simulate.network import SimulatedBroker, SimulatedTransport, Weather
from host.simulate.topic_tree import FilterTree, RetainedTree
from host.simulate.wire import Wire
from tests.simulated_fleets import chain_bundle

SLOW = LinkCost(up_bytes_per_second=1e6, down_bytes_per_second=1e6, latency_seconds=0.01)
FAST = LinkCost(up_bytes_per_second=4e6, down_bytes_per_second=4e6, latency_seconds=0.001)


class Net:
    """Two nodes on a broker; payloads name their own size on the wire."""

    def __init__(self, *, network: Network | None = None, weather: Weather | None = None) -> None:
        self.clock = Clock()
        self.broker = SimulatedBroker(
            self.clock,
            Wire(network or Network()),
            weather=weather or Weather(),
            wire_size=lambda topic, payload: (int(payload or b"0"), 1.0 if "/run/" in topic else 0.0),
            seed=1,
        )
        self.heard: list[tuple[float, TransportEvent]] = []
        self.sender = SimulatedTransport(
            self.broker, "pi-1", SLOW, on_event=lambda _: None, will=lambda n: self.message("will", b"%d" % n)
        )
        self.receiver = SimulatedTransport(self.broker, "pi-2", FAST, on_event=self._hear)

    def _hear(self, event: TransportEvent) -> None:
        self.heard.append((self.clock.now, event))

    @staticmethod
    def message(topic: str, payload: bytes, *, qos: int = 0, retain: bool = False) -> Publication:
        return Publication(channel=Channel.CONTROL, topic=topic, payload=payload, qos=qos, retain=retain)

    def frame(self, size: int) -> Publication:
        return Publication(channel=Channel.DATA, topic="shardwire/f/run/pi-2/net", payload=b"%d" % size)

    def connect(self) -> None:
        self.sender.connect()
        self.receiver.connect()
        self.clock.run(1.0)
        self.receiver.subscribe(Channel.DATA, "shardwire/f/run/pi-2/#")
        self.receiver.subscribe(Channel.CONTROL, "will")
        self.clock.run(2.0)
        self.heard.clear()

    def arrivals(self) -> list[float]:
        return [at for at, event in self.heard if isinstance(event, Received)]


class TestOfTheClock:
    def test_things_happen_in_the_order_of_their_times_and_then_as_asked(self) -> None:
        clock, seen = Clock(), list[str]()
        for at, name in ((2.0, "c"), (1.0, "a"), (2.0, "d"), (1.0, "b")):
            clock.at(at, lambda name=name: seen.append(name))  # type: ignore[misc]  # bound now
        clock.run(1.5)
        assert (seen, clock.now) == (["a", "b"], 1.5)
        clock.run(9.0, lambda: len(seen) == 3)
        assert (seen, clock.now) == (["a", "b", "c"], 2.0)

    def test_nothing_happens_in_the_past(self) -> None:
        clock, seen = Clock(5.0), list[float]()
        clock.at(1.0, lambda: seen.append(clock.now))
        clock.run(6.0)
        assert seen == [5.0]


class TestOfTopics:
    @pytest.mark.parametrize(
        ("filter", "topic", "covers"),
        [
            ("a/b", "a/b", True),
            ("a/+", "a/b", True),
            ("a/+", "a/b/c", False),
            ("a/#", "a/b/c", True),
            ("a/#", "a", True),
            ("+/b/#", "x/b/c/d", True),
            ("a/b", "a/c", False),
        ],
    )
    def test_filters_cover_topics(self, filter: str, topic: str, covers: bool) -> None:
        filters, kept = FilterTree[str](), RetainedTree()
        filters.add(filter, "pi-1")
        kept.keep(topic, b"1")
        assert filters.find(topic) == (["pi-1"] if covers else [])
        assert kept.matching(filter) == ([(topic, b"1")] if covers else [])

    def test_who_subscribed_twice_is_found_once_and_who_left_is_not(self) -> None:
        filters = FilterTree[str]()
        for filter in ("a/+", "a/b"):
            filters.add(filter, "pi-1")
        assert filters.find("a/b") == ["pi-1"]
        for filter in ("a/+", "a/b", "never/there"):
            filters.remove(filter, "pi-1")
        assert filters.find("a/b") == []

    def test_an_empty_payload_takes_what_was_retained_away(self) -> None:
        kept = RetainedTree()
        kept.keep("a", b"1")
        kept.keep("a", b"")
        assert kept.matching("#") == []


class TestOfLinks:
    @pytest.mark.parametrize("size", [10_000, MAX_PACKET_BYTES, 1_000_000])
    def test_a_message_alone_takes_what_the_design_says_of_a_hop(self, size: int) -> None:
        net = Net()
        net.connect()
        began = net.clock.now
        net.sender.publish(net.frame(size))
        net.clock.run(20.0)
        expected = 0.011 + size / 1e6 + min(size, MAX_PACKET_BYTES) / 4e6
        assert net.arrivals() == [pytest.approx(began + expected)]

    def test_messages_queue_for_a_link(self) -> None:
        net = Net()
        net.connect()
        for _ in range(3):
            net.sender.publish(net.frame(500_000))
        net.clock.run(20.0)
        first, second, third = net.arrivals()
        assert [second - first, third - second] == pytest.approx([0.5, 0.5])

    def test_a_control_message_does_not_wait_behind_tensors(self) -> None:
        net = Net()
        net.connect()
        net.sender.publish(net.frame(5_000_000))
        net.sender.publish(net.message("will", b"100"))
        net.clock.run(3.0)
        assert [event.topic for _, event in net.heard if isinstance(event, Received)] == ["will"]

    def test_a_pair_has_a_way_of_its_own(self) -> None:
        pair = PairLink(bytes_per_second=10e6, latency_seconds=0.002)
        net = Net(network=Network(pairs={("pi-1", "pi-2"): pair}))
        net.connect()
        began = net.clock.now
        net.sender.publish(net.frame(1_000_000))
        net.clock.run(20.0)
        assert net.arrivals() == [pytest.approx(began + 0.102)]

    @pytest.mark.parametrize("shared", ["broker", "medium"])
    @pytest.mark.parametrize(
        ("rate", "seconds"), [(0.5e6, 0.6 / 0.5), (2e6, 0.6)], ids=["slower than the links", "faster"]
    )
    def test_what_is_shared_takes_its_time_with_a_message_alone(self, shared: str, rate: float, seconds: float) -> None:
        """0.6 MB on the slowest of 1 MB/s, the shared rate and 4 MB/s, and a packet on the second slowest."""
        both = Medium(name="cell", bytes_per_second=2 * rate, nodes=frozenset({"pi-1", "pi-2"}))
        network = Network(broker_bytes_per_second=rate) if shared == "broker" else Network(media=(both,))
        net = Net(network=network)
        net.connect()
        began = net.clock.now
        net.sender.publish(net.frame(600_000))
        net.clock.run(20.0)
        packet = MAX_PACKET_BYTES / max(1e6, rate)
        assert net.arrivals() == [pytest.approx(began + 0.011 + seconds + packet)]

    def test_the_broker_takes_no_more_than_its_budget(self) -> None:
        net = Net(network=Network(broker_bytes_per_second=0.25e6))
        net.connect()
        for _ in range(3):
            net.sender.publish(net.frame(100_000))
        net.clock.run(20.0)
        first, second, third = net.arrivals()
        assert [second - first, third - second] == pytest.approx([0.4, 0.4])


class TestOfConnections:
    def test_a_node_hears_that_it_is_connected_and_subscribed(self) -> None:
        net = Net()
        net.receiver.connect()
        net.clock.run(1.0)
        net.receiver.subscribe(Channel.CONTROL, "a")
        net.clock.run(2.0)
        kinds = [type(event) for _, event in net.heard]
        assert kinds == [Connected, Connected, Subscribed]

    def test_what_is_retained_comes_after_the_subscription(self) -> None:
        net = Net()
        net.broker.retain(net.message("a", b"7", retain=True))
        net.receiver.connect()
        net.clock.run(1.0)
        net.receiver.subscribe(Channel.CONTROL, "a")
        net.clock.run(2.0)
        last = net.heard[-1][1]
        assert isinstance(last, Received)
        assert (last.payload, last.retained) == (b"7", True)

    def test_the_last_will_of_one_without_power_comes_when_its_keep_alive_is_over(self) -> None:
        net = Net()
        net.connect()
        began = net.clock.now
        net.sender.lose(reason="killed")
        assert not net.sender.publish(net.message("will", b"5"))
        net.clock.run(began + 14.9)
        assert net.arrivals() == []
        net.clock.run(began + 15.1)
        assert len(net.arrivals()) == 1

    def test_one_that_comes_back_before_that_takes_its_connection_over(self) -> None:
        net = Net()
        net.connect()
        began = net.clock.now
        net.sender.lose(reason="cut")
        net.sender.connect()
        net.clock.run(began + 1.0)
        assert len(net.arrivals()) == 1
        assert net.sender.publish(net.message("will", b"5"))
        net.clock.run(began + 60.0)
        assert len(net.arrivals()) == 2

    def test_a_message_to_a_connection_that_is_gone_is_lost(self) -> None:
        net = Net()
        net.connect()
        net.sender.publish(net.frame(1000))
        net.receiver.lose(reason="cut")
        net.receiver.connect()
        net.clock.run(20.0)
        assert [type(event) for _, event in net.heard] == [Disconnected, Disconnected, Connected, Connected]

    def test_goodbye_publishes_the_last_will_at_once(self) -> None:
        net = Net()
        net.connect()
        net.sender.close()
        net.clock.run(net.clock.now + 0.5)
        assert len(net.arrivals()) == 1


class TestOfWeather:
    def test_messages_of_qos_0_get_lost_and_come_twice(self) -> None:
        net = Net(weather=Weather(loss=0.3, duplication=0.2, reordering=0.3))
        net.connect()
        for _ in range(300):
            net.sender.publish(net.frame(100))
        net.clock.run(60.0)
        assert net.broker.lost == pytest.approx(90, abs=30)
        assert len(net.arrivals()) == pytest.approx(210 * 1.2, abs=40)

    def test_those_of_qos_1_do_not(self) -> None:
        net = Net(weather=Weather(loss=0.9, duplication=0.9))
        net.connect()
        for _ in range(50):
            net.sender.publish(net.message("will", b"100", qos=1))
        net.clock.run(60.0)
        assert len(net.arrivals()) == 50

    def test_a_large_message_is_lost_more_often(self) -> None:
        losses = []
        for size in (1000, 10 * MAX_PACKET_BYTES):
            net = Net(weather=Weather(loss=0.05))
            net.connect()
            for _ in range(200):
                net.sender.publish(net.frame(size))
            net.clock.run(2000.0)
            losses.append(net.broker.lost)
        assert losses[1] > 4 * losses[0] > 0


class TestOfTheBundle:
    BUNDLE = chain_bundle([40_000, 20_000, 10_000, 4_000])

    def test_stages_one_after_another_give_the_answer(self) -> None:
        tensors = self.BUNDLE.inputs(7)
        for shard in range(3):
            tensors = self.BUNDLE.run(shard, shard + 1, tensors)
        assert tensors == self.BUNDLE.answer(7)

    def test_another_request_or_another_order_gives_another_answer(self) -> None:
        right = self.BUNDLE.answer(7)["t3"]
        assert right != self.BUNDLE.answer(8)["t3"]
        mixed = self.BUNDLE.run(1, 3, self.BUNDLE.run(0, 1, self.BUNDLE.inputs(8)))["t3"]
        assert mixed != right

    def test_a_tensor_that_did_not_come_is_named(self) -> None:
        with pytest.raises(InvalidInput, match="shard 1 reads 't1', which did not come"):
            self.BUNDLE.run(1, 2, self.BUNDLE.inputs(7))
        with pytest.raises(InvalidInput, match="no single number"):
            self.BUNDLE.run(0, 1, {"t0": np.zeros(2, np.int64)})

    def test_sizes_are_those_of_the_manifest(self) -> None:
        assert dict(self.BUNDLE.tensor_bytes) == {"t0": 40_000, "t1": 20_000, "t2": 10_000, "t3": 4_000}
        assert self.BUNDLE.wire_bytes("deflate") == self.BUNDLE.tensor_bytes
        packed = replace(self.BUNDLE, deflated_bytes={"t0": 1})
        assert packed.wire_bytes("deflate") == {"t0": 1}

    def test_its_blobs_can_be_read_and_those_of_one_block_have_their_digest(self) -> None:
        golden = self.BUNDLE.manifest.golden[0]
        for blob in (self.BUNDLE.manifest_blob, golden.inputs, golden.whole):
            assert len(self.BUNDLE.read(blob.digest)) == blob.size_bytes
            assert self.BUNDLE.read_block(blob.digest, 0) == (blob.size_bytes, self.BUNDLE.read(blob.digest))
        weights = self.BUNDLE.manifest.shards[0].weights[0]
        size, data = self.BUNDLE.read_block(weights.digest, 0) or (0, b"")
        assert (size, digest_of(data)) == (1000, weights.digest)
        assert self.BUNDLE.read_block("sha256:" + "0" * 64, 0) is None
