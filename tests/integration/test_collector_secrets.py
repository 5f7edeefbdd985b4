"""Who may send to the Collector, whom the Collector trusts, and that no secret gets to where it can be read."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import ssl
import sys
import tempfile
import warnings
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import pytest
import trustme
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse

from collector import launch, servers
from tests.integration.faulty import PROTOBUF, Call, Faulty, Reply
from tests.integration.gateway import (
    ANSWER_SECONDS_MAX,
    EXEC,
    LOGIN,
    Gateway,
    eventually,
    hasty,
    record,
    server_certificate,
    settings_of,
)
from tests.integration.load import audited, letters, waiting
from tests.integration.test_collector_config import TOKEN, run
from tests.integration.test_processes import UVICORN, Api
from tron_audit_otel.answer import Fate
from tron_audit_otel.config import AuditConfig
from tron_audit_otel.transport import make

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

WRONG = "wr0ng-t0ken"
NEXT = "n3xt-t0ken"
CONNECTION_OF_HTTP_2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
REFUSED = {"http/protobuf": "401", "grpc": "UNAUTHENTICATED"}
"""What an application's log says of a token that is not known, by protocol."""

# As Linux writes them in /proc/net/tcp and tcp6, in the machine's byte order (x86 and ARM).
LOOPBACK = {"0100007F", "00000000000000000000000001000000"}
LISTENING = "0A"


# Where the SIEMs that run here find their server, and the header in which it finds their token.
URLS = {"elastic-otlp": "ELASTIC_OTLP_URL", "datadog": "DD_OTLP_LOGS_URL", "http": "AUDIT_SIEM_URL"}
HEADERS = {"elastic-otlp": "Authorization: ApiKey ", "datadog": "dd-api-key: ", "http": "Authorization: Bearer "}
TOKENS = {"elastic-otlp": "ELASTIC_OTLP_API_KEY", "datadog": "DD_API_KEY", "http": "AUDIT_SIEM_TOKEN"}
AUTHORITIES = {"elastic-otlp": "ELASTIC_OTLP_CA_FILE", "http": "AUDIT_SIEM_CA_FILE"}


@pytest.fixture
def mutual(tmp_path: Path, authority: trustme.CA, certificate: dict[str, str]) -> dict[str, str]:
    """What an operator sets for mTLS."""
    return {**certificate, "AUDIT_COLLECTOR_TLS_CLIENT_CA_FILE": ca_file(authority, tmp_path)}


def ca_file(authority: trustme.CA, directory: Path) -> str:
    file = directory / "ca.pem"
    authority.cert_pem.write_to_path(file)
    return str(file)


def trusting(authority: trustme.CA, ours: trustme.LeafCert | None = None) -> ssl.SSLContext:
    """A client's context; with a certificate of the client's own if there is one."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    if ours is not None:
        ours.configure_cert(context)
    return context


def calling(address: str, authority: trustme.CA, ours: trustme.LeafCert | None = None) -> grpc.Channel:
    pair = {}
    if ours is not None:
        chain = b"".join(part.bytes() for part in ours.cert_chain_pems)
        pair = {"private_key": ours.private_key_pem.bytes(), "certificate_chain": chain}
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(authority.cert_pem.bytes(), **pair))


def export_over(channel: grpc.Channel, **more: Any) -> Any:
    """OTLP's one call with one record, written out because the generated stub has no types."""
    message = ExportLogsServiceRequest()
    message.resource_logs.add().scope_logs.add().log_records.add().body.string_value = "by gRPC"
    return channel.unary_unary(
        "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
        request_serializer=ExportLogsServiceRequest.SerializeToString,
        response_deserializer=ExportLogsServiceResponse.FromString,
    )(message, timeout=ANSWER_SECONDS_MAX, **more)


def get(url: str) -> httpx.Response:
    return httpx.get(url, timeout=ANSWER_SECONDS_MAX, trust_env=False)


def with_token(token: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {token}")]


def port_of(address: str) -> int:
    found = re.search(r":(\d+)(?:/|$)", address)
    assert found is not None
    return int(found[1])


def refusal(port: int, context: ssl.SSLContext) -> str:
    """The alert with which the server refuses a connection; empty if it does not.

    In TLS 1.3 a client's certificate is looked at when the client has finished: the alert comes instead of an answer.
    """
    context.set_alpn_protocols(["h2"])  # which both protocols speak
    plain = socket.create_connection(("127.0.0.1", port), timeout=ANSWER_SECONDS_MAX)
    try:
        with plain, context.wrap_socket(plain, server_hostname="127.0.0.1") as secure:
            secure.sendall(CONNECTION_OF_HTTP_2)
            assert secure.recv(1)
    except ssl.SSLError as error:
        return str(error.reason)
    return ""


def without_certificate(authority: trustme.CA) -> ssl.SSLContext:
    return trusting(authority)


def of_a_stranger(authority: trustme.CA) -> ssl.SSLContext:
    return trusting(authority, trustme.CA().issue_cert("client"))


def expired(authority: trustme.CA) -> ssl.SSLContext:
    return trusting(authority, expired_certificate(authority, "client"))


def expired_certificate(authority: trustme.CA, name: str) -> trustme.LeafCert:
    now = datetime.now(UTC)
    return authority.issue_cert(name, not_before=now - timedelta(days=2), not_after=now - timedelta(days=1))


def of_an_old_version(authority: trustme.CA) -> ssl.SSLContext:
    context = trusting(authority, authority.issue_cert("client"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    return context


def that_is_known(authority: trustme.CA) -> ssl.SSLContext:
    return trusting(authority, authority.issue_cert("client"))


@pytest.fixture(scope="module")
def for_known_clients(
    otelcol: Path, authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    """A Collector that wants a certificate from its clients."""
    directory = tmp_path_factory.mktemp("mutual")
    client_ca = {"AUDIT_COLLECTOR_TLS_CLIENT_CA_FILE": ca_file(authority, directory)}
    with Gateway(otelcol, directory / "data", {**server_certificate(authority, directory), **client_ca}) as gateway:
        yield gateway


class TestTls:
    def test_a_certificate_turns_plain_text_away(
        self, otelcol: Path, tmp_path: Path, authority: trustme.CA, certificate: dict[str, str]
    ) -> None:
        with Gateway(otelcol, tmp_path / "data", certificate) as gateway:
            assert get(gateway.url.replace("https", "http")).status_code == 400
            with grpc.insecure_channel(gateway.grpc) as channel, pytest.raises(grpc.RpcError) as caught:
                export_over(channel)
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
            assert gateway.archived() == []
            assert gateway.send(record(EXEC), verify=trusting(authority)).status_code == 200
            with calling(gateway.grpc, authority) as channel:
                export_over(channel)
            assert gateway.archived() == [EXEC, {}]

    def test_a_sender_that_does_not_know_the_authority_sends_nothing(
        self, otelcol: Path, tmp_path: Path, certificate: dict[str, str]
    ) -> None:
        with Gateway(otelcol, tmp_path / "data", certificate) as gateway:
            with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
                gateway.send(record(EXEC))
            with calling(gateway.grpc, trustme.CA()) as channel, pytest.raises(grpc.RpcError) as caught:
                export_over(channel)
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
            assert gateway.archived() == []

    @pytest.mark.parametrize(
        ("client", "alert"),
        [
            (without_certificate, "TLSV13_ALERT_CERTIFICATE_REQUIRED"),
            (of_a_stranger, "TLSV1_ALERT_UNKNOWN_CA"),
            (expired, "SSLV3_ALERT_CERTIFICATE_EXPIRED"),
            (of_an_old_version, "TLSV1_ALERT_PROTOCOL_VERSION"),
            (that_is_known, ""),
        ],
    )
    def test_a_client_authority_lets_only_its_own_in(
        self,
        for_known_clients: Gateway,
        authority: trustme.CA,
        client: Callable[[trustme.CA], ssl.SSLContext],
        alert: str,
    ) -> None:
        for address in (for_known_clients.url, for_known_clients.grpc):
            assert refusal(port_of(address), client(authority)) == alert

    def test_a_client_with_its_certificate_is_heard_on_both_protocols(
        self, otelcol: Path, tmp_path: Path, authority: trustme.CA, mutual: dict[str, str]
    ) -> None:
        with Gateway(otelcol, tmp_path / "data", mutual) as gateway:
            with pytest.raises(httpx.TransportError):
                gateway.send(record(EXEC), verify=trusting(authority))
            with calling(gateway.grpc, authority) as channel, pytest.raises(grpc.RpcError):
                export_over(channel)
            assert gateway.archived() == []
            assert gateway.send(record(EXEC), verify=that_is_known(authority)).status_code == 200
            with calling(gateway.grpc, authority, authority.issue_cert("client")) as channel:
                export_over(channel)
            assert gateway.archived() == [EXEC, {}]


# How a file's content changes.


def written_in_place(file: Path, text: str) -> None:
    """The new token first, and then off with what is left of the old: at no moment is the file empty."""
    with file.open("r+" if file.exists() else "w") as opened:
        opened.write(text)
        opened.truncate()


def replaced(file: Path, text: str) -> None:
    new = file.with_suffix(".new")
    new.write_text(text)
    new.rename(file)


def swapped_by_symlink(file: Path, text: str) -> None:
    """As Kubernetes does with a secret: the file is a link through a link to a directory, and that one is swapped."""
    data, link = file.parent / "..data", file.parent / "..new"
    old = data.resolve()
    directory = Path(tempfile.mkdtemp(dir=file.parent))
    (directory / file.name).write_text(text)
    link.symlink_to(directory)
    link.rename(data)
    if file.is_symlink():
        shutil.rmtree(old)  # which is what the Collector notices
    else:
        file.symlink_to(data / file.name)


each_way = pytest.mark.parametrize("change", [written_in_place, replaced, swapped_by_symlink])


class TestTokenOfTheSender:
    def test_http_answers_401_without_it_and_takes_a_record_with_it(self, otelcol: Path, tmp_path: Path) -> None:
        with Gateway(otelcol, tmp_path, {"AUDIT_COLLECTOR_TOKEN": TOKEN}) as gateway:
            assert gateway.send(record(EXEC)).status_code == 401
            assert gateway.send(record(EXEC), token=WRONG).status_code == 401
            assert gateway.archived() == []
            assert gateway.send(record(EXEC), token=TOKEN).status_code == 200
            assert gateway.archived() == [EXEC]

    def test_grpc_refuses_without_it_and_takes_a_record_with_it(self, otelcol: Path, tmp_path: Path) -> None:
        with (
            Gateway(otelcol, tmp_path, {"AUDIT_COLLECTOR_TOKEN": TOKEN}) as gateway,
            grpc.insecure_channel(gateway.grpc) as channel,
        ):
            for metadata in ([], with_token(WRONG)):
                with pytest.raises(grpc.RpcError) as caught:
                    export_over(channel, metadata=metadata)
                assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
            assert gateway.archived() == []
            export_over(channel, metadata=with_token(TOKEN))
            assert gateway.archived() == [{}]

    @each_way
    def test_a_new_one_in_the_file_counts_without_a_restart(
        self, otelcol: Path, tmp_path: Path, change: Callable[[Path, str], None]
    ) -> None:
        file = tmp_path / "tokens"
        change(file, f"{TOKEN}\n")
        with Gateway(otelcol, tmp_path / "data", {"AUDIT_COLLECTOR_TOKEN_FILE": str(file)}) as gateway:
            assert gateway.send(record(EXEC), token=TOKEN).status_code == 200
            assert gateway.send(record(EXEC), token=NEXT).status_code == 401
            change(file, f"{TOKEN}\n{NEXT}\n")
            eventually(lambda: gateway.send(record(EXEC), token=NEXT).status_code == 200, "the new token")
            assert gateway.send(record(EXEC), token=TOKEN).status_code == 200


class Siem:
    """A SIEM that takes what comes with the right token, and answers anything else with `otherwise`."""

    def __init__(self, right: str, otherwise: int = 401) -> None:
        self.right = right
        self.otherwise = otherwise
        self.headers: list[str] = []
        """Of each request, those that could have a token in them, as they came."""
        self._proxy = Faulty("http://127.0.0.1:1")  # nothing is passed on
        self._proxy.fault = self._answer

    def __enter__(self) -> str:
        self._proxy.__enter__()
        return self._proxy.url

    def __exit__(self, *_: object) -> None:
        self._proxy.__exit__()

    def _answer(self, call: Call) -> Reply:
        named = {name.lower(): value for name, value in call.headers.items()}
        found = [f"{name}: {named[name]}" for name in ("authorization", "dd-api-key") if name in named]
        self.headers += found
        if found != [self.right]:
            return Reply(self.otherwise)
        is_json = named["content-type"] == "application/json"
        return Reply(200, {"Content-Type": "application/json"}, b"{}") if is_json else Reply(200, PROTOBUF)


def header(name: str, token: str) -> str:
    kind, _, scheme = HEADERS[name].partition(": ")
    return f"{kind.lower()}: {scheme}{token}"


class TestTokenOfASiem:
    @pytest.mark.parametrize("by", ["environment", "file"])
    @pytest.mark.parametrize("name", URLS)
    def test_it_is_sent_whether_it_stands_in_the_environment_or_in_a_file(
        self, otelcol: Path, tmp_path: Path, name: str, by: str
    ) -> None:
        file = tmp_path / "token"
        file.write_text(f"{TOKEN}\n")
        token = {TOKENS[name]: TOKEN} if by == "environment" else {f"{TOKENS[name]}_FILE": str(file)}
        siem = Siem(header(name, TOKEN))
        haste = hasty(tmp_path, name)
        with siem as url, Gateway(otelcol, tmp_path / "data", {URLS[name]: url, **token}, haste) as gateway:
            assert gateway.send(record(EXEC)).status_code == 200
            eventually(lambda: siem.headers, "the request")
            assert siem.headers == [header(name, TOKEN)]

    @each_way
    def test_what_waits_is_sent_with_the_new_one_without_a_restart(
        self, otelcol: Path, tmp_path: Path, change: Callable[[Path, str], None]
    ) -> None:
        file = tmp_path / "token"
        change(file, f"{TOKEN}\n")
        siem = Siem(header("http", NEXT), otherwise=503)
        with siem as url:
            settings = {"AUDIT_SIEM_URL": url, "AUDIT_SIEM_TOKEN_FILE": str(file)}
            with Gateway(otelcol, tmp_path / "data", settings, hasty(tmp_path, "http")) as gateway:
                assert gateway.send(record(EXEC)).status_code == 200
                eventually(lambda: siem.headers, "the first attempt")
                change(file, f"{NEXT}\n")
                eventually(lambda: siem.headers[-1] == siem.right, "an attempt with the new token")
                assert set(siem.headers) == {header("http", TOKEN), header("http", NEXT)}


class TestCertificateOfASiem:
    @pytest.mark.parametrize("name", AUTHORITIES)
    def test_what_waits_for_a_siem_that_nobody_vouches_for_arrives_when_its_authority_is_known(
        self, otelcol: Path, tmp_path: Path, authority: trustme.CA, certificate: dict[str, str], name: str
    ) -> None:
        # The SIEM is another Collector, behind TLS and a token.
        scheme = HEADERS[name].partition(": ")[2].strip()
        overlay = tmp_path / "scheme.yaml"
        overlay.write_text(json.dumps({"extensions": {"bearertokenauth/otlp": {"scheme": scheme}}}))
        behind = {**certificate, "AUDIT_COLLECTOR_TOKEN": TOKEN}
        stranger = tmp_path / "stranger"
        stranger.mkdir()
        with Gateway(otelcol, tmp_path / "siem", behind, overlay) as siem:
            url = siem.url if name == "http" else siem.url.removesuffix("/v1/logs")
            settings = {URLS[name]: url, TOKENS[name]: TOKEN}
            wrong = {**settings, AUTHORITIES[name]: ca_file(trustme.CA(), stranger)}
            with Gateway(otelcol, tmp_path / "data", wrong, hasty(tmp_path, name)) as gateway:
                assert gateway.send(record(EXEC)).status_code == 200
                eventually(lambda: "signed by unknown authority" in gateway.server.log(), "the refusal")
                assert "Dropping data" not in gateway.server.log()
            assert siem.archived() == []
            right = {**settings, AUTHORITIES[name]: ca_file(authority, tmp_path)}
            with Gateway(otelcol, tmp_path / "data", right, hasty(tmp_path, name)):
                eventually(siem.archived, "the record")
        assert [found["audit.record.id"] for found in siem.archived()] == [EXEC["audit.record.id"]]


# Where a secret must not be.


def files_below(directory: Path) -> bytes:
    return b"\n".join(file.read_bytes() for file in directory.rglob("*") if file.is_file())


def secrets_in(text: str | bytes, secrets: Sequence[str]) -> list[str]:
    found = text if isinstance(text, bytes) else text.encode()
    return [secret for secret in secrets if secret.encode() in found]


def tokens_by(how: str, tokens: Mapping[str, str], directory: Path) -> dict[str, str]:
    """The settings that give these variables their values, or name files that hold them."""
    if how == "environment":
        return dict(tokens)
    for name, token in tokens.items():
        (directory / name).write_text(f"{token}\n")
    return {f"{name}_FILE": str(directory / name) for name in tokens}


class TestNoSecretIsShown:
    @pytest.mark.parametrize("by", ["environment", "file"])
    def test_not_by_a_collector_that_refuses_is_refused_and_retries(
        self, otelcol: Path, tmp_path: Path, by: str
    ) -> None:
        tokens = {"AUDIT_COLLECTOR_TOKEN": TOKEN, **{TOKENS[name]: f"s3cret-of-{name}" for name in URLS}}
        secrets = [*tokens.values(), WRONG]
        refusing = Siem("none is right")
        with refusing as url:
            settings = {**dict.fromkeys(URLS.values(), url), **tokens_by(by, tokens, tmp_path)}
            debug = {"AUDIT_COLLECTOR_LOG_LEVEL": "debug"}
            with Gateway(otelcol, tmp_path / "data", {**settings, **debug}, hasty(tmp_path, *URLS)) as gateway:
                assert gateway.send(record(EXEC), token=WRONG).status_code == 401
                with grpc.insecure_channel(gateway.grpc) as channel, pytest.raises(grpc.RpcError):
                    export_over(channel, metadata=with_token(WRONG))
                assert gateway.send(record(EXEC), token=TOKEN).status_code == 200
                log = gateway.server.log
                eventually(lambda: log().count("Dropping data") == len(URLS), "each SIEM's 401")
                refusing.otherwise = 503
                assert gateway.send(record(LOGIN), token=TOKEN).status_code == 200
                eventually(lambda: log().count("Will retry") >= len(URLS), "each SIEM's 503")
                assert {header(name, tokens[TOKENS[name]]) for name in URLS} == set(refusing.headers)
                assert secrets_in(get(gateway.metrics).content, secrets) == []
                assert secrets_in(get(gateway.server.health).content, secrets) == []
                if sys.platform == "linux":
                    assert secrets_in(Path(f"/proc/{gateway.server.pid}/cmdline").read_bytes(), secrets) == []
                gateway.server.stop()
                assert "Shutdown complete." in log()
                assert secrets_in(log(), secrets) == []
            assert secrets_in(files_below(tmp_path / "data"), secrets) == []

    def test_not_by_a_collector_that_prints_or_checks_its_configuration(
        self, otelcol: Path, runnable: list[str]
    ) -> None:
        settings = {**settings_of(runnable), "AUDIT_COLLECTOR_TOKEN": TOKEN}
        secrets = [TOKEN, "s3cret"]
        assert secrets_in(json.dumps(settings), secrets) == secrets
        printed = run(otelcol, "print-config", settings)
        assert printed.stdout.count("[REDACTED]") == len(runnable) + 1
        assert secrets_in(printed.stdout + printed.stderr, secrets) == []
        wrong = run(otelcol, "validate", {**settings, "AUDIT_COLLECTOR_QUEUE_BYTES": "many"})
        assert wrong.returncode == 1
        assert secrets_in(wrong.stdout + wrong.stderr, secrets) == []


# The library's own way to the Collector.


def ship(gateway: Gateway, protocol: str, directory: Path, **more: str) -> Api:
    """An application whose records go there."""
    url = gateway.url if protocol == "http/protobuf" else f"{gateway.url.partition(':')[0]}://{gateway.grpc}"
    headers = {"OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer%20{TOKEN}"}
    return Api(UVICORN, audited(url, directory, OTEL_EXPORTER_OTLP_LOGS_PROTOCOL=protocol, **headers, **more))


def items(gateway: Gateway) -> list[str]:
    """The items whose requests are in the archive."""
    return [found["audit.target.id"] for found in gateway.archived() if found.get("http.route") == "/items/{item}"]


@contextmanager
def asked(api: Api, count: int) -> Iterator[Api]:
    """The application, after so many requests."""
    with api:
        for number in range(count):
            assert get(f"{api.url}/items/{number}").status_code == 200
        yield api


class TestShipper:
    @pytest.mark.parametrize(("protocol", "by"), [*product(REFUSED, ("TLS", "mTLS"))])
    def test_its_records_arrive_behind_tls_and_a_token(
        self, secured: Callable[[str], tuple[Gateway, dict[str, str]]], tmp_path: Path, protocol: str, by: str
    ) -> None:
        gateway, given = secured(by)
        with gateway, asked(ship(gateway, protocol, tmp_path, **given), 5):
            eventually(lambda: len(items(gateway)) == 5, "the records")
            assert sorted(items(gateway)) == ["0", "1", "2", "3", "4"]

    @pytest.fixture
    def secured(
        self, otelcol: Path, tmp_path: Path, authority: trustme.CA, mutual: dict[str, str]
    ) -> Callable[[str], tuple[Gateway, dict[str, str]]]:
        """A Collector behind a token and TLS or mTLS, and what the application must be given for it."""

        def make(by: str) -> tuple[Gateway, dict[str, str]]:
            settings = {**mutual, "AUDIT_COLLECTOR_TOKEN": TOKEN}
            given = {"OTEL_EXPORTER_OTLP_CERTIFICATE": ca_file(authority, tmp_path)}
            if by == "TLS":
                del settings["AUDIT_COLLECTOR_TLS_CLIENT_CA_FILE"]
            else:
                ours = tmp_path / "ours.pem"
                authority.issue_cert("application").private_key_and_cert_chain_pem.write_to_path(ours)
                for name in ("CLIENT_KEY", "CLIENT_CERTIFICATE"):
                    given[f"OTEL_EXPORTER_OTLP_{name}"] = str(ours)
            return Gateway(otelcol, tmp_path / "data", settings), given

        return make

    @pytest.mark.parametrize("protocol", REFUSED)
    def test_its_records_wait_while_its_token_is_not_known(self, otelcol: Path, tmp_path: Path, protocol: str) -> None:
        file = tmp_path / "tokens"
        file.write_text(f"{NEXT}\n")
        journal = tmp_path / "journal"
        with (
            Gateway(otelcol, tmp_path / "data", {"AUDIT_COLLECTOR_TOKEN_FILE": str(file)}) as gateway,
            asked(ship(gateway, protocol, tmp_path), 5) as api,
        ):
            eventually(lambda: REFUSED[protocol] in api.log(), "a refusal")
            eventually(lambda: waiting(journal) >= 5, "the records in the journal")
            assert items(gateway) == []
            file.write_text(f"{NEXT}\n{TOKEN}\n")
            eventually(lambda: len(items(gateway)) == 5, "the records")
            assert sorted(items(gateway)) == ["0", "1", "2", "3", "4"]
            assert letters(journal) == []

    @pytest.mark.parametrize("protocol", REFUSED)
    def test_it_sends_nothing_to_a_collector_whose_certificate_has_expired(
        self, otelcol: Path, tmp_path: Path, authority: trustme.CA, protocol: Any
    ) -> None:
        file = tmp_path / "expired.pem"
        expired_certificate(authority, "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(file)
        settings = dict.fromkeys(("AUDIT_COLLECTOR_TLS_CERT_FILE", "AUDIT_COLLECTOR_TLS_KEY_FILE"), str(file))
        with Gateway(otelcol, tmp_path / "data", settings) as gateway:
            url = gateway.url if protocol == "http/protobuf" else f"https://{gateway.grpc}"
            config = AuditConfig(
                otlp_protocol=protocol,
                otlp_endpoint=url,
                otlp_certificate=Path(ca_file(authority, tmp_path)),
                otlp_timeout_s=ANSWER_SECONDS_MAX,
            )
            transport = make(config)
            try:
                answer = transport.send(ExportLogsServiceRequest().SerializeToString())
            finally:
                transport.close()
            assert answer.fate is Fate.RETRY
            assert "expired" in answer.reason
            assert gateway.archived() == []


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
class TestListeners:
    def test_by_default_nobody_but_this_machine_can_connect(
        self, otelcol: Path, tmp_path: Path, runnable: list[str], certificate: dict[str, str]
    ) -> None:
        # The defaults themselves, but for the ports, which another Collector may have.
        ports = dict(zip(("4317", "4318", "13133", "8888"), map(str, servers.free_ports(4)), strict=True))
        text = launch.BASE.read_text()
        for usual, port in ports.items():
            text, count = re.subn(rf"(:-[^{{}}]*){usual}\}}", rf"\g<1>{port}}}", text)
            assert count == 1
        base = tmp_path / "base.yaml"
        base.write_text(text)
        settings = {**settings_of(runnable), "AUDIT_COLLECTOR_TOKEN": TOKEN, **certificate}
        files = [base, *launch.config_files(settings)[1:]]
        environ = launch.collector_environ({**settings, "AUDIT_COLLECTOR_DATA": str(tmp_path / "data")}, files)
        health = f"http://127.0.0.1:{ports['13133']}/"
        with servers.Collector(otelcol, files, environ, health) as collector:
            found = listening(collector.pid)
        assert sorted(port for _, port in found) == sorted(int(port) for port in ports.values())
        assert {address for address, _ in found} <= LOOPBACK

    def test_a_listener_on_every_address_is_found(self, otelcol: Path, tmp_path: Path) -> None:
        settings = {"AUDIT_COLLECTOR_METRICS_HOST": "0.0.0.0"}  # noqa: S104 - what it must find
        with Gateway(otelcol, tmp_path, settings) as gateway:
            assert {address for address, _ in listening(gateway.server.pid)} - LOOPBACK


def listening(pid: int) -> list[tuple[str, int]]:
    """The addresses, as the kernel writes them, and the ports at which a process takes connections."""
    inodes = set()
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile; a listener is not
            if match := re.fullmatch(r"socket:\[(\d+)\]", str(each.readlink())):
                inodes.add(match[1])
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == LISTENING and inode in inodes:
                address, port = local.split(":")
                found.append((address, int(port, 16)))
    return found
