"""Every row of policy's tables does what is written here, independently of how the tables write it."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Final

import pytest

from shared import policy
from shared.charge import FINAL, PAID, Act, Answered, CancelReason, Charge, Party, Seen, Standing, Status
from shared.policy import Fetch, List, Rest, Send, Then
from tests.script import (
    DAY,
    HOUR,
    OURS,
    SECOND,
    START,
    Script,
    Ways,
    answered,
    burnt,
    changed,
    closing,
    confirming,
    declined,
    intent,
    opened,
    recorded,
    refused_while_an_earlier_send_is_unexplained,
)

EVERY = sorted(set(Seen) - policy.OF_A_REFUND)


def what_follows(script: Script) -> str:
    """Say in a word what is done next without anybody's help."""
    if script.said.then is Then.REST:
        return "rest"
    step = script.step()
    does = {Send: "send", Fetch: "look", List: "list", Rest: "rest"}[type(step)]
    return does if script.said.then is Then.GO_ON else f"{does} later"


# --- The first answer to a confirm ----------------------------------------------------------------------------------

# Seen: how the attempt stands, what the charge is, who must act, what follows.
FRESH_CONFIRM: Final[Mapping[str, tuple[str, str, str | None, str]]] = {
    "succeeded": ("settled", "succeeded", None, "rest"),
    "processing": ("settled", "processing", "bank", "rest"),
    "action_required": ("settled", "action_required", "customer", "rest"),
    "held": ("settled", "blocked", "operator", "rest"),
    "canceled": ("settled", "canceled", None, "rest"),
    "unconfirmed": ("look", "unknown", "system", "look"),
    "declined": ("settled", "declined", "customer", "rest"),
    "authentication_required": ("settled", "action_required", "customer", "rest"),
    "transient_decline": ("settled", "retrying", "system", "rest"),
    "duplicate_transaction": ("look", "unknown", "system", "look"),
    "unexpected_state": ("look", "unknown", "system", "look"),
    "missing_object": ("settled", "blocked", "account_owner", "rest"),
    "missing_payment_intent": ("settled", "blocked", "operator", "rest"),
    "invalid": ("settled", "blocked", "operator", "rest"),
    "parameters_drifted": ("look", "unknown", "system", "look"),
    "unauthorized": ("out", "blocked", "operator", "rest"),
    "key_in_use": ("out", "unknown", "system", "send later"),
    "limited": ("out", "pending", "system", "send later"),
    "server_error": ("look", "unknown", "system", "look"),
    "no_reply": ("out", "unknown", "system", "send later"),
}


@pytest.mark.parametrize("seen", EVERY)
def test_the_first_answer_to_a_confirm_is_taken_for_what_it_says(seen: Seen) -> None:
    """A fresh answer to the only send of the first attempt."""
    script = answered(seen)

    told = (script.charge.attempts[0].standing, script.status(), policy.waiting_on(script.charge))
    assert (*told, what_follows(script)) == FRESH_CONFIRM[seen]


@pytest.mark.parametrize("seen", sorted(policy.OF_A_REFUND))
def test_an_answer_of_a_refund_to_a_confirm_may_mean_anything(seen: Seen) -> None:
    """Unlisted is unknown."""
    assert answered(seen).charge.attempts[0].standing is Standing.LOOK
    assert answered(seen).status() == "unknown"


def test_every_answer_to_a_confirm_has_its_row() -> None:
    """None is missing from the code's table, nor from the one here."""
    assert set(policy.CONFIRM) == set(EVERY)
    assert set(FRESH_CONFIRM) == set(EVERY)


@pytest.mark.parametrize("seen", EVERY)
def test_no_answer_but_a_decline_of_the_bank_is_told_as_declined(seen: Seen) -> None:
    """402 is told to the caller for one word of Stripe's only."""
    assert (answered(seen).charge.status is Status.DECLINED) == (seen is Seen.DECLINED)


@pytest.mark.parametrize("seen", EVERY)
def test_a_row_of_the_confirm_table_is_carried_out(seen: Seen) -> None:
    """The rows of CONFIRM are not only documentation: standing, status and party are the table's."""
    script, row = answered(seen), policy.CONFIRM[seen]

    assert script.charge.attempts[0].standing is row.standing
    assert script.status() is (row.status or Status.PENDING)
    assert script.charge.blocked_on is row.blocked_on
    assert script.said.then is row.then


# --- A replayed answer to a confirm, once a look has shown the PaymentIntent unconfirmed ----------------------------

REPLAYED_THEN_UNCONFIRMED: Final[Mapping[str, tuple[str, str, str | None, str]]] = {
    "processing": ("settled", "declined", "customer", "rest"),
    "action_required": ("settled", "declined", "customer", "rest"),
    "held": ("settled", "declined", "customer", "rest"),
    "unconfirmed": ("out", "unknown", "system", "send later"),
    "declined": ("settled", "declined", "customer", "rest"),
    "authentication_required": ("settled", "action_required", "customer", "rest"),
    "transient_decline": ("settled", "retrying", "system", "rest"),
    "duplicate_transaction": ("settled", "declined", "customer", "rest"),
    "unexpected_state": ("settled", "pending", "system", "send later"),
    "missing_object": ("settled", "blocked", "account_owner", "rest"),
    "missing_payment_intent": ("settled", "blocked", "operator", "rest"),
    "invalid": ("settled", "blocked", "operator", "rest"),
    "parameters_drifted": ("burnt", "blocked", "operator", "rest"),
}
NOT_NEWS_EVEN_IF_REPLAYED: Final = {"unauthorized", "key_in_use", "limited", "no_reply"}


@pytest.mark.parametrize("seen", REPLAYED_THEN_UNCONFIRMED)
def test_a_replayed_answer_is_believed_once_a_look_agrees(seen: str) -> None:
    """No reply, then an old answer, then a look that shows nothing under way: the old answer stands after all."""
    script = confirming()
    script.answer(Seen.NO_REPLY)
    script.reply(Seen(seen), replayed=True)
    assert script.status() is Status.UNKNOWN
    assert what_follows(script) == "look"

    script.look(Seen.UNCONFIRMED)

    told = (script.charge.attempts[0].standing, script.status(), policy.waiting_on(script.charge))
    assert (*told, what_follows(script)) == REPLAYED_THEN_UNCONFIRMED[seen]


@pytest.mark.parametrize("seen", EVERY)
def test_a_replayed_answer_is_old_news_unless_it_can_never_be_untrue(seen: Seen) -> None:
    """`succeeded` and `canceled` stay true; everything else is looked at first, or says nothing anyway."""
    script = confirming()
    script.answer(Seen.NO_REPLY)
    script.reply(seen, replayed=True)

    if seen in {Seen.SUCCEEDED, Seen.CANCELED}:
        assert script.status() == str(seen)
    elif seen in NOT_NEWS_EVEN_IF_REPLAYED:
        assert script.charge.attempts[0].standing is Standing.OUT
        assert script.status() in {Status.UNKNOWN, Status.BLOCKED}
    else:
        assert script.status() is Status.UNKNOWN
        assert what_follows(script) == "look"


@pytest.mark.parametrize("seen", REPLAYED_THEN_UNCONFIRMED)
def test_what_is_believed_is_what_the_table_says(seen: str) -> None:
    """The rows of BELIEVED are carried out."""
    script = confirming()
    script.reply(Seen(seen), replayed=True)
    script.look(Seen.UNCONFIRMED)
    row = policy.BELIEVED[Seen(seen)]

    assert (script.charge.attempts[0].standing, script.status()) == (row.standing, row.status)


# --- An answer to a create ------------------------------------------------------------------------------------------

CREATE_SHOWED: Final[Mapping[str, tuple[str, str]]] = {  # It came back with a PaymentIntent: step 3.
    "succeeded": ("succeeded", "rest"),
    "processing": ("processing", "rest"),
    "action_required": ("action_required", "rest"),
    "held": ("blocked", "rest"),
    "canceled": ("canceled", "rest"),
    "unconfirmed": ("pending", "send"),
}
CREATE_WITHOUT: Final[Mapping[str, tuple[str, str, str | None, str]]] = {
    "declined": ("out", "pending", "system", "send later"),
    "authentication_required": ("out", "pending", "system", "send later"),
    "transient_decline": ("out", "pending", "system", "send later"),
    "duplicate_transaction": ("out", "pending", "system", "send later"),
    "unexpected_state": ("out", "pending", "system", "send later"),
    "missing_object": ("settled", "blocked", "account_owner", "rest"),
    "missing_payment_intent": ("settled", "blocked", "operator", "rest"),
    "invalid": ("settled", "blocked", "operator", "rest"),
    "parameters_drifted": ("burnt", "pending", "system", "list"),
    "unauthorized": ("out", "blocked", "operator", "rest"),
    "key_in_use": ("out", "pending", "system", "send later"),
    "limited": ("out", "pending", "system", "send later"),
    "server_error": ("out", "pending", "system", "send later"),
    "no_reply": ("out", "pending", "system", "send later"),
}


@pytest.mark.parametrize("seen", CREATE_SHOWED)
def test_a_created_payment_intent_is_recorded_before_it_is_confirmed(seen: str) -> None:
    """Whatever its status, its id is on the record; only an unconfirmed one is then confirmed."""
    script = Script()
    script.reply(Seen(seen))

    assert script.charge.payment_intent == OURS
    assert script.charge.create.settled
    assert (script.status(), what_follows(script)) == CREATE_SHOWED[seen]
    assert [attempt.standing for attempt in script.charge.attempts] == ["unsent"] * (seen == "unconfirmed")


@pytest.mark.parametrize("seen", CREATE_WITHOUT)
def test_a_create_that_brings_no_payment_intent_moves_no_money_and_gets_no_new_key(seen: str) -> None:
    """The charge is `pending`, or waits for whoever can mend it; nothing about it is `unknown`."""
    script = Script()
    script.reply(Seen(seen))
    row = policy.CREATE[Seen(seen)]

    told = (script.charge.create.standing, script.status(), policy.waiting_on(script.charge))
    assert (*told, what_follows(script)) == CREATE_WITHOUT[seen]
    assert (script.charge.create.standing, script.status()) == (row.standing, row.status or Status.PENDING)
    assert {key for key, _ in script.sends} == {script.charge.create.idempotency_key}


def test_every_answer_to_a_create_has_its_row() -> None:
    """Those with a PaymentIntent are recorded; the table has all the others."""
    assert set(policy.CREATE) == set(CREATE_WITHOUT)
    assert set(CREATE_SHOWED) | set(CREATE_WITHOUT) == set(EVERY)


@pytest.mark.parametrize("seen", CREATE_SHOWED)
@pytest.mark.parametrize("operation", ["create", "confirm", "cancel"])
def test_a_status_without_its_payment_intent_proves_nothing(seen: str, operation: str) -> None:
    """`succeeded` in a body that shows no PaymentIntent marks nothing as paid, or canceled."""
    ways: Ways = {"create": Script, "confirm": recorded, "cancel": closing}
    script = ways[operation]()
    request = script.send()
    before = script.status()
    script.observe(Answered(idempotency_key=request.idempotency_key, seen=Seen(seen)))

    assert script.status() in {before, Status.UNKNOWN}
    assert what_follows(script) == ("send later" if operation == "create" else "look")


# --- An answer to a cancel ------------------------------------------------------------------------------------------

CANCEL: Final[Mapping[str, tuple[str, str, str | None, str]]] = {
    "succeeded": ("out", "succeeded", None, "rest"),
    "processing": ("look", "processing", "bank", "look"),
    "action_required": ("look", "pending", "system", "look"),
    "held": ("look", "pending", "system", "look"),
    "canceled": ("settled", "canceled", None, "rest"),
    "unconfirmed": ("look", "pending", "system", "look"),
    "declined": ("look", "unknown", "system", "look"),
    "authentication_required": ("look", "unknown", "system", "look"),
    "transient_decline": ("look", "unknown", "system", "look"),
    "duplicate_transaction": ("look", "unknown", "system", "look"),
    "unexpected_state": ("look", "unknown", "system", "look"),
    "missing_object": ("settled", "blocked", "operator", "rest"),
    "missing_payment_intent": ("settled", "blocked", "operator", "rest"),
    "invalid": ("settled", "blocked", "operator", "rest"),
    "parameters_drifted": ("look", "unknown", "system", "look"),
    "unauthorized": ("out", "blocked", "operator", "rest"),
    "key_in_use": ("out", "unknown", "system", "send later"),
    "limited": ("out", "pending", "system", "send later"),
    "server_error": ("look", "unknown", "system", "look"),
    "no_reply": ("out", "unknown", "system", "send later"),
}


@pytest.mark.parametrize("seen", EVERY)
def test_an_answer_to_a_cancel_closes_the_charge_only_if_it_says_so(seen: Seen) -> None:
    """Canceled closes it; succeeded wins; everything else leaves the wish open."""
    script = closing()
    script.reply(seen)
    assert script.charge.closing is not None
    assert script.charge.closing.request is not None

    told = (script.charge.closing.request.standing, script.status(), policy.waiting_on(script.charge))
    assert (*told, what_follows(script)) == CANCEL[seen]
    assert len(script.charge.attempts) == 1


@pytest.mark.parametrize("seen", sorted(set(EVERY) - {Seen.SUCCEEDED, Seen.CANCELED}))
def test_a_row_of_the_cancel_table_is_carried_out(seen: Seen) -> None:
    """Standing, status and party are the table's."""
    script = closing()
    script.reply(seen)
    row = policy.CANCEL[seen]
    assert script.charge.closing is not None
    assert script.charge.closing.request is not None

    assert script.charge.closing.request.standing is row.standing
    assert script.status() is (row.status or Status.PENDING)
    assert script.charge.blocked_on is row.blocked_on


def test_every_answer_to_a_cancel_has_its_row() -> None:
    """None is missing."""
    assert set(policy.CANCEL) == set(EVERY)
    assert set(CANCEL) == set(EVERY)


@pytest.mark.parametrize("seen", sorted(set(EVERY) - {Seen.SUCCEEDED, Seen.CANCELED}))
def test_a_replayed_answer_to_a_cancel_is_looked_at(seen: Seen) -> None:
    """Old news about a cancel, an old refusal among it, is never taken for how things stand."""
    script = closing()
    script.reply(seen, replayed=True)

    assert not script.charge.final
    assert what_follows(script) == "look"


# --- What a PaymentIntent says when it is read ----------------------------------------------------------------------

READ: Final[Mapping[str, tuple[str, str | None]]] = {
    "succeeded": ("succeeded", None),
    "processing": ("processing", "bank"),
    "action_required": ("action_required", "customer"),
    "held": ("blocked", "operator"),
    "canceled": ("canceled", None),
}


@pytest.mark.parametrize("seen", READ)
@pytest.mark.parametrize("where", ["attempt out", "declined", "processing", "burnt"])
def test_what_is_read_at_stripe_beats_what_we_believed(seen: str, where: str) -> None:
    """Five words are conclusive, wherever the charge stood; what was out is settled by them."""
    ways: Ways = {
        "attempt out": lambda: answered(Seen.SERVER_ERROR),
        "declined": declined,
        "processing": lambda: answered(Seen.PROCESSING),
        "burnt": burnt,
    }
    script = ways[where]()
    script.fetched(Seen(seen))

    assert (script.status(), policy.waiting_on(script.charge)) == READ[seen]
    assert script.charge.open_attempt is None
    assert script.said.then is Then.REST


def test_the_conclusive_words_are_these_and_unconfirmed_is_none_of_them() -> None:
    """`requires_payment_method` and `requires_confirmation` settle nothing by themselves."""
    assert set(policy.STATE) == set(READ)
    assert {
        seen: (status, party or policy.WAITING_ON[status]) for seen, (status, party) in policy.STATE.items()
    } == READ


@pytest.mark.parametrize(
    ("seen", "party"),
    [
        (Seen.UNAUTHORIZED, Party.OPERATOR),
        (Seen.MISSING_OBJECT, Party.ACCOUNT_OWNER),
        (Seen.MISSING_PAYMENT_INTENT, Party.OPERATOR),
        (Seen.INVALID, Party.OPERATOR),
    ],
)
def test_a_look_that_somebody_must_mend_blocks_the_charge(seen: Seen, party: Party) -> None:
    """Wrong account, mode or key: no mail to the customer, and it moves on by itself once that is mended."""
    script = answered(Seen.SERVER_ERROR)
    script.look_failed(seen)

    assert script.status() is Status.BLOCKED
    assert policy.waiting_on(script.charge) is party
    assert policy.due_at(script.charge, script.now, None) == script.now + policy.BLOCKED_WAIT
    assert policy.LOOK_BLOCKED_ON[seen] is party


@pytest.mark.parametrize("seen", sorted(set(EVERY) - set(policy.LOOK_BLOCKED_ON)))
def test_any_other_look_that_fails_is_repeated(seen: Seen) -> None:
    """Nothing was learned, and nothing is told."""
    script = answered(Seen.SERVER_ERROR)
    before = script.charge
    script.look_failed(seen)

    assert script.charge == before
    assert what_follows(script) == "look later"


# --- Who must act, and what they may do -----------------------------------------------------------------------------

WAITS_FOR: Final[Mapping[str, str | None]] = {
    "pending": "system",
    "unknown": "system",
    "processing": "bank",
    "action_required": "customer",
    "retrying": "system",
    "declined": "customer",
    "succeeded": None,
    "paid_out_of_band": None,
    "canceled": None,
}


@pytest.mark.parametrize("status", sorted(WAITS_FOR))
def test_each_status_names_who_must_act(status: str) -> None:
    """An open charge waits for a named party, a final one for nobody."""
    charge = changed(Script(), status=Status(status)).charge

    assert policy.waiting_on(charge) == WAITS_FOR[status]
    assert charge.final == (WAITS_FOR[status] is None)


@pytest.mark.parametrize("party", [Party.OPERATOR, Party.ACCOUNT_OWNER])
def test_a_blocked_charge_waits_for_whom_it_says(party: Party) -> None:
    """`blocked_on` is the answer."""
    charge = changed(Script(), status=Status.BLOCKED, blocked_on=party).charge
    assert policy.waiting_on(charge) is party
    assert set(policy.WAITING_ON) == {*WAITS_FOR, "blocked"} == set(Status)


CLOSE_IT = {"cancel", "out-of-band"}
ALL_FOUR = {"cancel", "out-of-band", "retry", "payment-method"}
MAY: Final[Mapping[str, set[str]]] = {
    "pending": CLOSE_IT,
    "unknown": CLOSE_IT,
    "processing": CLOSE_IT,
    "action_required": ALL_FOUR,
    "retrying": ALL_FOUR,
    "declined": ALL_FOUR,
    "blocked": ALL_FOUR,
    "succeeded": set(),
    "paid_out_of_band": set(),
    "canceled": set(),
}


def in_status(status: str) -> Script:
    """A charge that got there by what was observed."""
    ways: Ways = {
        "pending": recorded,
        "unknown": lambda: answered(Seen.NO_REPLY),
        "processing": lambda: answered(Seen.PROCESSING),
        "action_required": lambda: answered(Seen.AUTHENTICATION_REQUIRED),
        "retrying": lambda: answered(Seen.TRANSIENT_DECLINE),
        "declined": declined,
        "blocked": lambda: answered(Seen.MISSING_OBJECT),
        "succeeded": lambda: answered(Seen.SUCCEEDED),
        "paid_out_of_band": lambda: closing(Act.OUT_OF_BAND),
        "canceled": lambda: closing(Act.CANCEL),
    }
    script = ways[status]()
    if status in {"paid_out_of_band", "canceled"}:
        script.reply(Seen.CANCELED)
    assert script.status() == status
    return script


@pytest.mark.parametrize("status", MAY)
def test_each_status_offers_these_acts(status: str) -> None:
    """What a caller, customer or operator may do; nothing of it once it is final."""
    assert policy.options(in_status(status).charge) == MAY[status]
    assert policy.OPTIONS[Status(status)] == MAY[status]


@pytest.mark.parametrize("status", MAY)
@pytest.mark.parametrize("act", list(Act))
def test_an_act_that_is_offered_is_done_and_any_other_changes_nothing(status: str, act: Act) -> None:
    """A new attempt under a new key, or a closing; or a refusal and the very same charge."""
    script = in_status(status)
    before = script.charge
    script.choose(act)

    if act not in MAY[status]:
        same_wish = {"paid_out_of_band": Act.OUT_OF_BAND, "canceled": Act.CANCEL}.get(status)
        assert script.charge == before
        assert (script.said.refusal is None) == (act is same_wish)
        assert script.said.then is Then.REST
    elif act in {Act.CANCEL, Act.OUT_OF_BAND}:
        assert script.charge.closing is not None
        assert script.charge.attempts == before.attempts
    else:
        assert script.charge.closing is None
        assert len(script.charge.attempts) == len(before.attempts) + 1
        assert script.charge.attempts[-1].payment_method == {"retry": "pm_card"}.get(act, "pm_other")
        assert script.step() == Send(request=script.charge.attempts[-1])
    assert script.charge.payment_intent == OURS


@pytest.mark.parametrize(
    ("status", "why"),
    [
        ("succeeded", "already_paid"),
        ("pending", "act_does_not_fit"),
        ("unknown", "act_does_not_fit"),
        ("canceled", "act_does_not_fit"),
    ],
)
def test_a_retry_that_does_not_fit_says_why(status: str, why: str) -> None:
    """409 with a reason that a program can read."""
    assert in_status(status).choose(Act.RETRY).refusal == why


@pytest.mark.parametrize("name", ["in transit", "told to look"])
def test_a_blocked_charge_takes_no_other_card_before_what_is_out_is_settled(name: str) -> None:
    """The first card may be charging."""
    script = answered(Seen.NO_REPLY)
    if name == "in transit":
        script.reply(Seen.UNAUTHORIZED)
    else:
        script.reply(Seen.SERVER_ERROR)
        script.look_failed(Seen.UNAUTHORIZED)

    assert script.status() is Status.BLOCKED
    assert policy.options(script.charge) == ALL_FOUR - {"payment-method"}
    assert script.choose(Act.PAYMENT_METHOD).refusal == "act_does_not_fit"


def test_a_blocked_charge_whose_only_key_was_refused_takes_another_card() -> None:
    """S7: the card is gone, an earlier send is unexplained; the customer is not locked out of giving a new one."""
    script = refused_while_an_earlier_send_is_unexplained(Seen.MISSING_OBJECT)
    assert policy.options(script.charge) == ALL_FOUR

    script.choose(Act.PAYMENT_METHOD)

    assert script.status() is Status.UNKNOWN
    assert script.charge.attempts[-1].payment_method == "pm_other"
    assert script.charge.open_attempt == script.charge.attempts[1]


# --- How a closing ends ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "status", "reason", "at_stripe"),
    [
        ("cancel", "canceled", "requested", "requested_by_customer"),
        ("expire", "canceled", "expired", "abandoned"),
        ("out_of_band", "paid_out_of_band", None, "requested_by_customer"),
        ("paid_elsewhere", "paid_out_of_band", None, "duplicate"),
    ],
)
def test_each_closing_ends_as_it_was_meant(kind: str, status: str, reason: str | None, at_stripe: str) -> None:
    """Canceled at Stripe first, for Stripe's own reasons; then the final status that was wished for."""
    script = declined()
    if kind == "expire":
        script.wake(31 * DAY)
    elif kind == "paid_elsewhere":
        script.event(Seen.SUCCEEDED, name="pi_other")
        script.fetched(Seen.SUCCEEDED, name="pi_other")
    else:
        script.choose(Act.CANCEL if kind == "cancel" else Act.OUT_OF_BAND)
    assert script.charge.closing is not None
    assert script.charge.closing.kind == kind
    request = script.send()
    assert request.operation == "cancel"
    assert request.parameters == f'{{"cancellation_reason": "{at_stripe}"}}'

    script.answer(Seen.CANCELED)

    assert (script.status(), script.charge.cancel_reason) == (status, reason)
    assert script.charge.due_at is None
    assert policy.CLOSES_AS[kind] == (Status(status), reason and CancelReason(reason))
    assert policy.CANCELLATION_REASON[kind] == at_stripe


def test_there_is_no_other_way_to_close() -> None:
    """Four kinds, each with its end and its reason at Stripe."""
    kinds = {"cancel", "expire", "out_of_band", "paid_elsewhere"}
    assert set(policy.CLOSES_AS) == set(policy.CANCELLATION_REASON) == kinds


# --- Which of several PaymentIntents is the one ---------------------------------------------------------------------

BETTER_FIRST: Final = [
    {"succeeded"},
    {"processing", "held", "action_required", "server_error"},
    {"canceled"},
    {"unconfirmed"},
]


def test_paid_comes_before_under_way_before_closed_before_unconfirmed() -> None:
    """And a status that nobody foresaw may be paying."""
    assert [set(kind) for kind in policy.PREFERENCE] == BETTER_FIRST


def found(*seen: str) -> Script:
    """A create's key is past its horizon; the list shows these PaymentIntents, the oldest first."""
    script = Script()
    script.reply(Seen.NO_REPLY)
    script.now += policy.KEY_HORIZON
    listed = [
        intent(script.charge, Seen(one), f"pi_{number}", created=START + number * SECOND)
        for number, one in enumerate(seen)
    ]
    script.listed(*listed)
    return script


@pytest.mark.parametrize("better", range(4))
@pytest.mark.parametrize("worse", range(4))
def test_the_better_of_two_payment_intents_is_recorded_and_the_other_canceled(better: int, worse: int) -> None:
    """Whichever is newer; of two that are as good the newest."""
    for first in sorted(BETTER_FIRST[better]):
        for second in sorted(BETTER_FIRST[worse]):
            script = found(first, second)
            wins = 0 if better < worse else 1
            assert script.charge.payment_intent == f"pi_{wins}"
            loser = (first, second)[1 - wins]
            live = loser not in {"succeeded", "canceled"}
            assert script.charge.orphans == ((f"pi_{1 - wins}",) if live else ())


# --- What every table has in common ---------------------------------------------------------------------------------


def test_what_ran_nothing_and_what_teaches_nothing() -> None:
    """Answers from before the endpoint: they say nothing about an earlier send of the same key."""
    assert {"unauthorized", "key_in_use", "limited", "invalid", "missing_object", "missing_payment_intent"} == set(
        policy.RAN_NOTHING
    )
    assert {"invalid", "missing_object", "missing_payment_intent"} == set(policy.REFUSED)
    assert {"unauthorized", "key_in_use", "limited", "no_reply"} == set(policy.LEARNED_NOTHING)
    assert {"succeeded", "canceled"} == set(policy.NEVER_STALE)
    assert {"succeeded", "paid_out_of_band"} == set(PAID)
    assert {"succeeded", "paid_out_of_band", "canceled"} == set(FINAL)


def due(charge: Charge, after: timedelta = timedelta()) -> timedelta | None:
    """In how long it is looked at again, if nobody acts."""
    at = policy.due_at(charge, START + after, None)
    return None if at is None else at - (START + after)


@pytest.mark.parametrize(
    ("status", "wait"),
    [
        ("pending", SECOND),
        ("unknown", SECOND),
        ("processing", DAY),
        ("action_required", DAY),
        ("retrying", policy.TRANSIENT_WAITS[0]),
        ("declined", 30 * DAY),
        ("blocked", DAY),
        ("succeeded", None),
        ("paid_out_of_band", None),
        ("canceled", None),
    ],
)
def test_every_open_charge_is_due_and_no_final_one(status: str, wait: timedelta | None) -> None:
    """`due_at` is what makes sure that nothing is lost."""
    assert due(in_status(status).charge) == wait


def test_a_closing_is_due_when_it_was_going_to_be_whatever_the_charge_expires() -> None:
    """The bank's work is looked at every hour once somebody has closed the charge."""
    script = closing(Act.CANCEL, answered(Seen.PROCESSING))
    script.reply(Seen.PROCESSING)
    assert due(script.charge) == HOUR
    assert due(script.charge, 40 * DAY) == HOUR


@pytest.mark.parametrize("status", ["declined", "action_required", "blocked"])
def test_an_open_charge_is_due_at_its_expiry_at_the_latest(status: str) -> None:
    """An hour before it expires it is due in that hour; past it, within a second."""
    script = changed(in_status(status), expires_at=START + HOUR)
    assert due(script.charge) == HOUR
    late = due(script.charge, 2 * HOUR)
    assert late is not None
    assert late <= SECOND


def test_a_bank_debit_past_the_expiry_is_looked_at_once_a_day_and_not_every_second() -> None:
    """It cannot expire while money moves, so its expiry does not make it due."""
    script = answered(Seen.PROCESSING)
    assert due(script.charge, 40 * DAY) == DAY
    script.wake(40 * DAY)
    assert script.charge.closing is None
    assert isinstance(script.step(), Fetch)


def test_the_wait_that_was_decided_is_the_one_that_counts() -> None:
    """Whatever the status would say."""
    charge = opened()
    assert policy.due_at(charge, START, HOUR) == START + HOUR
