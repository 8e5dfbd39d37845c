"""The demo, `make demo`: a few hundred charges in a storm, and Stripe's own tally of them.

Exit code 0: every promise was kept. 1: one was not, and those charges are printed. 2: it did not come to an end.
"""

import argparse
import dataclasses
import json
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Final

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from infra.local.__main__ import failed, shown, watch
from infra.local.datastore import EmulatorUnavailable
from infra.local.processes import LocalStackError
from infra.local.stack import REPOSITORY, Stack
from infra.local.storm import Payer, Storm, Story, Tell, forecast
from infra.local.stripe.faults import FAULTS
from infra.local.walks import walk
from shared.charge import Status
from shared.policy import Limits

FOLDER: Final = REPOSITORY / ".local" / "demo"
LIMITS: Final = Limits(
    stripe_timeout=timedelta(seconds=2),  # The double answers in milliseconds, or not at all.
    lease=timedelta(seconds=12),  # Longer than a commit may be tried, as always; a killed delivery is resumed after it.
    quarantine=timedelta(seconds=5),  # Longer than what the storm's 500s set off takes to happen after all.
)
SWEEP_EVERY: Final = timedelta(seconds=2)
CHARGES_A_SECOND: Final = 10.0  # As many as two cores carry, with everything else on them.
LINE_EVERY_SECONDS: Final = 10.0  # Where no bar can be drawn.
LOG_WIDTH: Final = 120


def main() -> int:
    """Run the demo."""
    parser = argparse.ArgumentParser(prog="python -m infra.local.demo", description=__doc__)
    add = parser.add_argument
    add("--charges", type=int, default=300, help="how many (%(default)s)")
    add("--seed", type=int, default=1, help="another seed, another storm (%(default)s)")
    add("--keep", action="store_true", help="keep the stack running afterwards, to look at it")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = LOG_WIDTH
    shutil.rmtree(FOLDER, ignore_errors=True)
    stack = Stack(folder=FOLDER, limits=LIMITS, sweep_every=SWEEP_EVERY)
    kept = None
    try:
        with ExitStack() as running:
            with console.status("Starting Datastore, Cloud Tasks, Stripe, mail and the functions"):
                running.enter_context(stack)
            storm = run(console, stack, charges=options.charges, seed=options.seed)
            kept = report(console, storm)
            kept &= ways_out(console, stack)
            look(console, stack, storm, keep=options.keep)
            if options.keep:
                watch(stack)
    except KeyboardInterrupt:
        console.print("\nStopped; nothing is left running.")
    except (LocalStackError, EmulatorUnavailable) as error:
        failed(error)
    return 2 if kept is None else int(not kept)


def run(console: Console, stack: Stack, *, charges: int, seed: int) -> Storm:
    """Let a storm blow and settle, and show how it goes."""
    console.print(f"[bold]{charges} charges in a storm[/] (seed {seed}; logs in {shown(stack.folder)})")
    storm = Storm(stack, forecast(charges=charges, seed=seed, seconds=charges / CHARGES_A_SECOND))
    with progress(console, "Storm: callers done") as tell:
        storm.blow(tell)
    with progress(console, "Calm: charges at rest") as tell:
        storm.settle(tell)
    return storm


@contextmanager
def progress(console: Console, what: str) -> Iterator[Tell]:
    """Draw a bar; in a log, write a line now and then."""
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, TextColumn("[dim]{task.fields[news]}"), console=console) as bars:
            bar = bars.add_task(what, news="")
            yield lambda news, done, of: bars.update(bar, completed=done, total=of, news=news)
        return
    began, next_line = time.monotonic(), 0.0
    last = (0, 0)

    def write(news: str, done: int, of: int) -> None:
        nonlocal next_line, last
        last = (done, of)
        passed = time.monotonic() - began
        if passed >= next_line:
            console.print(f"{what}: {done} of {of} after {passed:.0f} s ({news})")
            next_line += LINE_EVERY_SECONDS

    yield write
    console.print(f"{what}: {last[0]} of {last[1]} after {time.monotonic() - began:.0f} s")


def report(console: Console, storm: Storm) -> bool:
    """Print what became of the charges, and return whether every promise was kept."""
    broken = [story for story in storm.stories if story.broken_promises]
    console.print("", by_payer(storm.stories), by_fault(storm.stories), everybody(storm), sep="\n")
    for story in broken:
        console.print(f"[bold red]{story.order.key}: {', '.join(story.broken_promises)}[/]")
        console.print_json(json.dumps(dataclasses.asdict(story), default=str))
    console.print(verdict(storm))
    return not broken and not storm.stray


def by_payer(stories: Sequence[Story]) -> Table:
    """Return what became of whose charges."""
    rows: dict[tuple[str, ...], list[Story]] = {(payer,): [] for payer in Payer}
    for story in stories:
        rows[story.order.payer,].append(story)
    return ended("What became of the charges", ("paid by",), rows)


def by_fault(stories: Sequence[Story]) -> Table:
    """Return what Stripe did wrong, and how the charges ended that met it."""
    rows: dict[tuple[str, ...], list[Story]] = {(fault, effect.acts): [] for fault, effect in FAULTS.items()}
    for story in stories:
        trouble = story.order.trouble
        met = (trouble.fault, FAULTS[trouble.fault].acts) if trouble is not None and story.struck else ("none", "yes")
        rows.setdefault(met, []).append(story)
    return ended("What Stripe did wrong, and how the charges ended that met it", ("fault", "acted"), rows)


def ended(title: str, names: Sequence[str], rows: Mapping[tuple[str, ...], Sequence[Story]]) -> Table:
    """Return a table of statuses, one row for each group of charges."""
    found = {story.status for stories in rows.values() for story in stories}
    statuses = [status for status in (*Status, "not recorded") if status in found]
    table = _table(title)
    for name in names:
        table.add_column(name)
    for name in ("charges", *statuses):
        table.add_column("\n".join(name.rsplit("_", 1)).replace("_", " "), justify="right")
    for group, stories in rows.items():
        counts = Counter(story.status for story in stories)
        table.add_row(*group, *(str(count or "") for count in (len(stories), *(counts[status] for status in statuses))))
    return table


def everybody(storm: Storm) -> Table:
    """Return what befell the whole stack."""
    table = _table("What befell everybody")
    table.add_column("what")
    table.add_column("times", justify="right")
    for what, times in storm.happened.items():
        if times:
            table.add_row(what, str(times))
    return table


def verdict(storm: Storm) -> Table:
    """Return what it was all about."""
    stories = storm.stories
    table = Table(title="Stripe's own tally", title_justify="left", title_style="bold", box=box.HEAVY_HEAD)
    table.add_column("of the customers' money")
    table.add_column("charges", justify="right")
    table.add_row("charged once", str(sum(len(story.moved) == 1 for story in stories)), style="bold green")
    for what, count in (
        ("charged twice", sum(len(story.moved) > 1 for story in stories)),
        ("lost: a good card, accepted, and neither paid nor closed", sum(story.lost for story in stories)),
        ("told failed though paid", sum(story.told_failed_though_paid for story in stories)),
        ("unknown left", sum(story.status == "unknown" for story in stories)),
        ("anything else left to the system", sum(story.left for story in stories)),
        ("our ledger and Stripe disagree", sum(story.disagrees for story in stories)),
        ("answers that make no sense", sum(bool(story.senseless_answers) for story in stories)),
        ("money that belongs to no charge", len(storm.stray)),
    ):
        table.add_row(what, str(count), style="bold red" if count else "green")
    return table


def ways_out(console: Console, stack: Stack) -> bool:
    """Show one charge of each kind walking its way out, and return whether each came out right."""
    table = _table("The ways out")
    for name in ("what happened", "the way out", "ends as", "paid", "what the customer read"):
        table.add_column(name)
    right = True
    for one in walk(stack):
        right &= one.is_right
        style = None if one.is_right else "bold red"
        table.add_row(one.name, one.way, one.charge["status"], f"{one.moved} x", "\n".join(one.mails), style=style)
    console.print(table)
    return right


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))


def look(console: Console, stack: Stack, storm: Storm, *, keep: bool) -> None:
    """Show one charge, the one that has gone through most, and how to look at it."""
    story = max(storm.stories, key=lambda story: len((story.charge or {}).get("history", ())))
    trouble = f" (at Stripe: {story.order.trouble.fault})" if story.order.trouble else ""
    console.print(f"\n[bold]The charge that went through most[/]: {story.order.key}{trouble}")
    for entry in (story.charge or {}).get("history", ()):
        console.print(f"  {entry['at'][11:23]}  {entry['status']:<16} {entry['what']}", soft_wrap=True)
    console.print("\n[bold]Look at it[/]" if keep else "\n[bold]Look at it[/] while the stack runs: make demo KEEP=1")
    console.print(f"  curl -s {stack.charge_url} -H 'Idempotency-Key: {story.order.key}'", soft_wrap=True)
    if keep:
        console.print("\nThe stack runs until Ctrl-C.")


if __name__ == "__main__":
    sys.exit(main())
