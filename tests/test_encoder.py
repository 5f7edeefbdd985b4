from __future__ import annotations

import resource as limits
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.sdk._logs import LoggerProvider, LogRecordLimits
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.resources import Resource as SdkResource
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from tests.test_log_record import EXEC, FACT, REQUEST
from tron_audit_otel.encoder import FORM_USES_MAX, LENGTH_BYTES, encode
from tron_audit_otel.event import (
    Actor,
    ActorType,
    AuditEvent,
    EventName,
    Execution,
    Outcome,
    Request,
    Resource,
    Source,
    System,
    Text,
)
from tron_audit_otel.exporter import envelope
from tron_audit_otel.log_record import RECORD_ID, SCOPE_NAME, SEQUENCE_NUMBER, to_log_record

PLENTY = 1 << 20
UNLIMITED = LogRecordLimits(
    max_log_record_attributes=LogRecordLimits.UNSET, max_log_record_attribute_length=LogRecordLimits.UNSET
)
IN_ORDER = "audit.duration_ms"


def by_the_sdk(event: AuditEvent, number: int, resource: SdkResource | None = None) -> Any:
    """The request that the SDK makes of the event."""
    exporter = InMemoryLogRecordExporter()  # type: ignore[no-untyped-call] # the SDK has no annotation here
    provider = LoggerProvider(resource, shutdown_on_exit=False, log_record_limits=UNLIMITED)
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    record = to_log_record(event)
    assert isinstance(record.attributes, dict)
    record.attributes[SEQUENCE_NUMBER] = number
    provider.get_logger(SCOPE_NAME, "1.2").emit(record)
    return encode_logs(exporter.get_finished_logs())


def sorted_by_name(record: Any) -> Any:
    """Attributes have no order."""
    found = LogRecord()
    found.CopyFrom(record)
    found.ClearField("attributes")
    found.attributes.extend(sorted(record.attributes, key=lambda pair: pair.key))
    return found


def attributes(encoded: bytes) -> dict[str, Any]:
    record = LogRecord.FromString(encoded)
    assert len({pair.key for pair in record.attributes}) == len(record.attributes), "an attribute stands there twice"
    return {pair.key: pair.value for pair in record.attributes}


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
maybe = st.none() | texts
numbers = st.integers(0, 2**62)
outputs = st.builds(Text, texts, numbers, texts, st.booleans())
spans = st.builds(
    lambda trace, span, flags: set_span_in_context(
        NonRecordingSpan(SpanContext(trace, span, is_remote=False, trace_flags=TraceFlags(flags))), Context()
    ),
    st.integers(0, 2**128 - 1),
    st.integers(0, 2**64 - 1),
    st.integers(0, 255),
)
events = st.builds(
    AuditEvent,
    record_id=texts,
    name=st.sampled_from(EventName),
    began_ns=numbers,
    duration_ns=numbers,
    actor=st.builds(Actor, maybe, st.sampled_from(ActorType), maybe),
    action=texts,
    resource=st.builds(Resource, texts, maybe, maybe),
    outcome=st.sampled_from(Outcome),
    context=spans,
    source=st.none() | st.builds(Source, maybe, maybe, texts, st.booleans()),
    request=st.none()
    | st.builds(
        Request,
        texts,
        maybe,
        maybe,
        texts,
        st.none() | st.integers(0, 999),
        maybe,
        st.none() | st.integers(0, 2**16),
        st.dictionaries(texts, st.lists(texts, max_size=3).map(tuple), max_size=3),
    ),
    execution=st.none()
    | st.builds(
        Execution,
        st.none() | st.lists(texts, max_size=3).map(tuple),
        st.booleans(),
        maybe,
        st.none() | outputs,
        st.none() | outputs,
        st.none() | st.integers(-(2**62), 2**62),
        maybe,
        maybe,
    ),
    error_type=maybe,
    system=st.none() | st.builds(System, maybe, st.none() | numbers, maybe, st.none() | st.booleans()),
)


@given(events, st.integers(1, 2**62))
def test_a_record_is_the_one_that_the_sdk_encodes(event: AuditEvent, number: int) -> None:
    (expected,) = by_the_sdk(event, number).resource_logs[0].scope_logs[0].log_records
    found = LogRecord.FromString(encode(event, number, PLENTY))
    assert sorted_by_name(found) == sorted_by_name(expected)


@pytest.mark.parametrize("event", [FACT, REQUEST, EXEC], ids=["fact", "request", "exec"])
def test_a_record_leaves_nothing_to_the_next_one(event: AuditEvent) -> None:
    span = NonRecordingSpan(SpanContext(1, 2, is_remote=False, trace_flags=TraceFlags(1)))
    encode(REQUEST._replace(context=set_span_in_context(span, Context())), 1, PLENTY)
    before = encode(event, 2, PLENTY)
    for each in (EXEC, REQUEST, FACT):
        encode(each._replace(record_id="another"), 3, PLENTY)
    assert encode(event, 2, PLENTY) == before
    assert b"another" not in before
    assert LogRecord.FromString(before).trace_id == b""


def test_requests_are_those_of_the_sdk() -> None:
    resource = SdkResource({"service.name": "api", "a": 1}, "https://a/schema")
    expected = by_the_sdk(FACT, 1, resource)
    expected.resource_logs[0].scope_logs[0].log_records.extend(
        by_the_sdk(EXEC, 2).resource_logs[0].scope_logs[0].log_records
    )
    around = envelope(resource, SCOPE_NAME, "1.2")
    for _ in range(2):
        request = around.request([encode(FACT, 1, PLENTY), encode(EXEC, 2, PLENTY)])
        found = ExportLogsServiceRequest.FromString(request)
        for message in (found, expected):
            records = message.resource_logs[0].scope_logs[0].log_records
            in_order = [sorted_by_name(record) for record in records]
            del records[:]
            records.extend(in_order)
        assert found == expected


@given(st.lists(st.binary(min_size=1, max_size=300).map(lambda raw: LogRecord(trace_id=raw).SerializeToString())))
def test_a_request_is_no_longer_than_was_reckoned(records: list[bytes]) -> None:
    around = envelope(SdkResource({"service.name": "ä" * 100}), SCOPE_NAME, "")
    reckoned = around.bytes + sum(len(record) + LENGTH_BYTES for record in records)
    assert len(around.request(records)) <= reckoned


@pytest.mark.parametrize("text", ["x" * 50_000, "ü" * 25_000, "\U0001f4a9" * 12_000], ids=["1", "2", "4"])
def test_a_record_that_is_too_long_is_cut_where_it_is_longest_and_says_so(text: str) -> None:
    assert EXEC.execution is not None
    long = EXEC.execution._replace(error_message=text, command=("y" * 40_000,) * 2)
    encoded = encode(EXEC._replace(execution=long), 1, 20_000)
    assert len(encoded) <= 20_000
    record = attributes(encoded)
    assert record[RECORD_ID].string_value == EXEC.record_id
    assert record["audit.resource"].string_value == EXEC.resource.name
    assert record["process.command_args"].string_value == ""
    assert text.startswith(record["error.message"].string_value)
    assert len(record["error.message"].string_value.encode()) > 15_000, "no more than it must be"
    named = [value.string_value for value in record["audit.truncated"].array_value.values]
    assert named == ["process.command_args", "error.message"]


@pytest.mark.parametrize(
    "event",
    [
        pytest.param(FACT._replace(record_id="\ud800"), id="id"),
        pytest.param(FACT._replace(action="\ud800"), id="action"),
        pytest.param(FACT._replace(actor=Actor("\ud800")), id="actor"),
        pytest.param(FACT._replace(execution=Execution(exit_code=2**64)), id="number"),
        pytest.param(FACT._replace(execution=Execution(command=["x"])), id="list"),  # type: ignore[arg-type] # what it is about
    ],
)
def test_what_otlp_cannot_carry_is_an_error_and_the_next_record_is_whole(event: AuditEvent) -> None:
    with pytest.raises((ValueError, TypeError)):
        encode(event, 1, PLENTY)
    assert attributes(encode(FACT, 1, PLENTY))[RECORD_ID].string_value == FACT.record_id


@pytest.mark.skipif(sys.platform == "win32", reason="the system does not tell how much memory was used")
def test_memory_is_bounded_however_many_records_there_are() -> None:
    def used() -> int:
        return limits.getrusage(limits.RUSAGE_SELF).ru_maxrss

    for number in range(4 * FORM_USES_MAX):
        encode(REQUEST._replace(record_id=f"{number:01000d}"), number, PLENTY)
    before = used()
    for number in range(40_000):
        encode(REQUEST._replace(record_id=f"{number:01000d}"), number, PLENTY)
    assert used() - before < 10_000, "of the 40 MB that these ids are"
