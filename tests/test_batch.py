from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from tron_audit_otel.batch import EMPTY_REQUEST, UNPROVEN_REFUSALS_MAX, Delivery, put_together, take_apart
from tron_audit_otel.journal import Frame

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

LARGE = 1 << 30
NO_PROTOBUF = b"\xff\xfe\xfd no protobuf"


def text(key: str, value: str) -> KeyValue:
    return KeyValue(key=key, value=AnyValue(string_value=value))


def request(ids: Iterable[str], *, service: str = "api", scope: str = "tron_audit_otel", padding: int = 0) -> bytes:
    records = [
        LogRecord(
            time_unix_nano=number,
            body=AnyValue(string_value=f"alice DELETE {record_id}"),
            attributes=[text("audit.record.id", record_id), text("padding", "x" * padding)],
        )
        for number, record_id in enumerate(ids, 1)
    ]
    scope_logs = ScopeLogs(scope=InstrumentationScope(name=scope), schema_url="scope/1", log_records=records)
    resource = Resource(attributes=[text("service.name", service)])
    resource_logs = ResourceLogs(resource=resource, scope_logs=[scope_logs], schema_url="resource/1")
    return bytes(ExportLogsServiceRequest(resource_logs=[resource_logs]).SerializeToString())


def frame(*ids: str, padding: int = 0) -> Frame:
    return Frame(request(ids, padding=padding), len(ids))


def ids_of(body: bytes) -> list[str]:
    return [
        attribute.value.string_value
        for resource_logs in ExportLogsServiceRequest.FromString(body).resource_logs
        for scope_logs in resource_logs.scope_logs
        for record in scope_logs.log_records
        for attribute in record.attributes
        if attribute.key == "audit.record.id"
    ]


def run(delivery: Delivery, takes: Callable[[bytes], bool], requests_max: int = 10_000) -> list[bytes]:
    """Gives what was taken, in the order in which it was."""
    taken: list[bytes] = []
    for _ in range(requests_max):
        if delivery.is_hopeless or (body := delivery.request()) is None:
            return taken
        if takes(body):
            taken.append(body)
            delivery.accepted()
        else:
            delivery.refused("HTTP 400")
    pytest.fail("it does not come to an end")


def test_resources_and_scopes_stay_with_their_records() -> None:
    body = (
        request(["a", "b"])
        + request(["c"], service="other")
        + request(["d"], service="other", scope="s2")
        + request(["e"])
    )
    parts = take_apart(body, 5)
    assert [ids_of(put_together([part])) for part in parts] == [["a"], ["b"], ["c"], ["d"], ["e"]]
    assert put_together(parts[0:2]) == request(["a", "b"])
    assert put_together(parts[2:3]) == request(["c"], service="other")
    whole = ExportLogsServiceRequest.FromString(put_together(parts))
    assert [each.resource.attributes[0].value.string_value for each in whole.resource_logs] == ["api", "other", "api"]
    assert [[scope.scope.name for scope in each.scope_logs] for each in whole.resource_logs] == [
        ["tron_audit_otel"],
        ["tron_audit_otel", "s2"],
        ["tron_audit_otel"],
    ]
    assert {each.schema_url for each in whole.resource_logs} == {"resource/1"}
    assert {scope.schema_url for each in whole.resource_logs for scope in each.scope_logs} == {"scope/1"}
    assert ids_of(whole.SerializeToString()) == ["a", "b", "c", "d", "e"]


def test_fields_that_this_version_does_not_know_are_kept() -> None:
    unknown = b"\xfa\x3e\x03new"  # field 1007, three bytes
    record = LogRecord.FromString(LogRecord(body=AnyValue(string_value="x")).SerializeToString() + unknown)
    scope_logs = ScopeLogs.FromString(ScopeLogs(log_records=[record]).SerializeToString() + unknown)
    resource_logs = ResourceLogs.FromString(ResourceLogs(scope_logs=[scope_logs]).SerializeToString() + unknown)
    body = ExportLogsServiceRequest(resource_logs=[resource_logs]).SerializeToString()
    assert put_together(take_apart(body, 1)).count(unknown) == 3


@pytest.mark.parametrize(
    ("body", "records"),
    [(NO_PROTOBUF, 3), (request(["a", "b"]), 3), (request(["a", "b"]), 1), (b"", 2)],
    ids=["no-protobuf", "one-missing", "one-too-many", "empty"],
)
def test_a_frame_that_is_not_what_it_says_stays_whole_and_counts_as_it_says(body: bytes, records: int) -> None:
    (part,) = take_apart(body, records)
    assert (part.records, put_together([part])) == (records, body)


def test_what_is_taken_at_once_is_sent_as_it_was_read() -> None:
    frames = [frame("a", "b"), frame("c")]
    delivery = Delivery(frames, LARGE)
    assert run(delivery, lambda _: True) == [frames[0].payload + frames[1].payload]
    assert (delivery.delivered, list(delivery.refusals)) == (3, [])


def test_nothing_is_sent_of_no_frames() -> None:
    assert Delivery([], LARGE).request() is None


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    poison=st.sets(st.integers(0, 60)),
    takes_empty=st.booleans(),
)
def test_exactly_the_poison_is_refused_and_the_rest_is_taken_once(
    sizes: list[int],
    poison: set[int],
    takes_empty: bool,
) -> None:
    numbers = iter(range(sum(sizes)))
    frames = [frame(*[str(next(numbers)) for _ in range(size)]) for size in sizes]
    delivery = Delivery(frames, LARGE)
    bad = {str(number) for number in poison if number < sum(sizes)}
    taken = run(delivery, lambda body: not bad & set(ids_of(body)) and (takes_empty or bool(ids_of(body))))
    if delivery.is_hopeless:
        assert not takes_empty
        return
    assert sorted(refusal.record_id for refusal in delivery.refusals) == sorted(bad)
    assert sorted(record_id for body in taken for record_id in ids_of(body)) == sorted(
        {str(number) for number in range(sum(sizes))} - bad
    )
    assert delivery.delivered + len(bad) == sum(sizes) == delivery.records


def test_one_poison_record_in_a_thousand_costs_few_requests() -> None:
    frames = [frame(*[f"{number}-{index}" for index in range(20)]) for number in range(50)]
    sent: list[bytes] = []

    def takes(body: bytes) -> bool:
        sent.append(body)
        return "17-3" not in ids_of(body)

    delivery = Delivery(frames, LARGE)
    run(delivery, takes)
    assert [refusal.record_id for refusal in delivery.refusals] == ["17-3"]
    assert len(sent) <= 24  # the chunk, the empty request, and two of each half


def test_a_receiver_with_a_smaller_limit_gets_every_record() -> None:
    delivery = Delivery([frame(*"abcdefgh", padding=1000), frame(*"ijk", padding=1000)], LARGE)
    taken = run(delivery, lambda body: len(body) < 2500)
    assert sorted(record_id for body in taken for record_id in ids_of(body)) == list("abcdefghijk")
    assert not delivery.refusals


def test_no_request_is_larger_than_the_limit_unless_a_single_record_is() -> None:
    delivery = Delivery([frame(*"abcdefgh", padding=1000), frame("i", padding=9000), frame(*"jk")], 3000)
    taken = run(delivery, lambda _: True)
    assert [record_id for body in taken for record_id in ids_of(body)] == list("abcdefghijk")
    assert [ids_of(body) for body in taken if len(body) > 3000] == [["i"]]


def test_a_request_stays_the_same_until_it_is_answered() -> None:
    delivery = Delivery([frame(*"abcd")], LARGE)
    delivery.refused("HTTP 400")
    delivery.accepted()  # the empty request
    assert delivery.request() is delivery.request()
    assert ids_of(delivery.request() or b"") == ["a", "b"]


def test_a_refusal_says_which_record_it_is() -> None:
    delivery = Delivery([frame("r-1", "r-2")], LARGE)
    run(delivery, lambda body: "r-2" not in ids_of(body))
    (refusal,) = delivery.refusals
    assert (refusal.record_id, refusal.sentence, refusal.reason) == ("r-2", "alice DELETE r-2", "HTTP 400")
    assert (ids_of(refusal.request), refusal.records) == (["r-2"], 1)


@pytest.mark.parametrize("record_id", ["", "../../etc/passwd", "a\nb", "x" * 129, "é"])
def test_an_id_that_we_would_not_have_written_is_not_believed(record_id: str) -> None:
    found = []
    for _ in range(2):
        delivery = Delivery([frame(record_id)], LARGE)
        run(delivery, lambda body: not ids_of(body))
        found += [refusal.record_id for refusal in delivery.refusals]
    assert found[0] == found[1]
    assert found[0].startswith("sha256-")


def test_a_frame_that_cannot_be_decoded_is_refused_whole_and_the_others_are_taken() -> None:
    delivery = Delivery([frame("a"), Frame(NO_PROTOBUF, 7), frame("b", "c")], LARGE)
    taken = run(delivery, lambda body: NO_PROTOBUF not in body)
    assert sorted(record_id for body in taken for record_id in ids_of(body)) == ["a", "b", "c"]
    (refusal,) = delivery.refusals
    assert (refusal.records, refusal.request) == (7, NO_PROTOBUF)
    assert refusal.record_id.startswith("sha256-")
    assert delivery.delivered == 3


@pytest.mark.parametrize("records", [1, 2, 1000])
def test_a_receiver_that_refuses_even_the_empty_request_refuses_no_record(records: int) -> None:
    sent: list[bytes] = []

    def takes(body: bytes) -> bool:
        sent.append(body)
        return False

    delivery = Delivery([frame(*[str(number) for number in range(records)])], LARGE)
    run(delivery, takes)
    assert delivery.is_hopeless
    assert EMPTY_REQUEST in sent
    assert len(sent) <= UNPROVEN_REFUSALS_MAX


def test_a_receiver_that_refuses_only_empty_requests_gets_all_but_the_poison() -> None:
    delivery = Delivery([frame("bad"), frame("a", "b", "c")], LARGE)
    taken = run(delivery, lambda body: bool(ids_of(body)) and "bad" not in ids_of(body))
    assert [ids_of(body) for body in taken] == [["a", "b", "c"]]
    assert [refusal.record_id for refusal in delivery.refusals] == ["bad"]
    assert not delivery.is_hopeless


def test_the_empty_request_is_one_and_carries_nothing() -> None:
    assert EMPTY_REQUEST
    assert ExportLogsServiceRequest.FromString(EMPTY_REQUEST).resource_logs
    assert ids_of(EMPTY_REQUEST) == []
