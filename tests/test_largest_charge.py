"""A charge never outgrows Datastore's entity, whatever is done to it: then it could be written no more."""

import dataclasses
import json
from typing import Final

from google.cloud.datastore_v1.types import Entity

from shared import policy
from shared.answers import FAILURE_TEXT_KEPT, failure
from shared.api import BODY_LIMIT_BYTES, ChargeBody, opened
from shared.charge import (
    HISTORY_KEPT,
    Act,
    Audience,
    Charge,
    Compared,
    Discrepancy,
    Entry,
    Failure,
    Fetched,
    Notice,
    Request,
    Reviewed,
    Seen,
    Status,
    Topic,
)
from shared.ledger import properties_of
from shared.store import CHARGE, DatastoreStore
from tests.script import AMOUNT, START, Script, intent

MIB: Final = 1024 * 1024  # What an entity of Datastore may have.
WIDE: Final = "é"  # Two bytes as it is sent, six as Stripe's parameters and our metadata are written: the most.
PAYMENT_INTENT: Final = f"pi_{'3' * 24}"
KINDS_OF_MANY: Final = (  # The others are about the recorded PaymentIntent: one of each.
    "paid_twice",
    "paid_elsewhere",
    "unexplained_payment",
    "orphan_not_canceled",
    "refund_failed",
    "refunded_at_stripe",
    policy.UNEXPLAINED,
)


def size_of(charge: Charge) -> int:
    """Return the bytes that a charge has as an entity."""
    store = DatastoreStore("nowhere", emulator_host="127.0.0.1:1")
    entity = store._entity(CHARGE, charge.id, properties_of(charge))
    store.close()
    size: int = Entity.pb(entity).ByteSize()
    return size


def largest_asked_for() -> Charge:
    """Return a charge of a body that is as long as it may be, in letters that take the most room."""
    value = WIDE * 500
    metadata = {f"{number:040d}": value for number in range(47)}
    body = ChargeBody(
        amount=AMOUNT, currency="usd", customer="cus_1", payment_method="pm_1", metadata=metadata, description=value * 2
    )
    assert BODY_LIMIT_BYTES * 3 / 4 < len(json.dumps(metadata, ensure_ascii=False).encode()) < BODY_LIMIT_BYTES
    return opened("k" * 255, body, livemode=True, generation=1, api_version="2026-10-28.endive", now=START)


def largest() -> Charge:
    """Return one that has as much of everything as it may have."""
    codes = {field.name: "c" * 60 for field in dataclasses.fields(Failure)}
    error = failure({**codes, "message": WIDE * 10_000})
    assert error.message is not None
    assert len(error.message) == FAILURE_TEXT_KEPT
    script = Script(largest_asked_for())
    script.reply(Seen.UNCONFIRMED, name=PAYMENT_INTENT)
    while len(script.charge.attempts) < policy.ATTEMPTS_LIMIT:
        script.reply(Seen.DECLINED, error=error)
        script.choose(Act.RETRY, return_url="https://pay.example.com/" + "t" * 500)
    charge = script.charge
    discrepancies = tuple(
        Discrepancy(
            kind=kind,
            at=START,
            payment_intent=PAYMENT_INTENT,
            detail="d" * 100,
            settled="s" * 50,
            note=WIDE * policy.NOTE_KEPT,
        )
        for kind in KINDS_OF_MANY
        for _ in range(policy.DISCREPANCIES_KEPT)
    )
    refund = Request(
        idempotency_key=f"pio-{charge.id}-refund-{PAYMENT_INTENT}-1",
        operation="refund",
        parameters="{}" * 100,
        api_version=charge.create.api_version,
        error=error,
    )
    entry = Entry(at=START, what="w" * 100, status=Status.PAID_OUT_OF_BAND, actor=WIDE * 200)
    notices = tuple(
        Notice(number=number, audience=audience, topic=Topic.PAYS_ELSEWHERE, at=START, about="a" * 16, told_at=START)
        for audience in Audience
        for number in range(policy.NOTICES_KEPT + len(Topic))
    )
    return dataclasses.replace(
        charge,
        orphans=tuple(f"pi_{number:024d}" for number in range(policy.ORPHANS_KEPT)),
        refunds=(refund,) * 2 * policy.DISCREPANCIES_KEPT,  # One for what each of two kinds is of.
        discrepancies=discrepancies,
        history=(entry,) * HISTORY_KEPT,
        outbox=notices,
        last_error=error,
    )


def test_the_largest_charge_fits_into_an_entity_with_a_quarter_to_spare() -> None:
    """Everything at its bound at once."""
    assert size_of(largest()) < 3 / 4 * MIB


def test_an_audits_refunds_are_kept_up_to_the_newest() -> None:
    """Somebody gives back a cent a day, for years; what is settled makes room."""
    script = paid()
    for amount in range(1, 1000):
        script.observe(Compared(payment_intent=intent(script.charge, Seen.SUCCEEDED), amount_refunded=amount))
    kept = script.charge.discrepancies
    assert len(kept) == policy.DISCREPANCIES_KEPT
    assert (script.charge.amount_refunded, kept[-1].detail) == (999, f"999 of {AMOUNT} usd in all")
    assert script.charge.discrepancies_left_out == 0


def paid() -> Script:
    """Paid, and everybody can be told."""
    script = Script(limits=policy.Limits(reaches=frozenset(Audience)))
    script.reply(Seen.UNCONFIRMED)
    script.reply(Seen.SUCCEEDED)
    return script


def test_whoever_writes_a_charges_metadata_into_much_stops_nothing() -> None:
    """What is not settled stays; one more of its kind is counted; another kind has its own room."""
    script = paid()
    names = [f"pi_{number}" for number in range(1000)]
    for name in names:
        script.fetched(Seen.SUCCEEDED, name=name, amount=5, amount_received=5)
    assert [found.payment_intent for found in script.charge.discrepancies] == names[: policy.DISCREPANCIES_KEPT]
    assert script.charge.discrepancies_left_out == 1000 - policy.DISCREPANCIES_KEPT
    told = script.charge.outbox
    script.fetched(Seen.SUCCEEDED, name="pi_another", amount=5, amount_received=5)
    assert script.charge.outbox == told

    script.fetched(Seen.SUCCEEDED, name="pi_extra")  # Money that was really taken for it.
    assert script.charge.discrepancies[-1].kind == "paid_twice"
    assert [refund.payment_intent for refund in script.charge.refunds] == ["pi_extra"]
    assert script.charge.status is Status.SUCCEEDED


def test_money_that_was_given_back_is_not_forgotten() -> None:
    """Else the next event about it would find it anew; and however often somebody pays once more, it is given back."""
    script = paid()
    for number in range(policy.DISCREPANCIES_KEPT + 1):
        script.fetched(Seen.SUCCEEDED, name=f"pi_{number}")
        if not script.charge.tidy:
            script.observe(Fetched(payment_intent=intent(script.charge, Seen.SUCCEEDED), amount_refunded=0))
            script.reply(Seen.REFUNDED)
    extra = [found for found in script.charge.discrepancies if found.kind == "paid_twice"]
    assert len(extra) == policy.DISCREPANCIES_KEPT
    assert len(script.charge.refunds) == policy.DISCREPANCIES_KEPT + 1
    assert all(found.settled for found in extra)
    assert script.charge.discrepancies_left_out == 0
    before = script.charge
    script.fetched(Seen.SUCCEEDED, name="pi_0")
    assert script.charge == before


def test_what_an_operator_has_settled_makes_room_with_the_longest_note() -> None:
    """It is cut where the charge would grow too large; another of the kind takes the oldest's place."""
    script = paid()
    for number in range(policy.DISCREPANCIES_KEPT + 1):
        script.fetched(Seen.SUCCEEDED, name=f"pi_{number}", amount=5, amount_received=5)
    assert script.charge.discrepancies_left_out == 1
    script.observe(Reviewed(actor="me@example.com", note="n" * 5000))
    script.fetched(Seen.SUCCEEDED, name="pi_another", amount=5, amount_received=5)
    names = [found.payment_intent for found in script.charge.discrepancies]
    assert names == [*(f"pi_{number}" for number in range(1, policy.DISCREPANCIES_KEPT)), "pi_another"]
    assert script.charge.discrepancies[0].note == "n" * policy.NOTE_KEPT
    assert script.charge.discrepancies_left_out == 1


def test_orphans_are_taken_in_up_to_a_bound_and_beyond_it_told_of() -> None:
    """Each is canceled in its turn, which makes room again."""
    script = paid()
    for number in range(policy.ORPHANS_KEPT + 5):
        script.fetched(Seen.UNCONFIRMED, name=f"pi_{number}", body_digest=script.charge.body_digest)
    assert len(script.charge.orphans) == policy.ORPHANS_KEPT
    assert [found.kind for found in script.charge.discrepancies] == ["orphan_not_canceled"] * 5
    script.reply(Seen.CANCELED)
    script.fetched(Seen.UNCONFIRMED, name="pi_late", body_digest=script.charge.body_digest)
    assert "pi_late" in script.charge.orphans
