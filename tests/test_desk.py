"""What needs somebody, and how a person settles what nobody explains: it moves no money, and is never lost."""

import dataclasses
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

import pytest

from shared import desk_pages, letters, policy
from shared.charge import Act, Audience, Chosen, Failure, Reviewed, Seen, Status, Topic, charge_id
from shared.desk import PER_SHARD, SHOWN
from shared.desk_pages import Frame
from shared.reconcile import FINDING
from shared.store import CHARGE, SHARDS
from tests.script import DAY, MINUTE, START, Script, answered
from tests.test_webhook_function import another, unknown_but_paid
from tests.world import KEY, Fault, World

NAME: Final = charge_id(None, KEY)
REVIEW: Final = Reviewed(actor="me@example.com", note="refunded by hand")
AFTER_PAID: Final = "paid_after_canceled"


@pytest.fixture
def world() -> World:
    """A fresh deployment."""
    return World()


def disagree(world: World) -> None:
    """Let a charge be paid at Stripe after it was canceled, which nobody explains."""
    world.create(payment_method="pm_card_chargeDeclinedInsufficientFunds")
    world.parts.charger.act(NAME, Chosen(act=Act.CANCEL, actor="caller"), version=None)
    held = world.parts.ledger.get(NAME)
    assert held is not None
    world.parts.ledger.update(held, with_doubt(held.charge))


def with_doubt(charge: Any, kind: str = AFTER_PAID) -> Any:
    """Return the charge with something about it that nobody explains."""
    return policy._discrepancy(charge, kind, START, charge.payment_intent or "pi_1")


def review(world: World, reviewed: Reviewed = REVIEW, version: int | None = None) -> Any:
    """Settle what is unsettled."""
    return world.parts.charger.review(NAME, reviewed, version=version)


# --- Settling: the policy ---------------------------------------------------------------------------------------------


def test_what_a_person_has_looked_at_is_settled_with_what_they_say() -> None:
    """All that stood unsettled; what was settled before stays as it was."""
    script = answered(Seen.SUCCEEDED)
    settled = policy._discrepancy(script.charge, "refunded_at_stripe", START, "pi_1", settled="recorded on the charge")
    script.charge = with_doubt(with_doubt(settled), "amount_differs")
    script.observe(REVIEW)

    assert [(found.settled, found.note) for found in script.charge.discrepancies] == [
        ("recorded on the charge", ""),
        (policy.BY_OPERATOR, REVIEW.note),
        (policy.BY_OPERATOR, REVIEW.note),
    ]
    assert (script.charge.history[-1].what, script.charge.history[-1].actor) == ("reviewed", REVIEW.actor)


def test_settling_leaves_the_charge_as_it_stands() -> None:
    """No status, no request and no time of it changes."""
    before = with_doubt(answered(Seen.NO_REPLY).charge)
    after = policy.decide(before, REVIEW, START + DAY, policy.Limits()).charge

    kept = {"discrepancies": before.discrepancies, "history": before.history}
    assert dataclasses.replace(after, **kept) == before


def test_settling_twice_is_refused_and_changes_nothing() -> None:
    """There is nothing left."""
    charge = with_doubt(answered(Seen.SUCCEEDED).charge)
    once = policy.decide(charge, REVIEW, START, policy.Limits()).charge
    again = policy.decide(once, REVIEW, START + MINUTE, policy.Limits())

    assert again.refusal == "nothing_to_settle"
    assert again.charge == once


def test_what_was_settled_is_not_found_again() -> None:
    """The next audit sees the same, and knows it."""
    once = policy.decide(with_doubt(answered(Seen.SUCCEEDED).charge), REVIEW, START, policy.Limits()).charge
    assert with_doubt(once) == once


def test_the_operator_is_told_of_the_next_one_all_the_same() -> None:
    """Of what was settled nobody is told any more."""
    limits = policy.Limits(reaches=frozenset({Audience.OPERATOR}))
    before = answered(Seen.SUCCEEDED).charge
    for kind in (AFTER_PAID, "amount_differs"):
        doubted = policy._with_notices(before, with_doubt(before, kind), START, limits.reaches)
        assert [notice.topic for notice in doubted.untold] == [Topic.DISCREPANCY]
        told = tuple(dataclasses.replace(notice, told_at=START) for notice in doubted.outbox)
        before = policy.decide(dataclasses.replace(doubted, outbox=told), REVIEW, START, limits).charge
        assert before.untold == ()


# --- Settling: whatever fails -----------------------------------------------------------------------------------------


def test_settling_sends_nothing(world: World) -> None:
    """It is one write."""
    disagree(world)
    world.services.clear()
    outcome = review(world, version=world.charge().version)

    assert outcome.charge == world.charge()
    assert policy.unsettled(world.charge()) == ()
    assert world.services == ["store", "store"]


@pytest.mark.parametrize("fault", [Fault.FAIL, Fault.LOSE_REPLY])
def test_settling_outlasts_a_store_that_does_not_answer(world: World, fault: Fault) -> None:
    """Once, whichever way an answer is lost."""
    disagree(world)
    world.plan = {len(world.services) + 1: fault}
    assert review(world).refusal is None
    assert [entry.what for entry in world.charge().history].count("reviewed") == 1


def test_settling_what_is_overtaken_settles_what_is_there_then(world: World) -> None:
    """Another delivery writes in between: nothing of its is lost."""
    disagree(world)
    ledger = world.parts.ledger
    read = ledger.get

    def meanwhile(name: str) -> Any:
        held = read(name)
        ledger.get = read  # type: ignore[method-assign]
        assert held is not None
        ledger.update(held, with_doubt(held.charge, "amount_differs"))
        return held

    ledger.get = meanwhile  # type: ignore[method-assign, assignment]
    assert review(world).refusal is None
    assert [found.note for found in world.charge().discrepancies] == [REVIEW.note] * 2


def test_settling_what_has_moved_on_since_it_was_seen_is_refused(world: World) -> None:
    """There may be more now than was looked at."""
    disagree(world)
    seen = world.charge().version
    held = world.parts.ledger.get(NAME)
    assert held is not None
    world.parts.ledger.update(held, with_doubt(held.charge, "amount_differs"))

    assert review(world, version=seen).refusal == "version"
    assert len(policy.unsettled(world.charge())) == 2


def test_settling_no_charge_is_none(world: World) -> None:
    """Nothing is made for it."""
    assert review(world) is None
    assert world.charges() == []


# --- Looking ----------------------------------------------------------------------------------------------------------


def test_nothing_needs_anybody_where_all_is_well(world: World) -> None:
    """A paid charge, and a declined one, which waits for its customer."""
    world.create()
    world.create(key="order-2", payment_method="pm_card_chargeDeclinedInsufficientFunds")
    seen = world.parts.desk.overview()

    assert seen.closed == ""
    assert seen.report is None
    assert not any(part.shown or part.more for part in (seen.attention, seen.late, seen.findings, seen.letters))


def test_what_is_blocked_or_not_explained_is_shown_until_it_is_settled(world: World) -> None:
    """The oldest first, within a shard and across them in turn."""
    disagree(world)
    world.create(key="order-2", customer="cus_gone")
    assert {charge.id for charge in world.parts.desk.overview().attention.shown} == {
        NAME,
        charge_id(None, "order-2"),
    }

    review(world)
    world.parts.charger.act(charge_id(None, "order-2"), Chosen(act=Act.CANCEL, actor="me"), version=None)
    world.settle()
    assert world.parts.desk.overview().attention.shown == ()


def test_what_waits_for_us_for_an_hour_is_late(world: World) -> None:
    """Until it is closed."""
    unknown_but_paid(world)
    assert world.parts.desk.overview().late.shown == ()
    world.clock.time += timedelta(hours=2)
    assert [charge.id for charge in world.parts.desk.overview().late.shown] == [NAME]

    world.engine.faults.clear()
    world.settle()
    assert world.charge().status is Status.SUCCEEDED
    assert world.parts.desk.overview().late.shown == ()


def test_a_long_list_is_cut_and_says_so(world: World) -> None:
    """An hour's outage is thousands of charges: one page is read, not all of them."""
    world.create(customer="cus_gone")
    entity = world.store.get(CHARGE, NAME)
    assert entity is not None
    for number in range(PER_SHARD * SHARDS):
        name = f"{number % SHARDS:x}{number:039x}"
        world.store.insert(CHARGE, name, {**entity.properties, "id": name, "attention": f"{number % SHARDS:02d}|"})
    seen = world.parts.desk.overview().attention

    assert (len(seen.shown), seen.more) == (SHOWN, True)


def test_a_charge_that_cannot_be_read_hides_no_other(world: World) -> None:
    """A newer version wrote it."""
    disagree(world)
    entity = world.store.get(CHARGE, NAME)
    assert entity is not None
    name = NAME[0] + "0" * 39
    world.store.insert(CHARGE, name, {**entity.properties, "id": name, "status": "of tomorrow"})
    assert [charge.id for charge in world.parts.desk.overview().attention.shown] == [NAME]


def test_a_closed_ledger_is_shown_with_what_to_do(world: World) -> None:
    """Reading goes on."""
    disagree(world)
    world.restore(world.backup())
    seen = world.parts.desk.overview()

    assert "reopen" in seen.closed
    assert len(seen.attention.shown) == 1


@pytest.mark.parametrize("form", ["{0}", " {0} ", "{1}", "{2}"], ids=["id", "spaces", "key", "payment intent"])
def test_a_charge_is_found_by_whatever_somebody_has_in_hand(world: World, form: str) -> None:
    """From the caller's log, from ours, or from Stripe's."""
    world.create()
    assert world.parts.desk.find(form.format(NAME, KEY, world.charge().payment_intent)) == NAME


@pytest.mark.parametrize("text", ["", "0" * 40, "pi_other", "order-2"])
def test_what_is_not_there_is_not_found(world: World, text: str) -> None:
    """None, and nothing is made."""
    world.create()
    assert world.parts.desk.find(text) is None


def test_a_connected_accounts_charge_is_found_by_its_key_and_account(world: World) -> None:
    """One key on two accounts is two charges."""
    account = "acct_shop"
    customer = world.at_stripe("POST", "/v1/customers", **{"Stripe-Account": account})["id"]
    world.create(account=account, customer=customer)
    assert world.parts.desk.find(KEY) is None
    assert world.parts.desk.find(KEY, account) == charge_id(account, KEY)


def test_a_finding_that_no_charge_can_keep_is_shown_and_settled(world: World) -> None:
    """Settled again, it has the last note; the audit does not report it anew."""
    another(world, form="&metadata[foreign]=yes")
    written: dict[str, Any] = {
        "kind": "account_differs",
        "charge": NAME,
        "payment_intent": "pi_1",
        "settled": "",
        "at": START,
    }
    world.parts.ledger.record_once(FINDING, "pi_1-account_differs", written)
    (found,) = world.parts.desk.overview().findings.shown
    assert (found.name, found.kind, found.charge) == ("pi_1-account_differs", "account_differs", NAME)

    for note in ("a mistake", REVIEW.note):
        assert world.parts.desk.settle(found.name, note, "me") is not None
    assert world.parts.desk.overview().findings.shown == ()
    (settled,) = world.parts.desk.findings()
    assert (settled.settled, settled.note, settled.settled_by) == (policy.BY_OPERATOR, REVIEW.note, "me")
    assert settled.at == START
    assert not world.parts.ledger.record_once(FINDING, found.name, written)
    assert world.parts.desk.settle("pi_2-account_differs", "no such", "me") is None


def _account_gone() -> Script:
    script = Script(account="acct_gone")
    error = Failure(type="invalid_request_error", code="account_invalid")
    script.reply(Seen.MISSING_OBJECT, error=error)
    return script


def _card_gone() -> Script:
    script = Script()
    error = Failure(type="invalid_request_error", code="resource_missing", param="payment_method")
    script.reply(Seen.MISSING_OBJECT, error=error)
    return script


@pytest.mark.parametrize(
    ("way", "said"),
    [
        (lambda: answered(Seen.HELD), "Capture it at Stripe if it is to be taken"),
        (_account_gone, "Have it connected again"),
        (_card_gone, None),
    ],
    ids=["held", "account", "card"],
)
def test_the_page_of_a_blocked_charge_says_what_is_to_be_mended(
    world: World, way: Callable[[], Script], said: str | None
) -> None:
    """Also where Stripe gave no reason. A card that is gone is the customer's. It has no commands, and names none."""
    frame = Frame(actor="me@example.com", now=world.clock.now(), livemode=False, mark="", settings=world.parts.settings)
    charge = way().charge
    assert charge.status is Status.BLOCKED
    html = desk_pages.of_charge(frame, charge, mark="", customer_url=None).html
    assert "command" not in html
    assert (letters.mend(charge) in html) == (said is not None)
    assert (said or "") in html
