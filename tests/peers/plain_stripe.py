"""stripe-python as it comes: its own retries, and for each call a key that it makes up.

"The library can be configured to automatically retry requests that fail due to an intermittent network problem", with
`max_network_retries`; "idempotency keys are added to requests to guarantee that retries are safe" (the README of
https://github.com/stripe/stripe-python, Automatic Retries). So it is, within one call: the key is not kept, and the
next delivery of the order makes up another.

The rest is what most shops have: look whether the order is done, charge, record. A decline is an answer; after any
other error the queue brings the order again.
"""

import contextlib
from collections.abc import Iterator
from datetime import timedelta

import stripe

from tests.peers.storm import AGAIN, DatabaseDown, Factory, Peer, Sky, Word, charge_now, word_of, word_of_decline


class PlainStripe(Peer):
    """Look, charge, record."""

    def __init__(self, sky: Sky) -> None:
        super().__init__(sky)
        self.stripe = sky.client(max_network_retries=2)

    def deliver(self, tries: int) -> timedelta | None:  # noqa: ARG002 - every delivery is alike.
        """Charge the order unless that was done."""
        try:
            if self.sky.table.word() is Word.UNKNOWN:
                self.sky.table.record(self.charge())
        except (stripe.StripeError, DatabaseDown):
            return AGAIN
        return None

    def charge(self) -> Word:
        """Charge, under whatever key the SDK makes up."""
        try:
            return word_of(self.stripe.v1.payment_intents.create(charge_now(self.sky)))
        except stripe.CardError as error:
            return word_of_decline(error)

    def word(self) -> Word:
        """Read the shop's table."""
        return self.sky.table.seen()


@contextlib.contextmanager
def ready() -> Iterator[Factory]:
    """Nothing has to be set up."""
    yield PlainStripe
