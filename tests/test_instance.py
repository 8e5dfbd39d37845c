"""An instance that is told to end begins nothing that a later delivery can do as well."""

import signal
from collections.abc import Iterator
from datetime import timedelta

import pytest

from shared import instance
from shared.charge import Status
from tests.world import World


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """Leave the handler as it was."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


class Worker:
    """A server's worker, as gunicorn's is as far as a handler shows it."""

    alive = True

    def handle_exit(self, *_: object) -> None:
        """Go on no more."""
        self.alive = False


def test_an_instance_ends_once_its_server_was_told_to() -> None:
    """By the very signal."""
    signal.signal(signal.SIGTERM, Worker().handle_exit)
    assert not instance.ending()
    signal.raise_signal(signal.SIGTERM)
    assert instance.ending()


def test_without_such_a_server_an_instance_goes_on() -> None:
    """A test, a command line, another server."""
    for handler in (signal.SIG_DFL, signal.SIG_IGN, lambda *_: None):
        signal.signal(signal.SIGTERM, handler)
        assert not instance.ending()


def test_nothing_is_sent_by_an_instance_that_ends_and_its_task_carries_it_on() -> None:
    """Recorded, told as pending, and paid once by the next delivery."""
    world = World()
    ended = [True]
    world.parts.charger._ending = lambda: ended[0]

    told = world.create()

    assert told is not None
    assert (told.status, told.body["status"]) == (202, "pending")
    assert "stripe" not in world.services
    ended[0] = False
    world.settle()
    assert world.charge().status is Status.SUCCEEDED
    assert world.money_moved() == [1999]
    assert world.violations == []


def test_an_instance_that_ends_between_two_sends_does_not_send_the_second() -> None:
    """The PaymentIntent is made and recorded; it is confirmed by another."""
    world = World()
    world.parts.charger._ending = lambda: "stripe" in world.services

    world.create()

    assert world.money_moved() == []
    assert world.charge().payment_intent is not None
    began = world.clock.now()
    world.parts.charger._ending = lambda: False
    world.settle()
    assert world.money_moved() == [1999]
    assert world.clock.now() - began < timedelta(minutes=5)
    assert world.violations == []


def test_a_task_is_told_to_come_again() -> None:
    """At once, to an instance that goes on."""
    world = World()
    world.parts.charger._ending = lambda: True
    world.create()
    told = world.post(f"/{world.charge().id}/deliver", by_task="t")
    assert told is not None
    assert told.status == 409
