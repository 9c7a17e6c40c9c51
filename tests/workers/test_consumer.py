"""What is ours in the part of a worker that listens to the broker."""

from __future__ import annotations

import pytest
from kombu import Connection, Queue

import workers.consumer  # noqa: F401
from local.servers import Broker


def test_a_message_whose_acknowledgement_was_not_answered_takes_up_no_place(broker: Broker) -> None:
    with Connection(broker.url, transport_options={"socket_timeout": 0.3}) as connection:
        channel = connection.channel()
        channel.basic_qos(0, 1, False)
        queue = Queue("tried", channel=channel)
        queue.declare()
        received: list[object] = []
        connection.Producer(channel).publish("first", routing_key="tried")
        connection.Producer(channel).publish("second", routing_key="tried")
        with connection.Consumer(queue, callbacks=[lambda _, message: received.append(message)], channel=channel):
            connection.drain_events(timeout=2)
            (first,) = received
            broker.freeze()
            with pytest.raises(connection.connection_errors):
                first.ack()  # type: ignore[attr-defined]
            broker.thaw()
            connection.drain_events(timeout=2)
        assert [each.payload for each in received] == ["first", "second"]  # type: ignore[attr-defined]
