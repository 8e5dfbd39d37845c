"""From what happens to a charge to what people read: the outbox, its tasks, and the notify function together."""

import dataclasses
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from infra.local.stripe.engine import Fault as StripeFault
from shared import policy
from shared.charge import Act, Audience, Charge, Chosen, Status, Topic
from shared.ledger import Held, LedgerUnavailable
from shared.policy import Limits
from shared.tasks import Task
from tests.notices.office import OPERATOR, Office
from tests.world import FAULTS, QUARANTINE, Fault, World

EVERYBODY = Limits(
    quarantine=QUARANTINE,
    reaches=frozenset(Audience),
    retry_schedule=(policy.KEY_LIFE, 3 * policy.KEY_LIFE),
)
DECLINES = "pm_card_chargeDeclinedInsufficientFunds"


def office(**settings: object) -> Office:
    """Return a deployment that reaches everybody."""
    return Office(world=World(limits=EVERYBODY, **settings))  # type: ignore[arg-type]


def told(place: Office) -> list[tuple[Audience, Topic]]:
    """Return what was told, in order; nothing may be left."""
    (charge,) = place.world.charges()
    assert charge.untold == ()
    return [(notice.audience, notice.topic) for notice in charge.outbox if not notice.dropped]


def charge(place: Office, **terms: Any) -> None:
    """Charge a customer who has an address."""
    place.world.__dict__["customer"] = place.customer()
    place.world.create(**terms)


def test_a_payment_that_just_works_is_told_to_nobody() -> None:
    """The answer says it; no commit and no task more."""
    place = office()
    charge(place)
    place.world.settle()
    assert told(place) == []
    assert place.world.check() == []


def test_a_decline_is_told_to_the_customer_once() -> None:
    """The caller has it by the answer."""
    place = office()
    charge(place, payment_method=DECLINES)
    place.world.settle()
    assert told(place) == [(Audience.CUSTOMER, Topic.DECLINED)]
    assert len(place.mails) == 1
    assert place.heard == []


def test_who_did_not_wait_for_the_answer_hears_the_outcome() -> None:
    """`Prefer: respond-async`."""
    place = office()
    place.world.__dict__["customer"] = place.customer()
    body = {"amount": 1999, "currency": "usd", "customer": place.world.customer, "payment_method": "pm_card_visa"}
    place.world.post("/", body, key="order-1001", Prefer="respond-async")
    place.world.settle()
    assert told(place) == [(Audience.CALLER, Topic.OUTCOME)]
    assert [heard["status"] for _, heard in place.heard] == ["succeeded"]
    assert place.world.charge().due_at is None


@pytest.mark.parametrize("stands", [True, False], ids=["recorded", "not recorded"])
@pytest.mark.parametrize("card", [DECLINES, "pm_card_visa"])
def test_who_was_answered_before_it_was_certain_hears_the_outcome(card: str, *, stands: bool) -> None:
    """The answer to the last commit is lost: 202 unknown, then the truth by OUTCOME_URL, once."""
    place = office(webhooks_on=False)
    ledger = place.world.parts.ledger
    update = ledger.update

    def lost(held: Held, charge: Charge) -> Held:
        if charge.status in {Status.DECLINED, Status.SUCCEEDED}:
            ledger.update = update  # type: ignore[method-assign]
            if stands:
                update(held, charge)
            raise LedgerUnavailable("no answer")
        return update(held, charge)

    ledger.update = lost  # type: ignore[method-assign]
    charge(place, payment_method=card)
    (first,) = place.world.told
    assert (first.status, first.body["status"]) == (202, "unknown")
    place.world.settle()
    assert place.world.check() == []
    status = Status.DECLINED if card == DECLINES else Status.SUCCEEDED
    assert place.world.charge().status is status
    assert [heard["status"] for _, heard in place.heard] == [status]


def answered_in_an_outage(place: Office, *, stands: bool, patch: pytest.MonkeyPatch) -> None:
    """Charge a customer; the answer to the last commit is lost, and Cloud Tasks takes no task for an hour."""
    parts, ledger = place.world.parts, place.world.parts.ledger
    ends_at = place.world.clock.now() + timedelta(hours=1)
    update, create = ledger.update, parts.charger._tasks.create

    def lost(held: Held, charge: Charge) -> Held:
        if charge.status is not Status.SUCCEEDED:
            return update(held, charge)
        patch.setattr(ledger, "update", update)
        if stands:
            update(held, charge)
        raise LedgerUnavailable("no answer")

    def refused(task: Task) -> bool:
        return place.world.clock.now() >= ends_at and create(task)

    patch.setattr(ledger, "update", lost)
    for queue in (parts.charger._tasks, parts.charger._notices):
        patch.setattr(queue, "create", refused)
    charge(place)
    (first,) = place.world.told
    assert (first.status, first.body["status"]) == (202, "unknown")
    assert place.world.queue == {}


def test_a_caller_whose_answer_was_open_hears_from_the_sweep_what_was_not_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither the record nor a task tells of the answer, but the charge is due, and is carried on."""
    place = office(webhooks_on=False)
    answered_in_an_outage(place, stands=False, patch=monkeypatch)
    place.world.settle()
    assert [heard["status"] for _, heard in place.heard] == [Status.SUCCEEDED]
    assert place.world.check() == []


def test_a_caller_whose_answer_was_open_hears_though_the_charge_had_ended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The record stands and is final. Only the process knows of the answer, and records it as soon as it can."""
    place = office(webhooks_on=False)
    answered_in_an_outage(place, stands=True, patch=monkeypatch)
    assert place.world.charge().due_at is None
    assert "a caller may have to ask how a charge stands" in capsys.readouterr().out
    place.world.create(key="order-2")
    assert place.world.charge().due_at is not None  # So the sweep sees to it from here on.
    place.world.settle()
    assert [heard["id"] for _, heard in place.heard] == [place.world.charge().id]
    assert place.world.charge().due_at is None
    assert place.world.check() == []


def test_a_caller_is_not_forgotten_while_the_ledger_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next request meets an outage as well; the one after it does not."""
    place = office(webhooks_on=False)
    answered_in_an_outage(place, stands=True, patch=monkeypatch)
    with monkeypatch.context() as patch:

        def unavailable(_: str) -> None:
            raise LedgerUnavailable("away")

        patch.setattr(place.world.parts.ledger, "get", unavailable)
        place.world.parts.charger._tell_unheard()
    assert place.world.charge().untold == ()
    place.world.parts.charger._tell_unheard()
    assert [(one.audience, one.topic) for one in place.world.charge().untold] == [(Audience.CALLER, Topic.OUTCOME)]
    place.world.parts.charger._tell_unheard()
    assert len(place.world.charge().outbox) == 1


@pytest.mark.parametrize("card", [DECLINES, "pm_card_visa"])
def test_wherever_it_fails_a_caller_whose_answer_was_open_hears_the_outcome(card: str) -> None:
    """At every call: who was answered 202, or 503 for a charge that is recorded, and does not ask again."""
    undisturbed = office()
    charge(undisturbed, payment_method=card)
    open_answers = 0
    for index, service in enumerate(undisturbed.world.services):
        for fault in FAULTS[service]:
            if fault in {Fault.CUSTOMER_PAYS, Fault.CANCEL}:
                continue
            place = office(plan={index: fault})
            charge(place, payment_method=card)
            answers = [told.status for told in place.world.told if told.request == "POST charge/"]
            place.world.settle()
            where = [f"{index}: {fault}", *place.world.trace]
            assert place.world.check() == [], where
            if answers and answers[0] in {202, 503} and place.world.charges():
                open_answers += 1
                assert place.heard, where
                assert place.heard[-1][1]["status"] == place.world.charge().status, where
    assert open_answers > 5


def test_who_was_told_of_trouble_is_told_that_it_is_over() -> None:
    """Another card paid."""
    place = office()
    charge(place, payment_method=DECLINES)
    place.world.settle()
    place.world.post(f"/{place.world.charge().id}/payment-method", {"payment_method": "pm_card_visa"})
    place.world.settle()
    assert [topic for audience, topic in told(place) if audience is Audience.CUSTOMER] == [Topic.DECLINED, Topic.PAID]
    assert len(place.mails) == 2


def test_a_decline_that_is_tried_again_is_announced_and_ends_in_one_last_word() -> None:
    """`retry: schedule`: two tries more, then the customer's choice."""
    place = office()
    charge(place, payment_method=DECLINES, retry="schedule")
    for _ in range(3):
        place.world.settle()
        following = place.world.charge().next_attempt_at
        if following is not None:
            place.world.clock.time = following
    place.world.settle()
    topics = [topic for audience, topic in told(place) if audience is Audience.CUSTOMER]
    assert topics == [Topic.RETRYING, Topic.RETRYING, Topic.DECLINED]
    assert len(place.world.charge().attempts) == 3
    assert place.world.charge().status is Status.DECLINED


def test_a_card_that_is_gone_is_told_to_the_owner_and_to_the_customer() -> None:
    """S7: both parties."""
    place = office()
    charge(place, payment_method="pm_gone")
    place.world.settle()
    assert place.world.charge().status is Status.BLOCKED
    assert told(place)[:2] == [
        (Audience.ACCOUNT_OWNER, Topic.MISSING_OBJECT),
        (Audience.CUSTOMER, Topic.MISSING_OBJECT),
    ]


def test_an_api_key_that_does_not_work_is_told_to_the_operator_alone() -> None:
    """S3: nothing ran."""
    place = office()
    place.world.engine.fail_next(StripeFault.UNAUTHORIZED, "payment_intents.confirm")
    charge(place)
    assert (Audience.OPERATOR, Topic.BLOCKED) in [(n.audience, n.topic) for n in place.world.charge().outbox]
    place.world.settle()
    assert not any(audience is Audience.CUSTOMER for audience, _ in told(place))


def test_money_that_nobody_explains_is_told_to_the_operator() -> None:
    """Always."""
    place = office()
    charge(place)
    one = place.world.charge()
    form = (
        f"amount=1999&currency=usd&customer={place.world.customer}&payment_method=pm_card_visa&confirm=true"
        f"&automatic_payment_methods[enabled]=true&automatic_payment_methods[allow_redirects]=never"
        f"&metadata[pio_charge]={one.id}&metadata[pio_body]={one.body_digest}"
    )
    place.world.engine.fail_next(StripeFault.FORBIDDEN, "refunds.create", times=3)  # Else it is soon given back.
    place.world.at_stripe("POST", "/v1/payment_intents", form)
    place.world.settle()
    assert told(place) == [(Audience.OPERATOR, Topic.DISCREPANCY)]
    assert place.world.check() == []


def test_nothing_is_told_of_what_is_not_known() -> None:
    """A burnt key: the outcome is open for a while, and nobody reads that it failed."""
    place = office(webhooks_on=False)
    place.world.engine.fail_next(StripeFault.ERROR_500_AFTER, "payment_intents.confirm")
    charge(place)
    assert place.world.charge().outbox == ()
    place.world.settle()
    assert not any(audience is Audience.CUSTOMER for audience, _ in told(place))
    assert place.world.charge().status is Status.SUCCEEDED


def test_a_notice_whose_task_is_lost_is_told_by_the_sweep() -> None:
    """A final charge, too: it is due until everybody knows."""
    place = office()
    charge(place, payment_method=DECLINES)
    place.world.post(f"/{place.world.charge().id}/cancel", {})
    place.world.queue.clear()
    one = place.world.charge()
    assert one.status is Status.CANCELED
    assert one.untold
    assert one.due_at is not None
    place.world.clock.sleep(policy.NOTICE_AGAIN)
    place.world.sweep()
    place.world.settle()
    assert (Audience.CUSTOMER, Topic.DECLINED) not in told(place)  # It is true no longer.
    assert place.world.charge().due_at is None


def test_a_deployment_without_mail_keeps_no_outbox() -> None:
    """Nothing waits for nobody."""
    world = World(limits=dataclasses.replace(EVERYBODY, reaches=frozenset()))
    world.create(payment_method=DECLINES)
    world.settle()
    assert world.charge().outbox == ()


def test_cash_that_nobody_noted_is_called_to_mind_three_days_before_it_ends_unpaid() -> None:
    """By the charge's own task, or the sweep: nobody else touches it in all that time."""
    place = office()
    charge(place, payment_method=DECLINES)
    wish = Chosen(act=Act.OUT_OF_BAND, actor="customer", wish=True)
    one = place.world.charge()
    place.world.parts.charger.act(one.id, wish, version=None)
    place.world.settle()
    assert place.world.charge().due_at == one.expires_at - policy.REMIND_BEFORE
    place.mails.clear()
    place.world.clock.time = one.expires_at - policy.REMIND_BEFORE
    for _ in range(3):
        place.world.sweep()
        place.world.settle()
    assert [mail["Subject"] for mail in place.mails] == ["Has $19.99 been paid in another way? Nobody has noted it"]
    assert place.world.charge().status is Status.DECLINED


def declined_and_canceled(place: Office) -> None:
    """A customer's card is declined, and the order is canceled a day later."""
    charge(place, payment_method=DECLINES, patient=True)
    place.world.settle()
    for one in place.world.charges():
        place.world.post(f"/{one.id}/cancel", {"reason": "changed my mind"})


def declined_and_paid(place: Office) -> None:
    """A customer's card is declined, and another one pays."""
    charge(place, payment_method=DECLINES, patient=True)
    place.world.settle()
    for one in place.world.charges():
        place.world.post(f"/{one.id}/payment-method", {"payment_method": "pm_card_mastercard"})


@pytest.mark.parametrize("scenario", [declined_and_canceled, declined_and_paid], ids=lambda one: one.__name__)
def test_no_single_fault_loses_a_notice_or_a_promise(scenario: Callable[[Office], None]) -> None:
    """At every call: all that is in the outbox arrives in the end, nothing is dropped, each under one name."""
    undisturbed = office()
    scenario(undisturbed)
    undisturbed.world.settle()
    letters = [str(mail["Subject"]) for mail in undisturbed.mails]
    assert len(letters) == 2, "of the decline, and of how it ended"
    for index, service in enumerate(undisturbed.world.services):
        for fault in FAULTS[service]:
            if fault in {Fault.CUSTOMER_PAYS, Fault.CANCEL}:
                continue
            place = office(plan={index: fault})
            scenario(place)
            place.world.settle()
            where = [f"{index}: {fault}", *place.world.trace]
            assert place.world.check() == [], where
            for one in place.world.charges():
                assert one.untold == (), where
                assert not any(notice.dropped for notice in one.outbox), where  # All of it stayed true.
                over = letters if one.final else letters[:1]  # What ends it may have met the fault, and been refused.
                read = dict.fromkeys(str(mail["Subject"]) for mail in place.mails if mail["To"] != OPERATOR)
                assert list(read) == over, where
            names = [mail["Message-ID"] for mail in place.mails]
            assert len(names) - len(set(names)) <= 1, where  # Twice only where nobody knew, and under one name.
