"""Who is calling — and the one line with which an auth dependency tells the audit trail.

There are two ways to tell it, and this API shows both:

- ``current_caller`` uses ``audit.set_actor``. It can say that a token is a token, by its id. Use this one.
- ``legacy_caller`` sets ``request.state.audit_actor``, as applications do that were written before this library. They
  work unchanged.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Annotated, Final

from fastapi import Depends, HTTPException
from starlette.requests import HTTPConnection

import tron_audit_otel as audit
from examples.platform_api.store import ApiToken, Role, Store, User

API_TOKEN_HEADER: Final = "X-Api-Token"  # noqa: S105 - the name of a header, not a token


@dataclass(frozen=True)
class Caller:
    """Whoever was authenticated: a person or a machine."""

    organization_id: str
    role: Role
    user: User | None = None
    token: ApiToken | None = None


# HTTPConnection is what requests and WebSockets have in common, so that one dependency serves both.
def get_store(connection: HTTPConnection) -> Store:
    """Return the application's store."""
    store: Store = connection.app.state.store
    return store


StoreDep = Annotated[Store, Depends(get_store)]


def open_session(store: Store, user: User) -> str:
    """Return a new secret that stands for ``user``."""
    session = secrets.token_urlsafe(24)
    store.sessions[session] = user.id
    return session


def _authenticate(connection: HTTPConnection, store: Store) -> Caller:
    secret = connection.headers.get(API_TOKEN_HEADER)
    if secret is not None:
        token = store.token_by_secret(secret)
        if token is None:
            raise HTTPException(401, "unknown API token")
        return Caller(token.organization_id, token.role, token=token)
    scheme, _, session = connection.headers.get("Authorization", "").partition(" ")
    user = store.users.get(store.sessions.get(session, "")) if scheme.lower() == "bearer" else None
    if user is None:
        raise HTTPException(401, "log in first")
    return Caller(user.organization_id, user.role, user=user)


async def current_caller(connection: HTTPConnection, store: StoreDep) -> Caller:
    """Authenticate, and name the actor of the audit record: the better way."""
    caller = _authenticate(connection, store)
    if caller.user is not None:
        audit.set_actor(caller.user.email, type="user")
    elif caller.token is not None:
        # The id, not the name: two tokens may be called "ci", and one of them like a colleague.
        audit.set_actor(caller.token.id, type="token")
    return caller


async def legacy_caller(connection: HTTPConnection, store: StoreDep) -> Caller:
    """Authenticate, and name the actor as the original pull request did."""
    caller = _authenticate(connection, store)
    if caller.user is not None:
        connection.state.audit_actor = caller.user.email
    elif caller.token is not None:
        connection.state.audit_actor = f"token:{caller.token.name}"
    return caller


CurrentCaller = Annotated[Caller, Depends(current_caller)]
LegacyCaller = Annotated[Caller, Depends(legacy_caller)]


async def current_admin(caller: CurrentCaller) -> Caller:
    """Let administrators pass; 403 for everybody else."""
    return _require_admin(caller)


async def legacy_admin(caller: LegacyCaller) -> Caller:
    """Let administrators pass, for the routers that still use ``legacy_caller``."""
    return _require_admin(caller)


def _require_admin(caller: Caller) -> Caller:
    if caller.role != "admin":
        raise HTTPException(403, "only an administrator may do this")
    return caller


CurrentAdmin = Annotated[Caller, Depends(current_admin)]
LegacyAdmin = Annotated[Caller, Depends(legacy_admin)]


def require_same_organization(caller: Caller, organization_id: str) -> None:
    """Keep tenants apart: 403 for what belongs to another organization."""
    if caller.organization_id != organization_id:
        raise HTTPException(403, "this belongs to another organization")
