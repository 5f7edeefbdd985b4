from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor

from tron_audit_otel.encoder import encode
from tron_audit_otel.log_record import SCOPE_NAME


def batch(*attributes: dict[str, Any]) -> Any:
    """Records as the SDK hands them to an exporter."""
    exporter = InMemoryLogRecordExporter()  # type: ignore[no-untyped-call] # the SDK has no annotation here
    provider = LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    for number, each in enumerate(attributes):
        provider.get_logger(SCOPE_NAME).emit(
            timestamp=1, body="a body", attributes={"audit.record.id": f"id-{number}", **each}
        )
    return exporter.get_finished_logs()


def parsed(payload: bytes) -> list[dict[str, Any]]:
    request = ExportLogsServiceRequest.FromString(payload)
    return [
        {pair.key: pair.value for pair in record.attributes}
        for resource in request.resource_logs
        for scope in resource.scope_logs
        for record in scope.log_records
    ]


def test_a_batch_is_one_request_and_the_sdks_own() -> None:
    records = batch({"a": 1}, {"b": "x"}, {"c": True})
    (encoded,) = encode(records, 1_000_000)
    assert encoded.ids == ("id-0", "id-1", "id-2")
    assert ExportLogsServiceRequest.FromString(encoded.payload) == encode_logs(records)


def test_a_batch_that_is_too_long_is_split_in_the_order_of_its_records() -> None:
    records = batch(*[{"text": "x" * 1000}] * 7)
    found = list(encode(records, 3000))
    assert len(found) > 1
    assert [record_id for encoded in found for record_id in encoded.ids] == [f"id-{number}" for number in range(7)]
    assert all(len(encoded.payload) <= 3000 for encoded in found)
    assert sum(len(parsed(encoded.payload)) for encoded in found) == 7


@pytest.mark.parametrize("text", ["x" * 50_000, "ü" * 25_000, "\U0001f4a9" * 12_000], ids=["1", "2", "4"])
def test_a_record_that_is_too_long_is_cut_where_it_is_longest_and_says_so(text: str) -> None:
    records = batch({"short": "kept", "long": text, "longer": ["y" * 40_000] * 2})
    (encoded,) = encode(records, 20_000)
    assert len(encoded.payload) <= 20_000
    (record,) = parsed(encoded.payload)
    assert record["audit.record.id"].string_value == "id-0"
    assert record["short"].string_value == "kept"
    assert record["longer"].string_value == ""
    assert text.startswith(record["long"].string_value)
    assert len(record["long"].string_value.encode()) > 15_000, "no more than it must be"
    named = [value.string_value for value in record["audit.truncated"].array_value.values]
    assert named == ["longer", "long"]


def test_a_record_that_cannot_be_encoded_does_not_take_the_others_with_it(caplog: pytest.LogCaptureFixture) -> None:
    records = batch({}, {}, {})
    records[1].log_record.body = "s3cret \ud800"
    found = list(encode(records, 1_000_000))
    assert [(encoded.ids, bool(encoded.payload)) for encoded in found] == [
        (("id-0",), True),
        (("id-1",), False),
        (("id-2",), True),
    ]
    assert "audit record id-1 is lost: it cannot be encoded" in caplog.text
    assert "s3cret" not in caplog.text
