"""What the environment says, read once, with every fault named at once."""

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final, Self, TypeVar
from urllib.parse import urlsplit

from shared.erasure import RETENTION, SHORTEST_RETENTION

T = TypeVar("T")

_EVERY: Final = ("GOOGLE_CLOUD_PROJECT", "STRIPE_API_KEY", "TASKS_LOCATION", "CHARGE_URL")  # To move a charge forward.

NEEDS: Final[Mapping[str, tuple[str, ...]]] = {  # The variables without which a function cannot work.
    "charge": _EVERY,
    "webhook": (*_EVERY, "STRIPE_WEBHOOK_SECRETS"),
    "reconcile": _EVERY,
    "notify": ("GOOGLE_CLOUD_PROJECT", "STRIPE_API_KEY"),
    "portal": (*_EVERY, "PORTAL_URL"),
    "console": _EVERY,
}

_UNITS: Final = {"ms": "milliseconds", "s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


class SettingsError(Exception):
    """The environment lacks something, or holds what cannot be read. Names every such variable; shows no secret."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A deployment's environment. What is not set has its default here: empty or None where there is none."""

    project: str = ""  # GOOGLE_CLOUD_PROJECT
    database: str = ""  # DATASTORE_DATABASE; empty: the default one.
    datastore_emulator_host: str | None = None  # `host:port`; None in production.
    cloud_tasks_emulator_host: str | None = None  # Likewise.
    stripe_api_key: str = field(default="", repr=False)
    stripe_api_base: str | None = None  # None: Stripe's own.
    stripe_webhook_secrets: tuple[str, ...] = field(default=(), repr=False)
    tasks_location: str = ""
    charge_queue: str = "charges"
    charge_url: str = ""
    notify_queue: str = "notices"
    notify_url: str | None = None  # None: nobody is told anything.
    portal_url: str | None = None  # None: no customer's page.
    smtp_url: str | None = field(default=None, repr=False)  # `smtp://user:password@host:587`; None: no mail.
    mail_from: str = ""
    operator_email: str = ""
    outcome_url: str | None = None  # None: the caller's system is not told.
    signing_secrets: tuple[str, ...] = field(default=(), repr=False)  # The first signs, all verify.
    retry_schedule: tuple[timedelta, ...] = (timedelta(days=1), timedelta(days=3), timedelta(days=5), timedelta(days=7))
    tasks_invoker: str | None = None  # None: tasks carry no OIDC token.
    lease: timedelta = timedelta(seconds=90)
    quarantine: timedelta = timedelta(minutes=15)
    stripe_timeout: timedelta = timedelta(seconds=30)
    ledger_generation: int = 1
    retention: timedelta = RETENTION  # After it what is personal in an ended charge is erased.
    otlp_endpoint: str | None = None  # OTEL_EXPORTER_OTLP_ENDPOINT; None: no traces and no metrics.

    @classmethod
    def from_environment(cls, environ: Mapping[str, str], *, function: str | None = None) -> Self:
        """Read the environment; spaces and newlines around a value, as secrets often have them, do not count.

        function: what it needs must be there (`NEEDS`). Raises SettingsError with all that is missing or unreadable.
        """
        reader = _Reader(environ)
        settings = cls(
            project=reader.read("GOOGLE_CLOUD_PROJECT", str, cls.project),
            database=reader.read("DATASTORE_DATABASE", str, cls.database),
            datastore_emulator_host=reader.read("DATASTORE_EMULATOR_HOST", _host, None),
            cloud_tasks_emulator_host=reader.read("CLOUD_TASKS_EMULATOR_HOST", _host, None),
            stripe_api_key=reader.read("STRIPE_API_KEY", _api_key, ""),
            stripe_api_base=reader.read("STRIPE_API_BASE", _url, None),
            stripe_webhook_secrets=reader.read("STRIPE_WEBHOOK_SECRETS", _secrets, ()),
            tasks_location=reader.read("TASKS_LOCATION", str, cls.tasks_location),
            charge_queue=reader.read("CHARGE_QUEUE", str, cls.charge_queue),
            charge_url=reader.read("CHARGE_URL", _url, cls.charge_url),
            notify_queue=reader.read("NOTIFY_QUEUE", str, cls.notify_queue),
            notify_url=reader.read("NOTIFY_URL", _url, None),
            portal_url=reader.read("PORTAL_URL", _url, None),
            smtp_url=reader.read("SMTP_URL", _smtp, None),
            mail_from=reader.read("MAIL_FROM", _address, cls.mail_from),
            operator_email=reader.read("OPERATOR_EMAIL", _address, cls.operator_email),
            outcome_url=reader.read("OUTCOME_URL", _outcome_url, None),
            signing_secrets=reader.read("SIGNING_SECRETS", _secrets, ()),
            retry_schedule=reader.read("RETRY_SCHEDULE", _schedule, cls.retry_schedule),
            tasks_invoker=reader.read("TASKS_INVOKER", str, None),
            lease=reader.read("LEASE", duration, cls.lease),
            quarantine=reader.read("QUARANTINE", duration, cls.quarantine),
            stripe_timeout=reader.read("STRIPE_TIMEOUT", duration, cls.stripe_timeout),
            ledger_generation=reader.read("LEDGER_GENERATION", _generation, cls.ledger_generation),
            retention=reader.read("RETENTION", _retention, cls.retention),
            otlp_endpoint=reader.read("OTEL_EXPORTER_OTLP_ENDPOINT", _url, None),
        )
        needs_sender = ("MAIL_FROM",) if function == "notify" and settings.smtp_url else ()
        reader.require((*NEEDS[function], *needs_sender) if function else ())
        return settings


def duration(text: str) -> timedelta:
    """Read `250ms`, `90s`, `5m`, `1h` or `2d`. Raises ValueError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", text, re.ASCII)
    try:
        read = timedelta(**{_UNITS[match[2]]: float(match[1])}) if match else timedelta()
    except OverflowError:
        read = timedelta()
    if not read:
        raise ValueError(f"write a duration such as 250ms, 90s, 5m, 1h or 2d, not {text!r}")
    return read


def is_loopback(host: str) -> bool:
    """Say whether a host name or address means this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Reader:
    """Reads variables and keeps the faults until they can be told together."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._faults: list[str] = []

    def read(self, name: str, parse: Callable[[str], T], default: T) -> T:
        """Read one variable. One that is set to nothing is not set."""
        text = self._text(name)
        if not text:
            return default
        try:
            return parse(text)
        except ValueError as fault:
            self._faults.append(f"{name}: {fault}")
            return default

    def require(self, names: tuple[str, ...]) -> None:
        """Raise SettingsError if one of these is not set, or if anything was wrong."""
        faults = [*self._faults, *(f"{name}: set it" for name in names if not self._text(name))]
        if faults:
            raise SettingsError("; ".join(faults))

    def _text(self, name: str) -> str:
        return self._environ.get(name, "").strip()


def _url(text: str) -> str:
    if not re.fullmatch(r"https?://[^/\s]+(/\S*)?", text):
        raise ValueError(f"write an address such as https://example.com, not {text!r}")
    return text.rstrip("/")


def _outcome_url(text: str) -> str:
    parts = urlsplit(_url(text))
    if parts.scheme != "https" and not is_loopback(parts.hostname or ""):
        raise ValueError("write https://...: what is told there is nobody else's business")
    return text


def _host(text: str) -> str:
    if not re.fullmatch(r"\S+:\d{1,5}", text, re.ASCII) or "//" in text:
        raise ValueError(f"write host:port, such as 127.0.0.1:8081, not {text!r}")
    return text


def _api_key(text: str) -> str:
    if not re.fullmatch(r"(sk|rk)_\w+", text, re.ASCII):
        raise ValueError(
            "write a secret key (sk_...) or a restricted one (rk_...), and nothing else"
        )  # Never the text.
    return text


def _secrets(text: str) -> tuple[str, ...]:
    return tuple(secret for secret in (part.strip() for part in text.split(",")) if secret)


def _smtp(text: str) -> str:
    if not re.fullmatch(r"smtps?://\S+", text):
        raise ValueError("write smtp://user:password@host:587, or smtps://... for TLS at once")  # Never the text.
    return text


def _address(text: str) -> str:
    if not re.fullmatch(r"[^@]*[^@\s]@[^@\s]+", text):
        raise ValueError(f"write a mail address, not {text!r}")
    return text


def _schedule(text: str) -> tuple[timedelta, ...]:
    return tuple(duration(part.strip()) for part in text.split(","))


def _retention(text: str) -> timedelta:
    read = duration(text)
    if read < SHORTEST_RETENTION:
        raise ValueError(f"write {SHORTEST_RETENTION.days}d or more, not {text!r}: so long it may be disputed")
    return read


def _generation(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,8}", text, re.ASCII):
        raise ValueError(f"write a whole number from 1 on, not {text!r}")
    return int(text)
