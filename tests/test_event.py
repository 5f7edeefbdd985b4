from __future__ import annotations

import uuid
from dataclasses import FrozenInstanceError

import pytest

from tron_audit_otel.errors import AuditError, ConfigError
from tron_audit_otel.event import ACTION, Action, Actor, error_type, record_id


class OuterError(Exception):
    class InnerError(Exception):
        pass


def test_no_two_records_have_one_id() -> None:
    ids = {record_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(str(uuid.UUID(one)) == one for one in ids)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        pytest.param(ValueError(), "ValueError", id="pythons-own"),
        pytest.param(ConfigError(), "tron_audit_otel.errors.ConfigError", id="of-a-module"),
        pytest.param(OuterError.InnerError(), f"{__name__}.OuterError.InnerError", id="nested"),
        pytest.param(ExceptionGroup("", [ExceptionGroup("", [KeyError()])]), "KeyError", id="alone-in-a-group"),
        pytest.param(ExceptionGroup("", [KeyError(), ValueError()]), "ExceptionGroup", id="two-in-a-group"),
    ],
)
def test_an_error_is_named_so_that_it_can_be_found(error: Exception, expected: str) -> None:
    assert error_type(error) == expected


def test_one_except_catches_every_error_of_the_library() -> None:
    assert issubclass(ConfigError, AuditError)


@pytest.mark.parametrize("action", Action)
def test_our_own_actions_are_such_as_a_policy_may_name(action: Action) -> None:
    assert ACTION.fullmatch(action)


def test_an_event_cannot_be_changed_after_it_is_made() -> None:
    with pytest.raises(FrozenInstanceError):
        Actor().id = "mallory"  # type: ignore[misc] # what the test is about
