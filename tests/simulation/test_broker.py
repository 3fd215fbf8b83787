"""The simulated broker keeps what MQTT promises, and forgets what a broker may forget."""

from __future__ import annotations

from random import Random

from bus.session import RECEIVE_MAXIMUM, WILL_DELAY, Incoming
from tests.simulation.broker import Broker, Message, Session, matches


class End:
    """The client's end of a link."""

    def __init__(self) -> None:
        self.got: list[Incoming] = []
        self.closed = False

    def deliver(self, incoming: Incoming) -> None:
        self.got.append(incoming)

    def close(self) -> None:
        self.closed = True

    def words(self) -> list[str]:
        return [incoming.payload.decode() for incoming in self.got]


class Rig:
    def __init__(self) -> None:
        self.time = 0.0
        self.said: list[Message] = []
        self.broker = Broker(Random(0), lambda: self.time, self.said.append)

    def join(self, client: str, *filters: str, durable: bool = True, will: Message | None = None) -> tuple[End, Session]:
        end = End()
        session = self.broker.connect(client, end, durable=durable, will=will)
        for topic_filter in filters:
            self.broker.subscribe(session, topic_filter)
        return end, session

    def say(self, topic: str, word: str, **facts: object) -> None:
        self.broker.publish(Message(topic, word.encode(), 1, **{"retain": False, **facts}))  # type: ignore[arg-type]


def test_filters() -> None:
    assert matches("a/+/c", "a/b/c") and matches("a/#", "a/b/c") and matches("a/b", "a/b")
    assert not matches("a/+", "a/b/c") and not matches("a/b/c", "a/b") and not matches("+/b", "a/c")


def test_unacknowledged_messages_come_again_to_the_same_session_only() -> None:
    rig = Rig()
    one, session = rig.join("one", "$share/g/t")
    rig.say("t", "first")
    rig.say("t", "second")
    rig.broker.ack(session, one.got[0].mid)
    rig.broker.disconnect("one", one, clean=False)
    two, _ = rig.join("two", "$share/g/t")
    assert two.words() == []
    again, _ = rig.join("one")
    assert [(i.payload, i.duplicate, i.mid) for i in again.got] == [(b"second", True, one.got[1].mid)]


def test_messages_wait_for_a_durable_session_and_are_bounded_under_way() -> None:
    rig = Rig()
    end, session = rig.join("one", "t")
    rig.broker.disconnect("one", end, clean=True)
    for number in range(RECEIVE_MAXIMUM + 3):
        rig.say("t", str(number))
    end, session = rig.join("one")
    assert len(end.got) == RECEIVE_MAXIMUM
    for incoming in list(end.got):
        rig.broker.ack(session, incoming.mid)
    assert end.words() == [str(number) for number in range(RECEIVE_MAXIMUM + 3)]


def test_each_message_goes_to_one_member_of_a_shared_subscription() -> None:
    rig = Rig()
    ends = [rig.join(name, "$share/g/t")[0] for name in ("one", "two", "three")]
    for number in range(30):
        rig.say("t", str(number))
    assert sorted((word for end in ends for word in end.words()), key=int) == [str(number) for number in range(30)]
    assert all(end.got for end in ends)


def test_a_second_connection_with_the_name_displaces_the_first() -> None:
    rig = Rig()
    one, _ = rig.join("same", "t")
    two, _ = rig.join("same")
    rig.broker.disconnect("same", one, clean=False)  # the late news of the first one's end
    rig.say("t", "word")
    assert one.closed and one.words() == [] and two.words() == ["word"]


def test_a_will_is_spoken_after_its_delay_unless_the_client_is_back() -> None:
    rig = Rig()
    will = Message("presence", b"offline", 1, True)
    end, _ = rig.join("one", will=will)
    rig.broker.disconnect("one", end, clean=False)
    rig.time += WILL_DELAY - 1
    rig.broker.wills()
    end, _ = rig.join("one", will=will)
    rig.time += WILL_DELAY
    rig.broker.wills()
    assert rig.said == []
    rig.broker.disconnect("one", end, clean=False)
    rig.time += WILL_DELAY
    rig.broker.wills()
    assert rig.said == [will] and rig.broker.retained == {"presence": will}


def test_what_a_killed_broker_remembers() -> None:
    for memory, expected in (("kept", ["kept", "new"]), ("old", ["old", "new"]), ("lost", [])):
        rig = Rig()
        end, _ = rig.join("one", "t")
        rig.broker.disconnect("one", end, clean=True)
        rig.say("t", "old")
        rig.broker.save()
        end, session = rig.join("one")
        rig.broker.ack(session, end.got[0].mid)
        rig.broker.disconnect("one", end, clean=True)
        rig.say("t", "kept")
        rig.broker.kill(memory)  # type: ignore[arg-type]
        rig.say("t", "new")
        assert rig.join("one")[0].words() == expected, memory


def test_a_message_that_waited_too_long_is_gone() -> None:
    rig = Rig()
    end, _ = rig.join("one", "t")
    rig.broker.disconnect("one", end, clean=True)
    rig.say("t", "late", expires_at=10.0)
    rig.say("t", "later", expires_at=20.0)
    rig.time = 15.0
    end, _ = rig.join("one")
    assert end.words() == ["later"] and end.got[0].expiry == 5
