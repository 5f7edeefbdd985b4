"""Takes one serialized OTLP request to the receiver, and says what is to become of it.

The journal keeps what a request carries, so nothing is retried here and nothing is logged: the answer says whether to
try again, to ask for an operator, or to set records aside. Which is which follows OTLP's specification, but where that
would give up what may still be delivered.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from tron_audit_otel.answer import Transport
    from tron_audit_otel.config import AuditConfig


def maker(config: AuditConfig) -> Callable[[], Transport]:
    """Gives what makes transports for the protocol that is configured, and loads it now, but not the other one.

    A fork while another thread loads a module leaves it half loaded, and its lock held, in the child for ever.
    """
    if config.otlp_protocol == "grpc":
        from tron_audit_otel.otlp_grpc import GrpcTransport  # noqa: PLC0415 - takes 0.1 s

        return partial(GrpcTransport, config)
    from tron_audit_otel.otlp_http import HttpTransport  # noqa: PLC0415 - as above

    return partial(HttpTransport, config)


def make(config: AuditConfig) -> Transport:
    """Makes one."""
    return maker(config)()
