"""stripe-python with a key that belongs to the order, and a 5xx taken as failure.

Stripe advises a key that outlives the call: it "recognizes subsequent retries of the same request"
(https://docs.stripe.com/api/idempotent_requests), and after a connection error the same key is to be sent again
(https://docs.stripe.com/error-low-level, Network errors): both are done here. That the result of a 500 is to be treated
as indeterminate stands on the same page (Server errors); many a handler reads `APIError` as "it did not work" all the
same, and that is what is measured here. The rest is as in `plain_stripe.py`.
"""

import contextlib
from collections.abc import Iterator

import stripe

from tests.peers.plain_stripe import PlainStripe
from tests.peers.storm import Factory, Word, charge_now, word_of, word_of_decline


class StoredKey(PlainStripe):
    """Look, charge under the order's key, record."""

    def charge(self) -> Word:
        """Charge under the order's key; 5xx after the SDK's own retries: it failed."""
        key = f"charge-{self.order.number}"
        try:
            return word_of(self.stripe.v1.payment_intents.create(charge_now(self.sky), {"idempotency_key": key}))
        except stripe.CardError as error:
            return word_of_decline(error)
        except stripe.APIError as error:
            if error.http_status is not None and error.http_status >= 500:
                return Word.FAILED
            raise  # A 409: the twin is at it.


@contextlib.contextmanager
def ready() -> Iterator[Factory]:
    """Nothing has to be set up."""
    yield StoredKey
