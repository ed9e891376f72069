"""Tokens of an OpenID Connect issuer, such as GitHub Actions, in place of a stored key.

A token proves claims: repository, ref, workflow. The operator's table says which claims a role
needs. No token makes an operator: policy and keys are for people with a key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final

from pydantic import AfterValidator, Field

from .access import AccessRole
from .errors import AutopackError, ErrorKind

MAX_SUBJECT: Final = 255


class TokenRefusedError(AutopackError):
    """A token that is not accepted; the code says why."""

    kind: ClassVar[ErrorKind] = ErrorKind.UNAUTHORIZED
    code = "token_malformed"


class TokenAlgorithmError(TokenRefusedError):
    code = "token_wrong_algorithm"


class TokenKeyUnknownError(TokenRefusedError):
    code = "token_unknown_key"


class TokenSignatureError(TokenRefusedError):
    code = "token_wrong_signature"


class TokenIssuerError(TokenRefusedError):
    code = "token_wrong_issuer"


class TokenAudienceError(TokenRefusedError):
    code = "token_wrong_audience"


class TokenExpiredError(TokenRefusedError):
    code = "token_expired"


class TokenTooEarlyError(TokenRefusedError):
    code = "token_not_valid_yet"


class TokenClaimsError(TokenRefusedError):
    code = "token_wrong_claims"


def _not_operator(role: AccessRole) -> AccessRole:
    if role is AccessRole.OPERATOR:
        raise ValueError("no token may be an operator: use a key")
    return role


# The whole value, or its beginning if the pattern ends in `*`; a lone `*` would be no condition.
_Pattern = Annotated[str, Field(min_length=2, max_length=500)]
Conditions = Annotated[Mapping[str, _Pattern], Field(min_length=1)]
RoleClaims = Mapping[Annotated[AccessRole, AfterValidator(_not_operator)], Conditions]


def roles_by_claims(table: RoleClaims, claims: Mapping[str, Any]) -> frozenset[AccessRole]:
    """Return the roles whose conditions a token meets. Raises TokenClaimsError that names one."""
    roles, missed = [], ""
    for role, conditions in table.items():
        wrong = next(
            (name for name, pattern in conditions.items() if not _meets(pattern, claims.get(name))),
            None,
        )
        if wrong is None:
            roles.append(role)
        else:
            missed = missed or f"for the role {role} its claim '{wrong}' does not match"
    if not roles:
        raise TokenClaimsError(f"the token gives no role: {missed} AUTOPACK_OIDC_CLAIMS")
    return frozenset(roles)


def _meets(pattern: str, value: object) -> bool:
    if not isinstance(value, str):
        return False
    if pattern.endswith("*"):
        return value.startswith(pattern[:-1])
    return value == pattern
