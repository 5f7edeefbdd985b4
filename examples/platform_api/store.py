"""The platform's data, in memory. A restart forgets everything.

Two organizations, so that one can try to look at the other's things. The ids of the seed are fixed, so that a test, a
demo and a reader can all say ``web-shop`` and mean the same webapp.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field
from typing import Literal

Role = Literal["admin", "member"]

DEFAULT_SETTINGS = {"default_region": "eu-central", "log_retention_days": "30"}
_SCRYPT_COST = 2**4  # a toy's cost, so that tests are quick; a real API wants 2**14 or more
_SALT = b"platform-api-example"


def new_id(kind: str) -> str:
    """Return a short id that says what it names: ``inst-4f0c2a9b``."""
    return f"{kind}-{secrets.token_hex(4)}"


def hash_password(password: str) -> bytes:
    """Return what the store keeps instead of the password."""
    return hashlib.scrypt(password.encode(), salt=_SALT, n=_SCRYPT_COST, r=8, p=1)


@dataclass
class Organization:
    """A tenant: everything else belongs to one."""

    id: str
    name: str


@dataclass
class User:
    """A person. The e-mail may change; the id does not."""

    id: str
    email: str
    organization_id: str
    role: Role
    password_hash: bytes


@dataclass
class ApiToken:
    """A key for a machine. Names are for people and may repeat; ids do not."""

    id: str
    name: str
    organization_id: str
    role: Role
    secret: str


@dataclass
class Instance:
    """An environment in which webapps and workers run."""

    id: str
    organization_id: str
    name: str
    replicas: int
    monthly_cost_cents: int = 9_000
    synced: bool = False
    backups: list[str] = field(default_factory=list)


@dataclass
class Component:
    """A webapp or a worker, with the pods that run it."""

    id: str
    organization_id: str
    kind: Literal["webapp", "worker"]
    name: str
    pods: list[str]


@dataclass
class Secret:
    """A value that webapps read and people seldom should."""

    name: str
    organization_id: str
    value: str


@dataclass
class Cluster:
    """A Kubernetes cluster. Its token opens everything on it."""

    id: str
    organization_id: str
    api_address: str
    token: str


@dataclass
class Store:
    """All of it. One a process; a test makes one of its own."""

    organizations: dict[str, Organization] = field(default_factory=dict)
    users: dict[str, User] = field(default_factory=dict)
    tokens: dict[str, ApiToken] = field(default_factory=dict)
    instances: dict[str, Instance] = field(default_factory=dict)
    components: dict[str, Component] = field(default_factory=dict)
    secrets: dict[tuple[str, str], Secret] = field(default_factory=dict)
    clusters: dict[str, Cluster] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=lambda: dict(DEFAULT_SETTINGS))
    sessions: dict[str, str] = field(default_factory=dict)
    """Access and refresh tokens, each with the id of the user to whom it was given."""
    mails: list[str] = field(default_factory=list)
    """What a mail server would have been given."""

    def user_by_email(self, email: str) -> User | None:
        """Return the user who logs in with ``email``."""
        return next((user for user in self.users.values() if user.email == email), None)

    def token_by_secret(self, secret: str) -> ApiToken | None:
        """Return the API token that a machine has shown."""
        return next((token for token in self.tokens.values() if secrets.compare_digest(token.secret, secret)), None)


def seeded() -> Store:
    """Return a store with the people and things that the tests and the demo talk about."""
    store = Store()
    for organization in (Organization("acme", "Acme"), Organization("globex", "Globex")):
        store.organizations[organization.id] = organization
    people: tuple[tuple[str, str, Role], ...] = (
        ("alice", "acme", "admin"),
        ("bob", "acme", "member"),
        ("grace", "globex", "admin"),
    )
    for name, organization_id, role in people:
        # Everybody's password is the name and "-password": this is a sample, and nothing of it is real.
        password_hash = hash_password(f"{name}-password")
        user = User(f"user-{name}", f"{name}@example.com", organization_id, role, password_hash)
        store.users[user.id] = user
    # Two tokens of one name, and one named like a person: what an audit trail must keep apart.
    for token_id, name in (("tok-1", "ci"), ("tok-2", "ci"), ("tok-3", "alice@example.com")):
        store.tokens[token_id] = ApiToken(token_id, name, "acme", "admin", secret=f"{token_id}-secret")
    store.instances["inst-prod"] = Instance("inst-prod", "acme", "prod", replicas=3, backups=["backup-1", "backup-2"])
    store.instances["inst-idle"] = Instance("inst-idle", "acme", "idle", replicas=0)
    store.instances["inst-globex"] = Instance("inst-globex", "globex", "prod", replicas=1)
    store.components["web-shop"] = Component("web-shop", "acme", "webapp", "shop", ["shop-0", "executor-0"])
    store.components["work-mail"] = Component("work-mail", "acme", "worker", "mail", ["mail-0"])
    store.secrets["acme", "database-url"] = Secret("database-url", "acme", "postgres://shop:hunter2@db/shop")
    return store
