"""Keys for machines. Shown once, when they are made."""

from __future__ import annotations

import secrets

from fastapi import APIRouter, HTTPException
from pydantic import BaseModel

from examples.platform_api.auth import CurrentAdmin, CurrentCaller, StoreDep, require_same_organization
from examples.platform_api.store import ApiToken, Role, new_id

router = APIRouter(prefix="/tokens", tags=["tokens"])


class TokenCreate(BaseModel):
    """A new token. The name may repeat, and may be any text at all."""

    name: str
    role: Role = "member"


class TokenView(BaseModel):
    """A token, without its secret."""

    id: str
    name: str


class NewToken(TokenView):
    """A token with its secret: the only time that it is shown."""

    secret: str


@router.get("/")
async def list_tokens(caller: CurrentCaller, store: StoreDep) -> list[TokenView]:
    """List the tokens of the caller's organization."""
    mine = [token for token in store.tokens.values() if token.organization_id == caller.organization_id]
    return [TokenView(id=token.id, name=token.name) for token in mine]


@router.post("/", status_code=201)
async def create_token(body: TokenCreate, caller: CurrentAdmin, store: StoreDep) -> NewToken:
    """Make a token."""
    token = ApiToken(new_id("tok"), body.name, caller.organization_id, body.role, secrets.token_urlsafe(24))
    store.tokens[token.id] = token
    return NewToken(id=token.id, name=token.name, secret=token.secret)


@router.delete("/{token_id}", status_code=204)
async def revoke_token(token_id: str, caller: CurrentAdmin, store: StoreDep) -> None:
    """Revoke a token."""
    token = store.tokens.get(token_id)
    if token is None:
        raise HTTPException(404, "no such token")
    require_same_organization(caller, token.organization_id)
    del store.tokens[token_id]
