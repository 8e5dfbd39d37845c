"""Every fault: what the client sees, what it does to the money, and what the key then holds."""

import http.client
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final
from urllib.parse import urlsplit

import pytest
import stripe

from infra.local.stripe.engine import ConnectionDropped, Engine, Fault, Rule
from infra.local.stripe.faults import FAULTS
from tests.stripe_double.asking import API_KEY, START, Answer, Asker, wait_until_running
from tests.stripe_double.conftest import Served

STATUS: Final = {
    Fault.DROP_BEFORE: None,
    Fault.DROP_AFTER: None,
    Fault.RATE_LIMITED: 429,
    Fault.LOCK_TIMEOUT: 429,
    Fault.KEY_IN_USE: 409,
    Fault.UNAUTHORIZED: 401,
    Fault.FORBIDDEN: 403,
    Fault.SLOW_BEFORE: 200,
    Fault.SLOW_AFTER: 200,
    Fault.CUT_BODY: 200,
    Fault.NOT_JSON: 200,
    Fault.NULL_BODY: 200,
    **{fault: int(fault[:3]) for fault in Fault if fault[:3].isdigit()},
}


def _confirm(double: Asker, intent: str) -> Answer | None:
    try:
        return double.confirm(intent, key="k")
    except ConnectionDropped:
        return None


@pytest.mark.parametrize("fault", Fault)
def test_a_fault_does_to_money_and_key_what_its_row_says(double: Asker, fault: Fault) -> None:
    """Each row of the table, tried on a confirm: what is seen, what has moved, what a repeat is answered."""
    effect = FAULTS[fault]
    intent = double.intent()
    double.engine.fail_next(fault, "payment_intents.confirm", seconds=30)
    first = _confirm(double, intent)

    assert (None if first is None else first.status) == STATUS[fault]
    assert double.moved(intent) == ([1999] if effect.acts == "yes" else [])
    assert double.engine.keys() == ([] if effect.key == "nothing" else ["k"])

    again = _confirm(double, intent)
    assert again is not None
    assert again.status == (int(effect.key.removeprefix("the ")) if effect.key[-3:].isdigit() else 200)
    assert again.replayed is (effect.key != "nothing")

    double.clock.time += 60
    double.engine.run_due()
    moves_in_the_end = effect.acts in {"yes", "later"} or effect.key == "nothing"
    assert double.moved(intent) == ([1999] if moves_in_the_end else [])


def test_a_500_rolled_forward_later_tells_by_webhook_and_without_a_key(double: Asker) -> None:
    """Nothing has happened at the 500; then the charge appears, and the saved 500 does not change."""
    intent = double.intent()
    double.engine.fail_next(Fault.ERROR_500_ROLLED_FORWARD, seconds=600)
    assert double.confirm(intent, key="k").status == 500
    assert double.status(intent) == "requires_payment_method"
    double.clock.time += 600

    assert double.status(intent) == "succeeded"
    assert double.confirm(intent, key="k").status == 500
    assert double.engine.objects("event")[-1]["request"] == {"id": None, "idempotency_key": None}
    assert double.moved(intent) == [1999]


@pytest.mark.parametrize("meanwhile", ["confirm", "cancel"])
def test_what_is_rolled_forward_respects_what_happened_meanwhile(double: Asker, meanwhile: str) -> None:
    """Paid by another attempt it does not pay again; canceled it does not pay at all."""
    intent = double.intent()
    double.engine.fail_next(Fault.ERROR_500_ROLLED_FORWARD, seconds=600)
    double.confirm(intent, key="k")
    if meanwhile == "confirm":
        double.confirm(intent, key="another")
    else:
        double.post(f"payment_intents/{intent}/cancel")
    double.clock.time += 600
    double.engine.run_due()

    assert double.moved(intent) == ([1999] if meanwhile == "confirm" else [])


def test_a_replayed_answer_meets_no_fault_of_the_endpoint(double: Asker) -> None:
    """The rule waits for a request whose endpoint runs."""
    intent = double.intent()
    double.confirm(intent, key="k")
    rule = double.engine.fail_next(Fault.ERROR_500_AFTER)

    assert double.confirm(intent, key="k").status == 200
    assert rule.fired == 0


def test_a_replayed_answer_may_be_lost_too(double: Asker) -> None:
    """The way back fails whether the answer is fresh or not."""
    intent = double.intent()
    double.confirm(intent, key="k")
    double.engine.fail_next(Fault.DROP_AFTER)
    with pytest.raises(ConnectionDropped):
        double.confirm(intent, key="k")

    assert double.confirm(intent, key="k").replayed


def test_rules_choose_their_requests(double: Asker) -> None:
    """By operation, method, path, key, customer, metadata, the how-manieth, and how often."""
    customer, other = double.customer(), double.customer()
    mine = double.intent(customer=customer, metadata={"order": "7"})
    theirs = double.intent(customer=other)
    for rule in (
        Rule(fault=Fault.UNAUTHORIZED, customer=customer, operation="*.confirm"),
        Rule(fault=Fault.FORBIDDEN, metadata={"order": "7"}, method="GET", times=None),
        Rule(fault=Fault.RATE_LIMITED, path="/v1/balance", nth=2, times=1),
        Rule(fault=Fault.KEY_IN_USE, idempotency_key="special-*"),
    ):
        double.engine.faults.add(rule)

    assert double.confirm(theirs).status == 200
    assert [double.confirm(mine).status for _ in range(2)] == [401, 200]
    assert [double.get(f"payment_intents/{intent}").status for intent in (mine, theirs, mine)] == [403, 200, 403]
    assert [double.get("balance").status for _ in range(3)] == [200, 429, 200]
    assert [double.post("customers", key=key).status for key in ("plain", "special-1", "special-1")] == [200, 409, 200]


def test_chance_repeats_with_its_seed(double: Asker) -> None:
    """The same seed gives the same faults, so that a storm can be replayed."""

    def storm(asker: Asker) -> list[int]:
        asker.engine.faults.add(Rule(fault=Fault.RATE_LIMITED, probability=0.5, times=None))
        return [asker.get("balance").status for _ in range(30)]

    twin = Asker(Engine(clock=double.clock, seed=1), double.clock)
    told = storm(double)
    assert told == storm(twin)
    assert set(told) == {200, 429}


def test_a_slow_request_is_of_the_time_at_which_it_ran(double: Asker) -> None:
    """Its charge and its key are as old as that, not as its arrival."""
    intent = double.intent()
    double.engine.fail_next(Fault.SLOW_BEFORE, seconds=60)
    double.confirm(intent, key="k")

    assert double.engine.objects("charge")[0]["created"] == START + 60
    assert double.engine.key_records()[0]["created"] == START + 60


def test_the_limiter_gives_its_reason_and_a_lock_timeout_none(double: Asker) -> None:
    """That header is what tells the two 429 apart."""
    double.engine.fail_next(Fault.RATE_LIMITED, reason="endpoint-concurrency")
    limited = double.post("customers")
    double.engine.fail_next(Fault.LOCK_TIMEOUT)
    locked = double.post("customers")

    assert limited.headers["Stripe-Rate-Limited-Reason"] == "endpoint-concurrency"
    assert "Stripe-Rate-Limited-Reason" not in locked.headers
    assert locked.headers["Stripe-Should-Retry"] == "true"


def test_the_edge_knows_no_request(double: Asker) -> None:
    """502 to 504 are HTML without a Request-Id."""
    double.engine.fail_next(Fault.ERROR_503_BEFORE)
    answer = double.post("customers")

    assert answer.headers["Content-Type"] == "text/html"
    assert "Request-Id" not in answer.headers
    assert answer.raw.startswith(b"<html>")


@pytest.mark.parametrize(
    ("fault", "raised"),
    [
        (Fault.DROP_BEFORE, stripe.APIConnectionError),
        (Fault.DROP_AFTER, stripe.APIConnectionError),
        (Fault.CUT_BODY, stripe.APIConnectionError),
        (Fault.NOT_JSON, stripe.APIError),
        (Fault.ERROR_502_AFTER, stripe.APIError),
        (Fault.ERROR_424_AFTER, stripe.APIError),
        (Fault.ERROR_500_BEFORE, stripe.APIError),
        (Fault.UNAUTHORIZED, stripe.AuthenticationError),
        (Fault.FORBIDDEN, stripe.PermissionError),
        (Fault.RATE_LIMITED, stripe.RateLimitError),
    ],
)
def test_stripe_python_meets_the_fault_as_it_would_stripes(
    served: Served, fault: Fault, raised: type[Exception]
) -> None:
    """Over a real socket, the official client raises what it raises for the real thing."""
    intent = served.client.v1.payment_intents.create({"amount": 1999, "currency": "usd"}).id
    served.engine.fail_next(fault)
    with pytest.raises(raised):
        served.client.v1.payment_intents.confirm(intent, {"payment_method": "pm_card_visa"}, {"idempotency_key": "k"})

    assert served.engine.money_moved_by(intent) == ([1999] if FAULTS[fault].acts == "yes" else [])


def test_a_cut_off_body_is_short_of_its_content_length(served: Served) -> None:
    """Half of what was announced arrives, then the connection ends."""
    served.engine.fail_next(Fault.CUT_BODY)
    connection = http.client.HTTPConnection(urlsplit(served.url).netloc)
    connection.request("GET", "/v1/balance", headers={"Authorization": f"Bearer {API_KEY}"})
    answer = connection.getresponse()
    with pytest.raises(http.client.IncompleteRead):
        answer.read()
    connection.close()


def test_a_slow_request_holds_up_nobody_else(served: Served) -> None:
    """Only its key and its PaymentIntent are held meanwhile."""
    served.engine.fail_next(Fault.SLOW_BEFORE, seconds=0.5)
    ended = []

    def be_slow() -> None:
        served.client.v1.customers.create()
        ended.append("slow")

    with ThreadPoolExecutor() as pool:
        slow = pool.submit(be_slow)
        wait_until_running(served.engine)
        served.client.v1.customers.create()
        ended.append("quick")
        slow.result()

    assert ended == ["quick", "slow"]


def test_faults_can_be_ordered_over_http(served: Served) -> None:
    """The control API adds, lists and removes rules, and refuses what it does not know."""
    added = control(served, "POST", "faults", {"fault": "rate_limited", "operation": "balance.*", "times": None})
    with pytest.raises(stripe.RateLimitError):
        served.client.v1.balance.retrieve()
    listed = control(served, "GET", "faults")
    control(served, "DELETE", f"faults/{added['id']}")
    served.client.v1.balance.retrieve()

    assert [rule["fired"] for rule in listed["rules"]] == [1]
    assert set(listed["kinds"]) == set(Fault)
    assert "error" in control(served, "POST", "faults", {"fault": "earthquake"})
    assert "error" in control(served, "POST", "faults", {"fault": "rate_limited", "opperation": "x"})


def control(served: Served, method: str, path: str, body: object = None) -> Any:
    """Ask the control API."""
    connection = http.client.HTTPConnection(urlsplit(served.url).netloc)
    connection.request(method, f"/_double/{path}", json.dumps(body) if body is not None else None)
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return answer
