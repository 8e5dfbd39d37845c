"""The `paidonce` command line, for operators. It reads the same environment as the functions.

What is written here is told to whom the environment names, as a function's work is: so a command that writes is refused
where NOTIFY_URL is not set, unless it is said that nobody is to be told.

Errors go to standard error with what to do; exit code 1 is an answer ("no such charge"), 2 a wrong use.
"""

import functools
import getpass
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final, NoReturn

import click
import msgspec

from shared import api, log, policy, wiring
from shared.charge import Act, Charge, Reviewed, Status
from shared.deliver import Outcome
from shared.gate import KIND, NAME, LedgerClosed, LedgerIdentity
from shared.ledger import LedgerUnavailable
from shared.preview import notices
from shared.reconcile import AuditInHand, Report, StripeUnavailable
from shared.reopen import CannotReopen, Reopening
from shared.retention import NotOver
from shared.settings import SettingsError

PASSING: Final = (LedgerUnavailable, StripeUnavailable, LedgerClosed, CannotReopen, NotOver, AuditInHand)


class _Time(click.ParamType[datetime]):
    """A moment, RFC 3339."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> datetime:
        """Read it."""
        if isinstance(value, datetime):
            return value
        try:
            read = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"write a time such as 2026-11-24T09:00:00Z, not {value!r}", param, context)
        return read.astimezone(UTC) if read.tzinfo else read.replace(tzinfo=UTC)


_actor = click.option("--actor", default=getpass.getuser, help="Who you are, for whoever reads it later.")


def _writes(command: Callable[..., None]) -> Callable[..., None]:
    """Refuse a command that writes where whoever should hear of it would not: what is not noted then is never told."""

    @click.option("--tell-nobody", is_flag=True, help="This deployment has no notify function: there is no NOTIFY_URL.")
    @functools.wraps(command)
    def checked(*, tell_nobody: bool, **options: Any) -> None:
        is_told = _parts().settings.notify_url is not None
        if not is_told and not tell_nobody:
            raise click.UsageError(
                "NOTIFY_URL is not set, so nobody would ever be told of this. Give this shell the functions' whole "
                'environment: eval "$(terraform output -raw environment)". Where nobody is ever told: --tell-nobody.'
            )
        if is_told and tell_nobody:
            raise click.UsageError("NOTIFY_URL is set: --tell-nobody is for deployments without it.")
        command(**options)

    return checked


@click.group()
def main() -> None:
    """See and settle what Paidonce cannot settle by itself."""
    log.beside_stdout()


@main.group()
def ledger() -> None:
    """Which ledger this is, and reopening it after a restore."""


@ledger.command("show")
def ledger_show() -> None:
    """Show which ledger the database holds, and whether it is open."""
    parts = _parts()
    stored = _or_fail(lambda: parts.ledger.read(KIND, NAME))
    if stored is None:
        click.echo("The database does not say which ledger it holds.")
    else:
        shown = msgspec.to_builtins(LedgerIdentity.of(stored))
        shown["api_keys"] = len(shown["api_keys"])
        click.echo(json.dumps(shown, indent=2))
    try:
        parts.gate.check()
    except LedgerClosed as closed:
        click.echo(f"closed: {closed}")
    else:
        click.echo("open")


@ledger.command("reopen")
@click.option("--restore-point", type=_Time(), required=True, help="The time of the data that the database now holds.")
@click.option("--yes", is_flag=True, help="Do not ask whether work has stopped.")
@_writes
def ledger_reopen(restore_point: datetime, *, yes: bool) -> None:
    """Reopen the ledger after its database was restored.

    First set LEDGER_GENERATION one higher for every function, and here; then run this.
    """
    parts = _parts()
    settings = parts.settings
    reopening = Reopening(
        ledger=parts.ledger,
        stripe=parts.gateway,
        clock=parts.clock,
        limits=parts.limits,
        database=f"{settings.project}/{settings.database}",
        generation=settings.ledger_generation,
    )
    _or_fail(reopening.check)
    wait = int(parts.limits.dispatch_deadline.total_seconds())
    if not yes:
        click.confirm(
            f"Do all functions run with LEDGER_GENERATION={settings.ledger_generation}, and have for {wait} s?",
            abort=True,
        )
    done = _or_fail(lambda: reopening.run(restore_point, click.echo))
    click.echo(f"open: {len(done.inserted)} charges inserted, {len(done.updated)} brought up to Stripe's word")
    if done.unexplained:
        click.echo("Open, and Stripe knows nothing of them; ask their callers whether they are still wanted:")
        for name in done.unexplained:
            click.echo(f"  {name}")
    for name, found in done.discrepancies:
        click.echo(f"  {found.kind}  charge {name}  {found.payment_intent}  {found.settled or 'NOT SETTLED'}")
    if done.unlisted:
        click.echo("STRIPE_API_KEY may not list connected accounts, so none was asked. With a key that may, raise")
        click.echo(
            "LEDGER_GENERATION and reopen from the same point; until then each charge there is looked for first."
        )
    if done.unreachable:
        click.echo(
            "Not asked, because Stripe does not let this API key. What was charged there since is not in the ledger, so"
        )
        click.echo(
            "nothing is charged there unseen. Once Stripe does: raise LEDGER_GENERATION, reopen from the same point."
        )
        for account in done.unreachable:
            click.echo(f"  {account}")


@main.group()
def audit() -> None:
    """What Stripe says was paid, against the ledger, both ways."""


@audit.command("run")
@click.option("--since", type=_Time(), help="Begin of the period; by default where the last audit ended.")
@click.option("--until", type=_Time(), help="Its end; by default a quarter of an hour ago.")
@_writes
def audit_run(since: datetime | None, until: datetime | None) -> None:
    """Audit a period now, to its end."""
    reconciler = _parts().reconciler
    report = _or_fail(lambda: reconciler.audit(lambda: True, since=since, until=until))
    if report is None:
        _fail("Another run is at this audit.")
    _show(_or_fail(lambda: reconciler.as_of_now(report)))


@audit.command("list")
def audit_list() -> None:
    """List all reports."""
    for name in _or_fail(_parts().reconciler.reports):
        click.echo(name)


@audit.command("show")
@click.argument("name", required=False)
def audit_show(name: str | None) -> None:
    """Show a report, by default the latest, and what of it is settled by now."""
    reconciler = _parts().reconciler
    names = [name] if name else _or_fail(reconciler.reports)[-1:]
    report = _or_fail(lambda: reconciler.report(names[0])) if names else None
    if report is None:
        _fail("There is no such report." if name else "Nothing has been audited yet.")
    _show(_or_fail(lambda: reconciler.as_of_now(report)))


@main.command()
@click.argument("charge_id")
def show(charge_id: str) -> None:
    """Show a charge as callers see it."""
    found = _or_fail(lambda: _parts().charger.read(charge_id))
    if found is None:
        _fail("There is no such charge.")
    click.echo(json.dumps(_parts().show(found), indent=2))


@main.command("list")
def list_() -> None:
    """List what needs somebody: as much of it as the operator's page shows."""
    seen = _or_fail(_parts().desk.overview)
    if seen.closed:
        click.echo(f"The ledger is closed: {seen.closed}")
    for charge in seen.attention.shown:
        kinds = [found.kind for found in policy.unsettled(charge)]
        click.echo(f"{charge.id}  {_line(charge)}  {', '.join(kinds) or _why(charge)}")
    for charge in seen.late.shown:
        click.echo(f"{charge.id}  {_line(charge)}  open since {charge.created_at:%Y-%m-%d %H:%M} UTC")
    for found in seen.findings.shown:
        click.echo(f"{found.name}  {found.detail}")
    for name, letter in seen.letters.shown:
        click.echo(f"{name}  dead letter: {letter.problem}")
    parts = (seen.attention, seen.late, seen.findings, seen.letters)
    if any(part.more for part in parts):
        click.echo("There is more than this.")
    if not seen.closed and not any(part.shown for part in parts):
        click.echo("Nothing needs anybody.")


@main.command()
@click.argument("text")
@click.option("--account", help="Of the connected account with this id.")
def find(text: str, account: str | None) -> None:
    """Name the charge with this id, PaymentIntent or Idempotency-Key."""
    found = _or_fail(lambda: _parts().desk.find(text, account))
    if found is None:
        _fail("No charge has this id, PaymentIntent or Idempotency-Key.")
    click.echo(found)


@main.command()
@click.argument("charge_id")
@_writes
def look(charge_id: str) -> None:
    """Do what is due for a charge, or ask Stripe how it stands."""
    _came_to(_or_fail(lambda: _parts().charger.deliver(charge_id, by_task=False)))


@main.command()
@click.argument("charge_id")
@_actor
@_writes
def retry(charge_id: str, actor: str) -> None:
    """Try a charge again now, or take it up again once what stopped it is mended."""
    _act(charge_id, Act.RETRY, actor=actor)


@main.command("payment-method")
@click.argument("charge_id")
@click.argument("payment_method")
@click.option("--customer", help="Whose it is, where the charge's own customer is gone at Stripe.")
@_actor
@_writes
def payment_method(charge_id: str, payment_method: str, customer: str | None, actor: str) -> None:
    """Charge another payment method of the customer's."""
    whose = {"customer": customer} if customer else {}
    _act(charge_id, Act.PAYMENT_METHOD, actor=actor, payment_method=payment_method, **whose)


@main.command("out-of-band")
@click.argument("charge_id")
@click.option("--reference", required=True, help="Of the payment that was made in another way.")
@_actor
@_writes
def out_of_band(charge_id: str, reference: str, actor: str) -> None:
    """Close a charge that was paid in another way."""
    _act(charge_id, Act.OUT_OF_BAND, actor=actor, reference=reference)


@main.command()
@click.argument("charge_id")
@click.option("--reason", required=True, help="For whoever reads it later.")
@_actor
@_writes
def cancel(charge_id: str, reason: str, actor: str) -> None:
    """Cancel a charge that is not wanted any more."""
    _act(charge_id, Act.CANCEL, actor=actor, reason=reason)


@main.command()
@click.argument("name")
@click.option("--note", required=True, help="What became of it, for whoever reads it later.")
@_actor
@_writes
def settle(name: str, note: str, actor: str) -> None:
    """Say what became of what nobody explained: of a charge, or of a finding that `list` names. No money moves."""
    parts = _parts()
    outcome = _or_fail(lambda: parts.charger.review(name, Reviewed(actor=actor, note=note), version=None))
    if outcome is not None:
        _came_to(outcome)
    elif _or_fail(lambda: parts.desk.settle(name, note, actor)) is None:
        _fail("There is no such charge, and no such finding.")
    else:
        click.echo("settled")


@main.command()
@click.argument("charge_id")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_writes
def erase(charge_id: str, *, yes: bool) -> None:
    """Erase what is personal in a charge that is over, because a person asks for it.

    The charge stays, and stops a second one under its key. What Stripe keeps of the person is erased there.
    """
    parts = _parts()
    if not yes:
        click.confirm(
            "Its description, metadata, mail address and notes are gone for good then. Erase them?", abort=True
        )
    found = _or_fail(lambda: parts.reconciler.retention.erase(charge_id))
    if found is None:
        _fail("There is no such charge.")
    click.echo(f"erased: {found.erased_at:%Y-%m-%d %H:%M} UTC. Stripe has its own record of customer {found.customer}.")


@main.group("dead-letters")
def dead_letters() -> None:
    """Tasks that can never work. Nothing was charged for any of them."""


@dead_letters.command("list")
@click.option("--all", "every", is_flag=True, help="Those that are settled, too.")
def dead_letters_list(*, every: bool) -> None:
    """List the letters that are not settled."""
    for name, letter in _or_fail(lambda: list(_parts().letters.all())):
        if every or letter.settled_at is None:
            settled = "" if letter.settled_at is None else f"  settled: {letter.note}"
            click.echo(f"{name}  {letter.at:%Y-%m-%d %H:%M} UTC  {letter.problem}{settled}")


@dead_letters.command("show")
@click.argument("name")
def dead_letters_show(name: str) -> None:
    """Show a letter with what its caller sent."""
    letter = _or_fail(lambda: _parts().letters.read(name))
    if letter is None:
        _fail("There is no such dead letter.")
    click.echo(json.dumps(msgspec.to_builtins(letter), indent=2))


@dead_letters.command("settle")
@click.argument("name")
@click.option("--note", required=True, help="What became of it, for whoever reads it later.")
@_actor
@_writes
def dead_letters_settle(name: str, note: str, actor: str) -> None:
    """Mark a letter as settled, and erase what its caller sent."""
    if _or_fail(lambda: _parts().letters.settle(name, note, actor)) is None:
        _fail("There is no such dead letter.")
    click.echo("settled")


def _act(charge_id: str, act: Act, **fields: str) -> None:
    """Do something with a charge, as the API does."""
    try:
        choice = api.filled_in(act, fields)
    except api.Problem as wrong:
        raise click.UsageError(wrong.detail) from wrong
    _came_to(_or_fail(lambda: _parts().charger.act(charge_id, choice, version=None)))


def _came_to(outcome: Outcome | None) -> None:
    """Say what became of a charge that somebody acted on."""
    if outcome is None:
        _fail("There is no such charge.")
    charge = outcome.charge
    if outcome.busy:
        _fail("It is being worked on at this moment. Nothing was done; try again in a few seconds.")
    if outcome.refusal is not None:
        _fail(f"The charge is {charge.status}: {outcome.refusal.replace('_', ' ')}. Nothing was changed.")
    if not outcome.durable:
        _fail("It is not certain that this was recorded. It is safe to repeat it.")
    click.echo(f"{_line(charge)}  {_why(charge)}".rstrip())


def _line(charge: Charge) -> str:
    """Write how a charge stands on a line."""
    terms = charge.terms
    waits = policy.waiting_on(charge)
    return f"{charge.status}{f' (waits for {waits})' if waits else ''}  {terms.amount} {terms.currency}"


def _why(charge: Charge) -> str:
    failure = charge.last_error
    if failure is None or charge.final or charge.status is Status.UNKNOWN:
        return ""
    return " ".join(filter(None, (failure.type, failure.code, failure.decline_code, failure.param)))


def _show(report: Report) -> None:
    state = "finished" if report.finished_at else "not finished"
    click.echo(f"{report.name}  {report.since:%Y-%m-%d %H:%M} to {report.until:%Y-%m-%d %H:%M} UTC, {state}")
    accounts = f"{len(report.accounts)} account" + ("s" if len(report.accounts) != 1 else "")
    click.echo(
        f"{report.at_stripe} payments at Stripe on {accounts}, {report.in_ledger} in the ledger, "
        f"{report.agreed} agree, {report.corrected} corrected, {report.orphans} orphans, "
        f"{len(report.findings)} findings"
    )
    for finding in report.findings:
        where = f" on {finding.account}" if finding.account else ""
        settled = f"settled: {finding.settled}" if finding.settled else "NOT SETTLED"
        click.echo(f"  {finding.kind}  charge {finding.charge or '-'}  {finding.payment_intent or '-'}{where}")
        click.echo(f"    {finding.detail or '-'}; {settled}")


def _parts() -> wiring.Parts:
    try:
        return wiring.parts("reconcile")
    except SettingsError as error:
        raise click.UsageError(f"The environment is not complete. {error}") from error


def _or_fail(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except PASSING as error:
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    raise click.ClickException(message)


main.add_command(notices)

if __name__ == "__main__":
    main()
