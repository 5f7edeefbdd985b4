"""The application's environment as one frozen, validated configuration.

``AUDIT_LOG_*`` is ours. What OpenTelemetry already names keeps its name, the variable for logs before the general
one. ``docs/reference.md`` lists them all.
"""

from __future__ import annotations

import difflib
import logging
import re
from pathlib import Path  # noqa: TC003 - pydantic reads it when it runs
from typing import TYPE_CHECKING, Annotated, Literal, Self
from urllib.parse import unquote, urlsplit

from platformdirs import user_state_path
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from tron_audit_otel import networks
from tron_audit_otel.detect_headers import is_secret
from tron_audit_otel.errors import ConfigError
from tron_audit_otel.forwarded import LISTS
from tron_audit_otel.settings import DirectoryPath, Env, FilePath, Settings, env, environment, set_variables, variables

if TYPE_CHECKING:
    from collections.abc import Mapping

_logger = logging.getLogger(__name__)

PREFIX = "AUDIT_LOG_"

DEFAULT_ENDPOINTS = {"http/protobuf": "http://localhost:4318/v1/logs", "grpc": "http://localhost:4317"}
"""OpenTelemetry Protocol Exporter specification."""

HTTP_LOGS_PATH = "v1/logs"

STATE = "tron-audit-otel"
"""Our directory in the user's state directory."""

REPLAY_TO = "audit.replay.to"
"""The resource attribute by which the Collector tells what is sent again, and to which SIEM alone."""

_NAME_CHARACTERS_MAX = 64
_JOURNAL_BYTES_MAX = {"disk": 2**30, "memory": 64 * 2**20}

HEADER_NAME_CHARACTERS_MAX = 64
HASH_KEY_CHARACTERS_MIN = 32
"""128 bits, if they are hexadecimal digits."""

_PAIR = re.compile(r"[\w!#$%&'*+.^`|~-]+[ \t]*=[ !#-+\--:<-\[\]-~]*", re.ASCII)
"""W3C Baggage, and spaces besides, as OpenTelemetry's SDKs are liberal there."""

_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
"""A header's name (RFC 9110, 5.6.2)."""

_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")

_URL_WANTED = "must be a URL such as http://collector:4318"


def _otlp(name: str, unit: str = "", *, secret: bool = False) -> Env:
    return Env((f"OTEL_EXPORTER_OTLP_LOGS_{name}", f"OTEL_EXPORTER_OTLP_{name}"), unit, secret)


def _url(value: str) -> str:
    try:
        # gRPC's own form has no scheme, and OTEL_EXPORTER_OTLP_INSECURE says in its place whether there is TLS.
        url = urlsplit(value if "://" in value else f"http://{value}")
        valid = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise ValueError(_URL_WANTED)
    if url.username is not None or url.password is not None:
        raise ValueError("must hold no user and no password; OTEL_EXPORTER_OTLP_HEADERS is for those")
    return value


def _pairs(value: object) -> object:
    """Parses ``key=value,key=value`` with percent-encoding, the form of OTEL_EXPORTER_OTLP_HEADERS."""
    if not isinstance(value, str):
        return tuple(sorted(value.items())) if isinstance(value, dict) else value
    # Not the SDK's parser: it logs a pair that it cannot read, secret and all, and makes every key lower case.
    pairs = [pair.strip() for pair in value.split(",") if pair.strip()]
    if not all(map(_PAIR.fullmatch, pairs)):
        raise ValueError("must be key=value pairs with commas between them, percent-encoded")
    split = (pair.partition("=") for pair in pairs)
    return tuple((unquote(name).strip(), unquote(value).strip()) for name, _, value in split)


def _headers(pairs: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    # Percent-encoding can carry a line break, and no request could ever be sent with it.
    if not all(_TOKEN.fullmatch(name) and not _CONTROL.search(value) for name, value in pairs):
        raise ValueError("must hold headers' names, and values without control characters")
    return tuple((name.lower(), value) for name, value in pairs)


def _header_name(value: str) -> str:
    if not _TOKEN.fullmatch(value) or len(value) > HEADER_NAME_CHARACTERS_MAX:
        raise ValueError("must be one header's name, such as x-forwarded-for, forwarded or x-real-ip")
    if is_secret(value.lower()):
        raise ValueError("must be the name of a header with addresses, and this one carries secrets")
    return value.lower()


def _hash_key(value: str | None) -> str | None:
    if value is not None and len(value) < HASH_KEY_CHARACTERS_MIN:
        raise ValueError(f"must have at least {HASH_KEY_CHARACTERS_MIN} characters")
    return value


_Pairs = Annotated[tuple[tuple[str, str], ...], BeforeValidator(_pairs)]


class AuditConfig(Settings):
    """Everything that can be set. Make one by hand for a test, or :meth:`from_env` for a service.

    Raises:
        ConfigError: Only from :meth:`from_env`; by hand, pydantic's own ``ValidationError``.
    """

    enabled: Annotated[bool, env("AUDIT_LOG_ENABLED")] = Field(
        default=False, description="Audit is on. Unless it is, `instrument` does nothing at all."
    )
    policy_file: Annotated[FilePath | None, env("AUDIT_LOG_POLICY_FILE", unit="path")] = Field(
        default=None, description="The policy (YAML): which requests are recorded, and as what."
    )
    commit: Annotated[Literal["batch", "response"], env("AUDIT_LOG_COMMIT")] = Field(
        default="batch",
        description="When a record is on disk: `batch`, one batch delay and one commit after the answer; `response`, "
        "before the client sees the end of the answer. A policy rule may ask for `response` for its requests.",
    )
    commit_seconds_max: Annotated[float, env("AUDIT_LOG_COMMIT_SECONDS_MAX", unit="s")] = Field(
        default=5.0,
        gt=0,
        le=600,
        description="How long an answer waits for its record under `response`; past it AUDIT_LOG_ON_FULL decides. A "
        "commit that takes longer counts as a stalled disk, under `batch` too.",
    )
    on_full: Annotated[Literal["drop", "reject"] | None, env("AUDIT_LOG_ON_FULL")] = Field(
        default=None,
        description="When no record can be written: `drop`, requests go on, and what is lost is counted; `reject`, "
        "they are answered with 503. By default `drop`, and `reject` for what is committed by `response`.",
    )
    journal: Annotated[Literal["disk", "memory"], env("AUDIT_LOG_JOURNAL")] = Field(
        default="disk",
        description="Where records wait for the Collector. `memory`, for a read-only file system, loses what waits "
        "when the process ends.",
    )
    journal_dir: Annotated[DirectoryPath | None, env("AUDIT_LOG_JOURNAL_DIR", unit="path")] = Field(
        default=None,
        description="The journal's directory, on a local disk, for all processes of a service. By default "
        "`tron-audit-otel/<OTEL_SERVICE_NAME>`, or `…/default` without that, in the user's state directory.",
    )
    journal_max_bytes: Annotated[int | None, env("AUDIT_LOG_JOURNAL_MAX_BYTES", unit="bytes")] = Field(
        default=None,
        ge=65_536,
        le=2**50,
        description="What the journal of each process may take. By default 1 GiB on disk, 64 MiB in memory.",
    )
    fsync: Annotated[bool, env("AUDIT_LOG_FSYNC")] = Field(
        default=True,
        description="Each commit waits for the disk. Without it a crash of the machine, not of the process, loses "
        "what the system had not written yet.",
    )
    queue_records_max: Annotated[int, env("AUDIT_LOG_QUEUE_RECORDS_MAX", unit="records")] = Field(
        default=16_384,
        ge=1,
        le=10_000_000,
        description="Records that may wait in memory for the journal; past it AUDIT_LOG_ON_FULL decides.",
    )
    batch_records_max: Annotated[int, env("AUDIT_LOG_BATCH_RECORDS_MAX", unit="records")] = Field(
        default=512, ge=1, le=100_000, description="Records in one commit to the journal; never more than may wait."
    )
    batch_delay_ms: Annotated[int, env("AUDIT_LOG_BATCH_DELAY_MS", unit="ms")] = Field(
        default=50,
        ge=1,
        le=60_000,
        description="How long a record waits for others before they are committed to the journal together.",
    )
    shutdown_seconds_max: Annotated[float, env("AUDIT_LOG_SHUTDOWN_SECONDS_MAX", unit="s")] = Field(
        default=2.0,
        gt=0,
        le=60,
        description="How long a shutdown waits for what is still to be committed or delivered.",
    )
    request_bytes_max: Annotated[int, env("AUDIT_LOG_REQUEST_BYTES_MAX", unit="bytes")] = Field(
        default=3_145_728,
        ge=65_536,
        le=1_073_741_824,
        description="Size of one export request; below what the Collector takes, by default 4 MiB over gRPC. Never "
        "more than a quarter of the journal; a record that is longer is cut.",
    )
    retry_seconds_max: Annotated[float, env("AUDIT_LOG_RETRY_SECONDS_MAX", unit="s")] = Field(
        default=30.0,
        gt=0,
        le=3600,
        description="The longest wait between two attempts to deliver; the first is 0.1 s. What a receiver asks for by "
        "Retry-After comes on top, up to an hour. There is no last attempt.",
    )
    trusted_proxies: Annotated[
        tuple[str, ...], BeforeValidator(networks.parse), env("AUDIT_LOG_TRUSTED_PROXIES", unit="network,…")
    ] = Field(
        default=(),
        description="The proxies before the application, such as `10.0.1.0/24,2001:db8::1`; `unix`, for those that "
        "connect through a Unix socket. The client is the first address from the right that is none of theirs.",
    )
    proxy_hops: Annotated[int | None, env("AUDIT_LOG_PROXY_HOPS", unit="proxies")] = Field(
        default=None,
        ge=1,
        le=32,
        description="How many proxies stand one behind the other; the client is the address that many places from the "
        "right. Without AUDIT_LOG_TRUSTED_PROXIES only where nothing else can reach the application.",
    )
    proxy_header: Annotated[str, AfterValidator(_header_name), env("AUDIT_LOG_PROXY_HEADER")] = Field(
        default="x-forwarded-for",
        description="The one header that the proxies write: `x-forwarded-for`, `forwarded` (RFC 7239), or one with a "
        "single address, such as `x-real-ip`.",
    )
    hash_key: Annotated[str | None, AfterValidator(_hash_key), env("AUDIT_LOG_HASH_KEY", secret=True)] = Field(
        default=None,
        repr=False,
        description="Key (HMAC-SHA-256), of at least 32 characters, by which a masked secret can be found again; "
        "without it masks all look alike.",
    )
    service_name: Annotated[str | None, env("OTEL_SERVICE_NAME")] = Field(
        default=None, description="The service's name in every record (`service.name`)."
    )
    resource_attributes: Annotated[_Pairs, env("OTEL_RESOURCE_ATTRIBUTES", unit="key=value,…")] = Field(
        default=(), description="More resource attributes, such as `deployment.environment.name=production`."
    )
    otlp_protocol: Annotated[Literal["http/protobuf", "grpc"], _otlp("PROTOCOL")] = Field(
        default="http/protobuf", description="How records travel to the Collector."
    )
    otlp_endpoint: Annotated[str | None, AfterValidator(lambda v: v and _url(v)), _otlp("ENDPOINT", unit="URL")] = (
        Field(
            default=None,
            description="The Collector. The general variable gets `/v1/logs` appended for HTTP, the one for logs is "
            "taken as it is. By default `http://localhost:4318/v1/logs`, for gRPC `http://localhost:4317`.",
        )
    )
    otlp_headers: Annotated[_Pairs, AfterValidator(_headers), _otlp("HEADERS", unit="key=value,…", secret=True)] = (
        Field(default=(), repr=False, description="Headers of each export, such as `authorization=Bearer%20…`.")
    )
    otlp_timeout_s: Annotated[float, _otlp("TIMEOUT", unit="s")] = Field(
        default=10.0, gt=0, le=600, description="How long one attempt to deliver may take."
    )
    otlp_compression: Annotated[Literal["none", "gzip", "deflate"], _otlp("COMPRESSION")] = Field(
        default="none", description="Compression of an export's body."
    )
    otlp_insecure: Annotated[bool, _otlp("INSECURE")] = Field(
        default=False, description="gRPC without TLS, for an endpoint without a scheme, such as `collector:4317`."
    )
    otlp_certificate: Annotated[FilePath | None, _otlp("CERTIFICATE", unit="path")] = Field(
        default=None, description="The certificate authority that signed the Collector's certificate (PEM)."
    )
    otlp_client_key: Annotated[FilePath | None, _otlp("CLIENT_KEY", unit="path")] = Field(
        default=None, description="Our own key for mutual TLS (PEM)."
    )
    otlp_client_certificate: Annotated[FilePath | None, _otlp("CLIENT_CERTIFICATE", unit="path")] = Field(
        default=None, description="Our own certificate for mutual TLS (PEM)."
    )
    sdk_disabled: Annotated[bool, env("OTEL_SDK_DISABLED")] = Field(
        default=False,
        description="Turns the OpenTelemetry SDK off. It would discard every record, so audit refuses to start.",
    )

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.enabled and self.sdk_disabled:
            raise ValueError(
                "OTEL_SDK_DISABLED=true discards every audit record while AUDIT_LOG_ENABLED=true; unset one of them"
            )
        if self.otlp_endpoint and "://" not in self.otlp_endpoint and self.otlp_protocol != "grpc":
            raise ValueError(f"OTEL_EXPORTER_OTLP_ENDPOINT {_URL_WANTED}, not {self.otlp_endpoint!r}")
        if self.commit == "response" and self.journal == "memory":
            raise ValueError("AUDIT_LOG_COMMIT=response needs AUDIT_LOG_JOURNAL=disk: nothing in memory is committed")
        if any(name == REPLAY_TO for name, _ in self.resource_attributes):
            raise ValueError(
                f"OTEL_RESOURCE_ATTRIBUTES must not hold {REPLAY_TO}: the Collector would archive no record"
            )
        self._agree_on_proxies()
        if (self.otlp_client_key is None) != (self.otlp_client_certificate is None):
            raise ValueError(
                "OTEL_EXPORTER_OTLP_CLIENT_KEY and OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE must be set together"
            )
        return self

    def _agree_on_proxies(self) -> None:
        header = f"AUDIT_LOG_PROXY_HEADER={self.proxy_header}"
        if self.proxy_header.encode() not in LISTS:
            if self.proxy_hops is not None:
                raise ValueError(f"AUDIT_LOG_PROXY_HOPS={self.proxy_hops} counts addresses, and {header} has one")
            if not self.trusted_proxies:
                raise ValueError(f"{header} needs AUDIT_LOG_TRUSTED_PROXIES: a client can write it as well")
        if "proxy_header" in self.model_fields_set and not self.trusted_proxies and self.proxy_hops is None:
            raise ValueError(f"{header} needs AUDIT_LOG_TRUSTED_PROXIES or AUDIT_LOG_PROXY_HOPS")

    def on_full_for(self, commit: str) -> str:
        """What happens to a request whose record cannot be written: ``drop`` or ``reject``."""
        return self.on_full or ("reject" if commit == "response" else "drop")

    @property
    def rejects(self) -> bool:
        """Whether a request is refused, before its handler runs, when its record could not be written."""
        return self.on_full_for(self.commit) == "reject"

    @property
    def journal_path(self) -> Path:
        """The journal's directory."""
        service = re.sub(r"[^A-Za-z0-9_-]", "-", self.service_name or "default")[:_NAME_CHARACTERS_MAX]
        return self.journal_dir or user_state_path(STATE) / service

    @property
    def journal_bytes_max(self) -> int:
        """What the journal may take, in bytes."""
        return self.journal_max_bytes or _JOURNAL_BYTES_MAX[self.journal]

    @property
    def endpoint(self) -> str:
        """The URL that exports go to."""
        return self.otlp_endpoint or DEFAULT_ENDPOINTS[self.otlp_protocol]

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Reads the environment, or the mapping that is given.

        Raises:
            ConfigError: A variable has a value that it cannot have, or begins with ``AUDIT_LOG_`` and is none of
                ours; the message names it. While audit is off, an unknown name is only warned of, and no
                other value is looked at.
        """
        environ = environment() if environ is None else environ
        given = set_variables(environ)
        on = cls.validated({"enabled": given.get("AUDIT_LOG_ENABLED", False)})
        unknown = _unknown(given)
        if not on.enabled:
            # The switch itself may be misspelt, and audit be off without anybody's wish.
            for message in unknown:
                _logger.warning("audit is off, and %s", message)
            return on
        if unknown:
            raise ConfigError("\n".join(unknown))
        config = cls.read(given)
        is_general = "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT" not in given
        if config.otlp_endpoint and is_general and config.otlp_protocol == "http/protobuf":
            return config.model_copy(update={"otlp_endpoint": f"{config.otlp_endpoint.rstrip('/')}/{HTTP_LOGS_PATH}"})
        return config


def _unknown(given: Mapping[str, str]) -> list[str]:
    """Names each variable that begins like ours and is none, with the one that it may be meant to be."""
    names = (name for source in variables(AuditConfig).values() for name in source.names)
    known = {name.removeprefix(PREFIX) for name in names if name.startswith(PREFIX)}
    messages = []
    for name in sorted(given):
        if name.startswith(PREFIX) and (tail := name.removeprefix(PREFIX)) not in known:
            near = difflib.get_close_matches(tail, known, n=1)
            hint = f"; did you mean {PREFIX}{near[0]}?" if near else ""
            messages.append(f"{name} is not a setting of tron_audit_otel{hint}")
    return messages
