"""The `paidonce` command line, for operators. It reads the same environment as the functions.

Errors go to standard error with what to do; exit code 1 is an answer ("no such charge"), 2 a wrong use.
"""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final, NoReturn

import click
import msgspec

from shared import log, wiring
from shared.dead_letters import DeadLetters
from shared.gate import KIND, NAME, LedgerClosed, LedgerIdentity
from shared.ledger import LedgerUnavailable
from shared.preview import notices
from shared.reconcile import Report, StripeUnavailable
from shared.reopen import CannotReopen, Reopening
from shared.retention import NotOver
from shared.settings import SettingsError

PASSING: Final = (LedgerUnavailable, StripeUnavailable, LedgerClosed, CannotReopen, NotOver)


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
def audit_run(since: datetime | None, until: datetime | None) -> None:
    """Audit a period now, to its end."""
    report = _or_fail(lambda: _parts().reconciler.audit(lambda: True, since=since, until=until))
    if report is None:
        _fail("Another run is at this audit.")
    _show(report)


@audit.command("list")
def audit_list() -> None:
    """List all reports."""
    for name in _or_fail(_parts().reconciler.reports):
        click.echo(name)


@audit.command("show")
@click.argument("name", required=False)
def audit_show(name: str | None) -> None:
    """Show a report; by default the latest."""
    reconciler = _parts().reconciler
    names = [name] if name else _or_fail(reconciler.reports)[-1:]
    report = _or_fail(lambda: reconciler.report(names[0])) if names else None
    if report is None:
        _fail("There is no such report." if name else "Nothing has been audited yet.")
    _show(report)


@main.command()
@click.argument("charge_id")
def show(charge_id: str) -> None:
    """Show a charge as callers see it."""
    found = _or_fail(lambda: _parts().charger.read(charge_id))
    if found is None:
        _fail("There is no such charge.")
    click.echo(json.dumps(_parts().show(found), indent=2))


@main.command()
@click.argument("charge_id")
@click.option("--yes", is_flag=True, help="Do not ask.")
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
    for name, letter in _or_fail(lambda: list(_letters().all())):
        if every or letter.settled_at is None:
            settled = "" if letter.settled_at is None else f"  settled: {letter.note}"
            click.echo(f"{name}  {letter.at:%Y-%m-%d %H:%M} UTC  {letter.problem}{settled}")


@dead_letters.command("show")
@click.argument("name")
def dead_letters_show(name: str) -> None:
    """Show a letter with what its caller sent."""
    letter = _or_fail(lambda: _letters().read(name))
    if letter is None:
        _fail("There is no such dead letter.")
    click.echo(json.dumps(msgspec.to_builtins(letter), indent=2))


@dead_letters.command("settle")
@click.argument("name")
@click.option("--note", required=True, help="What became of it, for whoever reads it later.")
def dead_letters_settle(name: str, note: str) -> None:
    """Mark a letter as settled, and erase what its caller sent."""
    if _or_fail(lambda: _letters().settle(name, note)) is None:
        _fail("There is no such dead letter.")
    click.echo("settled")


def _letters() -> DeadLetters:
    parts = _parts()
    return DeadLetters(ledger=parts.ledger, clock=parts.clock, keep_for=parts.settings.retention)


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
