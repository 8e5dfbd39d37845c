"""The table of faults: one storm, five ways to charge, one judge.

    python -m tests.peers --charges 1000 --seed 1 --only paidonce --only dbos_workflow

With Paidonce in the table, the exit status says whether it clears its bars.
"""

import multiprocessing
import sys
import time
from functools import partial
from typing import Final

import click

from tests.peers.storm import Card, orders
from tests.peers.table import PEERS, measure, missed, table

PROCESSES: Final = 2


@click.command(help=__doc__)
@click.option("--charges", default=1000, show_default=True, help="How many orders.")
@click.option("--seed", default=1, show_default=True, help="The same seed, the same storm.")
@click.option("--only", multiple=True, type=click.Choice(list(PEERS)), help="Measure these alone.")
@click.option("--faults", is_flag=True, help="Count what each of them met, too.")
def main(charges: int, seed: int, only: tuple[str, ...], *, faults: bool) -> None:
    """Measure, and print the table."""
    began = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(PROCESSES, maxtasksperchild=1) as one_each:
        scores = list(one_each.imap(partial(measure, seed=seed, charges=charges), only or PEERS, chunksize=1))
    good = sum(order.card is Card.GOOD for order in orders(seed, charges))
    seconds = time.monotonic() - began
    click.echo(table(scores))
    click.echo(f"\n{charges:,} orders, {good:,} of them with a good card; seed {seed}; measured in {seconds:.0f} s")
    for score in scores if faults else ():
        click.echo(f"\n{PEERS[score.name]} met")
        click.echo("\n".join(f"{count:8,}  {what}" for what, count in score.met.most_common()))
    bars = [bar for score in scores if score.name == "paidonce" for bar in missed(score)]
    for bar in bars:
        click.echo(f"Paidonce misses a bar: {bar}")
    sys.exit(1 if bars else 0)


if __name__ == "__main__":
    main()
