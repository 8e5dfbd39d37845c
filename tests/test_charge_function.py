"""The charge function as callers and Cloud Tasks meet it: every row of its contract, black-box."""

import dataclasses
import json
import threading
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

import pytest

from infra.local.stripe.faults import Fault
from shared import wiring
from shared.charge import Act, Standing, Status, charge_id
from shared.deliver import TWIN_WAIT, Charger
from shared.ledger import properties_of
from shared.store import CHARGE
from tests import world as worlds
from tests.world import KEY, START, Told, World

DECLINED_CARD: Final = "pm_card_chargeDeclinedInsufficientFunds"
CONFIRM: Final = "payment_intents.confirm"
HOUR: Final = timedelta(hours=1)
NOWHERE: Final = "0" * 40

DECIDED: Final = {"charge", "observation", "seen", "act", "status", "then", "age_seconds", "severity", "message"}
# fmt: off
FIELDS: Final = {
    "id", "object", "version", "livemode", "status", "waiting_on",
    "amount", "amount_received", "amount_refunded", "currency", "customer", "payment_method",
    "account", "payment_intent", "due_at", "next_attempt_at", "expires_at", "last_error",
    "options", "customer_url", "attempts", "history", "closing", "cancel_reason",
    "discrepancies", "metadata", "api_version", "created_at", "updated_at", "succeeded_at",
}
# fmt: on
ATTEMPT_FIELDS: Final = {"number", "idempotency_key", "first_sent_at", "sends", "outcome", "request_id"}


@pytest.fixture
def world() -> World:
    """A fresh deployment."""
    return World()


def told(answer: Told | None) -> Told:
    """Return an answer that did come."""
    assert answer is not None
    return answer


def body(world: World, **changes: Any) -> dict[str, Any]:
    """Return the body of a request for 19.99 USD."""
    return {
        "amount": 1999,
        "currency": "usd",
        "customer": world.customer,
        "payment_method": "pm_card_visa",
        **changes,
    }


def send(
    world: World, raw: bytes, *, path: str = "/", method: str = "POST", headers: Mapping[str, str] | None = None
) -> Told:
    """Send these bytes to the charge function."""
    return told(world._ask("charge", method, path, raw, {"Idempotency-Key": KEY} if headers is None else headers))


def down(world: World, service: str, duration: timedelta = HOUR) -> None:
    """Take a service down for a while."""
    world._down_until[service] = world.clock.now() + duration


def up(world: World, service: str) -> None:
    """Bring it back."""
    del world._down_until[service]


def in_hand(world: World, key: str = KEY) -> str:
    """Let the process die right after the charge is recorded, so that its lease is still held. Returns its id."""
    world.plan = {sum(1 for _ in world.services): worlds.Fault.DIE_AFTER}
    assert world.create(key=key) is None
    world.plan = {}
    return charge_id(None, key)


def charge_that_is(status: Status) -> tuple[World, Told]:
    """Return a deployment with one charge of this status, and what its caller was told last."""
    world = World()
    cards = {
        Status.SUCCEEDED: "pm_card_visa",
        Status.PROCESSING: "pm_usBankAccount_processing",
        Status.ACTION_REQUIRED: "pm_card_authenticationRequired",
        Status.RETRYING: "pm_card_chargeDeclinedProcessingError",
    }
    if status is Status.PENDING:
        answer = told(world.post("/", body(world), key=KEY, Prefer="respond-async"))
    elif status is Status.UNKNOWN:
        world.engine.fail_next(Fault.DROP_BEFORE, CONFIRM, times=None)
        answer = told(world.create())
    elif status is Status.BLOCKED:
        world.engine.fail_next(Fault.UNAUTHORIZED, CONFIRM)
        answer = told(world.create())
    else:
        answer = told(world.create(payment_method=cards.get(status, DECLINED_CARD)))
    if status is Status.CANCELED:
        answer = told(world.post(f"/{answer.body['id']}/cancel"))
    elif status is Status.PAID_OUT_OF_BAND:
        answer = told(world.post(f"/{answer.body['id']}/out-of-band", {"reference": "till 4"}))
    assert answer.body["status"] == status
    return world, answer


def assert_problem(answer: Told, status: int, kind: str) -> None:
    """An RFC 9457 document with everything that a reader needs."""
    assert answer.status == status, answer.body
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.body["type"] == f"urn:paidonce:{kind}"
    assert answer.body["status"] == status
    assert answer.body["title"]
    assert answer.body["detail"]


def assert_nothing_was_recorded_or_sent(world: World) -> None:
    """Neither ledger nor Stripe has anything of it."""
    assert world.charges() == []
    assert world.engine.payment_intents() == []


# --- Answers by status ------------------------------------------------------------------------------------------------

# fmt: off
POST_ANSWERS: Final = {
    Status.PENDING:          202,
    Status.UNKNOWN:          202,
    Status.PROCESSING:       202,
    Status.ACTION_REQUIRED:  202,
    Status.RETRYING:         202,
    Status.DECLINED:         402,
    Status.BLOCKED:          202,
    Status.SUCCEEDED:        200,
    Status.PAID_OUT_OF_BAND: 200,
    Status.CANCELED:         410,
}
# fmt: on


@pytest.mark.parametrize("status", Status)
def test_each_status_answers_its_code_with_the_charge_and_where_it_is(status: Status) -> None:
    """200, 202, 402 or 410; `Location` always; `Retry-After` with every 202 and with nothing else."""
    world, answer = charge_that_is(status)

    assert answer.status == POST_ANSWERS[status]
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Location"] == f"http://charge/{answer.body['id']}"
    assert ("Retry-After" in answer.headers) is (answer.status == 202)
    assert 1 <= int(answer.headers.get("Retry-After", 1)) <= 3600
    assert len(world.money_moved()) == (status is Status.SUCCEEDED)


@pytest.mark.parametrize("status", [s for s in Status if s not in {Status.PENDING, Status.UNKNOWN}])
def test_a_repeated_request_gets_the_same_answer_marked_as_replayed_and_sends_nothing(status: Status) -> None:
    """The caller may ask as often as it likes; only what nobody works on is taken up by asking."""
    world, first = charge_that_is(status)
    asked_of_stripe, recorded = len(world.engine.log), world.charge()

    again = told(world.create(payment_method=recorded.terms.payment_method))

    assert (again.status, again.body) == (first.status, first.body)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert len(world.engine.log) == asked_of_stripe
    assert world.charge() == recorded


def test_the_first_answer_is_not_marked_as_replayed(world: World) -> None:
    """The charge was not there before."""
    assert "Idempotent-Replayed" not in told(world.create()).headers


def test_asking_again_takes_up_an_unknown_charge_and_the_customer_pays_once() -> None:
    """The network is back, and the same key finds out."""
    world, _ = charge_that_is(Status.UNKNOWN)
    world.engine.faults.clear()

    again = told(world.create())

    assert (again.status, again.body["status"]) == (200, "succeeded")
    assert again.headers["Idempotent-Replayed"] == "true"
    assert world.money_moved() == [1999]


@pytest.mark.parametrize("status", Status)
def test_get_is_200_whatever_the_status_and_says_the_version(status: Status) -> None:
    """Reading is no outcome. By id and by key it is the same charge."""
    world, answer = charge_that_is(status)

    by_id = told(world.get(f"/{answer.body['id']}"))
    by_key = told(world.get("/", Idempotency_Key=KEY))

    assert by_id.status == by_key.status == 200
    assert by_id.body == by_key.body == answer.body
    assert by_id.headers["ETag"] == by_key.headers["ETag"] == f'"{answer.body["version"]}"'


def test_a_charge_in_json_has_the_fields_of_the_contract_and_times_in_utc() -> None:
    """Callers rely on each of them; whoever adds one says so here."""
    _, answer = charge_that_is(Status.DECLINED)
    charge = answer.body

    assert charge.keys() == FIELDS
    assert charge["attempts"][0].keys() == ATTEMPT_FIELDS | {"payment_method"}
    assert charge["last_error"].keys() == {"type", "code", "decline_code", "message"}
    assert charge["object"] == "charge"
    assert charge["id"] == charge_id(None, KEY)
    assert charge["options"] == ["cancel", "out-of-band", "payment-method", "retry"]
    assert (charge["amount"], charge["amount_received"], charge["currency"]) == (1999, 0, "usd")
    assert charge["last_error"]["decline_code"] == "insufficient_funds"
    times = [charge[name] for name in ("created_at", "updated_at", "due_at", "expires_at")]
    times += [entry["at"] for entry in charge["history"]] + [charge["attempts"][0]["first_sent_at"]]
    for time in times:
        assert time.endswith("Z")
        assert START <= datetime.fromisoformat(time) <= START + timedelta(days=30, seconds=1)


def test_a_paid_charge_says_what_was_received_and_when() -> None:
    """And no error, whatever came before."""
    _, answer = charge_that_is(Status.SUCCEEDED)
    assert answer.body["amount_received"] == 1999
    assert answer.body["succeeded_at"].endswith("Z")
    assert answer.body["due_at"] is None
    assert answer.body["last_error"] is None


def test_a_stolen_card_is_told_as_a_plain_decline(world: World) -> None:
    """Whoever holds the card must not learn it."""
    answer = told(world.create(payment_method="pm_card_chargeDeclinedStolenCard"))
    assert answer.status == 402
    assert answer.body["last_error"]["decline_code"] == "generic_decline"
    assert "stolen" not in json.dumps(answer.body)


# --- Requests that are refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, "", "with space", "tab\t", "naïve", "k" * 256])
@pytest.mark.parametrize("path", ["/", "/cancel"])
def test_no_key_or_a_malformed_one_is_400_and_nothing_is_sent(world: World, path: str, key: str | None) -> None:
    """1 to 255 visible ASCII characters."""
    headers = {} if key is None else {"Idempotency-Key": key}
    answer = send(world, json.dumps(body(world)).encode(), path=path, headers=headers)
    assert_problem(answer, 400, "idempotency-key-invalid" if key else "idempotency-key-missing")
    assert_nothing_was_recorded_or_sent(world)


def test_a_key_of_255_characters_is_one(world: World) -> None:
    """The longest, with the outermost visible characters."""
    assert told(world.create(key="!~" + "k" * 253)).status == 200


@pytest.mark.parametrize("raw", [b"{", b"\xff", b'{"amount": }', b'"\\ud800"'])
def test_a_body_that_is_no_json_is_400(world: World, raw: bytes) -> None:
    """Nothing was sent to Stripe, and it says so."""
    answer = send(world, raw)
    assert_problem(answer, 400, "malformed-body")
    assert "Nothing was sent to Stripe" in answer.body["detail"]
    assert_nothing_was_recorded_or_sent(world)


@pytest.mark.parametrize("raw", [b"", b"null", b"[]", b"1999", b"{}"])
def test_a_body_that_is_no_charge_is_400(world: World, raw: bytes) -> None:
    """An empty one lacks everything."""
    assert_problem(send(world, raw), 400, "invalid-body")
    assert_nothing_was_recorded_or_sent(world)


# fmt: off
WRONG: Final = [
    ("amount", "1999"), ("amount", 19.99), ("amount", 1999.0), ("amount", -1), ("amount", 0), ("amount", True),
    ("amount", None), ("amount", 10**12), ("amount", 10**30),
    ("currency", "USD"), ("currency", "us"), ("currency", "dollars"), ("currency", 840), ("currency", "usd\n"),
    ("customer", "1001"), ("customer", "cus_"), ("customer", "cus_1\n"), ("customer", None),
    ("payment_method", "visa"), ("payment_method", "pm_/../x"), ("payment_method", 1),
    ("account", "1"), ("account", "acct_1\n"),
    ("metadata", "x"), ("metadata", {"pio_charge": "mine"}), ("metadata", {"a[b]": "c"}), ("metadata", {"a": 1}),
    ("metadata", {"k" * 41: "v"}), ("metadata", {"k": "v" * 501}), ("metadata", {"": "v"}),
    ("metadata", {f"k{n}": "v" for n in range(49)}),
    ("retry", "always"), ("retry", True),
    ("description", 1), ("description", "d" * 1001),
    ("expires_at", "tomorrow"), ("expires_at", "2026-12-01T00:00:00"), ("expires_at", "2026-11-24T08:59:59Z"),
    ("expires_at", "2027-11-25T09:00:00Z"),
    ("application_fee_amount", -1), ("transfer_data", {"amount": 1}),
    ("transfer_data", {"destination": "acct_1", "x": 1}),
    ("on_behalf_of", "me"), ("statement_descriptor_suffix", "s" * 23), ("statement_descriptor_suffix", ""),
    ("receipt_email", "nobody"), ("receipt_email", "a@b\n"), ("receipt_email", "a b@c"),
    ("amonut", 1999), ("confirm", True),
]
# fmt: on


@pytest.mark.parametrize(("field", "value"), WRONG, ids=lambda value: str(value)[:24])
def test_a_field_that_is_wrong_or_unknown_is_400_and_named(world: World, field: str, value: Any) -> None:
    """Money is never guessed from what was probably meant."""
    answer = told(world.create(**{field: value}))
    assert_problem(answer, 400, "invalid-body")
    assert field in answer.body["detail"]
    assert_nothing_was_recorded_or_sent(world)


@pytest.mark.parametrize("field", ["amount", "currency", "customer", "payment_method"])
def test_a_field_that_is_missing_is_400_and_named(world: World, field: str) -> None:
    """The four that make a charge."""
    sent = body(world)
    del sent[field]
    answer = told(world.post("/", sent, key=KEY))
    assert_problem(answer, 400, "invalid-body")
    assert field in answer.body["detail"]


@pytest.mark.parametrize(("currency", "amount"), [("jpy", 1999), ("kwd", 19990), ("isk", 199900), ("ugx", 199900)])
def test_amounts_are_in_the_currencys_smallest_unit_and_taken_as_they_are(
    world: World, currency: str, amount: int
) -> None:
    """1999 yen are 1999 yen."""
    answer = told(world.create(currency=currency, amount=amount))
    assert answer.status == 200
    assert world.money_moved() == [amount]


@pytest.mark.parametrize(("currency", "amount"), [("kwd", 19995), ("bhd", 1), ("isk", 1999), ("ugx", 50)])
def test_an_amount_that_stripe_would_refuse_in_this_currency_is_400(world: World, currency: str, amount: int) -> None:
    """Last digits that must be zero."""
    answer = told(world.create(currency=currency, amount=amount))
    assert_problem(answer, 400, "invalid-body")
    assert currency in answer.body["detail"]
    assert_nothing_was_recorded_or_sent(world)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/nowhere"),
        ("GET", "/nowhere"),
        ("POST", f"/{NOWHERE}/refund"),
        ("POST", f"/{NOWHERE.upper()}X/cancel"),
        ("GET", f"/{NOWHERE}"),
        ("POST", f"/{NOWHERE}/deliver"),
        ("POST", f"/{NOWHERE}/cancel"),
        ("POST", f"/{NOWHERE}/retry"),
        ("GET", "/"),
    ],
)
def test_what_is_not_there_is_404(world: World, method: str, path: str) -> None:
    """An address that does not exist, and a charge that is not recorded."""
    assert_problem(send(world, b"", method=method, path=path), 404, "not-found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/", "GET, HEAD, POST"),
        ("DELETE", f"/{NOWHERE}", "GET, HEAD"),
        ("POST", f"/{NOWHERE}", "GET, HEAD"),
        ("GET", f"/{NOWHERE}/deliver", "POST"),
        ("GET", f"/{NOWHERE}/cancel", "POST"),
        ("GET", "/cancel", "POST"),
        ("OPTIONS", f"/{NOWHERE}/retry", "POST"),
    ],
)
def test_another_method_is_405_and_says_which_are_allowed(world: World, method: str, path: str, allowed: str) -> None:
    """`Allow`, as RFC 9110 has it."""
    answer = send(world, b"", method=method, path=path)
    assert_problem(answer, 405, "method-not-allowed")
    assert answer.headers["Allow"] == allowed


def test_a_body_beyond_64_kib_is_413(world: World) -> None:
    """Fifty metadata values of 500 characters fit."""
    assert_problem(send(world, b" " * (64 * 1024 + 1)), 413, "body-too-large")
    metadata = {f"key-{n}": "v" * 500 for n in range(47)}
    assert told(world.create(metadata=metadata)).status == 200


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
@pytest.mark.parametrize("path", ["/", f"/{NOWHERE}/cancel"])
def test_a_body_of_another_type_is_415(world: World, path: str, content_type: str) -> None:
    """`amount=1999` is no JSON, whatever it says."""
    headers = {"Idempotency-Key": KEY, "Content-Type": content_type}
    assert_problem(send(world, b'{"amount": 1999}', path=path, headers=headers), 415, "not-json")


def test_a_charset_beside_the_type_is_welcome(world: World) -> None:
    """As many clients send it."""
    headers = {"Idempotency-Key": KEY, "Content-Type": "Application/JSON; charset=utf-8"}
    assert send(world, json.dumps(body(world)).encode(), headers=headers).status == 200


# --- One key, one charge ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        ({"amount": 2000}, ["amount"]),
        ({"currency": "eur", "description": "shoes"}, ["currency", "description"]),
        ({"payment_method": "pm_card_mastercard"}, ["payment_method"]),
        ({"metadata": {"order": "1"}}, ["metadata"]),
        ({"expires_at": "2026-12-01T00:00:00Z"}, ["expires_at"]),
        ({"transfer_data": {"destination": "acct_1"}}, ["transfer_data"]),
    ],
)
def test_a_key_used_with_another_body_is_422_and_names_the_fields(
    world: World, change: dict[str, Any], fields: list[str]
) -> None:
    """Two orders under one key: the second is not charged, and the caller can see why."""
    world.create()
    answer = told(world.create(**change))
    assert_problem(answer, 422, "key-reused")
    assert answer.body["fields"] == fields
    assert all(field in answer.body["detail"] for field in fields)
    assert world.money_moved() == [1999]


def test_defaults_that_are_written_out_are_the_same_wish(world: World) -> None:
    """The digest is over the parsed body: order, spaces and defaults do not count."""
    world.create()
    same = {"retry": "none", "metadata": {}, "account": None, "description": None, **body(world)}
    answer = send(world, json.dumps(dict(reversed(same.items())), indent=2).encode())
    assert (answer.status, answer.headers["Idempotent-Replayed"]) == (200, "true")


def test_one_moment_in_two_time_zones_is_the_same_wish(world: World) -> None:
    """And it is shown in UTC from the first answer on."""
    first = told(world.create(expires_at="2026-12-01T02:00:00+02:00"))
    again = told(world.create(expires_at="2026-12-01T00:00:00Z"))
    assert (first.status, again.status) == (200, 200)
    assert first.body["expires_at"] == again.body["expires_at"] == "2026-12-01T00:00:00Z"


def test_a_request_repeated_after_it_expired_still_answers_for_its_charge(world: World) -> None:
    """A new charge expires in the future; a repeated request is about the one that is there."""
    world.create(expires_at="2026-11-24T10:00:00Z")
    world.clock.sleep(2 * HOUR)
    again = told(world.create(expires_at="2026-11-24T10:00:00Z"))
    assert (again.status, again.body["status"]) == (200, "succeeded")


def test_everything_optional_reaches_stripe_and_is_frozen(world: World) -> None:
    """As the caller wrote it."""
    terms: dict[str, Any] = {
        "description": "Shoes",
        "metadata": {"order": "1001"},
        "application_fee_amount": 100,
        "on_behalf_of": "acct_shop",
        "transfer_data": {"destination": "acct_shop"},
        "statement_descriptor_suffix": "SHOES",
        "receipt_email": "jenny@example.com",
    }
    answer = told(world.create(**terms))
    (intent,) = world.engine.payment_intents()
    assert answer.body["metadata"] == {"order": "1001"}
    assert intent["metadata"]["order"] == "1001"
    for name in ("description", "application_fee_amount", "on_behalf_of", "receipt_email"):
        assert intent[name] == terms[name]
    assert intent["transfer_data"]["destination"] == "acct_shop"


def test_the_same_key_on_two_accounts_is_two_charges(world: World) -> None:
    """A key is unique per account; each is asked for, found and paid on its own."""
    customers = {
        account: world.at_stripe("POST", "/v1/customers", **({"Stripe-Account": account} if account else {}))["id"]
        for account in (None, "acct_shop")
    }
    answers = {account: told(world.create(customer=customers[account], account=account)) for account in customers}

    assert [answer.status for answer in answers.values()] == [200, 200]
    assert answers[None].body["id"] != answers["acct_shop"].body["id"]
    found = told(world.get("/?account=acct_shop", Idempotency_Key=KEY))
    assert found.body["id"] == answers["acct_shop"].body["id"]
    assert found.body["account"] == "acct_shop"
    moved = {one.account: one.amount for one in world.engine.tally().moved}
    assert moved == {"acct_platform": 1999, "acct_shop": 1999}


def test_an_act_on_a_connected_accounts_charge_reaches_that_account(world: World) -> None:
    """Every request carries `Stripe-Account`, the cancel too."""
    customer = world.at_stripe("POST", "/v1/customers", **{"Stripe-Account": "acct_shop"})["id"]
    declined = told(world.create(customer=customer, account="acct_shop", payment_method=DECLINED_CARD))
    canceled = told(world.post("/cancel", {"account": "acct_shop"}, key=KEY))
    assert (declined.status, canceled.status) == (402, 410)
    assert canceled.body["id"] == declined.body["id"]
    assert [intent["status"] for intent in world.engine.payment_intents()] == ["canceled"]


def test_twenty_threads_that_repeat_one_request_charge_once_and_agree(world: World) -> None:
    """All at once: each is told the same, or to ask again."""
    raw = json.dumps(body(world)).encode()
    client = worlds._client("charge")
    wiring.use(world.parts)
    headers = {"Content-Type": "application/json", "Idempotency-Key": KEY}
    start, answers = threading.Barrier(20), []

    def ask() -> None:
        start.wait()
        answers.append(client.post("/", data=raw, headers=headers))

    threads = [threading.Thread(target=ask) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(answers) == 20
    assert {answer.status_code for answer in answers} <= {200, 202, 409}
    assert {answer.headers["Location"] for answer in answers} == {f"http://charge/{charge_id(None, KEY)}"}
    assert told(world.create()).status == 200
    assert world.money_moved() == [1999]
    assert len(world.engine.payment_intents()) == 1


def test_twenty_repeats_in_a_row_charge_once_and_agree(world: World) -> None:
    """However often it is asked."""
    answers = [told(world.create()) for _ in range(20)]
    assert all(answer.body == answers[0].body and answer.status == 200 for answer in answers)
    assert world.money_moved() == [1999]


def test_a_repeat_while_the_first_is_in_hand_waits_a_while_and_is_then_409(world: World) -> None:
    """It says where and when to ask again, and sends nothing itself."""
    name = in_hand(world)
    began = world.clock.now()
    answer = told(world.create())
    assert_problem(answer, 409, "in-hand")
    assert world.clock.now() - began >= TWIN_WAIT
    assert int(answer.headers["Retry-After"]) >= 1
    assert answer.headers["Location"] == f"http://charge/{name}"
    assert world.engine.payment_intents() == []


@pytest.mark.parametrize(("code", "alerts"), [("insufficient_funds", 0), ("a_code_of_next_year", 1)])
def test_a_code_that_nobody_knows_is_shown_to_the_operator_once(
    world: World, capsys: pytest.CaptureFixture[str], code: str, alerts: int
) -> None:
    """Read as a decline about which the customer decides; somebody must give it a row."""
    answer = told(world.create(payment_method=f"pm_card_decline_{code}"))
    assert answer.status == 402
    told(world.create())
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    shown = [line for line in lines if line["message"] == "a code that no table lists"]
    assert [(line["severity"], line["decline_code"]) for line in shown] == [("ERROR", code)] * alerts


def test_a_repeat_for_a_paid_charge_is_answered_at_once_whatever_is_still_in_hand(world: World) -> None:
    """Another payment is being given back: nothing that the caller need wait for."""
    world.create()
    refund = dataclasses.replace(world.charge().create, operation="refund", standing=Standing.OUT)
    lease_until = world.clock.now() + world.limits.lease
    in_hand = dataclasses.replace(world.charge(), refunds=(refund,), lease_owner="another", lease_until=lease_until)
    world.store._put(CHARGE, in_hand.id, properties_of(in_hand))
    began = world.clock.now()
    assert told(world.create()).status == 200
    assert world.clock.now() - began < timedelta(seconds=1)


def test_a_charge_in_hand_is_taken_up_once_its_lease_is_over(world: World) -> None:
    """The process died; whoever repeats the request carries it out."""
    in_hand(world)
    world.clock.sleep(world.limits.lease)
    assert told(world.create()).status == 200
    assert world.money_moved() == [1999]


# --- When something is down -------------------------------------------------------------------------------------------


def test_503_on_create_sent_nothing_to_stripe_and_says_what_to_do(world: World) -> None:
    """Rule 7: not certain that it was recorded. Repeat the key, or give it up."""
    sent = body(world)
    down(world, "store")
    answer = told(world.post("/", sent, key=KEY))
    assert_problem(answer, 503, "ledger-unavailable")
    assert int(answer.headers["Retry-After"]) >= 1
    assert "/cancel" in answer.body["detail"]
    assert world.engine.payment_intents() == []


@pytest.mark.parametrize("path", [f"/{NOWHERE}", f"/{NOWHERE}/cancel", f"/{NOWHERE}/deliver", "/cancel"])
def test_503_wherever_the_ledger_is_needed_and_out_of_reach(world: World, path: str) -> None:
    """With `Retry-After`."""
    down(world, "store")
    answer = send(world, b"", path=path, method="GET" if path == f"/{NOWHERE}" else "POST")
    assert_problem(answer, 503, "ledger-unavailable")
    assert int(answer.headers["Retry-After"]) >= 1


def test_money_that_moved_while_the_ledger_was_down_is_told_as_unknown_never_as_failed(world: World) -> None:
    """Step 6: 202 whatever Stripe said; the task gets the saved answer afterwards."""
    sent = body(world)
    commit_of_outcome = len(world.services) + 5  # After the insert, its task, the create, its update and the confirm.
    world.plan = {commit_of_outcome: worlds.Fault.DOWN}
    answer = told(world.post("/", sent, key=KEY))
    assert (answer.status, answer.body["status"]) == (202, "unknown")
    assert world.money_moved() == [1999]
    world.settle()
    assert told(world.create()).body["status"] == "succeeded"
    assert world.check() == []


def test_a_task_queue_that_is_down_does_not_matter(world: World) -> None:
    """The charge is carried out; the sweep covers the rest."""
    down(world, "tasks")
    assert told(world.create()).status == 200


# --- Asynchronously, and through Cloud Tasks --------------------------------------------------------------------------


@pytest.mark.parametrize("prefer", ["respond-async", "Respond-Async, wait=10", "handling=lenient, respond-async"])
def test_respond_async_is_202_once_recorded_and_its_task_made(world: World, prefer: str) -> None:
    """RFC 7240. Nothing is sent to Stripe before the answer; the task carries it out."""
    answer = told(world.post("/", body(world), key=KEY, Prefer=prefer))
    assert (answer.status, answer.body["status"]) == (202, "pending")
    assert int(answer.headers["Retry-After"]) >= 1
    assert world.engine.payment_intents() == []
    assert len(world.queue) == 1

    world.run_tasks()

    assert world.money_moved() == [1999]


# fmt: off
TASK_ANSWERS: Final = {
    Status.SUCCEEDED:       200,
    Status.DECLINED:        200,   # Decided: refusing would repeat it for ever.
    Status.ACTION_REQUIRED: 200,   # Waits for somebody else.
    Status.PROCESSING:      200,
}
# fmt: on


@pytest.mark.parametrize("status", TASK_ANSWERS)
def test_a_task_that_need_not_come_again_is_200(status: Status) -> None:
    """The request through Cloud Tasks is the same request: only the answer's code differs."""
    first, caller = charge_that_is(status)
    world = World()
    sent = body(world, payment_method=caller.body["attempts"][0]["payment_method"])
    answer = told(world.post("/", sent, key=KEY, by_task="callers-own"))
    assert (answer.status, answer.body["status"]) == (TASK_ANSWERS[status], status)
    assert world.money_moved() == first.money_moved()


def test_a_task_whose_charge_is_tried_again_soon_is_409_and_then_200(world: World) -> None:
    """It comes again by itself while that is soon; far ahead, a task of its own comes and this one is done."""
    world.post(
        "/", body(world, payment_method="pm_card_chargeDeclinedProcessingError"), key=KEY, Prefer="respond-async"
    )
    path, codes = f"/{charge_id(None, KEY)}/deliver", []
    for _ in range(4):
        codes.append(told(world.post(path, by_task="t")).status)
        world.clock.time = world.charge().next_attempt_at or world.clock.now()
    assert codes == [409, 409, 200, 200]
    assert world.charge().status is Status.DECLINED
    assert [attempt.number for attempt in world.charge().attempts] == [1, 2, 3, 4]


def test_a_task_whose_charge_must_be_tried_later_is_409(world: World) -> None:
    """One charge's trouble must not slow the whole queue."""
    sent = body(world)
    world.engine.fail_next(Fault.KEY_IN_USE, CONFIRM, times=None)
    answer = told(world.post("/", sent, key=KEY, by_task="t"))
    assert (answer.status, answer.body) == (409, {"charge": charge_id(None, KEY), "status": "unknown"})


def test_a_task_while_another_delivery_has_it_in_hand_is_409(world: World) -> None:
    """It comes again; the other one carries it out."""
    name = in_hand(world)
    answer = told(world.post(f"/{name}/deliver", by_task="t"))
    assert answer.status == 409
    assert world.engine.payment_intents() == []


@pytest.mark.parametrize("path", ["/", "/{name}/deliver"])
def test_a_task_while_the_ledger_is_down_is_503_and_slows_the_queue(world: World, path: str) -> None:
    """On purpose: every charge would meet the same."""
    sent = body(world)
    down(world, "store")
    answer = told(world.post(path.format(name=NOWHERE), sent, key=KEY, by_task="t"))
    assert answer.status == 503
    assert int(answer.headers["Retry-After"]) >= 1


def test_a_task_whose_outcome_could_not_be_recorded_is_503(world: World) -> None:
    """Step 6: Stripe has answered, the ledger has not; the task comes again for the saved answer."""
    sent = body(world)
    world.plan = {len(world.services) + 5: worlds.Fault.DOWN}
    answer = told(world.post("/", sent, key=KEY, by_task="t"))
    assert (answer.status, answer.body["status"]) == (503, "unknown")
    assert int(answer.headers["Retry-After"]) >= 1
    world.clock.sleep(HOUR)
    again = told(world.post("/", sent, key=KEY, by_task="t"))
    assert (again.status, again.body["status"]) == (200, "succeeded")
    assert world.money_moved() == [1999]


def test_stripe_as_a_whole_down_is_503_and_slows_the_queue(world: World) -> None:
    """Several calls in a row without an answer are no longer one charge's bad luck."""
    world.post("/", body(world), key=KEY, Prefer="respond-async")
    down(world, "stripe")
    codes = []
    for _ in range(4):
        answer = told(world.post(f"/{charge_id(None, KEY)}/deliver", by_task="t"))
        codes.append(answer.status)
        world.clock.sleep(timedelta(minutes=1))
    assert codes[-1] == 503
    assert set(codes) <= {409, 503}
    up(world, "stripe")
    world.clock.sleep(HOUR)
    assert told(world.post(f"/{charge_id(None, KEY)}/deliver", by_task="t")).status == 200
    assert world.money_moved() == [1999]


@pytest.mark.parametrize(
    ("raw", "key", "problem"),
    [
        (b"{", KEY, "malformed-body"),
        (b'{"amount": "1999"}', KEY, "invalid-body"),
        (b"{}", None, "idempotency-key-missing"),
        (b" " * 70_000, KEY, "body-too-large"),
        (b"\xff\xfe", KEY, "malformed-body"),
    ],
)
def test_a_task_that_can_never_work_is_kept_as_one_dead_letter_and_is_200(
    world: World, raw: bytes, key: str | None, problem: str
) -> None:
    """Refusing it would repeat it until it is lost. Twice is one letter."""
    headers = {"X-CloudTasks-QueueName": "charges"} | ({} if key is None else {"Idempotency-Key": key})
    answers = [send(world, raw, headers=headers) for _ in range(2)]
    assert [answer.status for answer in answers] == [200, 200]
    (name,) = world.store.all_names("DeadLetter")
    assert answers[0].body["dead_letter"] == answers[1].body["dead_letter"] == name
    assert answers[0].body["problem"]["type"] == f"urn:paidonce:{problem}"
    assert world.store._entities["DeadLetter", name].properties["problem"] == problem
    assert_nothing_was_recorded_or_sent(world)


def test_a_task_that_reuses_a_key_for_something_else_is_a_dead_letter(world: World) -> None:
    """422 can never work either."""
    world.create()
    answer = told(world.post("/", body(world, amount=1), key=KEY, by_task="t"))
    assert (answer.status, answer.body["problem"]["fields"]) == (200, ["amount"])
    assert len(world.store.all_names("DeadLetter")) == 1
    assert world.money_moved() == [1999]


def test_a_dead_letter_that_cannot_be_kept_is_503(world: World) -> None:
    """Then the task is the only record of it."""
    down(world, "store")
    assert send(world, b"{", headers={"X-CloudTasks-QueueName": "charges"}).status == 503


def test_a_task_for_an_unknown_id_is_409_for_a_minute_then_200(world: World) -> None:
    """A task may overtake the commit that it was made for, but not by so much."""
    enqueued = json.dumps({"enqueued_at": world.clock.now().timestamp()}).encode()
    headers = {"X-CloudTasks-QueueName": "charges"}
    path = f"/{NOWHERE}/deliver"
    assert send(world, enqueued, path=path, headers=headers).status == 409
    world.clock.sleep(timedelta(seconds=58))
    assert send(world, enqueued, path=path, headers=headers).status == 409
    world.clock.sleep(timedelta(seconds=3))
    assert send(world, enqueued, path=path, headers=headers).status == 200


@pytest.mark.parametrize("raw", [b"", b"not ours", b'{"enqueued_at": "soon"}'])
def test_a_foreign_task_for_an_unknown_id_goes_by_its_scheduled_time(world: World, raw: bytes) -> None:
    """`X-CloudTasks-TaskETA`; without it, it is young."""
    path, now = f"/{NOWHERE}/deliver", world.clock.now().timestamp()
    headers = {"X-CloudTasks-QueueName": "charges"}
    assert send(world, raw, path=path, headers=headers).status == 409
    old = {**headers, "X-CloudTasks-TaskETA": str(now - 61)}
    assert send(world, raw, path=path, headers=old).status == 200


def test_an_operator_may_redeliver_by_hand(world: World) -> None:
    """Without a task's headers the answer is the charge."""
    world.post("/", body(world), key=KEY, Prefer="respond-async")
    answer = told(world.post(f"/{charge_id(None, KEY)}/deliver"))
    assert (answer.status, answer.body["status"]) == (200, "succeeded")
    assert answer.headers["Idempotent-Replayed"] == "true"
    again = told(world.post(f"/{charge_id(None, KEY)}/deliver"))
    assert (again.status, again.body) == (200, answer.body)
    assert world.money_moved() == [1999]


def test_an_exception_of_ours_is_409_counted_and_blocks_after_some(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug waits for a person; mended, the same charge goes on and is paid once."""
    world.post("/", body(world), key=KEY, Prefer="respond-async")
    path = f"/{charge_id(None, KEY)}/deliver"
    with monkeypatch.context() as broken:
        broken.setattr(Charger, "_work", _broken)
        answers = []
        for _ in range(5):
            answers.append(told(world.post(path, by_task="t")))
            world.clock.sleep(HOUR)
    assert [answer.status for answer in answers] == [409] * 5
    assert [answer.body["status"] for answer in answers[:4]] == ["pending"] * 4
    blocked = told(world.get(path.removesuffix("/deliver")))
    assert (blocked.body["status"], blocked.body["waiting_on"]) == ("blocked", "operator")
    assert blocked.body["last_error"]["type"] == "internal_error"
    assert told(world.post(f"/{charge_id(None, KEY)}/retry")).body["status"] == "succeeded"
    assert world.money_moved() == [1999]


def _broken(*_arguments: object, **_named: object) -> None:
    raise RuntimeError("a bug")


# --- The acts ---------------------------------------------------------------------------------------------------------

# fmt: off
NOT_NOW, PAID, CANCELED = "act-does-not-fit", "already-paid", "already-canceled"
PAYS, ENDS, CASH = (200, "succeeded"), (410, "canceled"), (200, "paid_out_of_band")
ACTS: Final = {
    # the charge is           retry                       payment-method  out-of-band           cancel
    Status.PENDING:          (NOT_NOW,                    NOT_NOW,        CASH,                 ENDS),
    Status.UNKNOWN:          (NOT_NOW,                    NOT_NOW,        CASH,                 ENDS),
    Status.PROCESSING:       (NOT_NOW,                    NOT_NOW,        (202, "processing"),  (202, "processing")),
    Status.ACTION_REQUIRED:  ((202, "action_required"),   PAYS,           CASH,                 ENDS),
    Status.RETRYING:         ((202, "retrying"),          PAYS,           CASH,                 ENDS),
    Status.DECLINED:         ((402, "declined"),          PAYS,           CASH,                 ENDS),
    Status.BLOCKED:          (PAYS,                       NOT_NOW,        CASH,                 ENDS),
    Status.SUCCEEDED:        (PAID,                       PAID,           PAID,                 PAID),
    Status.PAID_OUT_OF_BAND: (NOT_NOW,                    NOT_NOW,        CASH,                 PAID),
    Status.CANCELED:         (NOT_NOW,                    NOT_NOW,        CANCELED,             ENDS),
}
BODIES: Final[Mapping[Act, dict[str, str]]] = {
    Act.RETRY:          {"actor": "jenny"},
    Act.PAYMENT_METHOD: {"payment_method": "pm_card_mastercard", "actor": "jenny"},
    Act.OUT_OF_BAND:    {"reference": "till 4", "actor": "jenny"},
    Act.CANCEL:         {"reason": "changed my mind", "actor": "jenny"},
}
# fmt: on


@pytest.mark.parametrize("act", Act)
@pytest.mark.parametrize("status", Status)
def test_every_act_in_every_status(status: Status, act: Act) -> None:
    """It does what it says, or is 409 with the charge and changes nothing; the customer pays at most once."""
    world, before = charge_that_is(status)
    recorded, asked_of_stripe = world.charge(), len(world.engine.log)
    expected = ACTS[status][list(Act).index(act)]

    answer = told(world.post(f"/{before.body['id']}/{act}", BODIES[act]))

    assert answer.headers["Location"] == f"http://charge/{before.body['id']}"
    if isinstance(expected, str):
        assert_problem(answer, 409, expected)
        assert answer.body["charge"] == before.body
        assert world.charge() == recorded
        assert len(world.engine.log) == asked_of_stripe
    else:
        assert (answer.status, answer.body["status"]) == expected
        assert ("Retry-After" in answer.headers) is (answer.status == 202)
    paid = status is Status.SUCCEEDED or expected == (200, "succeeded")
    assert world.money_moved() == [1999] * paid
    world.engine.faults.clear()


def test_another_card_is_charged_under_a_new_key_on_the_same_payment_intent() -> None:
    """S4: the old key would answer its old decline."""
    world, declined = charge_that_is(Status.DECLINED)
    paid = told(world.post(f"/{declined.body['id']}/payment-method", {"payment_method": "pm_card_mastercard"}))
    assert paid.body["payment_method"] == "pm_card_mastercard"
    assert paid.body["payment_intent"] == declined.body["payment_intent"]
    first, second = paid.body["attempts"]
    assert first == declined.body["attempts"][0]
    assert first["idempotency_key"] != second["idempotency_key"]
    assert second["payment_method"] == "pm_card_mastercard"
    assert world.money_moved() == [1999]


def test_a_repeated_request_after_another_card_is_the_same_wish() -> None:
    """What the caller asked for is frozen; the card of the next attempt is not part of it."""
    world, declined = charge_that_is(Status.DECLINED)
    world.post(f"/{declined.body['id']}/payment-method", {"payment_method": "pm_card_mastercard"})
    assert told(world.create(payment_method=DECLINED_CARD)).status == 200


def test_s7_a_new_customer_takes_the_place_of_one_who_is_gone_and_the_same_wish_stays_the_same() -> None:
    """A caller who knows one names them; the digest of what was asked for, and what a repeat is answered, stay."""
    world = World()
    world.at_stripe("DELETE", f"/v1/customers/{world.customer}")
    name = told(world.create()).body["id"]
    card = {"payment_method": "pm_card_visa"}
    gone = told(world.post(f"/{name}/payment-method", card))
    assert_problem(gone, 409, "customer-is-gone")
    assert "name another as `customer`" in gone.body["detail"]

    new = str(world.at_stripe("POST", "/v1/customers")["id"])
    assert told(world.post(f"/{name}/payment-method", {**card, "customer": new})).status == 200
    shown = told(world.get(f"/{name}")).body
    assert (shown["status"], shown["customer"]) == ("succeeded", new)
    assert world.money_moved() == [1999]
    assert told(world.create()).status == 200
    assert_problem(told(world.create(customer=new)), 422, "key-reused")
    world.settle()
    assert world.check() == []


def test_nobody_is_charged_in_place_of_a_customer_who_is_there() -> None:
    """409, with words; the charge's own may be named."""
    world, declined = charge_that_is(Status.DECLINED)
    new = str(world.at_stripe("POST", "/v1/customers")["id"])
    path, card = f"/{declined.body['id']}/payment-method", {"payment_method": "pm_card_visa"}
    refused = told(world.post(path, {**card, "customer": new}))
    assert_problem(refused, 409, "customer-is-another")
    assert "only where its own is gone" in refused.body["detail"]
    assert told(world.post(path, {**card, "customer": world.customer})).status == 200


@pytest.mark.parametrize(
    ("act", "sent"),
    [
        ("payment-method", {}),
        ("payment-method", {"payment_method": "pm_card_visa", "customer": "jo"}),
        ("payment-method", {"payment_method": "visa"}),
        ("out-of-band", {}),
        ("out-of-band", {"reference": ""}),
        ("cancel", {"reasons": "x"}),
        ("cancel", {"actor": ""}),
        ("retry", {"payment_method": "pm_card_visa"}),
    ],
)
def test_an_act_with_a_wrong_body_is_400_and_changes_nothing(act: str, sent: dict[str, str]) -> None:
    """A field too many is no typo to be passed over."""
    world, declined = charge_that_is(Status.DECLINED)
    assert_problem(told(world.post(f"/{declined.body['id']}/{act}", sent)), 400, "invalid-body")
    assert told(world.get(f"/{declined.body['id']}")).body == declined.body


@pytest.mark.parametrize("act", [Act.RETRY, Act.CANCEL])
def test_an_act_needs_no_body(act: Act) -> None:
    """Where none is named it may be empty, without a type."""
    world, declined = charge_that_is(Status.DECLINED)
    answer = send(world, b"", path=f"/{declined.body['id']}/{act}", headers={"Content-Type": ""})
    assert answer.status in {402, 410}


@pytest.mark.parametrize("act", Act)
def test_an_act_on_a_version_that_has_passed_is_412_and_changes_nothing(act: Act) -> None:
    """`If-Match`: what the operator saw is no longer so."""
    world, declined = charge_that_is(Status.DECLINED)
    stale = f'"{declined.body["version"] - 1}"'
    answer = told(world.post(f"/{declined.body['id']}/{act}", BODIES[act], If_Match=stale))
    assert_problem(answer, 412, "version")
    assert answer.body["charge"] == declined.body
    assert told(world.get(f"/{declined.body['id']}")).body == declined.body


@pytest.mark.parametrize("if_match", ['"{version}"', "{version}", "*"])
def test_an_act_on_the_version_that_was_seen_is_done(if_match: str) -> None:
    """As `ETag` gave it."""
    world, declined = charge_that_is(Status.DECLINED)
    sent = if_match.format(version=declined.body["version"])
    assert told(world.post(f"/{declined.body['id']}/cancel", If_Match=sent)).status == 410


@pytest.mark.parametrize("if_match", ["abc", 'W/"3"', '""', "-1", "9" * 5000])
def test_an_if_match_that_is_no_version_is_400(if_match: str) -> None:
    """And nothing is done on the strength of it."""
    world, declined = charge_that_is(Status.DECLINED)
    answer = told(world.post(f"/{declined.body['id']}/cancel", If_Match=if_match))
    assert_problem(answer, 400, "if-match-invalid")


def test_a_choice_made_twice_is_one(world: World) -> None:
    """The same answer, nothing written, nothing sent."""
    name = told(world.create(payment_method=DECLINED_CARD)).body["id"]
    first = told(world.post(f"/{name}/out-of-band", {"reference": "till 4"}))
    asked = len(world.engine.log)
    again = told(world.post(f"/{name}/out-of-band", {"reference": "till 4"}))
    assert (again.status, again.body) == (first.status, first.body) == (200, first.body)
    assert len(world.engine.log) == asked
    assert first.body["closing"]["kind"] == "out_of_band"
    assert (first.body["closing"]["actor"], first.body["closing"]["note"]) == ("caller", "till 4")


def test_a_closing_while_the_outcome_is_unknown_is_recorded_and_carried_out() -> None:
    """202: the wish is durable, and nothing is confirmed from then on."""
    world, unknown = charge_that_is(Status.UNKNOWN)
    world.engine.fail_next(Fault.DROP_BEFORE, "payment_intents.cancel", times=None)
    answer = told(world.post(f"/{unknown.body['id']}/cancel", {"reason": "too slow"}))
    assert (answer.status, answer.body["status"]) == (202, "unknown")
    assert answer.body["closing"]["note"] == "too slow"

    assert told(world.post(f"/{unknown.body['id']}/cancel")).status == 202
    assert_problem(
        told(world.post(f"/{unknown.body['id']}/out-of-band", {"reference": "till"})), 409, "already-closing"
    )

    world.engine.faults.clear()
    world.settle()
    ended = told(world.get(f"/{unknown.body['id']}"))
    assert (ended.body["status"], ended.body["cancel_reason"]) == ("canceled", "requested")
    assert world.money_moved() == []
    assert world.check() == []


@pytest.mark.parametrize(
    ("act", "discrepancies"),
    [(Act.CANCEL, ["paid_after_cancel_asked"]), (Act.OUT_OF_BAND, ["paid_twice"])],
    ids=["cancel", "cash"],
)
def test_a_closing_that_money_overtook_is_409_already_paid(world: World, act: Act, discrepancies: list[str]) -> None:
    """Rule 5: the money had moved; a person delivers or refunds, or refunds what was paid in cash as well."""
    world.engine.fail_next(Fault.DROP_AFTER, CONFIRM)
    world.engine.fail_next(Fault.KEY_IN_USE, CONFIRM, nth=2, times=None)
    unknown = told(world.create())
    assert unknown.body["status"] == "unknown"

    answer = told(world.post(f"/{unknown.body['id']}/{act}", BODIES[act]))

    assert_problem(answer, 409, "already-paid")
    assert answer.body["charge"]["status"] == "succeeded"
    assert [found["kind"] for found in answer.body["charge"]["discrepancies"]] == discrepancies
    assert world.money_moved() == [1999]


@pytest.mark.parametrize("act", Act)
def test_an_act_while_a_delivery_is_under_way_waits_unless_it_closes(world: World, act: Act) -> None:
    """What may confirm is 409 in hand; a closing is recorded at once, lease or no lease."""
    world.engine.fail_next(Fault.UNAUTHORIZED, CONFIRM)
    name = told(world.create()).body["id"]  # Blocked: a retry is open.
    world.plan = {len(world.services) + 2: worlds.Fault.DIE_BEFORE}  # Its delivery dies with the lease in hand.
    assert world.post(f"/{name}/retry") is None
    world.plan = {}
    held = world.charge()
    assert held.lease_until is not None
    assert held.lease_until > world.clock.now()

    answer = told(world.post(f"/{name}/{act}", BODIES[act]))

    if act is Act.CANCEL:
        assert answer.status == 410
    elif act is Act.OUT_OF_BAND:
        assert answer.status == 200
    else:
        assert answer.status == 409
        assert answer.body["type"] in {"urn:paidonce:in-hand", "urn:paidonce:act-does-not-fit"}
        assert world.charge() == held
    assert world.money_moved() == []


# --- The definite no --------------------------------------------------------------------------------------------------


def test_the_definite_no_before_the_charge_keeps_its_key_from_ever_being_charged(world: World) -> None:
    """Rule 7: whatever comes later under that key finds it canceled."""
    no = told(world.post("/cancel", {"reason": "paid elsewhere"}, key=KEY))
    assert (no.status, no.body["status"], no.body["cancel_reason"]) == (410, "canceled", "requested")
    assert "Idempotent-Replayed" not in no.headers
    late = told(world.create())
    assert (late.status, late.body["id"]) == (410, no.body["id"])
    assert late.headers["Idempotent-Replayed"] == "true"
    by_task = told(world.post("/", body(world), key=KEY, by_task="t"))
    assert (by_task.status, by_task.body["status"]) == (200, "canceled")
    assert world.engine.payment_intents() == []


def test_the_definite_no_after_the_charge_cancels_it_or_says_that_it_is_paid(world: World) -> None:
    """By key, as by id."""
    world.create(payment_method=DECLINED_CARD)
    assert told(world.post("/cancel", {}, key=KEY)).status == 410
    assert told(world.post("/cancel", {}, key=KEY)).status == 410
    world.create(key="order-1002")
    assert_problem(told(world.post("/cancel", {}, key="order-1002")), 409, "already-paid")
    assert world.money_moved("order-1002") == [1999]


def test_the_definite_no_after_a_503_whose_insert_was_applied_keeps_the_customer_from_paying_twice(
    world: World,
) -> None:
    """The insert arrived, the answer got lost, the caller pays elsewhere: the sweep must not charge."""
    sent = body(world)
    world.plan = {len(world.services): worlds.Fault.LOSE_REPLY, len(world.services) + 1: worlds.Fault.DOWN}
    assert told(world.post("/", sent, key=KEY)).status == 503
    assert world.charge().status is Status.PENDING
    world.plan = {}
    up(world, "store")

    assert told(world.post("/cancel", {}, key=KEY)).status == 410

    world.clock.sleep(HOUR)
    world.sweep()
    world.settle()
    assert world.money_moved() == []


@pytest.mark.parametrize("by_key", [True, False])
def test_a_cancel_that_money_overtakes_before_it_is_recorded_is_409_already_paid(world: World, *, by_key: bool) -> None:
    """Another delivery pays between reading the charge and recording the closing: the act is decided anew."""
    world.post("/", body(world), key=KEY, Prefer="respond-async")
    before_the_update = len(world.services) + (3 if by_key else 1)  # By key an insert, and a look at it, come first.
    world.plan = {before_the_update: worlds.Fault.OVERTAKE}
    path = "/cancel" if by_key else f"/{charge_id(None, KEY)}/cancel"
    answer = told(world.post(path, {}, key=KEY))
    assert "overtake" in " ".join(world.trace)
    assert_problem(answer, 409, "already-paid")
    assert world.money_moved() == [1999]


def test_every_decision_is_one_line_and_none_names_who_chose(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """What came in, what was chosen, what was refused; each with how the charge then stands."""
    world.create(payment_method=DECLINED_CARD, receipt_email="jenny@example.com", description="A gift for Jenny")
    name = world.charge().id
    world.post(f"/{name}/cancel", {"actor": "jenny", "reason": "Jenny does not want it"})
    world.post(f"/{name}/retry", {"actor": "jenny"})

    text = capsys.readouterr().out
    lines = [json.loads(line) for line in text.splitlines()]
    told = [(line["message"], line.get("act"), line["status"]) for line in lines if line.get("charge") == name]
    assert told == [
        ("recorded", None, "pending"),
        ("decided", "", "pending"),
        ("decided", "", "declined"),
        ("decided", "cancel", "pending"),
        ("decided", "", "canceled"),
        ("refused", "retry", "canceled"),
    ]
    assert {frozenset(line) for line in lines if line["message"] == "decided"} == {frozenset(DECIDED)}
    assert "jenny" not in text.lower()
