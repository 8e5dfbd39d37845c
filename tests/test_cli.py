"""The `paidonce` command line: what operators type, and what they read."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from infra.local.stripe.faults import Fault
from shared import log, policy, wiring
from shared.cli import main
from shared.dead_letters import DeadLetters
from shared.desk import SHOWN
from shared.reconcile import FINDING
from shared.store import Stored
from tests import world as worlds
from tests.test_audit import pay_beside
from tests.world import KEY, World


@pytest.fixture(autouse=True)
def _here_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command line does to the log is over with its test."""
    monkeypatch.setattr(log, "_beside_stdout", False)


@pytest.fixture
def world() -> Iterator[World]:
    """A deployment with one paid charge."""
    world = World()
    world.create()
    world.clock.sleep(timedelta(hours=1))
    yield world
    wiring.use(None)


def run(world: World, *words: str, answer: str | None = None) -> Result:
    """Type a command."""
    wiring.use(world.parts)
    return CliRunner().invoke(main, words, input=answer)


def test_a_charge_is_shown_as_callers_see_it(world: World) -> None:
    """As JSON."""
    shown = run(world, "show", world.charge().id)
    assert shown.exit_code == 0
    assert json.loads(shown.stdout)["status"] == "succeeded"


def test_a_charge_that_is_not_there_is_said(world: World) -> None:
    """Exit code 1."""
    shown = run(world, "show", "0" * 40)
    assert (shown.exit_code, shown.output) == (1, "Error: There is no such charge.\n")


def test_an_audit_is_run_listed_and_shown(world: World) -> None:
    """One command each; a finding says whether somebody must look at it."""
    world.at_stripe("POST", "/v1/refunds", f"payment_intent={world.charge().payment_intent}&amount=700")
    world.clock.sleep(timedelta(minutes=1))
    since, until = "2026-11-24T08:00", world.clock.now().isoformat()
    ran = run(world, "audit", "run", "--since", since, "--until", until)
    assert ran.exit_code == 0, ran.output
    assert "1 payments at Stripe on 1 account, 1 in the ledger, 0 agree, 1 corrected" in ran.output
    assert "refunded_at_stripe" in ran.output
    assert "settled: recorded on the charge" in ran.output
    names = run(world, "audit", "list").stdout.split()
    assert len(names) == 1
    assert run(world, "audit", "show").stdout == ran.stdout
    assert run(world, "audit", "show", names[0]).stdout == ran.stdout
    assert "no such report" in run(world, "audit", "show", "yesterday").output


def test_a_report_says_what_has_been_settled_since(world: World) -> None:
    """What was paid twice is given back seconds later: nobody is to refund it by hand."""
    pay_beside(world)
    world.clock.sleep(timedelta(minutes=1))
    since, until = "2026-11-24T08:00", world.clock.now().isoformat()
    ran = run(world, "audit", "run", "--since", since, "--until", until)
    assert "NOT SETTLED" in ran.output
    world.settle()
    shown = run(world, "audit", "show").output
    assert "settled: what it took was given back" in shown
    assert "NOT SETTLED" not in shown


def test_a_period_that_is_not_audited_now_is_said(world: World) -> None:
    """Exit code 1, and what to do: another audit is in hand."""
    world.parts.reconciler.audit(iter([True] + [False] * 9).__next__)
    ran = run(world, "audit", "run", "--since", "2026-11-01")
    assert ran.exit_code == 1
    assert "is not finished. Ask without a period until it is, then for this one again." in ran.output
    assert run(world, "audit", "run").exit_code == 0
    world.clock.sleep(timedelta(minutes=1))
    assert "2026-11-01 00:00 to" in run(world, "audit", "run", "--since", "2026-11-01").output


def test_before_the_first_audit_there_is_no_report(world: World) -> None:
    """And that is said."""
    shown = run(world, "audit", "show")
    assert (shown.exit_code, "Nothing has been audited yet" in shown.output) == (1, True)


def test_a_time_that_is_none_is_refused_with_an_example(world: World) -> None:
    """Exit code 2."""
    ran = run(world, "audit", "run", "--since", "yesterday")
    assert (ran.exit_code, "write a time such as" in ran.output) == (2, True)


def test_the_ledger_is_shown(world: World) -> None:
    """No digest of an API key is."""
    shown = run(world, "ledger", "show")
    assert shown.exit_code == 0
    assert '"platform": "acct_platform"' in shown.output
    assert '"api_keys": 1' in shown.output
    assert shown.stdout.endswith("open\n")


def test_the_ledger_is_reopened_after_a_restore(world: World) -> None:
    """The drill, by hand: what is missing is inserted, and what Stripe knows nothing of is listed."""
    backup = world.backup()
    world.create(key="order-2")
    body = {"amount": 5, "currency": "usd", "customer": world.customer, "payment_method": "pm_card_visa"}
    world.store._entities.clear()
    world.store._entities.update(backup.entities)
    world.post("/", body, key="order-3", Prefer="respond-async")
    backup = world.backup()
    world.restore(backup)
    assert "closed:" in run(world, "ledger", "show").output
    asked = run(world, "ledger", "reopen", "--restore-point", backup.at.isoformat(), answer="n\n")
    assert asked.exit_code == 1
    assert "LEDGER_GENERATION=2" in asked.output
    done = run(world, "ledger", "reopen", "--restore-point", backup.at.isoformat(), answer="y\n")
    assert done.exit_code == 0, done.output
    assert "open: 1 charges inserted" in done.output
    assert world.charge("order-3").id in done.output
    again = run(world, "ledger", "reopen", "--restore-point", backup.at.isoformat(), "--yes")
    assert (again.exit_code, "set LEDGER_GENERATION to 3" in again.output) == (1, True)
    assert world.charge(KEY).status == "succeeded"


def test_an_account_that_cannot_be_asked_holds_no_reopening_up_and_is_not_charged_twice(world: World) -> None:
    """What was paid there is not in the ledger; a repeated request is looked for first, and cannot be until it can."""
    account = world.at_stripe("POST", "/v1/accounts", "type=standard")["id"]
    customer = world.at_stripe("POST", "/v1/customers", **{"Stripe-Account": account})["id"]
    backup = world.backup()
    world.create(key="order-2", account=account, customer=customer)
    world.restore(backup)
    world.engine.disconnect(account)
    done = run(world, "ledger", "reopen", "--restore-point", backup.at.isoformat(), "--yes")
    assert done.exit_code == 0, done.output
    assert account in done.output.splitlines()[-1]

    world.clock.sleep(timedelta(days=2))
    world.create(key="order-2", account=account, customer=customer)
    charge = next(charge for charge in world.charges() if charge.terms.account)
    assert charge.status == "blocked"
    world.engine.connect(account)
    world.clock.sleep(timedelta(days=1))
    world.settle()
    charge = next(charge for charge in world.charges() if charge.terms.account)
    assert charge.status == "succeeded"
    assert world.money_of(charge) == [1999]
    assert world.check() == []


def test_a_database_without_an_identity_is_shown_as_such() -> None:
    """An empty one that was restored."""
    world = World(generation=2)
    assert "does not say which ledger" in run(world, "ledger", "show").output
    done = run(world, "ledger", "reopen", "--restore-point", "2026-11-24T08:00:00Z", "--yes")
    assert done.exit_code == 0, done.output
    world.clock.sleep(timedelta(seconds=2))
    assert run(world, "ledger", "show").stdout.endswith("open\n")
    wiring.use(None)


def test_an_environment_that_lacks_something_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a traceback."""
    wiring.use(None)
    for name in ("GOOGLE_CLOUD_PROJECT", "STRIPE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    ran = CliRunner().invoke(main, ["ledger", "show"])
    assert (ran.exit_code, "STRIPE_API_KEY: set it" in ran.output) == (2, True)


# --- Whom it is told --------------------------------------------------------------------------------------------------


READS = {
    *("ledger show", "audit list", "audit show", "show", "list", "find", "dead-letters list", "dead-letters show"),
    *("notices preview", "notices secret"),
}


def commands(group: click.Group = main, above: str = "") -> Iterator[tuple[str, click.Command]]:
    """Name every command there is."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{above}{name} ")
        else:
            yield f"{above}{name}", command


WRITES = {name: command for name, command in commands() if name not in READS}


def untold(world: World) -> World:
    """Have a command line that is not told whom notices reach, and so would note none."""
    settings = replace(world.parts.settings, notify_url=None)
    world.parts = replace(world.parts, settings=settings)
    return world


def filled_in(name: str, charge_id: str) -> list[str]:
    """Type a command with all that it needs."""
    options = {
        "ledger reopen": ["--restore-point", "2026-11-24T08:00:00Z", "--yes"],
        "payment-method": [charge_id, "pm_card_visa"],
        "out-of-band": [charge_id, "--reference", "receipt 17"],
        "cancel": [charge_id, "--reason", "a mistake"],
        "settle": [charge_id, "--note", "x"],
        "erase": [charge_id, "--yes"],
        "dead-letters settle": [charge_id, "--note", "x"],
        "audit run": [],
    }
    return [*name.split(), *options.get(name, [charge_id])]


def test_every_command_is_known_to_read_or_to_write() -> None:
    """Whoever adds one decides: only what writes asks whom it is told."""
    asking = {name for name, command in commands() if "tell_nobody" in {each.name for each in command.params}}
    assert asking == set(WRITES)
    assert {name for name, _ in commands()} >= READS
    assert len(WRITES) == 10


@pytest.mark.parametrize("name", WRITES)
def test_nothing_is_written_that_nobody_would_ever_hear_of(stuck: World, name: str) -> None:
    """A bare environment closes no charge: the outbox would be empty for good."""
    before = dict(stuck.store._entities)
    words = filled_in(name, stuck.charge().id)
    refused = run(untold(stuck), *words)
    assert (refused.exit_code, "terraform output -raw environment" in refused.output) == (2, True)
    assert stuck.store._entities == before
    assert stuck.money_moved() == []


def test_where_nobody_is_ever_told_it_is_done_when_that_is_said(stuck: World) -> None:
    """And what reads needs no such word."""
    untold(stuck)
    stuck.acted_at.append(stuck.clock.now())
    assert run(stuck, "show", stuck.charge().id).exit_code == 0
    done = run(stuck, "payment-method", stuck.charge().id, "pm_card_visa", "--tell-nobody")
    assert done.exit_code == 0, done.output
    assert stuck.charge().status == "succeeded"


def test_nobody_is_kept_from_hearing_by_a_word(stuck: World) -> None:
    """The charge would be told all the same; so the word is refused."""
    refused = run(stuck, "cancel", stuck.charge().id, "--reason", "x", "--tell-nobody")
    assert (refused.exit_code, "NOTIFY_URL is set" in refused.output) == (2, True)
    assert stuck.charge().status == "declined"


# --- Dead letters -----------------------------------------------------------------------------------------------------


REFUSED = {"amount": 1999, "currency": "USD", "receipt_email": "jane@example.com"}


def refused(world: World) -> str:
    """Have a task refused that can never work, and name its letter."""
    answer = world.post("/", REFUSED, key="order-2", by_task="task-2")
    assert answer is not None
    assert answer.status == 200
    return str(answer.body["dead_letter"])


def test_dead_letters_are_listed_shown_and_settled(world: World) -> None:
    """Settled, one is not listed any more, and what its caller sent is gone."""
    assert run(world, "dead-letters", "list").stdout == ""
    name = refused(world)
    assert run(world, "dead-letters", "list").stdout == f"{name}  2026-11-24 10:00 UTC  invalid-body\n"
    shown = json.loads(run(world, "dead-letters", "show", name).stdout)
    assert (shown["idempotency_key"], json.loads(shown["body"])) == ("order-2", REFUSED)
    assert "currency" in shown["detail"]

    settled = run(world, "dead-letters", "settle", name, "--note", "the shop sends usd now")

    assert (settled.exit_code, settled.stdout) == (0, "settled\n")
    assert run(world, "dead-letters", "list").stdout == ""
    assert run(world, "dead-letters", "list", "--all").stdout.endswith("settled: the shop sends usd now\n")
    assert "jane" not in str(world.store._entities["DeadLetter", name].properties)
    assert [charge.idempotency_key for charge in world.charges()] == [KEY]


def test_a_dead_letter_that_comes_again_once_settled_is_open_again(world: World) -> None:
    """The caller was not mended after all. Before that, twice is one letter, as it was first."""
    name = refused(world)
    world.clock.sleep(timedelta(hours=1))
    assert refused(world) == name
    assert "2026-11-24 10:00" in run(world, "dead-letters", "list").stdout
    run(world, "dead-letters", "settle", name, "--note", "mended")
    world.clock.sleep(timedelta(hours=1))
    assert refused(world) == name
    assert f"{name}  2026-11-24 12:00" in run(world, "dead-letters", "list").stdout
    assert "jane" in run(world, "dead-letters", "show", name).stdout


def test_two_who_write_a_dead_letter_at_once_lose_nothing(world: World) -> None:
    """It is settled, and then even deleted, while its task comes again: it is kept, and open."""
    name = refused(world)
    ledger, keep_for = world.parts.ledger, timedelta(days=400)
    others, read = DeadLetters(ledger=ledger, clock=world.clock, keep_for=keep_for), ledger.read
    happens: list[Callable[[], object]] = []

    def meanwhile(kind: str, name: str) -> Stored | None:
        stored = read(kind, name)
        if happens:
            happens.pop(0)()
        return stored

    raced: Any = SimpleNamespace(read=meanwhile, write=ledger.write, record_once=ledger.record_once)
    letters = DeadLetters(ledger=raced, clock=world.clock, keep_for=keep_for)
    happens += [lambda: others.settle(name, "by another", "me")]
    assert letters.settle(name, "by me", "me") is not None
    assert others.read(name) == letters.settle(name, "by me", "me")

    raced.names = lambda _kind, *, after: ["0" * 64, name] if not after else []  # One is deleted meanwhile.
    assert [found for found, _ in letters.all()] == [name]

    happens += [lambda: others.settle(name, "again", "me"), lambda: world.store._entities.pop(("DeadLetter", name))]
    raw = json.dumps(REFUSED).encode()
    assert letters.keep(idempotency_key="order-2", body=raw, problem="invalid-body", detail="currency") == name
    assert run(world, "dead-letters", "list").stdout.startswith(name)


def test_a_dead_letter_that_is_not_there_is_said(world: World) -> None:
    """Exit code 1."""
    for words in (("show", "0" * 64), ("settle", "0" * 64, "--note", "x")):
        ran = run(world, "dead-letters", *words)
        assert (ran.exit_code, ran.output) == (1, "Error: There is no such dead letter.\n")


# --- Erasing ----------------------------------------------------------------------------------------------------------


def test_a_charge_is_erased_when_a_person_asks_for_it(world: World) -> None:
    """After asking; and once is enough."""
    world.create(key="order-2", receipt_email="jane@example.com", description="Shoes for Jane")
    world.settle()
    name = world.charge("order-2").id
    assert run(world, "erase", name, answer="n\n").exit_code == 1
    assert world.charge("order-2").terms.description == "Shoes for Jane"
    done = run(world, "erase", name, answer="y\n")
    assert done.exit_code == 0, done.output
    assert "erased: 2026-11-24 1" in done.output
    assert world.charge("order-2").terms.receipt_email is None
    assert run(world, "erase", name, "--yes").exit_code == 0
    assert json.loads(run(world, "show", name).stdout)["erased_at"].startswith("2026-11-24T1")
    assert world.money_moved("order-2") == [1999]


def test_an_open_charge_is_not_erased(world: World) -> None:
    """What it still has to do may need it."""
    world.create(key="order-2", payment_method="pm_card_chargeDeclinedInsufficientFunds")
    ran = run(world, "erase", world.charge("order-2").id, "--yes")
    assert (ran.exit_code, "The charge is declined. End it first" in ran.output) == (1, True)
    assert run(world, "erase", "0" * 40, "--yes").output == "Error: There is no such charge.\n"


# --- Acting on a charge -----------------------------------------------------------------------------------------------


@pytest.fixture
def stuck() -> Iterator[World]:
    """A deployment with a declined charge."""
    world = World()
    world.create(payment_method="pm_card_chargeDeclinedInsufficientFunds")
    yield world
    wiring.use(None)


def test_where_nothing_needs_anybody_it_is_said(stuck: World) -> None:
    """A declined charge waits for its customer."""
    assert run(stuck, "list").stdout == "Nothing needs anybody.\n"


def test_what_needs_somebody_is_listed_until_it_is_settled(stuck: World) -> None:
    """A charge that is blocked, one that is not explained, one that is late, a finding, a task."""
    stuck.engine.fail_next(Fault.UNAUTHORIZED, "payment_intents.confirm")
    stuck.create(key="order-2")
    held = stuck.parts.ledger.get(stuck.charge().id)
    assert held is not None
    doubted = policy._discrepancy(held.charge, "amount_differs", stuck.clock.now(), "pi_1")
    stuck.parts.ledger.update(held, doubted)
    stuck.engine.fail_next(Fault.DROP_BEFORE, "payment_intents.confirm", times=None)
    stuck.create(key="order-3")
    stuck.clock.sleep(timedelta(hours=2))
    written = {"kind": "account_differs", "charge": "", "payment_intent": "pi_2", "detail": "of the platform"}
    stuck.parts.ledger.record_once(FINDING, "pi_2-account_differs", {**written, "at": stuck.clock.now()})
    letter = stuck.parts.letters.keep(idempotency_key="k", body=b"", problem="invalid-body", detail="no amount")
    lines = run(stuck, "list").stdout.splitlines()

    expected = {
        stuck.charge("order-2").id: "blocked (waits for operator)  1999 usd  invalid_request_error",
        stuck.charge().id: "declined (waits for customer)  1999 usd  amount_differs",
        stuck.charge("order-3").id: "unknown (waits for system)  1999 usd  open since 2026-11-24 09:00 UTC",
        "pi_2-account_differs": "of the platform",
        letter: "dead letter: invalid-body",
    }
    assert {line.partition("  ")[0]: line.partition("  ")[2] for line in lines} == expected

    for name in (stuck.charge().id, "pi_2-account_differs"):
        assert run(stuck, "settle", name, "--note", "looked at it").exit_code == 0
    assert len(run(stuck, "list").stdout.splitlines()) == 3
    assert stuck.charge().discrepancies[0].note == "looked at it"
    again = run(stuck, "settle", stuck.charge().id, "--note", "again")
    assert (again.exit_code, "nothing to settle" in again.output) == (1, True)
    assert run(stuck, "settle", "pi_3-account_differs", "--note", "x").exit_code == 1


def test_a_long_list_says_that_there_is_more(stuck: World) -> None:
    """It is cut as the page is."""
    for number in range(SHOWN + 1):
        stuck.parts.ledger.record_once(
            FINDING, f"pi_{number:03}-x", {"kind": "x", "detail": "y", "at": stuck.clock.now()}
        )
    assert run(stuck, "list").stdout.splitlines()[-1] == "There is more than this."


def test_a_closed_ledger_is_listed_with_what_to_do(stuck: World) -> None:
    """First of all."""
    stuck.restore(stuck.backup())
    assert run(stuck, "list").stdout.startswith("The ledger is closed: ")
    refused = run(stuck, "retry", stuck.charge().id)
    assert (refused.exit_code, "reopen" in refused.output) == (1, True)


def test_a_charge_is_found_by_its_callers_key(stuck: World) -> None:
    """Or not."""
    assert run(stuck, "find", KEY).stdout == f"{stuck.charge().id}\n"
    assert run(stuck, "find", KEY, "--account", "acct_1").exit_code == 1


@pytest.mark.parametrize(
    ("words", "status", "moved"),
    [
        (("retry", "--actor", "me"), "declined", []),
        (("payment-method", "pm_card_visa", "--actor", "me"), "succeeded", [1999]),
        (("out-of-band", "--reference", "receipt 17", "--actor", "me"), "paid_out_of_band", []),
        (("cancel", "--reason", "a mistake", "--actor", "me"), "canceled", []),
        (("look",), "declined", []),
    ],
)
def test_an_act_does_what_the_api_does_and_says_who(
    stuck: World, words: tuple[str, ...], status: str, moved: list[int]
) -> None:
    """And says how the charge stands then."""
    name = stuck.charge().id
    stuck.acted_at.append(stuck.clock.now())
    done = run(stuck, words[0], name, *words[1:])
    assert (done.exit_code, done.stdout.split()[0]) == (0, status), done.output
    assert stuck.money_moved() == moved
    assert ("me" in {entry.actor for entry in stuck.charge().history}) == (words[0] != "look")
    stuck.settle()
    assert stuck.check() == []


def test_s7_another_customer_is_charged_in_place_of_one_who_is_gone(world: World) -> None:
    """With their own payment method."""
    world.at_stripe("DELETE", f"/v1/customers/{world.customer}")
    world.create(key="order-2")
    name = world.charge("order-2").id
    refused = run(world, "payment-method", name, "pm_card_visa")
    assert (refused.exit_code, "customer is gone" in refused.output) == (1, True), refused.output
    new = str(world.at_stripe("POST", "/v1/customers")["id"])
    done = run(world, "payment-method", name, "pm_card_visa", "--customer", new)
    assert (done.exit_code, done.stdout.split()[0]) == (0, "succeeded"), done.output
    assert world.money_moved("order-2") == [1999]


def test_an_act_that_does_not_fit_changes_nothing(world: World) -> None:
    """The charge is paid."""
    before = world.charge()
    for words in (("retry",), ("cancel", "--reason", "x"), ("payment-method", "pm_card_visa")):
        refused = run(world, words[0], before.id, *words[1:])
        assert (refused.exit_code, "already paid" in refused.output) == (1, True), refused.output
    assert world.charge() == before


def test_an_act_on_no_charge_is_said(world: World) -> None:
    """Nothing is made."""
    for words in (("retry",), ("look",), ("cancel", "--reason", "x")):
        assert "There is no such charge." in run(world, words[0], "0" * 40, *words[1:]).output


def test_what_is_no_payment_method_is_a_wrong_use(stuck: World) -> None:
    """Exit code 2; nothing is sent."""
    refused = run(stuck, "payment-method", stuck.charge().id, "4242424242424242")
    assert (refused.exit_code, "payment_method" in refused.output) == (2, True)
    assert len(stuck.charge().attempts) == 1


def test_a_charge_in_hand_is_left_alone(stuck: World) -> None:
    """A delivery has it."""
    held = stuck.parts.ledger.get(stuck.charge().id)
    assert held is not None
    until = stuck.clock.now() + timedelta(minutes=1)
    stuck.parts.ledger.update(held, replace(held.charge, lease_owner="another#1", lease_until=until))
    refused = run(stuck, "retry", stuck.charge().id)
    assert (refused.exit_code, "being worked on" in refused.output) == (1, True)


def test_an_act_whose_record_is_lost_is_not_called_done(stuck: World) -> None:
    """It is safe to repeat."""
    stuck.plan = {len(stuck.services) + 4: worlds.Fault.DOWN}  # Read, recorded twice, sent: then the outcome's commit.
    stuck.acted_at.append(stuck.clock.now())
    done = run(stuck, "payment-method", stuck.charge().id, "pm_card_visa")
    assert (done.exit_code, "not certain" in done.output) == (1, True), done.output
    stuck.plan = {}
    stuck.settle()
    assert stuck.charge().status == "succeeded"
    assert stuck.money_moved() == [1999]
