"""The people of an organization."""

from __future__ import annotations

from fastapi import APIRouter, HTTPException
from pydantic import BaseModel

from examples.platform_api.auth import CurrentAdmin, CurrentCaller, StoreDep, require_same_organization
from examples.platform_api.store import Role, Store, User, hash_password, new_id

router = APIRouter(prefix="/users", tags=["users"])


class UserCreate(BaseModel):
    """A new user. The password is in the body, and therefore bodies are not in records."""

    email: str
    password: str
    role: Role = "member"


class UserView(BaseModel):
    """A user, as the API shows it."""

    id: str
    email: str
    role: Role


def _view(user: User) -> UserView:
    return UserView(id=user.id, email=user.email, role=user.role)


def _find(store: Store, user_id: str) -> User:
    user = store.users.get(user_id)
    if user is None:
        raise HTTPException(404, "no such user")
    return user


@router.get("/")
async def list_users(caller: CurrentCaller, store: StoreDep) -> list[UserView]:
    """List the users of the caller's organization."""
    return [_view(user) for user in store.users.values() if user.organization_id == caller.organization_id]


@router.post("/", status_code=201)
def create_user(body: UserCreate, caller: CurrentAdmin, store: StoreDep) -> UserView:
    """Add a user to the caller's organization."""
    if store.user_by_email(body.email) is not None:
        raise HTTPException(409, "this e-mail is taken")
    user = User(new_id("user"), body.email, caller.organization_id, body.role, hash_password(body.password))
    store.users[user.id] = user
    return _view(user)


@router.get("/{user_id}")
async def get_user(user_id: str, caller: CurrentCaller, store: StoreDep) -> UserView:
    """Show one user."""
    user = _find(store, user_id)
    require_same_organization(caller, user.organization_id)
    return _view(user)


@router.delete("/{user_id}", status_code=204)
async def delete_user(user_id: str, caller: CurrentAdmin, store: StoreDep) -> None:
    """Remove a user."""
    require_same_organization(caller, _find(store, user_id).organization_id)
    del store.users[user_id]
