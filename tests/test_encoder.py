from __future__ import annotations

import re
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

from tests.hostile import fuzzed
from tests.test_log_record import EXEC, FACT, REQUEST
from tron_audit_otel import encoder, log_record
from tron_audit_otel.encoder import LENGTH_BYTES, encode
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
from tron_audit_otel.log_record import RECORD_BYTES_MAX, RECORD_ID, SCOPE_NAME, SEQUENCE_NUMBER, to_log_record

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


CHARACTERS = ["x", "ü", "…", "\U0001f4a9"]
"""Of one to four bytes."""


@pytest.mark.parametrize("character", CHARACTERS)
def test_a_record_that_is_too_long_is_cut_where_it_is_longest_and_says_so(character: str) -> None:
    assert EXEC.execution is not None
    text, arguments = character * 12_500, tuple(f"{number}" * 9 for number in range(4_096))
    long = EXEC.execution._replace(error_message=text, command=arguments, container="c" * 1_000)
    encoded = encode(EXEC._replace(execution=long), 1, 20_000)
    assert 19_000 < len(encoded) <= 20_000
    record = attributes(encoded)
    assert record["audit.resource"].string_value == EXEC.resource.name
    assert record["container.name"].string_value == "c" * 1_000, "there are longer ones"
    *kept, last = [value.string_value for value in record["process.command_args"].array_value.values]
    assert tuple(kept) == arguments[: len(kept)]
    assert last.endswith("…")
    assert record["audit.exec.command.truncated"].bool_value
    message = record["error.message"].string_value
    assert message.endswith("…")
    assert text.startswith(message.removesuffix("…"))
    named = [value.string_value for value in record["audit.truncated"].array_value.values]
    assert set(named) == {"process.command_args", "error.message"}


@pytest.mark.parametrize("bytes_max", range(4_000, 4_006))
def test_no_escape_is_cut_in_two(bytes_max: int) -> None:
    assert EXEC.execution is not None
    escapes = EXEC.execution._replace(command=("\\u202e" * 1_000,), error_message="\\u202e" * 1_000)
    record = attributes(encode(EXEC._replace(execution=escapes), 1, bytes_max))
    [argument] = record["process.command_args"].array_value.values
    for text in (argument.string_value, record["error.message"].string_value):
        assert re.fullmatch(r"(?:\\u202e)+…", text)


def test_a_record_just_as_long_as_it_may_be_is_whole_and_the_next_one_is_cut() -> None:
    span = NonRecordingSpan(SpanContext(1, 2**63, is_remote=False, trace_flags=TraceFlags(255)))
    near = EXEC._replace(context=set_span_in_context(span, Context()), began_ns=2**63)
    assert near.execution is not None
    lengths = []
    for size in range(RECORD_BYTES_MAX - 1_800, RECORD_BYTES_MAX, 10):
        event = near._replace(execution=near.execution._replace(error_message="x" * size))
        lengths.append(len(encode(event, 2**62)))
        is_cut = b"audit.truncated" in encode(event, 2**62)
        assert is_cut == ("audit.truncated" in (to_log_record(event).attributes or ()))
    assert RECORD_BYTES_MAX - 256 < max(lengths) <= RECORD_BYTES_MAX


def test_output_that_was_cut_once_more_does_not_pass_for_the_whole() -> None:
    assert EXEC.execution is not None
    whole = Text("x" * 4096, 4096, "0" * 64, truncated=False)
    record = attributes(encode(EXEC._replace(execution=EXEC.execution._replace(stdout=whole)), 1, 4_000))
    assert record["audit.exec.stdout.text"].string_value.endswith("x…")
    assert record["audit.exec.stdout.truncated"].bool_value


def test_what_is_never_cut_gives_way_when_it_alone_is_too_long() -> None:
    record = attributes(encode(FACT._replace(action="A" * 100_000), 1))
    assert record["audit.action"].string_value.endswith("A…")
    assert record[RECORD_ID].string_value == FACT.record_id
    assert record["audit.actor.id"].string_value == FACT.actor.id


def long_texts(*lengths: int) -> Any:
    return st.builds(
        lambda character, length: character * length, st.sampled_from(CHARACTERS), st.sampled_from(lengths)
    )


lines = long_texts(1, 1_023, 1_024)
longest = long_texts(0, 1, 127, 1_024, 4_096, 20_000, 70_000)
several = st.builds(lambda text, number: (text,) * number, longest, st.sampled_from([0, 1, 2, 256, 4_096]))
long_outputs = st.builds(Text, longest, numbers, st.just("0" * 64), st.booleans())
long_events = st.builds(
    AuditEvent,
    record_id=st.uuids().map(str),
    name=st.sampled_from(EventName),
    began_ns=st.integers(-(2**65), 2**65),
    duration_ns=st.integers(0, 2**65),
    actor=st.builds(Actor, st.none() | lines, st.sampled_from(ActorType), st.none() | longest),
    action=st.just("A" * 64),
    resource=st.builds(Resource, longest, st.none() | longest, st.none() | longest),
    outcome=st.sampled_from(Outcome),
    context=spans,
    source=st.none() | st.builds(Source, lines, lines, st.just("proxies"), st.booleans()),
    request=st.none()
    | st.builds(
        Request,
        st.just("_OTHER"),
        st.none() | longest,
        st.none() | longest,
        longest,
        st.none() | st.integers(0, 999),
        st.none() | longest,
        st.none() | st.integers(0, 2**16),
        st.integers(0, 300).flatmap(
            lambda number: several.map(lambda values: {f"x-{index}": values[:8] for index in range(number)})
        ),
    ),
    execution=st.none()
    | st.builds(
        Execution,
        st.none() | several,
        st.booleans(),
        st.none() | longest,
        st.none() | long_outputs,
        st.none() | long_outputs,
        st.none() | st.integers(-(2**70), 2**70),
        st.none() | longest,
        st.none() | longest,
    ),
    error_type=st.none() | longest,
)


@fuzzed
@given(long_events, st.integers(1, 2**62))
def test_no_record_is_longer_than_it_may_be_whichever_way_it_goes(event: AuditEvent, number: int) -> None:
    encoded = encode(event, number)
    (by_sdk,) = by_the_sdk(event, number).resource_logs[0].scope_logs[0].log_records
    assert max(len(encoded), by_sdk.ByteSize()) <= RECORD_BYTES_MAX
    assert sorted_by_name(LogRecord.FromString(encoded)) == sorted_by_name(by_sdk)
    found, given_ = to_log_record(event).attributes, log_record.attributes(event)
    assert found is not None
    cut = found.get("audit.truncated", ())
    assert isinstance(cut, tuple)
    assert not set(cut) & log_record.NEVER_CUT
    for name, value in given_.items():
        kept: Any = found.get(name)
        if kept == value or (kept is True and name.endswith(".truncated")):
            continue
        assert name in cut or cut[-1].endswith("…")
        assert kept is None or (kept if isinstance(kept, str) else kept[-1]).endswith("…")
    if set(cut) - {"process.exit.code"}:
        assert by_sdk.ByteSize() > RECORD_BYTES_MAX * 3 // 4, "no more than it must be"


@pytest.mark.parametrize(
    "event",
    [
        pytest.param(FACT._replace(record_id="\ud800"), id="id"),
        pytest.param(FACT._replace(action="\ud800"), id="action"),
        pytest.param(FACT._replace(actor=Actor("\ud800")), id="actor"),
        pytest.param(FACT._replace(execution=Execution(command=["x"])), id="list"),  # type: ignore[arg-type] # what it is about
    ],
)
def test_what_otlp_cannot_carry_is_an_error_and_the_next_record_is_whole(event: AuditEvent) -> None:
    with pytest.raises((ValueError, TypeError)):
        encode(event, 1, PLENTY)
    assert attributes(encode(FACT, 1, PLENTY))[RECORD_ID].string_value == FACT.record_id


@pytest.mark.parametrize(
    ("began_ns", "duration_ns", "times"),
    [
        pytest.param(-1, 0, (0, 0), id="before-1970"),
        pytest.param(-(10**30), 7, (0, 0), id="long-before-1970"),
        pytest.param(2**63, 1, (2**63, 2**63 + 1), id="after-2262"),
        pytest.param(2**64, 1, (2**64 - 1, 2**64 - 1), id="after-2554"),
        pytest.param(2**64 - 1, 10**30, (2**64 - 1, 2**64 - 1), id="without-an-end"),
        pytest.param(5, -3, (5, 2), id="by-a-clock-that-steps-back"),
    ],
)
def test_no_clock_makes_a_record_impossible(began_ns: int, duration_ns: int, times: tuple[int, int]) -> None:
    event = REQUEST._replace(began_ns=began_ns, duration_ns=duration_ns)
    record = LogRecord.FromString(encode(event, 1))
    assert (record.time_unix_nano, record.observed_time_unix_nano) == times
    assert sorted_by_name(record) == sorted_by_name(by_the_sdk(event, 1).resource_logs[0].scope_logs[0].log_records[0])


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 10**100], ids=["positive", "negative", "huge"])
def test_a_number_that_otlp_has_no_place_for_costs_itself_alone(number: int) -> None:
    event = EXEC._replace(execution=Execution(("ls",), exit_code=number))
    record = attributes(encode(event, 1))
    assert "process.exit.code" not in record
    assert [value.string_value for value in record["audit.truncated"].array_value.values] == ["process.exit.code"]
    assert [value.string_value for value in record["process.command_args"].array_value.values] == ["ls"]


@pytest.mark.parametrize(
    ("event", "cache"),
    [
        pytest.param(
            REQUEST._replace(request=REQUEST.request and REQUEST.request._replace(user_agent="x" * 1_024)),
            encoder._of_source,
            id="user-agent",
        ),
        pytest.param(
            REQUEST._replace(request=REQUEST.request and REQUEST.request._replace(route="/" + "x" * 1_024)),
            encoder._of_kind,
            id="route",
        ),
        pytest.param(REQUEST._replace(error_type="E" * 1_024), encoder._of_kind, id="error"),
        pytest.param(REQUEST._replace(actor=Actor(claimed="x" * 1_024)), encoder._of_actor, id="claim"),
    ],
)
def test_what_is_long_is_kept_in_no_cache(event: AuditEvent, cache: Any) -> None:
    encode(REQUEST, 1)
    before = cache.cache_info().currsize
    record = LogRecord.FromString(encode(event, 1))
    assert cache.cache_info().currsize == before
    assert sorted_by_name(record) == sorted_by_name(by_the_sdk(event, 1).resource_logs[0].scope_logs[0].log_records[0])


@pytest.mark.skipif(sys.platform == "win32", reason="the system does not tell how much memory was used")
def test_memory_is_bounded_however_many_records_there_are() -> None:
    def used() -> int:
        return limits.getrusage(limits.RUSAGE_SELF).ru_maxrss

    for number in range(2_000):
        encode(REQUEST._replace(record_id=f"{number:01000d}"), number, PLENTY)
    before = used()
    for number in range(40_000):
        encode(REQUEST._replace(record_id=f"{number:01000d}"), number, PLENTY)
    assert used() - before < 10_000, "of the 40 MB that these ids are"
