"""The storm strikes as it says, Paidonce stands in it, and the judge would have seen it fall."""

import dataclasses
import math
from datetime import datetime, timedelta
from functools import cache

import pytest
import stripe

from tests.peers import storm
from tests.peers.storm import (
    Call,
    Card,
    Fault,
    Order,
    Peer,
    Score,
    Sky,
    Story,
    Window,
    Word,
    charge_now,
    orders,
    quantile,
)
from tests.peers.table import MEDIAN_SECONDS, NEVER, PEERS, measure, missed, table
from tests.world import START, VirtualClock

SEED = 2
CHARGES = 100


@cache
def measured(name: str, charges: int = CHARGES) -> Score:
    """Measure one peer, once."""
    return measure(name, SEED, charges)


# --- Paidonce ---------------------------------------------------------------------------------------------------------


def test_paidonce_charges_nobody_twice_loses_nothing_lies_to_nobody_and_knows_in_the_end() -> None:
    """The four columns that are 0, whatever happens; and half of what was unknown is known within seconds."""
    score = measured("paidonce")

    assert {what: score.count(what) for what in NEVER} == dict.fromkeys(NEVER, 0)
    assert len(score.closings) > CHARGES / 3
    assert quantile(score.closings, 0.5) < MEDIAN_SECONDS


def test_paidonce_knows_almost_every_outcome_within_a_minute_once_stripe_answers() -> None:
    """All bars, those of time too."""
    assert missed(measured("paidonce")) == []


# --- The storm --------------------------------------------------------------------------------------------------------


def test_everything_that_can_go_wrong_does() -> None:
    """A fault that never strikes would prove nothing."""
    met = measured("paidonce").met + measured("plain_stripe").met

    assert set(met) == {*Fault, "Stripe is down", "delivered again", "the queue stops for 25 h"}
    assert {order.card for order in orders(SEED, 500)} == set(Card)


def test_every_peer_meets_the_same_orders_and_the_same_faults_at_the_same_calls() -> None:
    """Drawn by order and by ordinal: neither the size of the storm nor what other orders did changes them."""
    few, many = orders(SEED, 20), orders(SEED, 40)
    calls = [(call, ordinal) for call in Call for ordinal in range(8)]

    assert many[:20] == few
    assert orders(SEED + 1, 20) != few
    assert [few[3].fault(*each, few[3].arrives) for each in calls] == [
        many[3].fault(*each, many[3].arrives) for each in reversed(calls)
    ][::-1]


@pytest.mark.parametrize("name", ["plain_stripe", "dbos_workflow", "paidonce"])
def test_a_storm_comes_again_by_its_seed(name: str) -> None:
    """What went wrong once can be looked at again."""
    assert measure(name, SEED + 1, 20).stories == measure(name, SEED + 1, 20).stories


# --- The other peers --------------------------------------------------------------------------------------------------


def test_a_key_for_each_call_charges_customers_twice() -> None:
    """So the storm is strong enough for the judge to see what there is to see."""
    assert measured("plain_stripe").count("charged_twice") > 3


def test_a_5xx_taken_as_failure_tells_customers_who_paid_that_they_did_not() -> None:
    """And loses those whose card was good, and who were not charged."""
    score = measured("stored_key")

    assert score.count("told_failed_though_paid") > 3
    assert score.count("lost") > 0


def test_a_dbos_workflow_charges_nobody_twice_and_lies_to_nobody() -> None:
    """A peer that does well is shown doing well; what it cannot know it does not make up."""
    score = measured("dbos_workflow", 40)

    assert score.count("charged_twice") == score.count("told_failed_though_paid") == 0
    assert sum(story.word is Word.PAID for story in score.stories) > 25


def test_powertools_pays_for_almost_everybody_and_lies_to_nobody() -> None:
    """Its records outlive the queue, and give way when a Lambda function has died."""
    score = measured("powertools", 15)

    assert score.count("told_failed_though_paid") == score.count("lost") == score.count("left_unknown") == 0
    assert sum(story.word is Word.PAID for story in score.stories) > 10


# --- The judge --------------------------------------------------------------------------------------------------------


class CalmOrder(Order):
    """An order around which nothing goes wrong."""

    def fault(self, *_: object) -> None:
        """Let the call pass."""


class Made(Peer):
    """A peer that charges as often as it is made to, and says what it is made to."""

    charges: int
    says: Word

    def deliver(self, tries: int) -> timedelta | None:
        """Charge, under another key each time."""
        assert tries == 0
        for _ in range(self.charges):
            self.sky.client().v1.payment_intents.create(charge_now(self.sky))
        self.sky.table.record(self.says)
        return None

    def word(self) -> Word:
        """Read the table."""
        return self.sky.table.seen()


@pytest.mark.parametrize(
    ("charges", "says", "found"),
    [
        (1, Word.PAID, []),
        (2, Word.PAID, ["charged_twice"]),
        (0, Word.FAILED, ["lost"]),
        (0, Word.UNKNOWN, ["lost", "left_unknown"]),
        (1, Word.FAILED, ["told_failed_though_paid"]),
        (1, Word.ACTION_REQUIRED, ["told_failed_though_paid"]),
        (1, Word.UNKNOWN, ["left_unknown"]),
        (2, Word.FAILED, ["charged_twice", "told_failed_though_paid"]),
    ],
)
def test_the_judge_counts_what_stripe_moved_against_what_was_said(charges: int, says: Word, found: list[str]) -> None:
    """A double charge, a lie, a loss and an open end, each made by hand."""
    order = CalmOrder(
        number="order-1", seed=1, amount=1999, card=Card.GOOD, arrives=START, outage=Window(start=START, end=START)
    )
    peer = type("Peer", (Made,), {"charges": charges, "says": says})

    score = storm.blow("made", peer, [order])

    assert score.stories[0].moved == [1999] * charges
    assert score.sends == charges
    assert [what for what in NEVER if score.count(what)] == sorted(found, key=list(NEVER).index)


def story(*said: tuple[float, Word], moved: bool, unknown_at: float | None = 0.0) -> Story:
    """Tell a story, in seconds from the order's arrival; Stripe is down from 100 to 200, the queue from 150 to 400."""

    def at(seconds: float) -> datetime:
        return START + timedelta(seconds=seconds)

    order = Order(
        number="order-1",
        seed=1,
        amount=1999,
        card=Card.GOOD,
        arrives=START,
        outage=Window(start=at(100), end=at(200)),
        stop=Window(start=at(150), end=at(400)),
    )
    return Story(
        order=order,
        moved=[1999] if moved else [],
        said=[(at(seconds), word) for seconds, word in said],
        unknown_at=None if unknown_at is None else at(unknown_at),
    )


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        (story((5, Word.PAID), moved=True, unknown_at=None), None),
        (story((5, Word.PAID), moved=True), 5.0),
        (story((110, Word.PAID), moved=True, unknown_at=90), 10.0),
        (story((450, Word.PAID), moved=True, unknown_at=120), 50.0),
        (story((450, Word.PAID), moved=True), 150.0),
        (story((5, Word.FAILED), moved=False), 5.0),
        (story((5, Word.FAILED), moved=True), math.inf),
        (story((5, Word.PAID), moved=False), math.inf),
        (story(moved=True), math.inf),
        (story((5, Word.FAILED), (9, Word.PAID), moved=True), 9.0),
    ],
)
def test_an_outcome_is_unknown_until_the_true_one_is_recorded_for_good(told: Story, seconds: float | None) -> None:
    """Not counting what passes while Stripe is down or the queue is stopped; and for ever where it never is."""
    assert told.seconds_unknown == seconds
    assert told.told_failed_though_paid == (bool(told.moved) and any(word is Word.FAILED for _, word in told.said))


def test_a_quantile_is_one_of_the_values() -> None:
    """The smallest that the given part does not exceed."""
    values = [float(each) for each in range(1, 101)]

    assert (quantile(values, 0.5), quantile(values, 0.99), quantile([7.0], 0.99)) == (50.0, 99.0, 7.0)
    assert math.isnan(quantile([], 0.5))


def test_a_missed_bar_is_named() -> None:
    """Each of them, in words."""
    slow = [story((90, Word.PAID), moved=True)] * 3
    burnt = [dataclasses.replace(story((1500, Word.PAID), moved=True), burnt=1)]
    twice = [dataclasses.replace(story((1, Word.PAID), moved=True), moved=[1, 1])]

    assert missed(Score(name="paidonce", stories=[*slow, *burnt, *twice])) == [
        "charged twice: 1",
        "the median outcome is unknown for 90.0 s or longer, not 10",
        "1 % of the outcomes are unknown for 90.0 s or longer, not 60",
        "1 % of those whose key is burnt are unknown for 1,200.0 s or longer, not 960",
    ]


def test_the_table_has_a_row_for_each_peer() -> None:
    """As Markdown, so that it can be shown as it is."""
    lines = table([Score(name=name, stories=[story((5, Word.PAID), moved=True)]) for name in PEERS]).splitlines()

    assert len(lines) == 2 + len(PEERS)
    assert lines[-1] == "| Paidonce | 0 | 0 | 0 | 0 | 0.00 | 5.0, 5.0 | -, - |"


def test_a_twin_meets_the_first_delivery_while_stripe_works_on_it() -> None:
    """Two deliveries at once, in order, without threads."""
    order = next(o for o in orders(SEED, 300) if o.fault(Call.CHARGE, 0, START) is Fault.TWIN_BEFORE)
    sky = Sky(dataclasses.replace(order, outage=Window(start=START, end=START)))

    told = sky.storm(type("Peer", (Made,), {"charges": 1, "says": Word.PAID}))

    assert told.met[Fault.TWIN_BEFORE] == 1
    assert len(told.moved) == (2 if order.card is Card.GOOD else 0)


def test_whoever_sleeps_sleeps_on_the_orders_clock() -> None:
    """The SDK's waits between its own retries, for one."""
    sky = Sky(orders(SEED, 1)[0])
    Sky.here = sky
    with storm.virtual_time():
        stripe._http_client.time.sleep(0.5)  # type: ignore[attr-defined]

    assert isinstance(sky.clock, VirtualClock)
    assert sky.clock.now() == sky.order.arrives + timedelta(seconds=0.5)
