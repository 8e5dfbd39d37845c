"""OIDC tokens that verify: a signing key of our own, kept in the database, and its public half for whoever checks."""

import base64
import hashlib
from datetime import datetime, timedelta
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.auth import crypt
from google.auth import jwt as google_jwt

from infra.local.tasks.engine import Engine

ISSUER: Final = "https://accounts.google.com"  # What Google's own verifiers insist on.
TOKEN_LIFETIME: Final = timedelta(hours=1)
KEY_BITS: Final = 2048


class Identity:
    """Signs tokens as Google would, with a key that lasts as long as the database."""

    def __init__(self, engine: Engine) -> None:
        pem = engine.key("oidc_signing_key", _new_key)
        key = serialization.load_pem_private_key(pem, password=None)
        assert isinstance(key, rsa.RSAPrivateKey)
        self._public_key = key.public_key()
        self._public_pem = self._public_key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        self._key_id = hashlib.sha256(self._public_pem).hexdigest()[:40]
        self._signer = crypt.RSASigner(key, self._key_id)  # type: ignore[no-untyped-call]

    def token(self, *, email: str, audience: str, now: datetime) -> str:
        """Return a signed ID token of a service account for an audience."""
        issued_at = int(now.timestamp())
        # A service account's numeric id: made up, and always the same.
        subject = str(int.from_bytes(hashlib.sha256(email.encode()).digest()[:8]))
        claims = {
            "aud": audience,
            "azp": subject,
            "email": email,
            "email_verified": True,
            "exp": issued_at + int(TOKEN_LIFETIME.total_seconds()),
            "iat": issued_at,
            "iss": ISSUER,
            "sub": subject,
        }
        encoded: bytes = google_jwt.encode(self._signer, claims)  # type: ignore[no-untyped-call]
        return encoded.decode("ascii")

    def certificates(self) -> dict[str, str]:
        """Return the public key as PEM by key id: what google-auth takes as `certs_url`."""
        return {self._key_id: self._public_pem.decode("ascii")}

    def key_set(self) -> dict[str, list[dict[str, str]]]:
        """Return the public key as a JSON Web Key Set (RFC 7517)."""
        numbers = self._public_key.public_numbers()
        return {
            "keys": [
                {
                    "kty": "RSA",
                    "alg": "RS256",
                    "use": "sig",
                    "kid": self._key_id,
                    "n": _base64url(numbers.n),
                    "e": _base64url(numbers.e),
                }
            ]
        }


def _new_key() -> bytes:
    return rsa.generate_private_key(public_exponent=65537, key_size=KEY_BITS).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _base64url(number: int) -> str:
    octets = number.to_bytes((number.bit_length() + 7) // 8)
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode("ascii")
