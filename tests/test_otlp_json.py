from __future__ import annotations

import base64
import json
import math
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict, ParseDict  # type: ignore[import-untyped] # has no annotations
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, InstrumentationScope, KeyValue, KeyValueList
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from tron_audit_otel import otlp_json

texts = st.text(st.characters(codec="utf-8"), max_size=12)
scalars = st.one_of(
    st.just(AnyValue()),
    st.builds(AnyValue, string_value=texts),
    st.builds(AnyValue, bool_value=st.booleans()),
    st.builds(AnyValue, int_value=st.integers(-(2**63), 2**63 - 1)),
    st.builds(AnyValue, double_value=st.floats(allow_nan=False)),
    st.builds(AnyValue, bytes_value=st.binary(max_size=12)),
)


def _nested(values: st.SearchStrategy[AnyValue]) -> st.SearchStrategy[AnyValue]:
    pairs = st.lists(st.builds(KeyValue, key=texts, value=values), max_size=3)
    arrays = st.builds(ArrayValue, values=st.lists(values, max_size=3))
    return st.builds(AnyValue, array_value=arrays) | st.builds(
        AnyValue, kvlist_value=st.builds(KeyValueList, values=pairs)
    )


any_values = st.recursive(scalars, _nested, max_leaves=6)
attributes = st.lists(st.builds(KeyValue, key=texts, value=any_values), max_size=4)
numbers_64 = st.integers(0, 2**64 - 1)
numbers_32 = st.integers(0, 2**32 - 1)
# Where a message always stands in what the Collector writes, there is one, if an empty one.
records = st.builds(
    LogRecord,
    time_unix_nano=numbers_64,
    observed_time_unix_nano=numbers_64,
    severity_number=st.integers(0, 24),
    severity_text=texts,
    body=any_values,
    attributes=attributes,
    dropped_attributes_count=numbers_32,
    flags=numbers_32,
    trace_id=st.just(b"") | st.binary(min_size=16, max_size=16).filter(any),
    span_id=st.just(b"") | st.binary(min_size=8, max_size=8).filter(any),
    event_name=texts,
)
scopes = st.builds(
    InstrumentationScope, name=texts, version=texts, attributes=attributes, dropped_attributes_count=numbers_32
)
resources = st.builds(Resource, attributes=attributes, dropped_attributes_count=numbers_32)
requests = st.builds(
    ExportLogsServiceRequest,
    resource_logs=st.lists(
        st.builds(
            ResourceLogs,
            resource=resources,
            scope_logs=st.lists(
                st.builds(
                    ScopeLogs, scope=scopes, log_records=st.lists(records, min_size=1, max_size=3), schema_url=texts
                ),
                min_size=1,
                max_size=2,
            ),
            schema_url=texts,
        ),
        min_size=1,
        max_size=2,
    ),
)


def written(request: ExportLogsServiceRequest) -> bytes:
    """As the Collector writes it."""
    data = MessageToDict(request, use_integers_for_enums=True)
    for record in records_in(data):
        for name in {"traceId", "spanId"} & record.keys():
            record[name] = base64.b64decode(record[name]).hex()
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()


def records_in(data: Any) -> list[dict[str, Any]]:
    return [
        record
        for of_resource in data["resourceLogs"]
        for of_scope in of_resource["scopeLogs"]
        for record in of_scope["logRecords"]
    ]


@given(requests)
def test_a_request_comes_back_as_it_was(request: ExportLogsServiceRequest) -> None:
    data = otlp_json.loads(written(request))
    assert otlp_json.message(data, ExportLogsServiceRequest) == request


@given(requests)
def test_it_reads_what_protobufs_own_reader_does(request: ExportLogsServiceRequest) -> None:
    data = json.loads(written(request))
    ours = otlp_json.message(data, ExportLogsServiceRequest)
    for record in records_in(data):
        for name in {"traceId", "spanId"} & record.keys():
            record[name] = base64.b64encode(bytes.fromhex(record[name])).decode()
    assert ours == ParseDict(data, ExportLogsServiceRequest())


def value(text: str) -> AnyValue:
    return otlp_json.message(otlp_json.loads(text.encode()), AnyValue)


def test_numbers_that_json_has_not() -> None:
    assert math.isnan(value('{"doubleValue":"NaN"}').double_value)
    assert value('{"doubleValue":"-Infinity"}').double_value == -math.inf
    assert math.copysign(1, value('{"doubleValue":-0}').double_value) == -1
    assert value('{"intValue":"-9223372036854775808"}').int_value == -(2**63)
    assert value('{"intValue":7}').int_value == 7, "other writers give small numbers as numbers"


def test_what_is_unknown_or_null_is_passed_over() -> None:
    data = {"key": "a", "value": {"stringValue": "b", "shade": 1}, "later": {"a": 1}}
    assert otlp_json.message(data, KeyValue) == KeyValue(key="a", value=AnyValue(string_value="b"))
    assert otlp_json.message({"severityNumber": 77, "severityText": None}, LogRecord) == LogRecord(severity_number=77)  # type: ignore[arg-type] # OTLP may add some


def test_bytes_that_are_no_text_are_replaced() -> None:
    assert otlp_json.loads(b'{"stringValue":"a\xff"}') == {"stringValue": "a\ufffd"}


@pytest.mark.parametrize(
    "data",
    [
        pytest.param({"timeUnixNano": "soon"}, id="no-number"),
        pytest.param({"timeUnixNano": "18446744073709551616"}, id="too-large-a-number"),
        pytest.param({"traceId": "xyz"}, id="no-hexadecimal"),
        pytest.param({"body": {"bytesValue": "?"}}, id="no-base64"),
        pytest.param({"body": "text"}, id="no-message"),
        pytest.param({"attributes": 1}, id="no-list"),
        pytest.param({"attributes": [{"key": 1, "value": {"stringValue": "a"}}]}, id="a-key-that-is-no-text"),
        pytest.param({"attributes": [{"key": "a", "value": {"stringValue": 1}}]}, id="a-text-that-is-none"),
        pytest.param({"severityText": ["a"]}, id="a-list"),
        pytest.param({"severityText": "\ud800"}, id="half-a-character"),
        pytest.param({"severityNumber": math.inf}, id="infinite"),
    ],
)
def test_what_is_no_record_is_told(data: dict[str, Any]) -> None:
    with pytest.raises(otlp_json.UNREADABLE):
        otlp_json.message(data, LogRecord)


def nested(depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {"stringValue": "a"}
    for _ in range(depth):
        found = {"arrayValue": {"values": [found]}}
    return {"body": found}


def test_what_is_nested_too_deep_for_protobuf_is_told_before_it_is_sent() -> None:
    deep = otlp_json.keywords(nested(44), LogRecord)
    made = ExportLogsServiceRequest(
        resource_logs=[ResourceLogs(scope_logs=[ScopeLogs(log_records=[LogRecord(**deep)])])]
    )
    assert ExportLogsServiceRequest.FromString(made.SerializeToString()) == made
    with pytest.raises(ValueError, match="nested deeper"):
        otlp_json.keywords(nested(46), LogRecord)
    for depth in (5_000, 100_000):
        with pytest.raises(otlp_json.UNREADABLE):
            otlp_json.loads(b"[" * depth)
