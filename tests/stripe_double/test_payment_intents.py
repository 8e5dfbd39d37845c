"""The state machine of a payment, and that it takes money at most once."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import stripe

from infra.local.stripe.cards import BEHAVIOURS, NUMBERS, Outcome
from infra.local.stripe.engine import Engine, Fault, Settings
from tests.stripe_double.asking import DAY, Asker, VirtualClock, wait_until_running
from tests.stripe_double.conftest import Served

CREATE = {"amount": 1999, "currency": "usd"}


def test_a_confirmed_payment_moves_its_amount_once(double: Asker) -> None:
    """Create moves nothing, confirm does, a second confirm is refused with the PaymentIntent in the error."""
    intent = double.intent(metadata={"pio_charge": "c1"})
    assert double.moved(intent) == []
    paid = double.confirm(intent).body
    again = double.confirm(intent)

    assert (paid["status"], paid["amount_received"]) == ("succeeded", 1999)
    assert (again.status, again.error["code"]) == (400, "payment_intent_unexpected_state")
    assert again.error["message"].endswith("it has already succeeded after being previously confirmed.")
    assert again.error["payment_intent"]["status"] == "succeeded"
    assert double.engine.money_moved("c1") == [1999]


def test_create_and_confirm_in_one_request(double: Asker) -> None:
    """And the events are told in Stripe's order."""
    paid = double.post("payment_intents", {**CREATE, "confirm": "true", "payment_method": "pm_card_visa"}).body

    assert paid["status"] == "succeeded"
    assert double.events() == ["payment_intent.created", "charge.succeeded", "payment_intent.succeeded"]


def test_twenty_confirms_at_once_with_keys_of_their_own_take_the_money_once(served: Served) -> None:
    """Whatever keys do: one PaymentIntent, one successful charge."""
    intent = served.client.v1.payment_intents.create({"amount": 1999, "currency": "usd"}).id
    barrier = threading.Barrier(20)

    def confirm(number: int) -> str:
        barrier.wait()
        try:
            options: stripe.RequestOptions = {"idempotency_key": f"k{number}"}
            return str(
                served.client.v1.payment_intents.confirm(intent, {"payment_method": "pm_card_visa"}, options).status
            )
        except stripe.StripeError as error:
            return str(error.error and error.error.code)

    with ThreadPoolExecutor(20) as pool:
        told = list(pool.map(confirm, range(20)))

    assert told.count("succeeded") == 1
    assert set(told) <= {"succeeded", "payment_intent_unexpected_state", "lock_timeout"}
    assert served.engine.money_moved_by(intent) == [1999]


def test_a_payment_intent_that_is_being_confirmed_is_locked(served: Served) -> None:
    """A second change meanwhile is 429 lock_timeout and learns nothing."""
    intent = served.client.v1.payment_intents.create({"amount": 1999, "currency": "usd"}).id
    served.engine.fail_next(Fault.SLOW_BEFORE, seconds=0.3)
    with ThreadPoolExecutor() as pool:
        slow = pool.submit(served.client.v1.payment_intents.confirm, intent, {"payment_method": "pm_card_visa"})
        wait_until_running(served.engine)  # stripe-python sends a key of its own.
        with pytest.raises(stripe.RateLimitError) as refused:
            served.client.v1.payment_intents.cancel(intent)
        paid = slow.result()

    assert refused.value.error is not None
    assert refused.value.error.code == "lock_timeout"
    assert (paid.status, served.engine.money_moved_by(intent)) == ("succeeded", [1999])


def test_a_decline_leaves_the_payment_intent_ready_for_another_card(double: Asker) -> None:
    """402 with the PaymentIntent and the failed charge in the error; then the same one is paid."""
    intent = double.intent()
    declined = double.confirm(intent, "pm_card_chargeDeclinedInsufficientFunds")

    assert declined.status == 402
    assert declined.error["type"] == "card_error"
    assert (declined.error["code"], declined.error["decline_code"]) == ("card_declined", "insufficient_funds")
    about = declined.error["payment_intent"]
    assert (about["status"], about["payment_method"]) == ("requires_payment_method", None)
    assert about["last_payment_error"]["charge"] == about["latest_charge"] == declined.error["charge"]
    charge = double.get(f"charges/{about['latest_charge']}").body
    assert (charge["status"], charge["failure_code"], charge["paid"]) == ("failed", "card_declined", False)
    assert double.events()[-2:] == ["charge.failed", "payment_intent.payment_failed"]
    assert double.confirm(intent).body["status"] == "succeeded"
    assert double.moved(intent) == [1999]


def test_a_failing_create_leaves_its_payment_intent(double: Asker) -> None:
    """The 402 of create with confirm names a PaymentIntent that exists."""
    params = {**CREATE, "confirm": "true", "off_session": "true", "payment_method": "pm_card_chargeDeclined"}
    declined = double.post("payment_intents", params)

    assert declined.status == 402
    assert double.status(declined.error["payment_intent"]["id"]) == "requires_payment_method"


DECLINES = [name for name, does in BEHAVIOURS.items() if does.outcome is Outcome.DECLINES]


@pytest.mark.parametrize("card", DECLINES)
def test_every_declining_card_says_why_and_takes_nothing(double: Asker, card: str) -> None:
    """Each of Stripe's declining cards answers 402 with its own codes."""
    why = BEHAVIOURS[card].after
    assert why is not None
    intent = double.intent()
    error = double.confirm(intent, card).error

    assert (error["code"], error.get("decline_code"), error.get("advice_code")) == tuple(why.codes.values())
    assert double.moved(intent) == []


@pytest.mark.parametrize(
    ("card", "code", "decline_code", "advice_code"),
    [
        ("pm_card_decline_do_not_honor", "card_declined", "do_not_honor", None),
        ("pm_card_decline_do_not_honor__try_again_later", "card_declined", "do_not_honor", "try_again_later"),
        ("pm_card_decline_expired_card", "expired_card", "expired_card", None),
        ("pm_card_error_card_decline_rate_limit_exceeded", "card_decline_rate_limit_exceeded", None, None),
    ],
)
def test_any_decline_can_be_had(
    double: Asker, card: str, code: str, decline_code: str | None, advice_code: str | None
) -> None:
    """Two families of names of ours reach every code there is; such cards can also be saved."""
    customer = double.customer()
    saved = double.post(f"payment_methods/{card}/attach", {"customer": customer}).body["id"]
    error = double.confirm(double.intent(customer=customer), saved).error

    assert (error["code"], error.get("decline_code"), error.get("advice_code")) == (code, decline_code, advice_code)


def test_a_blocked_card_never_reaches_the_network(double: Asker) -> None:
    """The charge's outcome tells Radar from the bank."""
    intent = double.intent()
    charge = double.confirm(intent, "pm_card_radarBlock").error["charge"]

    outcome = double.get(f"charges/{charge}").body["outcome"]
    assert (outcome["type"], outcome["network_status"]) == ("blocked", "not_sent_to_network")


def test_off_session_a_card_that_needs_its_customer_is_declined(double: Asker) -> None:
    """402 authentication_required, and the PaymentIntent waits for another confirm, on session."""
    intent = double.intent()
    declined = double.confirm(intent, "pm_card_authenticationRequired")

    assert (declined.status, declined.error["code"]) == (402, "authentication_required")
    assert double.status(intent) == "requires_payment_method"
    assert double.moved(intent) == []


def test_on_session_the_customer_is_asked_and_then_pays(double: Asker) -> None:
    """`requires_action` is a 200, and moves no money until the customer has answered."""
    intent = double.intent()
    params = {"payment_method": "pm_card_threeDSecure2Required", "return_url": "https://shop.example/back"}
    asked = double.post(f"payment_intents/{intent}/confirm", params)
    assert (asked.status, asked.body["status"]) == (200, "requires_action")
    assert asked.body["next_action"]["redirect_to_url"]["return_url"] == "https://shop.example/back"
    assert double.moved(intent) == []

    assert double.engine.authenticate(intent)["status"] == "succeeded"
    assert double.moved(intent) == [1999]
    assert double.engine.objects("event")[-1]["request"] == {"id": None, "idempotency_key": None}


def test_a_customer_who_fails_authentication_pays_nothing(double: Asker) -> None:
    """The PaymentIntent goes back to where another card can be tried."""
    intent = double.intent()
    double.post(f"payment_intents/{intent}/confirm", {"payment_method": "pm_card_threeDSecure2Required"})
    failed = double.engine.authenticate(intent, succeeds=False)

    assert failed["status"] == "requires_payment_method"
    assert failed["last_payment_error"]["code"] == "payment_intent_authentication_failure"
    assert double.moved(intent) == []


def test_error_on_requires_action_turns_the_question_into_a_402(double: Asker) -> None:
    """For callers that have no customer at hand and say so in another way."""
    params = {"payment_method": "pm_card_threeDSecure2Required", "error_on_requires_action": "true"}
    refused = double.post(f"payment_intents/{double.intent()}/confirm", params)

    assert (refused.status, refused.error["code"]) == (402, "authentication_required")


@pytest.mark.parametrize(
    ("account", "succeeds", "status"),
    [
        ("pm_usBankAccount_success", None, "succeeded"),
        ("pm_usBankAccount_insufficientFunds", None, "requires_payment_method"),
        ("pm_usBankAccount_success", False, "requires_payment_method"),
    ],
)
def test_a_bank_debit_is_processing_until_the_bank_has_spoken(
    double: Asker, account: str, succeeds: bool | None, status: str
) -> None:
    """It can be neither confirmed nor canceled meanwhile; then it is paid once, or not at all."""
    intent = double.intent()
    assert double.confirm(intent, account).body["status"] == "processing"
    assert double.confirm(intent).error["code"] == "payment_intent_unexpected_state"
    assert double.post(f"payment_intents/{intent}/cancel").error["code"] == "payment_intent_unexpected_state"
    assert double.moved(intent) == []

    if succeeds is None:
        double.clock.time += 4 * DAY
        double.engine.run_due()
    else:
        double.engine.settle(intent, succeeds=succeeds)

    assert double.status(intent) == status
    assert double.moved(intent) == ([1999] if status == "succeeded" else [])
    double.clock.time += 9 * DAY
    assert double.engine.run_due() in {0, 1}
    assert len(double.moved(intent)) <= 1


def test_a_canceled_payment_intent_never_charges(double: Asker) -> None:
    """Canceled is final."""
    intent = double.intent()
    canceled = double.post(f"payment_intents/{intent}/cancel", {"cancellation_reason": "abandoned"}).body

    assert (canceled["status"], canceled["cancellation_reason"]) == ("canceled", "abandoned")
    assert double.confirm(intent).error["payment_intent"]["status"] == "canceled"
    assert double.post(f"payment_intents/{intent}/cancel").status == 400
    assert double.moved(intent) == []


def test_a_paid_payment_intent_cannot_be_canceled(double: Asker) -> None:
    """The error carries it, so that the caller learns it was paid."""
    intent = double.intent()
    double.confirm(intent)
    refused = double.post(f"payment_intents/{intent}/cancel")

    assert (refused.status, refused.error["payment_intent"]["status"]) == (400, "succeeded")


def test_confirmed_too_often_it_is_canceled_by_stripe(clock: VirtualClock) -> None:
    """Beyond the limit the PaymentIntent is canceled, `automatic`, and what did it is a 400."""
    double = Asker(Engine(clock=clock, settings=Settings(confirms_at_most=2)), clock)
    intent = double.intent()
    told = [double.confirm(intent, "pm_card_chargeDeclined").status for _ in range(3)]

    about = double.get(f"payment_intents/{intent}").body
    assert (told, about["status"], about["cancellation_reason"]) == ([402, 402, 400], "canceled", "automatic")


def test_manual_capture_holds_and_then_takes(double: Asker) -> None:
    """A hold is no money moved; a partial capture moves that part."""
    intent = double.intent(capture_method="manual")
    assert double.confirm(intent).body["status"] == "requires_capture"
    assert double.moved(intent) == []

    captured = double.post(f"payment_intents/{intent}/capture", {"amount_to_capture": 500}).body
    assert (captured["status"], captured["amount_received"], double.moved(intent)) == ("succeeded", 500, [500])
    assert double.post(f"payment_intents/{intent}/capture").error["code"] == "payment_intent_unexpected_state"


def test_a_hold_ends_after_a_week(double: Asker) -> None:
    """Not captured in time, it is released and the PaymentIntent canceled."""
    intent = double.intent(capture_method="manual")
    double.confirm(intent)
    double.clock.time += 7 * DAY

    assert double.status(intent) == "canceled"
    assert double.events()[-2:] == ["charge.expired", "payment_intent.canceled"]
    assert double.moved(intent) == []


@pytest.mark.parametrize(
    ("params", "code", "param"),
    [
        ({"amount": 49, "currency": "usd"}, "amount_too_small", "amount"),
        ({"amount": 0, "currency": "usd"}, "parameter_invalid_integer", "amount"),
        ({"amount": 100_000_000, "currency": "usd"}, "amount_too_large", "amount"),
        ({"amount": "19.99", "currency": "usd"}, "parameter_invalid_integer", "amount"),
        ({"amount": 1999}, "parameter_missing", "currency"),
        ({**CREATE, "amuont": 1}, "parameter_unknown", "amuont"),
        ({**CREATE, "transfer_data": {"destnation": "acct_1"}}, "parameter_unknown", "transfer_data[destnation]"),
        ({**CREATE, "customer": "cus_nobody"}, "resource_missing", "customer"),
        ({**CREATE, "payment_method": "pm_nothing"}, "resource_missing", "payment_method"),
        ({**CREATE, "description": ""}, "parameter_invalid_empty", "description"),
        ({**CREATE, "capture_method": "perhaps"}, None, "capture_method"),
        ({**CREATE, "currency": "xxx"}, None, "currency"),
        ({**CREATE, "off_session": "true"}, None, "off_session"),
        ({**CREATE, "application_fee_amount": 1}, None, "application_fee_amount"),
        ({**CREATE, "metadata": {"k" * 41: "v"}}, None, "metadata"),
    ],
)
def test_what_stripe_would_refuse_is_refused(
    double: Asker, params: dict[str, object], code: str | None, param: str
) -> None:
    """400, naming the parameter, and no PaymentIntent."""
    refused = double.post("payment_intents", params)

    assert (refused.status, refused.error.get("code"), refused.error["param"]) == (400, code, param)
    assert double.engine.payment_intents() == []


def test_amounts_are_in_the_smallest_unit_of_the_currency(double: Asker) -> None:
    """50 yen are 50 yen."""
    intent = double.intent(amount=50, currency="jpy")
    double.confirm(intent)

    assert double.moved(intent) == [50]


def test_nothing_of_that_id_in_the_path_is_404(double: Asker) -> None:
    """Unlike an id in the body, which is 400."""
    missing = double.get("payment_intents/pi_nothing")

    assert (missing.status, missing.error["code"]) == (404, "resource_missing")


def test_a_card_of_another_customer_is_refused(double: Asker) -> None:
    """400 before anything is charged."""
    saved = double.post("payment_methods/pm_card_visa/attach", {"customer": double.customer()}).body["id"]
    intent = double.intent(customer=double.customer())
    refused = double.confirm(intent, saved)

    assert (refused.status, refused.error["param"]) == (400, "payment_method")
    assert double.moved(intent) == []


def test_a_detached_card_may_not_be_used_again(double: Asker) -> None:
    """Its customer took it back."""
    customer = double.customer()
    saved = double.post("payment_methods/pm_card_visa/attach", {"customer": customer}).body["id"]
    double.post(f"payment_methods/{saved}/detach")

    assert double.confirm(double.intent(customer=customer), saved).status == 400


def test_a_payment_of_a_customer_deleted_since_is_refused(double: Asker) -> None:
    """400, naming the customer: whoever left is charged nothing."""
    customer = double.customer()
    intent = double.intent(customer=customer)
    double.ask("DELETE", f"customers/{customer}")
    refused = double.confirm(intent)

    assert (refused.status, refused.error["code"], refused.error["param"]) == (400, "resource_missing", "customer")
    assert double.moved(intent) == []


def test_a_payment_stays_the_customers_for_whom_it_was_made(double: Asker) -> None:
    """400, and no way to hand it on; one that was nobody's may still become somebody's."""
    intent = double.intent(customer=double.customer())
    refused = double.post(f"payment_intents/{intent}", {"customer": double.customer()})
    assert (refused.status, refused.error["param"]) == (400, "customer")

    customer, nobodys = double.customer(), double.intent()
    assert double.post(f"payment_intents/{nobodys}", {"customer": customer}).body["customer"] == customer


@pytest.mark.parametrize("confirm", [True, False])
def test_without_a_card_nothing_is_confirmed(double: Asker, confirm: bool) -> None:
    """Neither at once, where no PaymentIntent is left behind, nor later."""
    if confirm:
        refused = double.post("payment_intents", {**CREATE, "confirm": "true"})
        assert double.engine.payment_intents() == []
    else:
        refused = double.post(f"payment_intents/{double.intent()}/confirm")

    assert (refused.status, refused.error["code"]) == (400, "payment_intent_unexpected_state")


def test_the_charge_has_the_metadata_of_the_moment(double: Asker) -> None:
    """Copied when it is made; later changes to the PaymentIntent do not reach it."""
    intent = double.intent(metadata={"pio_charge": "before", "gone": "x"})
    double.post(f"payment_intents/{intent}", {"metadata": {"pio_charge": "c1", "gone": ""}})
    charge = double.confirm(intent).body["latest_charge"]

    assert double.get(f"charges/{charge}").body["metadata"] == {"pio_charge": "c1"}


def test_expand_puts_whole_objects_in_place_of_ids(double: Asker) -> None:
    """`latest_charge`, `payment_method` and `customer`, in lists too."""
    customer = double.customer()
    intent = double.intent(customer=customer)
    double.confirm(intent)
    shown = double.get(f"payment_intents/{intent}", {"expand": ["latest_charge", "payment_method", "customer"]}).body
    listed = double.get("payment_intents", {"expand": ["data.latest_charge"]}).body["data"][0]

    assert [shown[name]["object"] for name in ("latest_charge", "payment_method", "customer")] == [
        "charge",
        "payment_method",
        "customer",
    ]
    assert listed["latest_charge"]["id"] == shown["latest_charge"]["id"]
    assert double.get(f"payment_intents/{intent}", {"expand": ["nonsense"]}).status == 400


@pytest.mark.parametrize("number", NUMBERS)
def test_a_card_number_does_what_its_test_name_does(double: Asker, number: str) -> None:
    """Stripe's test numbers and names are the same cards."""
    card = {"number": number, "exp_month": 12, "exp_year": 2034, "cvc": "123"}
    made = double.post("payment_methods", {"type": "card", "card": card}).body
    by_number = double.confirm(double.intent(), made["id"])
    by_name = double.confirm(double.intent(), NUMBERS[number])

    assert made["card"]["last4"] == BEHAVIOURS[NUMBERS[number]].last4
    assert by_number.status == by_name.status
    if by_name.status == 402:
        assert by_number.error["code"] == by_name.error["code"]


def test_a_number_that_is_no_card_is_refused_and_no_test_card_is_declined(double: Asker) -> None:
    """A typing error is `incorrect_number`; a real card in test mode is `testmode_decline`."""
    card = {"exp_month": 12, "exp_year": 2034}
    wrong = double.post("payment_methods", {"type": "card", "card": {"number": "4242424242424241", **card}})
    real = double.post("payment_methods", {"type": "card", "card": {"number": "4929000000006", **card}}).body["id"]

    assert (wrong.status, wrong.error["code"]) == (402, "incorrect_number")
    assert double.confirm(double.intent(), real).error["decline_code"] == "testmode_decline"
