"""Log in, stay logged in, and change one's own account.

No auth dependency runs on the way to a login: the handler itself tells the audit trail who it was, or who it claimed to
be. That the action is a LOGIN, and not the CREATE that POST suggests, stands in ``policy.yaml``.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException
from fastapi.responses import RedirectResponse
from fastapi.security import OAuth2PasswordRequestForm
from pydantic import BaseModel

import tron_audit_otel as audit
from examples.platform_api.auth import LegacyCaller, StoreDep, open_session
from examples.platform_api.store import Store, User, hash_password

router = APIRouter(prefix="/auth", tags=["auth"])

# What an identity provider would answer for the code of a login: a toy's.
_SSO_CODES = {"code-of-alice": "alice@example.com"}


class Login(BaseModel):
    """What a person types to log in."""

    email: str
    password: str


class Refresh(BaseModel):
    """What a client sends to stay logged in."""

    refresh_token: str


class Session(BaseModel):
    """What a client gets for either."""

    access_token: str
    refresh_token: str
    token_type: str = "bearer"  # noqa: S105 - OAuth's word for the kind of token


class Profile(BaseModel):
    """A user, as the API shows it."""

    id: str
    email: str


class ProfileChange(BaseModel):
    """What a user may change about the own account."""

    email: str


def _log_in(store: Store, email: str, password: str) -> Session:
    user = store.user_by_email(email)
    if user is None or user.password_hash != hash_password(password):
        # Nobody was authenticated, so this is nobody's action; but whose account was tried is worth a search.
        audit.claim_actor(email)
        raise HTTPException(401, "wrong e-mail or password")
    audit.set_actor(user.email, type="user")
    return _new_session(store, user)


def _new_session(store: Store, user: User) -> Session:
    return Session(access_token=open_session(store, user), refresh_token=open_session(store, user))


@router.post("/login")
async def log_in(login: Login, store: StoreDep) -> Session:
    """Log in with JSON."""
    return _log_in(store, login.email, login.password)


@router.post("/login/form")
def log_in_by_form(form: Annotated[OAuth2PasswordRequestForm, Depends()], store: StoreDep) -> Session:
    """Log in with an OAuth2 form. A plain ``def``: it runs in a thread, and the record is right all the same."""
    return _log_in(store, form.username, form.password)


@router.post("/refresh")
async def refresh(refresh: Refresh, store: StoreDep) -> Session:
    """Exchange a refresh token for a new session."""
    user_id = store.sessions.pop(refresh.refresh_token, None)
    if user_id is None:
        raise HTTPException(401, "unknown refresh token")
    user = store.users[user_id]
    audit.set_actor(user.email, type="user")
    return _new_session(store, user)


@router.get("/sso/callback")
async def sso_callback(code: str, state: str, store: StoreDep) -> RedirectResponse:
    """Take the user whom the identity provider sends back, and redirect to the portal."""
    del state  # a real API compares it with the one that it gave out
    user = store.user_by_email(_SSO_CODES.get(code, ""))
    if user is None:
        raise HTTPException(401, "unknown code")
    audit.set_actor(user.email, type="user")
    response = RedirectResponse("/portal", status_code=302)
    response.set_cookie("session", open_session(store, user), httponly=True)
    return response


@router.get("/me")
async def get_profile(caller: LegacyCaller) -> Profile:
    """Show the caller's own account."""
    return _profile(_require_user(caller.user))


@router.put("/me")
async def change_profile(change: ProfileChange, caller: LegacyCaller) -> Profile:
    """Change the caller's own e-mail. The record names the actor as authenticated: with the e-mail of before."""
    user = _require_user(caller.user)
    user.email = change.email
    return _profile(user)


def _require_user(user: User | None) -> User:
    if user is None:
        raise HTTPException(403, "API tokens have no profile")
    return user


def _profile(user: User) -> Profile:
    return Profile(id=user.id, email=user.email)
