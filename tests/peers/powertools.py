"""AWS Lambda Powertools: the function that charges is idempotent, its records in DynamoDB (moto's).

Done as https://docs.powertools.aws.dev/lambda/python/latest/utilities/idempotency/ says: `idempotent_function` around
what has the effect, keyed by the one field that makes a payment unique (Choosing a payload subset); records that live
longer than the queue brings an order (Adjusting expiration window: one hour is only the default); the Lambda context
registered, so that the record of an invocation that died gives way when its time is over (Lambda timeouts). An
exception deletes the record and the queue brings the order again, so a decline is returned, not raised (Handling
exceptions). Towards Stripe the page says nothing; the order's key goes along, as Stripe advises.

Powertools takes the time from `datetime.now`: its modules get the storm's.
"""

import contextlib
import datetime as dt
import types
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, Final
from unittest import mock

import boto3  # type: ignore[import-untyped]
import stripe
from aws_lambda_powertools.utilities.idempotency import (
    DynamoDBPersistenceLayer,
    IdempotencyConfig,
    base,
    idempotent_function,
)
from aws_lambda_powertools.utilities.idempotency.exceptions import (
    IdempotencyAlreadyInProgressError,
    IdempotencyInconsistentStateError,
    IdempotencyPersistenceLayerError,
)
from aws_lambda_powertools.utilities.idempotency.persistence import base as persistence
from aws_lambda_powertools.utilities.idempotency.persistence import datarecord, dynamodb
from botocore.exceptions import ClientError, EndpointConnectionError  # type: ignore[import-untyped]
from moto import mock_aws

from tests.peers.storm import (
    AGAIN,
    QUEUE_KEEPS,
    DatabaseDown,
    Factory,
    Peer,
    Sky,
    Word,
    charge_now,
    word_of,
    word_of_decline,
)

TABLE: Final = "idempotency"
RECORDS_LIVE: Final = QUEUE_KEEPS + timedelta(days=4)  # Longer than any delivery of an order can come.
LAMBDA_TIMEOUT: Final = timedelta(seconds=60)


class Powertools(Peer):
    """Charge by an idempotent function, record what it returns."""

    def __init__(self, sky: Sky, dynamodb_client: Any) -> None:
        super().__init__(sky)
        self.stripe = sky.client(max_network_retries=2)
        self.config = IdempotencyConfig(
            event_key_jmespath="number", expires_after_seconds=int(RECORDS_LIVE.total_seconds())
        )
        table = DynamoDBPersistenceLayer(table_name=TABLE, boto3_client=_Crossed(sky, dynamodb_client))
        once = idempotent_function(data_keyword_argument="order", config=self.config, persistence_store=table)
        self.charge: Callable[..., dict[str, str]] = once(self._charge)

    def deliver(self, tries: int) -> timedelta | None:  # noqa: ARG002 - every delivery is alike.
        """Handle one invocation of the Lambda function."""
        self.config.register_lambda_context(_Context(self.sky))  # type: ignore[arg-type]  # As much of it as is read.
        try:
            if self.sky.table.word() is Word.UNKNOWN:
                self.sky.table.record(Word(self.charge(order={"number": self.order.number})["word"]))
        except (
            stripe.StripeError,
            DatabaseDown,
            IdempotencyAlreadyInProgressError,
            IdempotencyInconsistentStateError,
            IdempotencyPersistenceLayerError,
        ):
            return AGAIN
        return None

    def _charge(self, order: dict[str, str]) -> dict[str, str]:
        key = f"charge-{order['number']}"
        try:
            intent = self.stripe.v1.payment_intents.create(charge_now(self.sky), {"idempotency_key": key})
        except stripe.CardError as error:
            return {"word": word_of_decline(error)}
        return {"word": word_of(intent)}

    def word(self) -> Word:
        """Read the shop's table."""
        return self.sky.table.seen()


class _Context:
    """As much of a Lambda context as Powertools reads."""

    def __init__(self, sky: Sky) -> None:
        self._clock, self._ends = sky.clock, sky.clock.now() + LAMBDA_TIMEOUT

    def get_remaining_time_in_millis(self) -> int:
        """Return how long the invocation may still run."""
        return int((self._ends - self._clock.now()).total_seconds() * 1000)


class _Crossed:
    """DynamoDB's client, whose calls meet the storm's faults; boto3's own retries have been used up by then."""

    def __init__(self, sky: Sky, client: Any) -> None:
        self._sky, self._client = sky, client

    def __getattr__(self, name: str) -> Callable[..., Any]:
        cross = self._sky.read if name == "get_item" else self._sky.write
        down = EndpointConnectionError(endpoint_url="https://dynamodb.us-east-1.amazonaws.com")

        def call(**arguments: Any) -> Any:
            """Make the call; that a condition does not hold is an answer, not a failure."""
            answer = cross(lambda: _tried(lambda: getattr(self._client, name)(**arguments)), lambda: down)
            if isinstance(answer, ClientError):
                raise answer
            return answer

        return call


def _tried(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except ClientError as refused:
        return refused


class _Now(dt.datetime):
    """A datetime whose now is the storm's."""

    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> "_Now":
        """Return the time of the order being charged."""
        return cls.fromtimestamp(Sky.here.clock.now().timestamp(), tz or dt.UTC)


@contextlib.contextmanager
def ready() -> Iterator[Factory]:
    """Start moto, make the table, and give Powertools the storm's time."""
    clock = types.SimpleNamespace(datetime=_Now, timedelta=timedelta, timezone=dt.timezone)
    with mock_aws(), contextlib.ExitStack() as stack:
        for module in (base, persistence, datarecord, dynamodb):
            stack.enter_context(mock.patch.object(module, "dt", clock, create=True))
        client = boto3.client("dynamodb", region_name="us-east-1")
        client.create_table(
            TableName=TABLE,
            KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
        )
        yield lambda sky: Powertools(sky, client)
