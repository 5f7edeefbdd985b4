"""Joins the middleware and the pipeline to an application: one call, or none with ``opentelemetry-instrument``."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import fastapi.applications
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined] # not typed
from opentelemetry.instrumentation.utils import unwrap
from starlette.middleware import Middleware
from starlette.middleware.errors import ServerErrorMiddleware
from wrapt import wrap_function_wrapper

from tron_audit_otel import context, ledger, policy
from tron_audit_otel.config import AuditConfig
from tron_audit_otel.errors import ConfigError, JournalError
from tron_audit_otel.exchange import Audit
from tron_audit_otel.middleware import AuditMiddleware, ErrorObserver, reporting

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from fastapi import FastAPI
    from opentelemetry._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import LogRecordExporter
    from starlette.types import ASGIApp

    from tron_audit_otel.ledger import Stats
    from tron_audit_otel.pipeline import Pipeline

SUPPORTED = ("fastapi >= 0.115",)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Instrumented:
    """What an application's requests are recorded with."""

    pipeline: Pipeline
    audit: Audit


_applications: WeakKeyDictionary[FastAPI, _Instrumented] = WeakKeyDictionary()
_pipelines: dict[AuditConfig, Pipeline] = {}

_PATCHED = "_tron_audit_otel"
"""Marks the patched method; ``functools.wraps``, as FastAPIInstrumentor uses it, hands the mark on."""


def instrument(
    app: FastAPI,
    *,
    exporter: LogRecordExporter | None = None,
    logger_provider: LoggerProvider | None = None,
    config: AuditConfig | None = None,
) -> None:
    """Records the requests of an application. Does nothing at all unless ``AUDIT_LOG_ENABLED=true``.

    Call it once, before or after routes and middleware are added; a second call changes nothing. All applications
    of a process that are instrumented alike share one stream of records.

    Args:
        app: The application.
        exporter: Gets the records through a batch processor. There is no journal then: `AUDIT_LOG_COMMIT`,
            `AUDIT_LOG_ON_FULL` and `AUDIT_LOG_JOURNAL` with all that follows it do nothing.
        logger_provider: Gets the records in place of a provider of our own, without a journal too; it belongs to the
            caller, processors and all.
        config: The configuration, by default that of the environment.

    Raises:
        ConfigError: A setting or the policy file is wrong, or the journal's directory cannot be used; the message
            names it.
        ValueError: Both an exporter and a provider are given.
    """
    if exporter is not None and logger_provider is not None:
        raise ValueError("instrument() takes an exporter or a logger_provider, not both: a provider has its own")
    config = config if config is not None else AuditConfig.from_env()
    if not config.enabled:
        return
    if app in _applications:
        if exporter is not None or logger_provider is not None:
            _logger.warning("instrument() was called before for this application; its new arguments are not used")
        if _patch(app):  # only where another instrumentation has undone it
            _rebuild(app)
        return
    from tron_audit_otel.pipeline import Pipeline  # noqa: PLC0415 - the SDK takes 50 ms to load: not while audit is off

    rules = _rules(app, config)
    if exporter is None and logger_provider is None:
        pipeline = _pipelines.get(config) or _pipelines.setdefault(config, _journaling(config, rules))
    else:
        pipeline = Pipeline(config, exporter=exporter, logger_provider=logger_provider)
    _applications[app] = _Instrumented(pipeline, _audit(config, rules, pipeline))
    _patch(app)
    _rebuild(app)
    context.add_recorder(pipeline.recorder)


def is_instrumented(app: FastAPI) -> bool:
    """Whether the application's requests are recorded."""
    return app in _applications


def stats() -> Stats:
    """Gives what became of this process's audit records, as it is now; nothing is read from the disk.

    Where applications are instrumented differently, and so have journals of their own, their counts are added up.
    """
    from tron_audit_otel import pipeline  # noqa: PLC0415 - as in `instrument`

    return ledger.total([each.stats() for each in pipeline.every()])


def uninstrument(app: FastAPI) -> None:
    """Undoes :func:`instrument`, after a flush. Does nothing to an application that is not instrumented."""
    instrumented = _applications.pop(app, None)
    if instrumented is None:
        return
    _rebuild(app)
    pipeline = instrumented.pipeline
    if all(other.pipeline is not pipeline for other in _applications.values()):
        context.remove_recorder(pipeline.recorder)
        for config in [config for config, shared in _pipelines.items() if shared is pipeline]:
            del _pipelines[config]
        pipeline.shutdown()


def _journaling(config: AuditConfig, rules: policy.Policy) -> Pipeline:
    from tron_audit_otel import journal_dir  # noqa: PLC0415 - as in `instrument`
    from tron_audit_otel.pipeline import Pipeline  # noqa: PLC0415 - as above

    if config.journal == "disk":
        try:
            journal_dir.check(config.journal_path)
        except JournalError as error:
            raise ConfigError(f"{error}. Name another directory, or set AUDIT_LOG_JOURNAL=memory") from error
    return Pipeline(config, policy=rules.digest)


def _audit(config: AuditConfig, rules: policy.Policy, pipeline: Pipeline) -> Audit:
    from tron_audit_otel import policy_file  # noqa: PLC0415 - YAML is loaded by those who use it

    policy_file.check_commits(rules.rules, config)
    by_rule = any(rule.commit == "response" for rule in rules.rules)
    return Audit(
        rules,
        pipeline.recorder,
        admit=pipeline.admit if config.rejects else None,
        commit=pipeline.commit if by_rule or config.commit == "response" else None,
        commits_all=config.commit == "response",
        commit_seconds_max=config.commit_seconds_max,
        fails_open=config.on_full == "drop",
        lose=pipeline.lose,
    )


def _rules(app: FastAPI, config: AuditConfig) -> policy.Policy:
    from tron_audit_otel import policy_file  # noqa: PLC0415 - YAML is loaded by those who use it

    own = policy_file.load(config.policy_file)
    if not own.default_rules:
        return policy.Policy(own.rules)
    docs = policy.docs_rule((app.openapi_url, app.docs_url, app.redoc_url, app.swagger_ui_oauth2_redirect_url))
    return policy.Policy((*own.rules, *((docs,) if docs else ()), *policy.DEFAULT_RULES))


def _rebuild(app: FastAPI) -> None:
    """Lets a change take effect in an application that runs already."""
    if app.middleware_stack is not None:
        app.middleware_stack = app.build_middleware_stack()


def _end(app: FastAPI) -> None:
    """Ends the stream that the application has by now: a lifespan outlives `uninstrument` and `instrument`."""
    if (instrumented := _applications.get(app)) is not None:
        instrumented.pipeline.shutdown()


def _patch(app: FastAPI) -> bool:
    """Puts the middleware inside the outermost error handler and outside of everything that the application adds.

    There it sees exceptions before they become a 500, refusals of every other middleware, and the server's span.
    `add_middleware` would stand inside of whatever is added later, and refuses once the application runs.
    The patch stays, and does nothing while the application is not instrumented: another one may stand on it.
    Gives False where it stood already.
    """
    build: Callable[[], ASGIApp] = app.build_middleware_stack
    if getattr(build, _PATCHED, False):
        return False

    def build_audited() -> ASGIApp:
        instrumented = _applications.get(app)
        if instrumented is None:
            return build()
        app.user_middleware.append(Middleware(ErrorObserver))  # the last is the innermost
        try:
            stack = build()
        finally:
            app.user_middleware.pop()
        layer = innermost_error_layer(stack)
        has_error_handler = layer.handler is not None and not layer.debug  # in debug mode it is not called
        if has_error_handler:
            layer.handler = reporting(layer.handler)  # type: ignore[arg-type] # Starlette's type has WebSockets' too
        pipeline = instrumented.pipeline
        audit = replace(instrumented.audit, router=app.router, has_error_handler=has_error_handler)
        layer.app = AuditMiddleware(layer.app, audit, pipeline.start, partial(_end, app))
        return stack

    setattr(build_audited, _PATCHED, True)
    app.build_middleware_stack = build_audited  # type: ignore[method-assign] # which is the point
    return True


def innermost_error_layer(stack: ASGIApp) -> ServerErrorMiddleware:
    """Finds the error handler that is nearest to the application's own middleware.

    FastAPIInstrumentor puts an error handler and its own middleware around the one that FastAPI builds; the
    server's span is current only below both.
    """
    found: ServerErrorMiddleware | None = None
    layer: Any = stack
    while isinstance(layer, ServerErrorMiddleware) or type(layer).__module__.startswith("opentelemetry."):
        if isinstance(layer, ServerErrorMiddleware):
            found = layer
        layer = layer.app
    if found is None:
        raise TypeError(f"cannot audit a middleware stack that begins with {type(stack).__name__}")
    return found


class AuditInstrumentor(BaseInstrumentor):  # type: ignore[misc] # mypy sees no type in the base's package
    """Instruments every application that is made after it: what ``opentelemetry-instrument`` calls.

    The configuration is read when an application is made, so that a mistake in it stops that application's start;
    ``opentelemetry-instrument`` itself would log an error and go on without audit.
    """

    def instrumentation_dependencies(self) -> Collection[str]:
        """Names the versions of FastAPI that this works with."""
        return SUPPORTED

    def _instrument(self, **kwargs: Any) -> None:  # noqa: ANN401 - the base's signature
        def made(wrapped: Callable[..., None], app: FastAPI, args: tuple[Any, ...], options: dict[str, Any]) -> None:
            wrapped(*args, **options)
            instrument(app, **kwargs)

        wrap_function_wrapper("fastapi.applications", "FastAPI.__init__", made)

    def _uninstrument(self, **kwargs: Any) -> None:  # noqa: ANN401, ARG002 - the base's signature
        unwrap(fastapi.applications.FastAPI, "__init__")
        for app in list(_applications):
            uninstrument(app)
