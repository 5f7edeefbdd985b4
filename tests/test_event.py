from __future__ import annotations

import os
import uuid
import warnings

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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
def test_a_forked_process_gives_other_ids_than_its_parent() -> None:
    record_id()  # now there is randomness in stock that a child must not use
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of threads, which other tests have
        child = os.fork()
    if child == 0:
        os.write(write, "".join(record_id() for _ in range(300)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        of_child = pipe.read().decode()
    assert len(of_child) == 300 * 36
    assert not [one for one in (record_id() for _ in range(300)) if one in of_child]


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
    with pytest.raises(AttributeError):
        Actor().id = "mallory"  # type: ignore[misc] # what the test is about
