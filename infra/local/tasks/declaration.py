"""A queue in one line, as the command line has it: `projects/P/locations/L/queues/Q,max_attempts=5,min_backoff=0.5`."""

from datetime import timedelta
from typing import Final

from google.protobuf.field_mask_pb2 import FieldMask

from infra.local.tasks.messages import Queue, QueueMessage

OPTIONS: Final = {
    "max_dispatches_per_second": "rate_limits",
    "max_concurrent_dispatches": "rate_limits",
    "max_attempts": "retry_config",
    "max_retry_duration": "retry_config",
    "min_backoff": "retry_config",
    "max_backoff": "retry_config",
    "max_doublings": "retry_config",
}
"""What may be said of a queue, and the message that it is a field of. Durations are in seconds."""

DURATIONS: Final = ("max_retry_duration", "min_backoff", "max_backoff")


def parse_queue(text: str) -> tuple[QueueMessage, FieldMask]:
    """Return the queue that `NAME[,OPTION=VALUE...]` means, and the mask of what it says. Raises ValueError."""
    name, *options = text.split(",")
    queue, mask = Queue(name=name), FieldMask()
    for option in options:
        field, separator, value = option.partition("=")
        if not separator or field not in OPTIONS:
            raise ValueError(f"{option!r} is not of the form OPTION=VALUE with an option of {', '.join(OPTIONS)}")
        message = getattr(queue, OPTIONS[field])
        mask.paths.append(f"{OPTIONS[field]}.{field}")
        if field in DURATIONS:
            getattr(message, field).FromTimedelta(timedelta(seconds=float(value.removesuffix("s"))))
        elif field == "max_dispatches_per_second":
            message.max_dispatches_per_second = float(value)
        else:
            setattr(message, field, int(value))
    return queue, mask
