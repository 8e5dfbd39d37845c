"""What the double promises about idempotency keys."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import stripe

from infra.local.stripe.engine import Engine, Fault
from tests.stripe_double.asking import DAY, Asker, VirtualClock, wait_until_running
from tests.stripe_double.conftest import Served

CREATE = {"amount": 1999, "currency": "usd"}


def test_a_repeated_200_is_the_same_bytes_and_one_payment_intent(double: Asker) -> None:
    """The first answer is saved and replayed, and says so; only Request-Id is new."""
    first = double.post("payment_intents", CREATE, "k")
    again = double.post("payment_intents", CREATE, "k")

    assert (first.status, again.status, again.raw) == (200, 200, first.raw)
    assert (first.replayed, again.replayed) == (False, True)
    assert again.headers["Original-Request"] == first.headers["Request-Id"] != again.headers["Request-Id"]
    assert again.headers["Idempotency-Key"] == "k"
    assert len(double.engine.payment_intents()) == 1


def test_a_repeated_402_is_the_same_decline_and_no_second_try(double: Asker) -> None:
    """A decline is saved like anything else: the card is not asked again."""
    intent = double.intent()
    first = double.confirm(intent, "pm_card_chargeDeclined", "k")
    again = double.confirm(intent, "pm_card_chargeDeclined", "k")

    assert (first.status, again.status, again.raw, again.replayed) == (402, 402, first.raw, True)
    assert len(double.engine.objects("charge")) == 1


def test_a_repeated_500_stays_a_500_for_ever(double: Asker) -> None:
    """What was saved is never corrected, not even when the charge had gone through."""
    intent = double.intent()
    double.engine.fail_next(Fault.ERROR_500_AFTER)
    first = double.confirm(intent, key="k")
    again = double.confirm(intent, key="k")

    assert (first.status, again.status, again.raw, again.replayed) == (500, 500, first.raw, True)
    assert again.headers["Stripe-Should-Retry"] == "false"
    assert double.moved(intent) == [1999]


def test_a_repeated_400_of_the_endpoint_is_replayed(double: Asker) -> None:
    """A refusal that the endpoint itself made is an answer like any other."""
    params = {**CREATE, "customer": "cus_nobody"}
    first, again = (double.post("payment_intents", params, "k") for _ in range(2))

    assert (first.status, first.error["code"], first.error["param"]) == (400, "resource_missing", "customer")
    assert (again.raw, again.replayed) == (first.raw, True)


@pytest.mark.parametrize(
    ("fault", "status"),
    [(Fault.UNAUTHORIZED, 401), (Fault.FORBIDDEN, 403), (Fault.RATE_LIMITED, 429), (Fault.KEY_IN_USE, 409)],
)
def test_what_is_answered_before_the_endpoint_is_not_saved(double: Asker, fault: Fault, status: int) -> None:
    """The same key may be sent again, and then does its work."""
    double.engine.fail_next(fault)

    assert double.post("payment_intents", CREATE, "k").status == status
    assert double.engine.payment_intents() == []
    assert double.post("payment_intents", CREATE, "k").status == 200


def test_a_validation_error_is_not_saved(double: Asker) -> None:
    """A corrected request may use the same key."""
    refused = double.post("payment_intents", {**CREATE, "amuont": 1}, "k")

    assert (refused.status, refused.error["code"], refused.error["param"]) == (400, "parameter_unknown", "amuont")
    assert double.post("payment_intents", CREATE, "k").replayed is False


def test_other_parameters_under_the_same_key_are_refused_and_change_nothing(double: Asker) -> None:
    """The first answer stays what is saved; nothing is charged for the second."""
    first = double.post("payment_intents", CREATE, "k")
    other = double.post("payment_intents", {**CREATE, "amount": 2000}, "k")

    assert (other.status, other.error["type"], other.error.get("code")) == (400, "idempotency_error", None)
    assert "with the same parameters they were first used with" in other.error["message"]
    assert double.post("payment_intents", CREATE, "k").raw == first.raw
    assert len(double.engine.payment_intents()) == 1


def test_another_endpoint_under_the_same_key_is_refused(double: Asker) -> None:
    """A key belongs to one method and path."""
    intent = double.post("payment_intents", CREATE, "k").body["id"]
    refused = double.confirm(intent, key="k")

    assert (refused.status, refused.error["type"]) == (400, "idempotency_error")
    assert "for the same endpoint they were first used for ('/v1/payment_intents')" in refused.error["message"]
    assert double.moved(intent) == []


def test_the_order_of_parameters_does_not_matter(double: Asker) -> None:
    """Parameters compare by value."""
    first = double.post("payment_intents", {"amount": 1999, "currency": "usd"}, "k")

    assert double.post("payment_intents", {"currency": "usd", "amount": 1999}, "k").raw == first.raw


def test_a_key_is_forgotten_once_it_is_24_hours_old(double: Asker) -> None:
    """One second earlier it replays; then the same request is a new one, and makes a second PaymentIntent."""
    first = double.post("payment_intents", CREATE, "k")
    double.clock.time += DAY - 1
    assert double.post("payment_intents", CREATE, "k").raw == first.raw
    double.clock.time += 1

    assert double.post("payment_intents", CREATE, "k").body["id"] != first.body["id"]
    assert len(double.engine.payment_intents()) == 2


def test_keys_can_be_pruned_on_command(double: Asker) -> None:
    """Tests need not move the clock to see a key forgotten."""
    double.post("payment_intents", CREATE, "k")
    assert double.engine.keys() == ["k"]

    assert double.engine.prune_keys() == 1
    assert double.post("payment_intents", CREATE, "k").replayed is False


def test_accounts_and_modes_have_keys_of_their_own(double: Asker) -> None:
    """The same key on the platform, on a connected account and in live mode is three requests."""
    answers = [
        double.post("payment_intents", CREATE, "k"),
        double.post("payment_intents", CREATE, "k", Stripe_Account="acct_one"),
        double.post("payment_intents", CREATE, "k", Authorization="Bearer sk_live_of_the_tests"),
    ]

    assert [answer.replayed for answer in answers] == [False, False, False]
    assert len({answer.body["id"] for answer in answers}) == 3


def test_a_rolled_api_key_still_sees_the_saved_answers(double: Asker) -> None:
    """By default keys belong to the account, not to the API key."""
    first = double.post("payment_intents", CREATE, "k")

    assert double.post("payment_intents", CREATE, "k", Authorization="Bearer sk_test_rolled").raw == first.raw


def test_keys_can_belong_to_the_api_key_instead(clock: VirtualClock) -> None:
    """Stripe does not say which it is, so a test may try both."""
    asker = Asker(Engine(clock=clock, keys_scoped_by_api_key=True), clock)
    asker.post("payment_intents", CREATE, "k")

    assert asker.post("payment_intents", CREATE, "k", Authorization="Bearer sk_test_rolled").replayed is False


def test_a_key_may_have_255_characters_and_no_more(double: Asker) -> None:
    """Stripe's limit."""
    assert double.post("payment_intents", CREATE, "k" * 255).status == 200
    assert double.post("payment_intents", CREATE, "k" * 256).status == 400


def test_without_a_key_every_post_is_done(double: Asker) -> None:
    """Nothing protects those who send none."""
    assert double.intent() != double.intent()


def test_a_key_means_nothing_on_get_and_delete(double: Asker) -> None:
    """GET shows what is, not what was."""
    intent = double.intent()
    before = double.ask("GET", f"payment_intents/{intent}", key="k").body["status"]
    double.confirm(intent)

    assert (before, double.ask("GET", f"payment_intents/{intent}", key="k").body["status"]) == (
        "requires_payment_method",
        "succeeded",
    )
    assert double.engine.keys() == []


def test_while_the_twin_runs_the_key_is_in_use(served: Served) -> None:
    """A real second request, while a real first one is slow: 409, and the first one's answer stands."""
    served.engine.fail_next(Fault.SLOW_BEFORE, seconds=0.4)
    with ThreadPoolExecutor() as pool:
        slow = pool.submit(_create, served.client, "k")
        wait_until_running(served.engine)
        with pytest.raises(stripe.APIError) as refused:
            _create(served.client, "k")
        first = slow.result()

    assert refused.value.http_status == 409
    assert refused.value.error is not None
    assert refused.value.error.code == "idempotency_key_in_use"
    assert _create(served.client, "k").id == first.id
    assert len(served.engine.payment_intents()) == 1


@pytest.mark.parametrize("senders", [8, 20])
def test_many_at_once_with_one_key_make_one_payment_intent(served: Served, senders: int) -> None:
    """Each of them is told the same, or that the key is in use."""
    served.engine.fail_next(Fault.SLOW_AFTER, seconds=0.1)
    barrier = threading.Barrier(senders)

    def send() -> str:
        barrier.wait()
        try:
            return str(_create(served.client, "k").id)
        except stripe.APIError as error:
            return str(error.http_status)

    with ThreadPoolExecutor(senders) as pool:
        told = {future.result() for future in [pool.submit(send) for _ in range(senders)]}

    (intent,) = served.engine.payment_intents()
    assert told <= {intent["id"], "409"}
    assert intent["id"] in told


def test_stripe_python_sees_the_replay(served: Served) -> None:
    """The official client finds the headers where Stripe puts them."""
    first, again = _create(served.client, "k"), _create(served.client, "k")

    assert again.id == first.id
    assert again.last_response is not None
    assert again.last_response.headers["Idempotent-Replayed"] == "true"
    assert again.last_response.idempotency_key == "k"


def test_stripe_python_raises_its_idempotency_error(served: Served) -> None:
    """The double's body is mapped to the exception that products catch."""
    _create(served.client, "k")
    with pytest.raises(stripe.IdempotencyError):
        served.client.v1.payment_intents.create({"amount": 1, "currency": "usd"}, {"idempotency_key": "k"})


def _create(client: stripe.StripeClient, key: str) -> stripe.PaymentIntent:
    return client.v1.payment_intents.create({"amount": 1999, "currency": "usd"}, {"idempotency_key": key})
