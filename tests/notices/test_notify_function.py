"""The notify function: everybody is told what is true, once, whatever fails."""

import dataclasses
import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

import pytest

from infra.local.stripe.engine import Fault as StripeFault
from shared.charge import (
    FINAL,
    Attempt,
    Audience,
    Charge,
    Closing,
    Discrepancy,
    Failure,
    Standing,
    Status,
    Topic,
)
from shared.ledger import Held
from shared.letters import LETTERS
from shared.mail import NeverAccepted, NotNow, ServerDown
from shared.policy import NO_CUSTOMER, NOTICE_FOR
from shared.preview import NO_CARD
from tests.notices.office import CHARGE_ID, OPERATOR, URL, Office, part
from tests.world import FAULTS, START, Fault, World

DECLINED: Final = (Audience.CUSTOMER, Topic.DECLINED)
PAID_NOTICE: Final = (Audience.CUSTOMER, Topic.PAID)
OWNER: Final = (Audience.ACCOUNT_OWNER, Topic.MISSING_OBJECT)
BLOCKED: Final = (Audience.OPERATOR, Topic.BLOCKED)
OUTCOME: Final = (Audience.CALLER, Topic.OUTCOME)
MINUTE: Final = timedelta(minutes=1)
UNEXPLAINED: Final = Discrepancy(kind="unexplained_payment", at=START, payment_intent="pi_other")
TRUE_OF_ALL: Final[dict[str, Any]] = {"discrepancies": (UNEXPLAINED,), "pays_elsewhere_since": START}
HIDDEN: Final = ("fraudulent", "lost_card", "merchant_blacklist", "pickup_card", "stolen_card")  # As Stripe has it.


@pytest.fixture
def office() -> Office:
    """A fresh deployment."""
    return Office()


def errors(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """Return what was logged for the operator to look into."""
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return [line for line in lines if line["severity"] == "ERROR"]


# --- Once -------------------------------------------------------------------------------------------------------------


def test_a_notice_is_told_once_however_often_its_task_comes(office: Office) -> None:
    """And it is recorded when."""
    office.record(DECLINED)

    answers = [office.answer() for _ in range(3)]

    assert [answer.status for answer in answers] == [200, 200, 200]
    assert [answer.body["result"] for answer in answers] == ["told", "done before", "done before"]
    assert [mail["To"] for mail in office.mails] == ["jo@example.com"]
    assert office.notice().told_at is not None
    assert not office.notice().dropped


def test_a_notice_that_was_told_costs_two_lookups_and_asks_nobody_else(office: Office) -> None:
    """A late task, or the second of two."""
    office.record(DECLINED)
    office.answer()
    office.world.counts.clear()

    office.answer()

    assert office.world.counts == {"get": 2}


def test_each_of_several_notices_is_told_by_its_own_task(office: Office) -> None:
    """They share a charge, and nothing else."""
    office.record(DECLINED, OUTCOME)

    office.answer(2)

    assert (len(office.mails), len(office.heard)) == (0, 1)
    assert (office.notice(1).told_at, office.notice(2).told_at is not None) == (None, True)


def test_two_deliveries_at_once_send_the_same_message(office: Office) -> None:
    """A mailbox shows one; and it is recorded once."""
    office.record(DECLINED)

    def second() -> None:
        office.while_telling = lambda: None
        office.answer()

    office.while_telling = second

    first = office.answer()

    assert first.status == 200
    assert len({mail["Message-ID"] for mail in office.mails}) == 1
    assert office.answer().body["result"] == "done before"
    assert office.charge().version == 2


def test_what_others_record_meanwhile_is_kept(office: Office) -> None:
    """The charge may be paid while its mail is on its way."""
    office.record(DECLINED)
    office.while_telling = lambda: office.change(status=Status.SUCCEEDED, amount_received=1999, due_at=None)

    assert office.answer().body["result"] == "told"

    charge = office.charge()
    assert (charge.status, charge.amount_received) == (Status.SUCCEEDED, 1999)
    assert charge.outbox[0].told_at is not None


@pytest.mark.parametrize(
    ("about", "status"),
    [
        (DECLINED, Status.DECLINED),
        (PAID_NOTICE, Status.SUCCEEDED),
        (BLOCKED, Status.BLOCKED),
        (OUTCOME, Status.DECLINED),
    ],
    ids=str,
)
def test_wherever_a_delivery_dies_the_notice_is_told_and_always_as_the_same_message(
    about: tuple[Audience, Topic], status: Status
) -> None:
    """Every call across a boundary, every fault there; then the task comes again until it is done."""
    ids = set()
    services, faults = _faults(about, status)
    accepted = services.index("mail")
    for place, fault in faults:
        office = Office(world=World(plan={place: fault}))
        office.record(about, status=status, due_at=None if status in FINAL else office.world.clock.now())
        crossed = len(office.world.trace)
        answers = [office.deliver()]
        while answers[-1] is None or answers[-1].status != 200:
            assert len(answers) < 20, f"{fault} at {office.world.trace[crossed:]}"
            office.world.clock.sleep(MINUTE)
            answers.append(office.deliver())

        assert office.notice().told_at is not None
        assert not office.notice().dropped
        told = [mail["Message-ID"] for mail in office.mails] + [name for name, _ in office.heard]
        assert told, "lost"
        lost = place > accepted or (place == accepted and fault in {Fault.DIE_AFTER, Fault.LOSE_REPLY})
        assert len(told) == 1 or (len(told) == 2 and lost), f"{fault} told it {len(told)} times"
        ids |= set(told)
        assert office.world.violations == []
    assert len(ids) == 1
    assert len(faults) > 15


def _faults(about: tuple[Audience, Topic], status: Status) -> tuple[list[str], list[tuple[int, Fault]]]:
    """Return which calls a delivery makes, found by one that meets no fault, and each fault at each of them."""
    office = Office()
    office.record(about, status=status, due_at=None if status in FINAL else office.world.clock.now())
    office.answer()
    services = list(office.world.services)
    of_the_charge = {Fault.OVERTAKE, Fault.CANCEL, Fault.CUSTOMER_PAYS}
    faults = [
        (place, fault)
        for place, service in enumerate(services)
        for fault in FAULTS[service]
        if fault not in of_the_charge
    ]
    return services, faults


# --- Only what is true ------------------------------------------------------------------------------------------------

# fmt: off
TRUE_WHILE: Final[Mapping[Topic, set[Status]]] = {
    Topic.DECLINED:        {Status.DECLINED},
    Topic.RETRYING:        {Status.RETRYING},
    Topic.ACTION_REQUIRED: {Status.ACTION_REQUIRED},
    Topic.PAID:            {Status.SUCCEEDED, Status.PAID_OUT_OF_BAND},
    Topic.CANCELED:        {Status.CANCELED},
    Topic.MISSING_OBJECT:  {Status.BLOCKED},
    Topic.BLOCKED:         {Status.BLOCKED},
    Topic.DISCREPANCY:     set(Status),
    Topic.PAYS_ELSEWHERE:  set(Status) - FINAL,
    Topic.NOT_NOTED:       set(Status) - FINAL,
    Topic.BUG:             set(Status),
    Topic.OUTCOME:         {*FINAL, Status.ACTION_REQUIRED, Status.DECLINED, Status.BLOCKED},
}
# fmt: on


@pytest.mark.parametrize("status", Status)
@pytest.mark.parametrize("about", [*LETTERS, OUTCOME], ids="-".join)
def test_a_notice_is_told_only_while_it_is_true(office: Office, about: tuple[Audience, Topic], status: Status) -> None:
    """Else it is dropped for good, and nobody hears a thing that is not so any more."""
    office.record(about, status=status, due_at=None, **TRUE_OF_ALL)

    answer = office.answer()

    told = status in TRUE_WHILE[about[1]]
    assert (answer.status, answer.body["result"]) == (200, "told" if told else "dropped")
    assert len(office.mails) + len(office.heard) == told
    assert office.notice().told_at is not None
    assert office.notice().dropped is not told


def test_a_no_that_somebody_begins_to_undo_while_stripe_is_asked_for_the_address_is_not_told(office: Office) -> None:
    """Nobody reads that a payment failed while it may just be moving."""
    office.record(DECLINED)
    office.while_asking = lambda: office.change(status=Status.UNKNOWN)

    assert office.answer().body["result"] == "dropped"

    assert office.mails == []


def test_an_outcome_is_told_as_the_charge_is_now(office: Office) -> None:
    """A late task brings no old news."""
    office.record(OUTCOME)
    office.change(status=Status.SUCCEEDED, due_at=None)

    office.answer()

    ((name, body),) = office.heard
    assert name == f"{CHARGE_ID}-1"
    assert (body["id"], body["status"], body["version"]) == (CHARGE_ID, "succeeded", 2)


def test_of_two_notices_that_say_the_same_the_last_is_told(office: Office) -> None:
    """Declined twice while the mail server was down: one letter, about how it stands now."""
    office.record(DECLINED, DECLINED)

    results = [office.answer(number).body["result"] for number in (2, 1)]

    assert results == ["told", "dropped"]
    assert len(office.mails) == 1


def test_of_two_discrepancies_both_are_told(office: Office) -> None:
    """Each may be about other money."""
    about = (Audience.OPERATOR, Topic.DISCREPANCY)
    office.record(about, about, status=Status.SUCCEEDED, due_at=None, discrepancies=(UNEXPLAINED,))

    assert [office.answer(number).body["result"] for number in (1, 2)] == ["told", "told"]


def test_a_discrepancy_that_was_settled_meanwhile_is_not_told(office: Office) -> None:
    """What was paid twice has been given back: nothing is left to look at."""
    settled = dataclasses.replace(UNEXPLAINED, settled="what it took was given back")
    about = (Audience.OPERATOR, Topic.DISCREPANCY)
    office.record(about, status=Status.SUCCEEDED, due_at=None, discrepancies=(settled,))

    assert office.answer().body["result"] == "dropped"


@pytest.mark.parametrize(
    "since", [{"pays_elsewhere_since": None}, {"closing": Closing(kind="cancel", actor="caller", at=START)}], ids=str
)
@pytest.mark.parametrize("topic", [Topic.PAYS_ELSEWHERE, Topic.NOT_NOTED])
def test_a_wish_to_pay_elsewhere_that_is_over_is_not_told(office: Office, topic: Topic, since: dict[str, Any]) -> None:
    """They pay by card after all, or it is being canceled."""
    about = (Audience.ACCOUNT_OWNER, topic)
    office.record(about, **{"pays_elsewhere_since": office.world.clock.now(), **since})

    assert office.answer().body["result"] == "dropped"


def test_what_is_dropped_is_looked_at_again_where_the_charge_has_moved_on(office: Office) -> None:
    """It was on its way when somebody looked, and is declined again a moment later: that is told after all."""
    office.record(DECLINED)

    office.while_asking = lambda: office.change(status=Status.UNKNOWN)
    update = office.world.parts.ledger.update

    def overtaken(held: Held, charge: Charge) -> Held:
        office.change(status=Status.DECLINED)
        return update(held, charge)

    office.world.parts.ledger.update = overtaken  # type: ignore[method-assign]
    assert office.answer().status == 409
    office.world.parts.ledger.update = update  # type: ignore[method-assign]
    office.while_asking = lambda: None

    assert office.answer().body["result"] == "told"


def test_a_notice_that_another_took_the_place_of_while_stripe_was_asked_is_not_told(office: Office) -> None:
    """The other one is."""
    office.record(DECLINED)
    newer = dataclasses.replace(office.notice(), number=2)
    office.while_asking = lambda: office.change(outbox=(newer,))

    assert office.answer(1).body["result"] == "done before"
    office.while_asking = lambda: None
    assert office.answer(2).body["result"] == "told"
    assert len(office.mails) == 1


# --- What cannot be told ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("refusal", "status", "again"),
    [(ServerDown("no route"), 503, True), (NotNow("451 4.7.1"), 409, True), (NeverAccepted("550 5.1.1"), 409, True)],
    ids=["down", "not now", "never, to the operator either"],
)
def test_what_the_mail_server_says_decides_whether_the_task_comes_again(
    office: Office, refusal: Exception, status: int, *, again: bool
) -> None:
    """503 for all mail, 409 for this one; and 409 while it can be handed over to nobody either."""
    office.record(DECLINED)
    office.refuses = refusal  # type: ignore[assignment]

    answer = office.answer()
    office.refuses = None

    assert answer.status == status
    assert (int(answer.headers.get("Retry-After", 0)) > 0) == (status == 503)
    assert (office.notice().told_at is None) == again
    office.answer()
    assert len(office.mails) == again
    assert office.notice().dropped is not again


@pytest.mark.parametrize("refusal", [NeverAccepted("550 5.1.1"), None], ids=["refused", "no address"])
def test_whoever_cannot_be_reached_is_shown_to_the_operator_without_their_address(
    office: Office, capsys: pytest.CaptureFixture[str], refusal: NeverAccepted | None
) -> None:
    """What is lost is somebody's to look into."""
    office.record(DECLINED, customer=office.customer("jo@example.com" if refusal else None))
    office.refuses, office.refuses_whom = refusal, "jo@example.com"

    office.answer()

    (line,) = errors(capsys)
    assert line["message"] == "a notice reaches nobody"
    assert (line["charge"], line["number"], line["audience"], line["topic"]) == (CHARGE_ID, 1, "customer", "declined")
    assert line["reason"] == ("550 5.1.1" if refusal else "no address")
    assert "@" not in json.dumps(line)


@pytest.mark.parametrize(
    "about", [(Audience.OPERATOR, Topic.DISCREPANCY), BLOCKED, (Audience.OPERATOR, Topic.BUG)], ids="-".join
)
@pytest.mark.parametrize("reason", ["552 5.2.2", "550 5.1.1"])
def test_what_the_operator_must_know_is_not_lost_to_a_refusal(
    office: Office, about: tuple[Audience, Topic], reason: str
) -> None:
    """That a customer has paid twice, say: it waits for their address to be mended, for as long as anything waits."""
    office.record(about, status=Status.BLOCKED, discrepancies=(UNEXPLAINED,))
    office.refuses = NeverAccepted(reason)
    assert [office.answer().status for _ in range(3)] == [409] * 3
    office.world.clock.sleep(NOTICE_FOR - MINUTE)
    assert office.answer().status == 409
    office.refuses = None
    assert office.answer().body["result"] == "told"
    assert [mail["To"] for mail in office.mails] == [OPERATOR]


def test_what_an_owner_cannot_be_told_is_handed_to_the_operator_once(office: Office) -> None:
    """With what they were to read, and why they did not."""
    account = office.world.at_stripe("POST", "/v1/accounts", "email=owner@shop.example")["id"]
    about = (Audience.ACCOUNT_OWNER, Topic.PAYS_ELSEWHERE)
    office.record(about, terms={"account": account}, pays_elsewhere_since=office.world.clock.now())
    office.refuses, office.refuses_whom = NeverAccepted("550 5.1.1"), "owner@shop.example"

    assert [office.answer().body["result"] for _ in range(2)] == ["dropped", "done before"]

    assert [mail["To"] for mail in office.mails] == [OPERATOR]
    for said in (f"The owner of {account}", "550 5.1.1", "A customer wants to pay $19.99 in cash or another way"):
        assert said in " ".join(office.text().split())


def test_without_an_operator_nothing_is_handed_over(capsys: pytest.CaptureFixture[str]) -> None:
    """It is logged."""
    office = Office(operator_email="")
    office.record(DECLINED)
    office.refuses = NeverAccepted("550 5.1.1")
    assert office.answer().body["result"] == "dropped"
    assert [line["reason"] for line in errors(capsys)] == ["550 5.1.1"]


def test_nothing_that_is_logged_names_whom_it_went_to(office: Office, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither when all is well."""
    office.record(DECLINED)
    office.answer()
    assert "@" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("about", "has", "reason"),
    [
        (DECLINED, {"has_mail": False}, "SMTP_URL is not set"),
        (OUTCOME, {"has_outcomes": False}, "OUTCOME_URL is not set"),
        (BLOCKED, {"operator_email": ""}, "no address"),
    ],
    ids=["no mail", "no outcomes", "no operator"],
)
def test_a_way_that_the_deployment_lacks_holds_nothing_up(
    capsys: pytest.CaptureFixture[str], about: tuple[Audience, Topic], has: Mapping[str, Any], reason: str
) -> None:
    """And is no secret to whoever runs it."""
    office = Office(**has)
    office.record(about, status=Status.BLOCKED if about is BLOCKED else Status.DECLINED)

    assert office.answer().body["result"] == "dropped"

    assert [line["reason"] for line in errors(capsys)] == [reason]


def test_a_receiver_that_does_not_take_an_outcome_hears_it_again(office: Office) -> None:
    """For a month: nobody else can tell the caller."""
    office.record(OUTCOME)
    office.refuses_outcomes = True
    assert [office.answer().status for _ in range(5)] == [409] * 5
    office.world.clock.sleep(NOTICE_FOR - MINUTE)
    assert office.answer().status == 409
    office.refuses_outcomes = False

    assert office.answer().body["result"] == "told"


@pytest.mark.parametrize("about", [OUTCOME, DECLINED], ids="-".join)
def test_what_nobody_takes_is_shown_to_the_operator_after_an_hour_and_given_up_after_a_month(
    office: Office, capsys: pytest.CaptureFixture[str], about: tuple[Audience, Topic]
) -> None:
    """Nothing is tried for ever, and nothing ends in silence."""
    office.record(about)
    office.refuses_outcomes, office.refuses = True, NotNow("451 4.7.1")
    assert office.answer().status == 409
    assert errors(capsys) == []

    office.world.clock.sleep(60 * MINUTE)
    assert office.answer().status == 409
    assert [line["message"] for line in errors(capsys)] == ["a notice waits for long"]

    office.world.clock.sleep(NOTICE_FOR)
    answer = office.answer()
    assert (answer.status, answer.body["result"]) == (200, "dropped")
    assert [line["message"] for line in errors(capsys)] == ["a notice reaches nobody"]
    assert office.notice().dropped


def test_a_bug_of_ours_is_logged_and_the_notice_waits_for_the_fix(
    office: Office, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It neither vanishes nor ends in a 500."""
    office.record(DECLINED)
    monkeypatch.setitem(vars(office), "mails", None)

    assert office.answer().status == 409

    assert [line["message"] for line in errors(capsys)] == ["a notice could not be told"]
    assert office.notice().told_at is None


# --- Tasks that come early, late or wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "number"), [("0" * 40, 1), (CHARGE_ID, 2)], ids=["charge", "number"])
@pytest.mark.parametrize(("age", "status"), [(0, 409), (59, 409), (61, 200)], ids=str)
def test_a_task_for_what_is_not_recorded_comes_again_for_a_minute(
    office: Office, name: str, number: int, age: int, status: int
) -> None:
    """It may have overtaken the commit."""
    office.record(DECLINED)
    body = json.dumps({"enqueued_at": office.world.clock.now().timestamp() - age}).encode()

    assert office.answer(number, name=name, body=body).status == status

    assert office.mails == []


def test_an_empty_body_is_as_good(office: Office) -> None:
    """The task's own time counts then."""
    eta = office.world.clock.now() - timedelta(hours=1)
    assert office.answer(name="0" * 40, body=b"").status == 409
    assert office.answer(name="0" * 40, body=b"", X_CloudTasks_TaskETA=str(eta.timestamp())).status == 200


@pytest.mark.parametrize("path", ["/", f"/{CHARGE_ID}", f"/{CHARGE_ID}/x", f"/{CHARGE_ID}/1/2", "/short/1"])
def test_another_address_is_404(office: Office, path: str) -> None:
    """There is nothing there."""
    told = office.world._ask("notify", "POST", path, b"", {})
    assert told is not None
    assert told.status == 404


def test_another_method_is_405(office: Office) -> None:
    """Cloud Tasks posts."""
    told = office.world._ask("notify", "GET", f"/{CHARGE_ID}/1", b"", {})
    assert told is not None
    assert (told.status, told.headers["Allow"]) == (405, "POST")


def test_503_while_the_ledger_is_down(office: Office) -> None:
    """Nobody can say whether it was told."""
    office.record(DECLINED)
    office.world._down_until["store"] = office.world.clock.now() + timedelta(hours=1)
    assert office.answer().status == 503


# --- Who is written to ------------------------------------------------------------------------------------------------


def test_a_receipt_email_goes_before_the_customers_own(office: Office) -> None:
    """The caller knows better."""
    office.record(DECLINED, terms={"receipt_email": "other@example.com"})
    office.answer()
    assert [mail["To"] for mail in office.mails] == ["other@example.com"]


def test_a_receipt_email_is_enough_while_stripe_is_down(office: Office) -> None:
    """Only the language and the name are missing."""
    office.record(DECLINED, terms={"receipt_email": "other@example.com"})
    office.world._down_until["stripe"] = office.world.clock.now() + timedelta(hours=1)
    assert office.answer().body["result"] == "told"


def test_an_address_that_stripe_cannot_say_now_is_asked_for_again(office: Office) -> None:
    """Nobody goes untold because of that."""
    office.record(DECLINED)
    office.world._down_until["stripe"] = office.world.clock.now() + timedelta(hours=1)
    assert office.answer().status == 409
    office.world.clock.sleep(timedelta(hours=1))
    assert office.answer().body["result"] == "told"


def test_the_customer_of_a_connected_account_is_asked_for_there(office: Office) -> None:
    """Elsewhere nobody knows them."""
    customer = office.customer("jo@connected.example", account="acct_shop")
    office.record(DECLINED, customer=customer, terms={"account": "acct_shop"})
    office.answer()
    assert [mail["To"] for mail in office.mails] == ["jo@connected.example"]


def test_a_deleted_customer_is_not_written_to(office: Office, capsys: pytest.CaptureFixture[str]) -> None:
    """Their address went with them."""
    customer = office.customer()
    office.world.at_stripe("DELETE", f"/v1/customers/{customer}")
    office.record(DECLINED, customer=customer)

    assert office.answer().body["result"] == "dropped"

    assert [line["reason"] for line in errors(capsys)] == ["no address"]


def test_s7_a_deleted_customer_whose_receipt_has_an_address_is_written_to_there(office: Office) -> None:
    """It was asked for with the charge, and did not go with them."""
    customer = office.customer()
    office.world.at_stripe("DELETE", f"/v1/customers/{customer}")
    terms = {"receipt_email": "jo@shop.example"}
    about = (Audience.CUSTOMER, Topic.MISSING_OBJECT)
    office.record(about, status=Status.BLOCKED, customer=customer, terms=terms, last_error=NO_CUSTOMER)
    office.answer()
    assert [mail["To"] for mail in office.mails] == ["jo@shop.example"]
    assert "We need a card" in office.text()


def test_s7_the_new_customer_is_written_to_in_the_old_ones_place(office: Office) -> None:
    """Stripe knows their address: they gave it with their card."""
    office.record(DECLINED, customer="cus_deleted", customers=(office.customer("new@shop.example"),))
    office.answer()
    assert [mail["To"] for mail in office.mails] == ["new@shop.example"]


@pytest.mark.parametrize("account", ["acct_owned", None], ids=["connected", "the platform's own"])
def test_the_owner_of_the_account_is_told_what_is_missing(office: Office, account: str | None) -> None:
    """S7 and S13; on the platform's own account that is the operator."""
    if account:
        account = office.world.at_stripe("POST", "/v1/accounts", "email=owner@shop.example")["id"]
    office.record(OWNER, status=Status.BLOCKED, terms={"account": account}, last_error=NO_CUSTOMER, customer_gone=True)

    office.answer()

    assert [mail["To"] for mail in office.mails] == ["owner@shop.example" if account else OPERATOR]
    assert office.charge().terms.customer in office.text()
    # Nobody else can reach the customer, so the owner is to pass their page on.
    assert "We cannot write to the customer" in office.text()
    assert f"The customer's page: {URL}-ccc" in office.text()


def test_the_owner_does_not_get_the_customers_link_where_the_customer_is_written_to(office: Office) -> None:
    """Whoever has it can choose for them."""
    for terms, error in (({"receipt_email": "jo@shop.example"}, NO_CUSTOMER), ({}, NO_CARD)):
        office.record(OWNER, status=Status.BLOCKED, terms=terms, last_error=error)
        office.answer()
        assert URL not in part(office.mails[-1], "plain")


def test_s7_owner_customer_and_operator_read_that_no_card_works_any_more(office: Office) -> None:
    """Each of them what is left to do; none is sent to give a card."""
    account = office.world.at_stripe("POST", "/v1/accounts", "email=owner@shop.example")["id"]
    about = (OWNER, (Audience.CUSTOMER, Topic.MISSING_OBJECT), (Audience.OPERATOR, Topic.BLOCKED))
    terms = {"account": account, "receipt_email": "jo@shop.example"}
    office.record(
        *about,
        status=Status.BLOCKED,
        terms=terms,
        last_error=NO_CUSTOMER,
        customer_gone=True,
        payment_intent="pi_1",
    )
    for number in (1, 2, 3):
        office.answer(number)
    owner, customer, operator = [" ".join(part(mail, "plain").split()) for mail in office.mails]
    assert [mail["To"] for mail in office.mails] == ["owner@shop.example", "jo@shop.example", OPERATOR]
    assert "No card can be charged for this payment any more." in owner
    assert "cannot be made by card any more" in str(office.mails[1]["Subject"])
    assert "Use another card" not in customer
    assert "Pay in another way, such as cash or a bank transfer." in customer
    assert "/out-of-band" in operator
    assert "/cancel" in operator


def test_an_owner_without_address_has_the_operator_told(office: Office) -> None:
    """Somebody must know."""
    office.record(OWNER, status=Status.BLOCKED, terms={"account": "acct_silent"})
    office.answer()
    assert [mail["To"] for mail in office.mails] == [OPERATOR]


@pytest.mark.parametrize("refuses", [None, StripeFault.FORBIDDEN], ids=["disconnected", "not allowed"])
def test_an_owner_whom_stripe_does_not_let_us_ask_about_has_the_operator_told(
    office: Office, refuses: StripeFault | None
) -> None:
    """The account was disconnected, or our API key may not read accounts: neither mends itself by waiting."""
    account = office.world.at_stripe("POST", "/v1/accounts", "email=owner@shop.example")["id"]
    if refuses is None:
        office.world.engine.disconnect(account)
    else:
        office.world.engine.fail_next(refuses, "accounts.retrieve", times=None)
    gone = Failure(type="invalid_request_error", code="account_invalid")
    office.record(OWNER, status=Status.BLOCKED, terms={"account": account}, last_error=gone)
    assert office.answer().body["result"] == "told"
    assert [mail["To"] for mail in office.mails] == [OPERATOR]
    assert account in office.text()


def test_an_operator_who_has_a_notice_of_their_own_gets_no_second_in_the_owners_place(office: Office) -> None:
    """An account that is gone is told to both, and Stripe names no owner of it any more."""
    about = (Audience.OPERATOR, Topic.MISSING_OBJECT)
    gone = Failure(type="invalid_request_error", code="account_invalid")
    office.record(OWNER, about, status=Status.BLOCKED, terms={"account": "acct_silent"}, last_error=gone)
    assert [office.answer(number).body["result"] for number in (1, 2)] == ["dropped", "told"]
    assert [mail["To"] for mail in office.mails] == [OPERATOR]


def test_what_was_given_up_before_it_was_asked_for_has_nobody_to_write_to(office: Office) -> None:
    """The definite no names no customer."""
    charge = office.record((Audience.CUSTOMER, Topic.CANCELED), status=Status.CANCELED, due_at=None)
    office.put(dataclasses.replace(charge, terms=dataclasses.replace(charge.terms, customer="")))
    assert office.answer().body["result"] == "dropped"


@pytest.mark.parametrize(
    ("terms", "name"),
    [
        ({}, "The Platform"),
        ({"account": "acct_shop"}, "Corner Shop"),
        ({"on_behalf_of": "acct_shop"}, "Corner Shop"),
        ({"account": "acct_nameless", "on_behalf_of": "acct_shop"}, "Corner Shop"),
        ({"account": "acct_nameless"}, None),
    ],
    ids=["the platform", "a connected account", "on its behalf", "on another's behalf", "nameless"],
)
def test_a_customer_reads_to_whom_they_owe(office: Office, terms: Mapping[str, str], name: str | None) -> None:
    """By the name on their card's statement, where Stripe says it."""
    office.businesses = {None: "The Platform", "acct_shop": "Corner Shop"}
    account = terms.get("account")
    office.record(DECLINED, customer=office.customer(account=account), terms=terms)
    office.answer()
    assert (f"To: {name}" in office.text()) == (name is not None)
    assert ("To: " in office.text()) == (name is not None)


# --- What they read ---------------------------------------------------------------------------------------------------


def test_a_mail_is_the_same_message_in_plain_text_and_in_html(office: Office) -> None:
    """Sent by a machine, under a name of its own."""
    office.record(DECLINED)
    office.answer()

    (mail,) = office.mails
    assert mail["Message-ID"] == f"<{CHARGE_ID}.1@rides.example>"
    assert mail["Auto-Submitted"] == "auto-generated"
    assert mail["From"] == "Rocket Rides <pay@rides.example>"
    assert mail["Subject"] == "Your payment of $19.99 did not go through"
    for kind in ("plain", "html"):
        assert f"{URL}-ccc" in part(mail, kind)
        assert "Use another card." in part(mail, kind)


@pytest.mark.parametrize("about", LETTERS, ids="-".join)
def test_no_letter_fetches_anything(office: Office, about: tuple[Audience, Topic]) -> None:
    """Or says when it is opened."""
    status = next(status for status in Status if status in TRUE_WHILE[about[1]])
    office.record(about, status=status, due_at=None, **TRUE_OF_ALL)
    office.answer()
    html = part(office.mails[0], "html").lower()
    assert all(word not in html for word in ("<img", "src=", "url(", "@import", "<link", "<script"))


@pytest.mark.parametrize("code", HIDDEN)
@pytest.mark.parametrize("about", LETTERS, ids="-".join)
def test_no_letter_tells_what_the_bank_wants_hidden(office: Office, about: tuple[Audience, Topic], code: str) -> None:
    """A thief reads mail, too."""
    status = next(status for status in Status if status in TRUE_WHILE[about[1]])
    secret = Failure(type="card_error", code="card_declined", decline_code=code, message=f"It is {code}.")
    office.record(about, status=status, due_at=None, last_error=secret, **TRUE_OF_ALL)
    office.answer()

    for kind in ("plain", "html"):
        said = part(office.mails[0], kind).lower()
        assert code not in said
        assert code.replace("_", " ") not in said
        assert "fraud" not in said
        assert "stolen" not in said


@pytest.mark.parametrize("about", [OWNER, (Audience.CUSTOMER, Topic.MISSING_OBJECT)], ids="-".join)
@pytest.mark.parametrize("standing", [Standing.BURNT, Standing.SETTLED])
def test_no_letter_says_that_nothing_was_taken_while_an_earlier_try_may_yet_take_it(
    office: Office, about: tuple[Audience, Topic], standing: Standing
) -> None:
    """A card that is gone says nothing about the attempt before."""
    earlier = Attempt(
        idempotency_key="pio-c-confirm-1",
        operation="confirm",
        parameters="{}",
        api_version="",
        number=1,
        payment_method="pm_1",
        sends=1,
        standing=standing,
    )
    office.record(about, status=Status.BLOCKED, attempts=(earlier,))
    office.answer()
    assert ("No money was taken." in office.text()) == (standing is Standing.SETTLED)


def test_what_others_wrote_is_shown_as_text(office: Office) -> None:
    """A description is no place for markup, for a second header, or for letters that turn the others around."""
    office.record(DECLINED, terms={"description": "<b>Ri\u202ede</b>\nSubject:\0 & more"})
    office.answer()

    (mail,) = office.mails
    assert "<b>" not in part(mail, "html")
    assert "&lt;b&gt;Ri de&lt;/b&gt; Subject: &amp; more" in part(mail, "html")
    assert "<b>Ri de</b> Subject: & more" in part(mail, "plain")


def test_without_a_page_nobody_is_sent_to_one(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no button that leads nowhere."""
    monkeypatch.setattr(Office, "url_of", lambda *_: None)
    office = Office()
    office.record(DECLINED)
    office.answer()
    assert "http" not in office.text()
    assert "Choose what to do" not in office.text()


def test_the_operator_is_given_the_command_that_takes_the_charge_up_again(office: Office) -> None:
    """Ready to be pasted."""
    office.record(BLOCKED, status=Status.BLOCKED)
    office.answer()
    command = f'curl -X POST -H "Authorization: Bearer $(gcloud auth print-identity-token)" https://charge.rides.example/{CHARGE_ID}/retry'
    assert command in office.text()


def test_every_topic_is_told_to_somebody() -> None:
    """Each in a letter of its own, or to the caller's system."""
    assert {topic for _, topic in LETTERS} == set(Topic) - {Topic.OUTCOME}
