"""The words of a charge: its name, its requests, its history."""

import dataclasses
from datetime import timedelta

import pytest

from shared.charge import HISTORY_KEPT, Request, Seen, Standing, charge_id
from tests.script import KEY, OURS, START, Script, answered, closing, declined, opened, recorded


def test_a_callers_key_names_one_charge_per_account_for_ever() -> None:
    """The name is written down here: another name would be another charge for a key that is in use."""
    assert charge_id(None, "order-1001") == "52f85d6f584e2f1435e5b57b12199c18baaf5a14"
    assert charge_id("acct_1", "order-1001") != charge_id(None, "order-1001")


def test_no_account_and_key_can_be_read_as_another_pair() -> None:
    """An array, not a concatenation; and no account is not the account "null"."""
    pairs = [("a", "bc"), ("ab", "c"), (None, "x"), ("null", "x"), ('","', "x"), ("", '","x')]
    assert len({charge_id(*pair) for pair in pairs}) == len(pairs)


def test_a_request_that_is_sent_says_so_before_it_leaves() -> None:
    """Its first time stays; each send counts, and none is explained yet."""
    request = Request(idempotency_key="k", operation="confirm", parameters="{}", api_version="v")
    assert (request.standing, request.sends, request.first_sent_at) == (Standing.UNSENT, 0, None)
    once = request.sent(START)
    twice = once.sent(START + timedelta(hours=1))
    assert (twice.standing, twice.sends, twice.unanswered, twice.first_sent_at) == (Standing.OUT, 2, 2, START)
    assert not twice.settled
    assert dataclasses.replace(twice, standing=Standing.SETTLED).settled


def test_every_request_of_a_charge_is_found_by_its_key() -> None:
    """The create, each attempt, the closing's cancel; and no other."""
    charge = closing().charge
    assert charge.closing is not None
    for request in (charge.create, *charge.attempts, charge.closing.request):
        assert request is not None
        assert charge.request(request.idempotency_key) is request
    assert charge.request("another") is None
    assert opened().request("another") is None


def test_a_request_is_put_back_where_it_was() -> None:
    """Only the one that has its key is changed."""
    for charge in (opened(), recorded().charge, closing().charge):
        canceling = charge.closing.request if charge.closing else None
        for request in (charge.create, *charge.attempts, canceling):
            if request is not None:
                sent = request.sent(START)
                changed = charge.with_request(sent)
                assert changed.request(request.idempotency_key) == sent
                assert changed.with_request(request) == charge


def test_a_request_of_nobody_is_a_bug() -> None:
    """A cancel without a closing is never recorded."""
    request = Request(idempotency_key="k", operation="cancel", parameters="{}", api_version="v")
    with pytest.raises(AssertionError, match="only a closing"):
        opened().with_request(request)


def test_the_open_attempt_is_the_last_one_until_it_is_settled() -> None:
    """There is at most one."""
    assert opened().open_attempt is None
    script = answered(Seen.NO_REPLY)
    assert script.charge.open_attempt is script.charge.attempts[0]
    assert declined().charge.open_attempt is None


@pytest.mark.parametrize("seen", [Seen.SUCCEEDED, Seen.CANCELED, Seen.DECLINED])
def test_a_charge_is_final_when_nothing_is_left_to_be_decided(seen: Seen) -> None:
    """Declined is not the end."""
    assert answered(seen).charge.final == (seen is not Seen.DECLINED)


def test_the_history_keeps_its_newest_lines() -> None:
    """An entity has a limit."""
    charge = opened()
    for number in range(HISTORY_KEPT + 10):
        charge = charge.noted(START, f"line {number}", "operator")
    assert len(charge.history) == HISTORY_KEPT
    assert (charge.history[-1].what, charge.history[-1].actor) == (f"line {HISTORY_KEPT + 9}", "operator")
    assert charge.history[0].what == "line 10"


def test_a_new_charge_has_sent_nothing() -> None:
    """Pending, due at once, its create written down and unsent."""
    charge = opened()
    assert charge.idempotency_key == KEY
    assert (charge.status, charge.due_at, charge.payment_intent, charge.attempts) == ("pending", START, None, ())
    assert charge.create.standing is Standing.UNSENT
    assert Script(charge).charge.payment_intent != OURS
