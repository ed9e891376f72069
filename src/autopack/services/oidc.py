"""Who calls by a token of an OpenID Connect issuer. (docs/security.md)"""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Final
from urllib.parse import urlsplit

import jwt
import structlog

from ..domain.access import Caller
from ..domain.errors import UnavailableError
from ..domain.limits import CallerLimits
from ..domain.oidc import (
    MAX_SUBJECT,
    RoleClaims,
    TokenAlgorithmError,
    TokenAudienceError,
    TokenExpiredError,
    TokenIssuerError,
    TokenKeyUnknownError,
    TokenRefusedError,
    TokenSignatureError,
    TokenTooEarlyError,
    roles_by_claims,
)

logger = structlog.get_logger(__name__)

# Signatures by a private key alone: `none`, and a secret that both sides know, prove nothing here.
ALGORITHMS: Final = ("RS256", "RS384", "RS512", "ES256", "ES384", "PS256")
LEEWAY_SECONDS: Final = 30
KEYS_SECONDS: Final = 3_600.0
# An unknown key id may be a new key of the issuer, or a forgery: it is asked for this often.
UNKNOWN_SECONDS: Final = 60.0
FETCH_SECONDS: Final = 5
MAX_DOCUMENT_BYTES: Final = 1_000_000
_REQUIRED: Final = ["exp", "iat", "aud", "iss", "sub"]


class IssuerAwayError(UnavailableError):
    code = "oidc_issuer_away"


@dataclass(slots=True)
class IssuerKeys:
    """The public keys of an issuer, fetched when they are needed. Any thread may ask."""

    issuer: str
    clock: Callable[[], float] = time.monotonic
    _keys: dict[str, jwt.PyJWK] = field(default_factory=dict)
    _fetched_at: float | None = None
    _tried_at: float | None = None
    _fetching: Lock = field(default_factory=Lock)

    def find(self, key_id: str) -> jwt.PyJWK:
        """Return a key by its id. Raises TokenKeyUnknownError, IssuerAwayError."""
        with self._fetching:
            now = self.clock()
            is_old = self._fetched_at is None or now - self._fetched_at > KEYS_SECONDS
            may_ask = self._tried_at is None or now - self._tried_at >= UNKNOWN_SECONDS
            if (is_old or key_id not in self._keys) and may_ask:
                self._tried_at = now
                self._fetch(now)
            if self._fetched_at is None:
                raise IssuerAwayError(f"the keys of {self.issuer} cannot be read now; try again")
            if key_id not in self._keys:
                raise TokenKeyUnknownError(f"{self.issuer} has no key {key_id[:80]!r}")
            return self._keys[key_id]

    def _fetch(self, now: float) -> None:
        """Read the keys anew; those of before stay where the issuer does not answer."""
        try:
            about = _document(f"{self.issuer.rstrip('/')}/.well-known/openid-configuration")
            place = str(about["jwks_uri"])
            if urlsplit(place).scheme != urlsplit(self.issuer).scheme:
                raise ValueError("jwks_uri has another scheme than the issuer")
            found = [each for each in _document(place)["keys"] if "kid" in each]
            keys = {
                str(each["kid"]): jwt.PyJWK(each)
                for each in found
                if each.get("use", "sig") == "sig" and each.get("kty") in ("RSA", "EC")
            }
        except (OSError, ValueError, KeyError, TypeError, jwt.PyJWTError) as error:
            logger.warning("oidc_keys_not_read", issuer=self.issuer, why=type(error).__name__)
            return
        self._keys, self._fetched_at = keys, now


@dataclass(frozen=True, slots=True)
class TokenVerifier:
    """Verifies tokens of one issuer for one audience.

    By their claims it gives them one project, and roles in it.
    """

    issuer: str
    audience: str
    claims: Mapping[str, RoleClaims]  # by project, the default one first
    limits: CallerLimits
    keys: IssuerKeys

    def verify(self, token: str, named: str | None) -> tuple[Caller, float]:
        """Return who calls by a token, and until when, in seconds since 1970.

        `named` is the project of the request's path.

        Raises a TokenRefusedError that names what is wrong, IssuerAwayError.
        """
        try:
            header = jwt.get_unverified_header(token)
        except jwt.PyJWTError:
            raise TokenRefusedError("the token cannot be read") from None
        algorithm, key_id = header.get("alg"), header.get("kid")
        if algorithm not in ALGORITHMS:
            raise TokenAlgorithmError(
                f"the token is signed by {str(algorithm)[:20]!r}; accepted are "
                f"{', '.join(ALGORITHMS)}"
            )
        if not isinstance(key_id, str):
            raise TokenKeyUnknownError("the token names no key")
        claims = self._claims(token, algorithm, self.keys.find(key_id))
        subject = claims["sub"]
        if not (
            isinstance(subject, str) and subject.isprintable() and 0 < len(subject) <= MAX_SUBJECT
        ):
            raise TokenRefusedError("the token's subject is no short printable text")
        project, roles = roles_by_claims(self.claims, claims, named)
        caller = Caller(roles=roles, subject=subject, project_id=project, limits=self.limits)
        return caller, float(claims["exp"])

    def _claims(self, token: str, algorithm: str, key: jwt.PyJWK) -> Mapping[str, Any]:
        try:
            return jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=self.audience,
                issuer=self.issuer,
                leeway=LEEWAY_SECONDS,
                options={"require": _REQUIRED},
            )
        except jwt.ExpiredSignatureError:
            raise TokenExpiredError("the token has expired") from None
        except jwt.ImmatureSignatureError:
            raise TokenTooEarlyError("the token is of a time to come") from None
        except jwt.InvalidIssuerError:
            raise TokenIssuerError(f"the token is not of {self.issuer}") from None
        except jwt.InvalidAudienceError:
            raise TokenAudienceError(
                f"the token is not for the audience {self.audience!r}"
            ) from None
        except jwt.MissingRequiredClaimError as error:
            raise TokenRefusedError(f"the token lacks its claim '{error.claim}'") from None
        except jwt.InvalidSignatureError:
            raise TokenSignatureError("the token's signature is wrong") from None
        except (jwt.PyJWTError, TypeError, ValueError):
            raise TokenRefusedError("the token cannot be verified") from None


def _document(address: str) -> dict[str, Any]:
    """Read a JSON object. Raises OSError, ValueError."""
    request = urllib.request.Request(address)  # noqa: S310 - http or https, as the settings check
    with urllib.request.urlopen(request, timeout=FETCH_SECONDS) as answer:  # noqa: S310 - as above
        document = json.loads(answer.read(MAX_DOCUMENT_BYTES))
    if not isinstance(document, dict):
        raise ValueError("not a JSON object")
    return document
