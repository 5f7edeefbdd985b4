"""The environment as one frozen, validated configuration; the only reader of ``os.environ``.

``AUDIT_LOG_*`` is ours. What OpenTelemetry already names keeps its name, the variable for logs before the general
one. An empty variable counts as unset, as OpenTelemetry's specification has it. ``docs/reference.md`` lists them all.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_type_hints
from urllib.parse import unquote, urlsplit

from platformdirs import user_state_path
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from tron_audit_otel.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

_logger = logging.getLogger(__name__)

PREFIX = "AUDIT_LOG_"

DEFAULT_ENDPOINTS = {"http/protobuf": "http://localhost:4318/v1/logs", "grpc": "http://localhost:4317"}
"""OpenTelemetry Protocol Exporter specification."""

HTTP_LOGS_PATH = "v1/logs"

_STATE = "tron-audit-otel"
_NAME_CHARACTERS_MAX = 64
_JOURNAL_BYTES_MAX = {"disk": 2**30, "memory": 64 * 2**20}

_PAIR = re.compile(r"[\w!#$%&'*+.^`|~-]+[ \t]*=[ !#-+\--:<-\[\]-~]*", re.ASCII)
"""W3C Baggage, and spaces besides, as OpenTelemetry's SDKs are liberal there."""


_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
"""A header's name (RFC 9110, 5.6.2)."""
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


@dataclass(frozen=True)
class Env:
    """Where a setting comes from: the variables in the order in which they are asked, and the value's unit."""

    names: tuple[str, ...]
    unit: str = ""
    secret: bool = False


def _env(*names: str, unit: str = "", secret: bool = False) -> Env:
    return Env(names, unit, secret)


def _otlp(name: str, unit: str = "", *, secret: bool = False) -> Env:
    return Env((f"OTEL_EXPORTER_OTLP_LOGS_{name}", f"OTEL_EXPORTER_OTLP_{name}"), unit, secret)


_URL_WANTED = "must be a URL such as http://collector:4318"


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


def _file(path: Path) -> Path:
    try:
        found = path.is_file()
    except OSError:  # such as one in a directory that we may not enter
        found = False
    if not found:
        raise ValueError("must be an existing file")
    return path


FilePath = Annotated[Path, AfterValidator(_file)]


def _absolute(path: Path) -> Path:
    # Processes that share it may run in different directories, and `tron-audit` in another one yet.
    if not path.is_absolute():
        raise ValueError("must be an absolute path")
    return path


DirectoryPath = Annotated[Path, AfterValidator(_absolute)]


_Pairs = Annotated[tuple[tuple[str, str], ...], BeforeValidator(_pairs)]


class AuditConfig(BaseModel):
    """Everything that can be set. Make one by hand for a test, or :meth:`from_env` for a service.

    Raises:
        ConfigError: Only from :meth:`from_env`; by hand, pydantic's own ``ValidationError``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    enabled: Annotated[bool, _env("AUDIT_LOG_ENABLED")] = Field(
        default=False, description="Audit is on. Unless it is, `instrument` does nothing at all."
    )
    policy_file: Annotated[FilePath | None, _env("AUDIT_LOG_POLICY_FILE", unit="path")] = Field(
        default=None, description="The policy (YAML): which requests are recorded, and as what."
    )
    commit: Annotated[Literal["batch", "response"], _env("AUDIT_LOG_COMMIT")] = Field(
        default="batch",
        description="When a record is on disk: `batch`, one batch delay and one commit after the answer; `response`, "
        "before the client sees the end of the answer. A policy rule may ask for `response` for its requests.",
    )
    commit_seconds_max: Annotated[float, _env("AUDIT_LOG_COMMIT_SECONDS_MAX", unit="s")] = Field(
        default=5.0,
        gt=0,
        le=600,
        description="How long an answer waits for its record under `response`; past it AUDIT_LOG_ON_FULL decides. A "
        "commit that takes longer counts as a stalled disk, under `batch` too.",
    )
    on_full: Annotated[Literal["drop", "reject"] | None, _env("AUDIT_LOG_ON_FULL")] = Field(
        default=None,
        description="When no record can be written: `drop`, requests go on, and what is lost is counted; `reject`, "
        "they are answered with 503. By default `drop`, and `reject` for what is committed by `response`.",
    )
    journal: Annotated[Literal["disk", "memory"], _env("AUDIT_LOG_JOURNAL")] = Field(
        default="disk",
        description="Where records wait for the Collector. `memory`, for a read-only file system, loses what waits "
        "when the process ends.",
    )
    journal_dir: Annotated[DirectoryPath | None, _env("AUDIT_LOG_JOURNAL_DIR", unit="path")] = Field(
        default=None,
        description="The journal's directory, on a local disk, for all processes of a service. By default "
        "`tron-audit-otel/<OTEL_SERVICE_NAME>`, or `…/default` without that, in the user's state directory.",
    )
    journal_max_bytes: Annotated[int | None, _env("AUDIT_LOG_JOURNAL_MAX_BYTES", unit="bytes")] = Field(
        default=None,
        ge=65_536,
        le=2**50,
        description="What the journal of each process may take. By default 1 GiB on disk, 64 MiB in memory.",
    )
    fsync: Annotated[bool, _env("AUDIT_LOG_FSYNC")] = Field(
        default=True,
        description="Each commit waits for the disk. Without it a crash of the machine, not of the process, loses "
        "what the system had not written yet.",
    )
    queue_records_max: Annotated[int, _env("AUDIT_LOG_QUEUE_RECORDS_MAX", unit="records")] = Field(
        default=16_384,
        ge=1,
        le=10_000_000,
        description="Records that may wait in memory for the journal; past it AUDIT_LOG_ON_FULL decides.",
    )
    batch_records_max: Annotated[int, _env("AUDIT_LOG_BATCH_RECORDS_MAX", unit="records")] = Field(
        default=512, ge=1, le=100_000, description="Records in one commit to the journal; never more than may wait."
    )
    batch_delay_ms: Annotated[int, _env("AUDIT_LOG_BATCH_DELAY_MS", unit="ms")] = Field(
        default=50,
        ge=1,
        le=60_000,
        description="How long a record waits for others before they are committed to the journal together.",
    )
    shutdown_seconds_max: Annotated[float, _env("AUDIT_LOG_SHUTDOWN_SECONDS_MAX", unit="s")] = Field(
        default=2.0,
        gt=0,
        le=60,
        description="How long a shutdown waits for what is still to be committed or delivered.",
    )
    request_bytes_max: Annotated[int, _env("AUDIT_LOG_REQUEST_BYTES_MAX", unit="bytes")] = Field(
        default=3_145_728,
        ge=65_536,
        le=1_073_741_824,
        description="Size of one export request; below what the Collector takes, by default 4 MiB over gRPC. Never "
        "more than a quarter of the journal; a record that is longer is cut.",
    )
    retry_seconds_max: Annotated[float, _env("AUDIT_LOG_RETRY_SECONDS_MAX", unit="s")] = Field(
        default=30.0,
        gt=0,
        le=3600,
        description="The longest wait between two attempts to deliver; the first is 0.1 s. What a receiver asks for by "
        "Retry-After comes on top, up to an hour. There is no last attempt.",
    )
    service_name: Annotated[str | None, _env("OTEL_SERVICE_NAME")] = Field(
        default=None, description="The service's name in every record (`service.name`)."
    )
    resource_attributes: Annotated[_Pairs, _env("OTEL_RESOURCE_ATTRIBUTES", unit="key=value,…")] = Field(
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
    sdk_disabled: Annotated[bool, _env("OTEL_SDK_DISABLED")] = Field(
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
        if (self.otlp_client_key is None) != (self.otlp_client_certificate is None):
            raise ValueError(
                "OTEL_EXPORTER_OTLP_CLIENT_KEY and OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE must be set together"
            )
        return self

    def on_full_for(self, commit: str) -> str:
        """What happens to a request whose record cannot be written: ``drop`` or ``reject``."""
        return self.on_full or ("reject" if commit == "response" else "drop")

    @property
    def journal_path(self) -> Path:
        """The journal's directory."""
        service = re.sub(r"[^A-Za-z0-9_-]", "-", self.service_name or "default")[:_NAME_CHARACTERS_MAX]
        return self.journal_dir or user_state_path(_STATE) / service

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
        given = {name: value.strip() for name, value in environ.items() if value.strip()}
        on = cls._validated({"enabled": given.get("AUDIT_LOG_ENABLED", False)})
        unknown = _unknown(given)
        if not on.enabled:
            # The switch itself may be misspelt, and audit be off without anybody's wish.
            for message in unknown:
                _logger.warning("audit is off, and %s", message)
            return on
        if unknown:
            raise ConfigError("\n".join(unknown))
        values: dict[str, object] = {}
        for field, env in variables().items():
            name = next((name for name in env.names if name in given), None)
            if name is not None:
                values[field] = given[name]
        config = cls._validated(values, given)
        is_general = "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT" not in given
        if config.otlp_endpoint and is_general and config.otlp_protocol == "http/protobuf":
            return config.model_copy(update={"otlp_endpoint": f"{config.otlp_endpoint.rstrip('/')}/{HTTP_LOGS_PATH}"})
        return config

    @classmethod
    def _validated(cls, values: Mapping[str, object], given: Mapping[str, str] | None = None) -> Self:
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            # Not `from error`: pydantic's own words about the same would stand before ours, 70 lines of them.
            raise ConfigError("\n".join(_explain(problem, given or {}) for problem in error.errors())) from None


def environment() -> Mapping[str, str]:
    """Gives the process's environment; nobody else in this library reads it."""
    return os.environ


@cache
def variables() -> Mapping[str, Env]:
    """Gives each setting's variables, by the name of the setting."""
    hints = get_type_hints(AuditConfig, include_extras=True)
    return MappingProxyType(
        {
            name: next(part for part in hints[name].__metadata__ if isinstance(part, Env))
            for name in AuditConfig.model_fields
        }
    )


def _unknown(given: Mapping[str, str]) -> list[str]:
    """Names each variable that begins like ours and is none, with the one that it may be meant to be."""
    known = {name.removeprefix(PREFIX) for env in variables().values() for name in env.names if name.startswith(PREFIX)}
    messages = []
    for name in sorted(given):
        if name.startswith(PREFIX) and (tail := name.removeprefix(PREFIX)) not in known:
            near = difflib.get_close_matches(tail, known, n=1)
            hint = f"; did you mean {PREFIX}{near[0]}?" if near else ""
            messages.append(f"{name} is not a setting of tron_audit_otel{hint}")
    return messages


_KINDS = {"bool_parsing": "true or false", "int_parsing": "an integer", "float_parsing": "a number"}


def _explain(problem: Any, given: Mapping[str, str]) -> str:  # noqa: ANN401 - pydantic's ErrorDetails, all of it
    message = str(problem["msg"]).removeprefix("Value error, ").replace("Input should be", "must be")
    if not problem["loc"]:
        return message
    env = variables()[str(problem["loc"][0])]
    kind = _KINDS.get(problem["type"])
    if kind is not None:
        message = f"must be {kind}, in {env.unit}" if env.unit else f"must be {kind}"
    name = next((name for name in env.names if name in given), env.names[0])
    value = re.sub("//[^/@]*@", "//…@", repr(problem["input"]))
    return f"{name} {message}" if env.secret else f"{name} {message}, not {value}"
