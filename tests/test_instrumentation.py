"""One call, before or after anything, once or twice, with FastAPIInstrumentor in either order, and undone."""

from __future__ import annotations

import gc
import itertools
import logging
import threading
import weakref
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.middleware.base import BaseHTTPMiddleware

import tron_audit_otel as audit
from tests.test_endings import pass_on
from tron_audit_otel import pipeline as pipelines
from tron_audit_otel.instrumentation import AuditInstrumentor, innermost_error_layer
from tron_audit_otel.testing import capture

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

ON = audit.AuditConfig(enabled=True, shutdown_seconds_max=60)


def make_app() -> FastAPI:
    app = FastAPI()

    @app.get("/ok")
    async def ok() -> str:
        return "ok"

    @app.get("/crash")
    async def crash() -> None:
        raise LookupError

    return app


def get_ok(app: FastAPI) -> None:
    assert TestClient(app).get("/ok").status_code == 200


def flushed(app: FastAPI, exporter: InMemoryLogRecordExporter) -> list[Any]:
    """The lifespan's end flushes: afterwards everything that was emitted has been exported."""
    with TestClient(app):
        pass
    return list(exporter.get_finished_logs())


def test_nothing_changes_while_audit_is_off(monkeypatch: pytest.MonkeyPatch, exporter: Any) -> None:
    monkeypatch.delenv("AUDIT_LOG_ENABLED", raising=False)
    app = make_app()
    before = vars(app).copy()
    audit.instrument(app)
    audit.instrument(app, exporter=exporter)
    audit.instrument(app, config=audit.AuditConfig())
    assert vars(app) == before
    get_ok(app)
    assert exporter.get_finished_logs() == ()


def test_an_exporter_gets_the_records_through_a_batch_processor(exporter: InMemoryLogRecordExporter) -> None:
    app = make_app()
    audit.instrument(app, exporter=exporter, config=ON)
    get_ok(app)
    (record,) = flushed(app, exporter)
    assert record.log_record.attributes["audit.sequence.number"] == 1
    assert record.instrumentation_scope.name == "tron_audit_otel"
    assert record.resource.attributes["service.instance.id"]
    audit.uninstrument(app)


def test_a_provider_of_the_callers_is_flushed_and_never_shut_down(exporter: InMemoryLogRecordExporter) -> None:
    provider = LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    app = make_app()
    audit.instrument(app, logger_provider=provider, config=ON)
    get_ok(app)
    audit.uninstrument(app)
    assert len(exporter.get_finished_logs()) == 1
    provider.get_logger("the caller's").emit(body="still there")
    assert len(exporter.get_finished_logs()) == 2
    provider.shutdown()


def test_an_exporter_and_a_provider_together_are_refused(exporter: InMemoryLogRecordExporter) -> None:
    with pytest.raises(ValueError, match="not both"):
        audit.instrument(make_app(), exporter=exporter, logger_provider=LoggerProvider(), config=ON)


def test_the_applications_own_telemetry_does_not_get_into_the_trail() -> None:
    app = make_app()
    with capture(app) as seen:
        TestClient(app, raise_server_exceptions=False).get("/crash")
    assert [record.event_name for record in seen.log_records] == ["tron.audit.request"]


@pytest.mark.parametrize("started", [False, True], ids=["before the first request", "after it"])
def test_routes_and_middleware_may_come_later(started: bool) -> None:
    app = make_app()
    if started:
        get_ok(app)
    with capture(app) as seen:
        if not started:
            app.add_middleware(BaseHTTPMiddleware, dispatch=pass_on)
        app.add_api_route("/late", lambda: "ok")
        TestClient(app).get("/late")
    assert [record["http.route"] for record in seen.records] == ["/late"]


def test_a_second_call_changes_nothing(exporter: InMemoryLogRecordExporter, caplog: pytest.LogCaptureFixture) -> None:
    app = make_app()
    with capture(app) as seen:
        audit.instrument(app, config=ON)
        assert caplog.records == []
        audit.instrument(app, exporter=exporter, config=ON)
        assert "its new arguments are not used" in caplog.text
        get_ok(app)
    assert len(seen.records) == 1
    assert exporter.get_finished_logs() == ()


def test_capture_does_not_take_an_application_that_records_elsewhere(exporter: InMemoryLogRecordExporter) -> None:
    app = make_app()
    audit.instrument(app, exporter=exporter, config=ON)
    with pytest.raises(RuntimeError, match="instrumented already"), capture(app):
        pass
    audit.uninstrument(app)


def test_capture_says_that_there_is_nothing_and_can_forget() -> None:
    app = make_app()
    with capture(app) as seen:
        get_ok(app)
        seen.clear()
        with pytest.raises(AssertionError, match="no audit record was written"):
            _ = seen.last


def test_uninstrument_undoes_it_and_may_be_called_twice() -> None:
    app = make_app()
    get_ok(app)
    for _ in range(3):
        with capture(app) as seen:
            get_ok(app)
        audit.uninstrument(app)
        get_ok(app)
        assert len(seen.records) == 1
    assert app.user_middleware == []


def test_instrumented_a_thousand_times_over_it_is_still_one_layer() -> None:
    app = make_app()
    for _ in range(1000):
        with capture(app) as seen:
            pass
    with capture(app) as seen:
        get_ok(app)
    assert len(seen.records) == 1


def test_audit_that_another_instrumentation_undid_comes_back_with_the_next_call(
    spans: tuple[InMemorySpanExporter, TracerProvider],
) -> None:
    app = make_app()
    trace(spans[1])(app)
    with capture(app) as seen:
        FastAPIInstrumentor.uninstrument_app(app)
        audit.instrument(app, config=ON)
        get_ok(app)
    assert len(seen.records) == 1


def test_an_application_can_be_collected() -> None:
    app = make_app()
    with capture(app):
        get_ok(app)
    reference = weakref.ref(app)
    del app
    gc.collect()
    assert reference() is None


def test_a_mounted_instrumented_application_adds_no_second_record() -> None:
    outer, inner = make_app(), make_app()
    outer.mount("/inner", inner)
    with capture(outer) as seen, capture(inner) as seen_inner:
        TestClient(outer).get("/inner/ok")
        assert len(seen.records) == 1
        assert seen_inner.records == []
        TestClient(inner).get("/ok")
        assert len(seen_inner.records) == 1


def test_an_exception_in_a_mounted_instrumented_application_is_named() -> None:
    outer, inner = make_app(), make_app()
    outer.mount("/inner", inner)
    with capture(outer) as seen, capture(inner):
        TestClient(outer, raise_server_exceptions=False).get("/inner/crash")
    assert seen.last["error.type"] == "LookupError"


@pytest.fixture
def spans() -> Iterator[tuple[InMemorySpanExporter, TracerProvider]]:
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield exporter, provider
    provider.shutdown()


def trace(provider: TracerProvider) -> Callable[[FastAPI], None]:
    return lambda app: FastAPIInstrumentor.instrument_app(app, tracer_provider=provider)


@pytest.mark.parametrize("path", ["/ok", "/crash"])
@pytest.mark.parametrize("order", ["audit first", "tracing first"])
def test_the_servers_span_is_on_the_record_in_either_order(
    order: str, path: str, spans: tuple[InMemorySpanExporter, TracerProvider], caplog: pytest.LogCaptureFixture
) -> None:
    exporter, provider = spans
    app = make_app()
    if order == "tracing first":
        trace(provider)(app)
    with capture(app) as seen:
        if order == "audit first":
            trace(provider)(app)
        TestClient(app, raise_server_exceptions=False).get(path)
        (record,) = seen.log_records
        FastAPIInstrumentor.uninstrument_app(app)
    server = next(span for span in exporter.get_finished_spans() if span.kind.name == "SERVER")
    assert server.context is not None
    assert (record.trace_id, record.span_id) == (server.context.trace_id, server.context.span_id)
    assert "Skipping" not in caplog.text


def test_tracing_may_be_undone_without_losing_audit(spans: tuple[InMemorySpanExporter, TracerProvider]) -> None:
    app = make_app()
    with capture(app) as seen:
        trace(spans[1])(app)
        get_ok(app)
        FastAPIInstrumentor.uninstrument_app(app)
        get_ok(app)
    assert len(seen.records) == 2


def test_a_stack_that_is_not_starlettes_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="begins with BaseHTTPMiddleware"):
        innermost_error_layer(BaseHTTPMiddleware(make_app(), dispatch=pass_on))


@pytest.fixture
def zero_code(monkeypatch: pytest.MonkeyPatch) -> Iterator[AuditInstrumentor]:
    monkeypatch.setenv("AUDIT_LOG_ENABLED", "true")
    monkeypatch.setenv("AUDIT_LOG_SHUTDOWN_SECONDS_MAX", "60")
    instrumentor = AuditInstrumentor()
    yield instrumentor
    instrumentor.uninstrument()


@pytest.mark.parametrize("order", list(itertools.permutations(["audit", "tracing"])), ids=" then ".join)
def test_zero_code_instruments_every_application_in_either_order(
    order: tuple[str, ...],
    zero_code: AuditInstrumentor,
    exporter: InMemoryLogRecordExporter,
    spans: tuple[InMemorySpanExporter, TracerProvider],
) -> None:
    for name in order:
        if name == "audit":
            zero_code.instrument(exporter=exporter)
        else:
            FastAPIInstrumentor().instrument(tracer_provider=spans[1])
    try:
        import fastapi  # noqa: PLC0415 - as an application's module does, after the instrumentation

        app = fastapi.FastAPI()
        app.add_api_route("/ok", lambda: "ok")
        get_ok(app)
        (record,) = flushed(app, exporter)
    finally:
        FastAPIInstrumentor().uninstrument()
    assert record.log_record.trace_id != 0
    assert record.log_record.attributes["http.route"] == "/ok"


def test_zero_code_stops_an_application_whose_configuration_is_wrong(
    zero_code: AuditInstrumentor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUDIT_LOG_QUEUE_RECORDS_MAX", "0")
    zero_code.instrument()
    with pytest.raises(audit.ConfigError, match=r"AUDIT_LOG_QUEUE_RECORDS_MAX must be .* not '0'"):
        FastAPI()


def test_zero_code_undone_leaves_new_applications_alone(
    zero_code: AuditInstrumentor, exporter: InMemoryLogRecordExporter
) -> None:
    zero_code.instrument(exporter=exporter)
    app = make_app()
    zero_code.uninstrument()
    get_ok(app)
    get_ok(make_app())
    assert exporter.get_finished_logs() == ()


def test_an_error_of_ours_does_not_keep_the_application_from_starting(
    monkeypatch: pytest.MonkeyPatch, exporter: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError

    app = make_app()
    with monkeypatch.context() as patch:
        patch.setattr("tron_audit_otel.stream.Resource.create", broken)
        audit.instrument(app, exporter=exporter, config=ON)
        with TestClient(app) as client:
            assert client.get("/ok").status_code == 200
    assert "RuntimeError" in caplog.text
    get_ok(app)
    assert len(flushed(app, exporter)) == 1
    audit.uninstrument(app)


def threads(name: str) -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if name in thread.name}


@pytest.mark.parametrize("lifespan", [False, True], ids=["first request", "lifespan"])
def test_a_thread_starts_when_the_application_does_and_not_before(lifespan: bool, exporter: Any) -> None:
    before = threads("OtelBatch")
    app = make_app()
    audit.instrument(app, exporter=exporter, config=ON)
    assert threads("OtelBatch") <= before
    if lifespan:
        with TestClient(app):
            assert len(threads("OtelBatch") - before) == 1
    else:
        get_ok(app)
        assert len(threads("OtelBatch") - before) == 1
    audit.uninstrument(app)
    assert threads("OtelBatch") <= before


def test_the_lifespan_of_the_application_still_runs_and_its_state_is_seen(caplog: pytest.LogCaptureFixture) -> None:
    ran: list[str] = []

    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, str]]:
        ran.append("start")
        yield {"database": "db"}
        ran.append("stop")

    app = FastAPI(lifespan=asynccontextmanager(lifespan))

    @app.get("/state")
    async def state(request: Request) -> str:
        return str(request.state.database)

    with caplog.at_level(logging.ERROR), capture(app), TestClient(app) as client:
        assert client.get("/state").json() == "db"
    assert ran == ["start", "stop"]
    assert caplog.records == []


def test_a_journal_directory_that_cannot_be_used_stops_the_start(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    why = "^AUDIT_LOG_JOURNAL_DIR: /.*/file cannot be used: .*, or set AUDIT_LOG_JOURNAL=memory"
    with pytest.raises(audit.ConfigError, match=why):
        audit.instrument(FastAPI(), config=audit.AuditConfig(enabled=True, journal_dir=file))


def test_a_rule_cannot_ask_for_a_commit_where_nothing_is_on_disk(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("rules: [{name: strict, commit: response}]")
    config = audit.AuditConfig(enabled=True, journal="memory", policy_file=policy)
    with pytest.raises(audit.ConfigError, match="rule 'strict': commit: response needs AUDIT_LOG_JOURNAL=disk"):
        audit.instrument(FastAPI(), config=config)


NOWHERE = audit.AuditConfig(
    enabled=True, journal="memory", otlp_endpoint="http://127.0.0.1:1/v1/logs", shutdown_seconds_max=0.1
)


def test_the_counts_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipelines, "_pipelines", weakref.WeakSet())  # those of other tests may be collected meanwhile
    app = make_app()
    audit.instrument(app, config=NOWHERE)
    get_ok(app)
    assert audit.stats().pending == 2  # START, and the request
    audit.uninstrument(app)


def test_a_lifespan_ends_the_stream_that_the_application_has_by_then() -> None:
    before = threads("tron-audit-shipper")
    app = make_app()
    audit.instrument(app, config=NOWHERE)
    with TestClient(app) as client:
        [first] = threads("tron-audit-shipper") - before
        audit.uninstrument(app)
        audit.instrument(app, config=NOWHERE)
        client.get("/ok")
        [second] = threads("tron-audit-shipper") - before - {first}
    for thread in (first, second):
        thread.join(60)
        assert not thread.is_alive()
    audit.uninstrument(app)
