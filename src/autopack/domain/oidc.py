"""Tokens of an OpenID Connect issuer, such as GitHub Actions, in place of a stored key.

A token proves claims: repository, ref, workflow. The operator's tables say which claims a role of a
project needs. No token makes an operator: policy and keys are for people with a key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final

from pydantic import AfterValidator, Field

from .access import AccessRole
from .errors import AutopackError, ErrorKind
from .values import Identifier

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


ProjectClaims = Mapping[Identifier, Annotated[RoleClaims, Field(min_length=1)]]


def roles_by_claims(
    tables: Mapping[str, RoleClaims], claims: Mapping[str, Any], named: str | None
) -> tuple[str, frozenset[AccessRole]]:
    """Return the one project that a token is for, and the roles whose conditions it meets there.

    Where it meets the conditions of several, it is for the one that the request names, else for
    the first one. Raises TokenClaimsError that names a condition of the first.
    """
    found: dict[str, frozenset[AccessRole]] = {}
    missed = ""
    for project, table in tables.items():
        roles = []
        for role, conditions in table.items():
            wrong = next(
                (name for name in conditions if not _meets(conditions, claims, name)), None
            )
            if wrong is None:
                roles.append(role)
            else:
                missed = missed or f"for the role {role} its claim '{wrong}' does not match"
        if roles:
            found[project] = frozenset(roles)
    if not found:
        raise TokenClaimsError(f"the token gives no role: {missed} AUTOPACK_OIDC_CLAIMS")
    project = named if named in found else next(iter(found))
    return project, found[project]


def _meets(conditions: Conditions, claims: Mapping[str, Any], name: str) -> bool:
    pattern, value = conditions[name], claims.get(name)
    if not isinstance(value, str):
        return False
    if pattern.endswith("*"):
        return value.startswith(pattern[:-1])
    return value == pattern
