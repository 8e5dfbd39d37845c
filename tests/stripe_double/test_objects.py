"""The other objects: customers, cards, refunds, lists, setup, accounts."""

import base64
from typing import Any

import pytest

from infra.local.stripe.engine import Engine
from tests.stripe_double.asking import START, Asker, VirtualClock


def test_a_customer_is_made_changed_and_deleted(double: Asker) -> None:
    """A deleted one says so, and can no longer be charged."""
    customer = double.post("customers", {"name": "Jenny", "metadata": {"a": "1", "b": "2"}}).body["id"]
    changed = double.post(f"customers/{customer}", {"email": "jenny@shop.example", "metadata": {"a": ""}}).body
    assert (changed["name"], changed["email"], changed["metadata"]) == ("Jenny", "jenny@shop.example", {"b": "2"})

    assert double.ask("DELETE", f"customers/{customer}").body["deleted"] is True
    assert double.get(f"customers/{customer}").body == {"id": customer, "object": "customer", "deleted": True}
    assert double.get("customers").body["data"] == []
    refused = double.post("payment_intents", {"amount": 1999, "currency": "usd", "customer": customer})
    assert (refused.status, refused.error["code"]) == (400, "resource_missing")


def test_what_the_endpoint_refuses_leaves_nothing_behind(double: Asker) -> None:
    """Not what it had begun, and no event of it."""
    refused = double.post("customers", {"name": "Jenny", "payment_method": "pm_nothing"})

    assert (refused.status, refused.error["param"]) == (400, "payment_method")
    assert double.engine.objects("customer") == []
    assert double.events() == []


def test_cards_are_saved_listed_and_taken_away(double: Asker) -> None:
    """A test name becomes a payment method of its own each time."""
    customer = double.customer()
    first, second = (
        double.post("payment_methods/pm_card_visa/attach", {"customer": customer}).body["id"] for _ in range(2)
    )
    listed = double.get(f"customers/{customer}/payment_methods", {"type": "card"}).body["data"]

    assert [card["id"] for card in listed] == [second, first]
    assert double.get("payment_methods", {"customer": customer}).body["data"] == listed
    assert double.get(f"customers/{customer}/payment_methods/{first}").status == 200
    double.post(f"payment_methods/{first}/detach")
    assert double.get(f"customers/{customer}/payment_methods/{first}").status == 404


def test_a_card_that_the_bank_declines_cannot_be_saved_but_one_can(double: Asker) -> None:
    """As with Stripe's own: only `chargeCustomerFail` is saved and then fails."""
    customer = double.customer()
    refused = double.post("payment_methods/pm_card_chargeDeclined/attach", {"customer": customer})
    saved = double.post("payment_methods/pm_card_chargeCustomerFail/attach", {"customer": customer})

    assert (refused.status, saved.status) == (402, 200)
    assert double.confirm(double.intent(customer=customer), saved.body["id"]).status == 402


def test_refunds_give_back_what_was_taken_and_never_more(double: Asker) -> None:
    """Partial ones add up; the tally shows taken and given back apart."""
    intent = double.intent(metadata={"pio_charge": "c1"})
    double.confirm(intent)
    double.post("refunds", {"payment_intent": intent, "amount": 500})
    too_much = double.post("refunds", {"payment_intent": intent, "amount": 1500})
    double.post("refunds", {"payment_intent": intent})
    again = double.post("refunds", {"payment_intent": intent})

    assert too_much.status == 400
    assert (again.status, again.error["code"]) == (400, "charge_already_refunded")
    assert [refund["amount"] for refund in double.get("refunds", {"payment_intent": intent}).body["data"]] == [
        1499,
        500,
    ]
    taken = double.engine.tally().by_metadata["c1"]
    assert (taken.amounts, taken.refunded) == ([1999], 1999)
    assert "refund.created" in double.events()
    assert "charge.refunded" in double.events()


def test_a_repeated_refund_gives_back_once(double: Asker) -> None:
    """Its key is a key like any other."""
    intent = double.intent()
    double.confirm(intent)
    for _ in range(3):
        double.post("refunds", {"payment_intent": intent, "amount": 500}, "refund")

    assert double.engine.tally().by_payment_intent[intent].refunded == 500


def test_nothing_paid_cannot_be_refunded(double: Asker) -> None:
    """400, and no refund."""
    assert double.post("refunds", {"payment_intent": double.intent()}).status == 400
    assert double.post("refunds", {}).error["code"] == "parameter_missing"


def test_lists_are_paged_newest_first(double: Asker) -> None:
    """`starting_after` goes on, `ending_before` goes back, `has_more` tells."""
    made = [double.intent() for _ in range(5)][::-1]
    first = double.get("payment_intents", {"limit": 2}).body
    second = double.get("payment_intents", {"limit": 2, "starting_after": made[1]}).body
    last = double.get("payment_intents", {"limit": 2, "starting_after": made[3]}).body
    back = double.get("payment_intents", {"limit": 2, "ending_before": made[4]}).body

    assert [[i["id"] for i in page["data"]] for page in (first, second, last, back)] == [
        made[:2],
        made[2:4],
        made[4:],
        made[2:4],
    ]
    assert [page["has_more"] for page in (first, second, last, back)] == [True, True, False, True]
    assert double.get("payment_intents", {"limit": 101}).status == 400


def test_lists_are_filtered_by_customer_and_time(double: Asker) -> None:
    """As a search for a lost PaymentIntent asks."""
    customer = double.customer()
    made = []
    for _ in range(3):
        made.append(double.intent(customer=customer))
        double.intent()
        double.clock.time += 100

    def found(**created: int) -> list[str]:
        params = {"customer": customer, "created": created}
        return [i["id"] for i in double.get("payment_intents", params).body["data"]]

    at = int(START) + 100
    assert found(gte=at) == [made[2], made[1]]
    assert found(gt=at) == [made[2]]
    assert found(lte=at) == [made[1], made[0]]
    assert found(lt=at) == [made[0]]


def test_charges_are_listed_by_payment_intent(double: Asker) -> None:
    """Failed ones and the one that succeeded."""
    intent = double.intent()
    double.confirm(intent, "pm_card_chargeDeclined")
    double.confirm(intent)
    double.confirm(double.intent())

    listed = double.get("charges", {"payment_intent": intent}).body["data"]
    assert [charge["status"] for charge in listed] == ["succeeded", "failed"]


def test_lists_and_searches_lag_on_command(double: Asker) -> None:
    """What is new is not seen yet; a known id always is."""
    double.engine.lag.list_seconds = double.engine.lag.search_seconds = 60
    intent = double.intent(metadata={"order": "7"})
    query = {"query": 'metadata["order"]:"7"'}
    assert double.get("payment_intents").body["data"] == []
    assert double.get("payment_intents/search", query).body["data"] == []
    assert double.status(intent) == "requires_payment_method"
    double.clock.time += 60

    assert len(double.get("payment_intents").body["data"]) == 1
    assert [i["id"] for i in double.get("payment_intents/search", query).body["data"]] == [intent]


def test_search_joins_its_clauses(double: Asker) -> None:
    """By metadata and field; what cannot be read is refused."""
    paid = double.intent(metadata={"order": "7"})
    double.intent(metadata={"order": "7"})
    double.confirm(paid)

    found = double.get("payment_intents/search", {"query": 'metadata["order"]:"7" AND status:"succeeded"'}).body
    assert [i["id"] for i in found["data"]] == [paid]
    assert double.get("payment_intents/search", {"query": "order is 7"}).status == 400


def test_a_setup_intent_saves_a_card(double: Asker) -> None:
    """Attached to the customer; declined and canceled ones save nothing."""
    customer = double.customer()
    params = {"customer": customer, "payment_method": "pm_card_visa", "confirm": "true"}
    saved = double.post("setup_intents", params).body
    declined = double.post("setup_intents", {**params, "payment_method": "pm_card_chargeDeclined"})
    open_one = double.post("setup_intents", {"customer": customer}).body["id"]

    assert saved["status"] == "succeeded"
    assert [c["id"] for c in double.get("payment_methods", {"customer": customer}).body["data"]] == [
        saved["payment_method"]
    ]
    assert (declined.status, declined.error["setup_intent"]["status"]) == (402, "requires_payment_method")
    assert double.post(f"setup_intents/{open_one}/cancel").body["status"] == "canceled"
    assert double.post(f"setup_intents/{open_one}/confirm").error["code"] == "setup_intent_unexpected_state"


def test_a_setup_intent_may_ask_the_customer(double: Asker) -> None:
    """And saves the card once they have answered."""
    params = {"customer": double.customer(), "payment_method": "pm_card_authenticationRequired", "confirm": "true"}
    asked = double.post("setup_intents", params).body

    assert asked["status"] == "requires_action"
    assert double.engine.authenticate(asked["id"])["status"] == "succeeded"


def test_a_checkout_session_brings_a_new_card(double: Asker) -> None:
    """Completed by the customer, the card is saved and the event says so; it cannot be completed twice."""
    customer = double.customer()
    params = {"mode": "setup", "customer": customer, "currency": "usd", "success_url": "https://shop.example/done"}
    session = double.post("checkout/sessions", params).body
    assert (session["status"], session["setup_intent"][:5]) == ("open", "seti_")
    double.engine.complete_checkout(session["id"], "pm_card_mastercard")

    (card,) = double.get("payment_methods", {"customer": customer}).body["data"]
    assert card["card"]["brand"] == "mastercard"
    assert double.get(f"checkout/sessions/{session['id']}").body["status"] == "complete"
    assert double.events()[-3:] == ["payment_method.attached", "setup_intent.succeeded", "checkout.session.completed"]
    assert double.post(f"checkout/sessions/{session['id']}/expire").status == 400
    assert double.post("checkout/sessions", {**params, "mode": "payment"}).status == 400


def test_a_checkout_session_makes_a_customer_of_whoever_gives_a_card_only_if_it_is_told_to(double: Asker) -> None:
    """Setup mode needs none, and keeps the card for nobody."""
    params = {"mode": "setup", "currency": "usd", "success_url": "https://shop.example/done"}
    for creation, email in (("always", "jo@shop.example"), ("if_required", None), (None, None)):
        more = {name: value for name, value in (("customer_creation", creation), ("customer_email", email)) if value}
        session = double.post("checkout/sessions", {**params, **more}).body
        assert (session["customer"], session["customer_creation"]) == (None, creation or "if_required")
        double.engine.complete_checkout(session["id"])

        done = double.get(f"checkout/sessions/{session['id']}", {"expand": ["setup_intent.payment_method"]}).body
        card = done["setup_intent"]["payment_method"]
        assert done["customer"] == done["setup_intent"]["customer"] == card["customer"]
        assert (done["customer"] is None) == (creation != "always")
        if creation == "always":
            assert double.get(f"customers/{done['customer']}").body["email"] == email
            assert double.events()[-4] == "customer.created"


@pytest.mark.parametrize("other", [{"customer_creation": "always"}, {"customer_email": "jo@shop.example"}])
def test_a_checkout_session_is_for_a_customer_who_is_there_or_for_a_new_one(
    double: Asker, other: dict[str, str]
) -> None:
    """Stripe takes one of the parameters."""
    params = {"mode": "setup", "currency": "usd", "success_url": "https://shop.example/done", **other}
    error = double.post("checkout/sessions", {**params, "customer": double.customer()}).error
    assert error["param"] == "customer"
    assert error["message"] == f"You may only specify one of these parameters: customer, {next(iter(other))}."


def test_no_session_is_opened_for_a_customer_who_was_deleted(double: Asker) -> None:
    """400, naming the customer."""
    customer = double.customer()
    double.ask("DELETE", f"customers/{customer}")
    params = {"mode": "setup", "currency": "usd", "success_url": "https://shop.example/done", "customer": customer}
    error = double.post("checkout/sessions", params).error
    assert (error["code"], error["param"]) == ("resource_missing", "customer")


def test_a_checkout_session_ends_after_a_day(double: Asker) -> None:
    """Nobody came."""
    params = {"mode": "setup", "currency": "usd", "success_url": "https://shop.example/done"}
    session = double.post("checkout/sessions", params).body["id"]
    double.clock.time += 86_400

    assert double.get(f"checkout/sessions/{session}").body["status"] == "expired"
    assert double.events()[-1] == "checkout.session.expired"


def test_connected_accounts_are_worlds_of_their_own(double: Asker) -> None:
    """What is made in one is missing in another: 404 in the path, 400 in the body."""
    account = double.post("accounts", {"type": "standard"}).body["id"]
    customer = double.customer(Stripe_Account=account)

    assert double.get(f"customers/{customer}", Stripe_Account=account).status == 200
    assert double.get(f"customers/{customer}").status == 404
    refused = double.post("payment_intents", {"amount": 1999, "currency": "usd", "customer": customer})
    assert (refused.status, refused.error["code"]) == (400, "resource_missing")
    assert double.get("account", Stripe_Account=account).body["id"] == account


def test_an_account_that_left_is_403(double: Asker) -> None:
    """Its owner ended the connection; nothing runs in its name until it is back."""
    double.engine.disconnect("acct_one")
    refused = double.post("customers", Stripe_Account="acct_one")
    hidden = double.get("accounts/acct_one")
    double.engine.connect("acct_one")

    assert (refused.status, refused.error["code"]) == (403, "account_invalid")
    assert (hidden.status, hidden.error["code"]) == (403, "account_invalid")
    assert double.get("accounts/acct_one").status == 200
    assert double.post("customers", Stripe_Account="acct_one").status == 200


def test_a_destination_charge_is_the_platforms(double: Asker) -> None:
    """With the fee and the destination on the charge."""
    intent = double.intent(application_fee_amount=100, transfer_data={"destination": "acct_one"})
    charge = double.confirm(intent).body["latest_charge"]
    shown = double.get(f"charges/{charge}").body

    assert (shown["application_fee_amount"], shown["transfer_data"]) == (100, {"destination": "acct_one"})
    assert double.engine.tally().moved[0].account == "acct_platform"


def test_live_and_test_mode_see_nothing_of_each_other(double: Asker) -> None:
    """The API key's prefix decides."""
    live: Any = {"Authorization": "Bearer sk_live_of_the_tests"}
    customer = double.post("customers", **live).body

    assert customer["livemode"] is True
    assert double.get(f"customers/{customer['id']}").status == 404


@pytest.mark.parametrize(
    "authorization", ["Bearer sk_test_fine", f"Basic {base64.b64encode(b'sk_test_fine:').decode()}"]
)
def test_bearer_and_basic_authentication(double: Asker, authorization: str) -> None:
    """Both are Stripe's."""
    assert double.get("balance", Authorization=authorization).status == 200


@pytest.mark.parametrize("authorization", ["", "Bearer", "Bearer pk_test_public", "Bearer nonsense", "Basic %%%"])
def test_without_a_working_api_key_it_is_401(double: Asker, authorization: str) -> None:
    """And nothing is done."""
    assert double.post("customers", Authorization=authorization).status == 401
    assert double.engine.objects("customer") == []


def test_api_keys_are_revoked_restricted_and_restored(double: Asker) -> None:
    """401 for the first, 403 for what the second may not do; the message does not show the key."""
    key = "rk_test_restricted_and_long"
    double.engine.api_keys.restrict(key, ["payment_intents.*", "balance.retrieve"])
    headers: Any = {"Authorization": f"Bearer {key}"}
    assert (double.get("balance", **headers).status, double.post("customers", **headers).status) == (200, 403)
    double.engine.api_keys.revoke(key)
    revoked = double.get("balance", **headers)
    double.engine.api_keys.restore(key)

    assert revoked.status == 401
    assert key not in revoked.error["message"]
    assert double.post("customers", **headers).status == 200


def test_only_listed_api_keys_work_where_some_are_listed(clock: VirtualClock) -> None:
    """Any other is 401."""
    asker = Asker(Engine(clock=clock, api_keys=["sk_test_the_one"]), clock)

    assert asker.get("balance").status == 401
    assert asker.get("balance", Authorization="Bearer sk_test_the_one").status == 200


def test_every_answer_has_a_request_id_and_echoes_the_version(double: Asker) -> None:
    """Errors too."""
    good = double.get("balance", Stripe_Version="2020-08-27")
    bad = double.get("nonsense")

    assert good.headers["Stripe-Version"] == "2020-08-27"
    assert good.headers["Request-Id"].startswith("req_")
    assert bad.headers["Request-Id"] != good.headers["Request-Id"]
    assert (bad.status, bad.error["message"]) == (404, "Unrecognized request URL (GET: /v1/nonsense).")
    assert bad.error["request_log_url"].endswith(bad.headers["Request-Id"])


def test_older_versions_may_use_the_old_names(double: Asker) -> None:
    """`payment_method_types` was renamed; the SDK's own version knows the new name only."""
    params = {"amount": 1999, "currency": "usd", "payment_method_types": ["card"]}

    assert double.post("payment_intents", params, Stripe_Version="2020-08-27").body["payment_method_types"] == ["card"]
    assert (
        double.post("payment_intents", params, Stripe_Version="2026-10-28.endive").error["code"] == "parameter_unknown"
    )


def test_the_tally_counts_successful_charges_and_nothing_else(double: Asker) -> None:
    """Two payments for one thing are seen by metadata, and by customer and amount if they lost it."""
    customer = double.customer()
    for metadata in ({"pio_charge": "c1"}, {"pio_charge": "c1"}, {}):
        intent = double.intent(customer=customer, metadata=metadata)
        double.confirm(intent, "pm_card_chargeDeclined")
        double.confirm(intent)
    double.confirm(double.intent(capture_method="manual", metadata={"pio_charge": "held"}))
    tally = double.engine.tally()

    assert tally.by_metadata["c1"].count == 2
    assert "held" not in tally.by_metadata
    assert tally.by_customer_and_amount[f"{customer} 1999 usd"].amounts == [1999, 1999, 1999]
    assert {paid.count for paid in tally.by_payment_intent.values()} == {1}
    assert double.get("balance").body["pending"] == [{"amount": 3 * 1999, "currency": "usd"}]


def test_the_same_seed_gives_the_same_ids(clock: VirtualClock) -> None:
    """So that a run can be replayed."""
    ids = [Asker(Engine(clock=clock, seed=seed), clock).intent() for seed in (7, 7, 8)]

    assert ids[0] == ids[1] != ids[2]
