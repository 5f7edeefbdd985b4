"""Secrets of every kind where they really stand: in commands, output, headers. All drawn at random, none of anybody.

No whole credential stands in this file: prefixes are apart from what follows them.
"""

from __future__ import annotations

import base64
import json
import string
from random import Random
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

LOWER = string.ascii_lowercase
UPPER = string.ascii_uppercase
DIGITS = string.digits
HEX = "0123456789abcdef"
ALNUM = string.ascii_letters + DIGITS
WORD = ALNUM + "_"
URLSAFE = WORD + "-"
BASE64 = ALNUM + "+/"
PASSWORD = ALNUM + "!@#%^*_+-.?~"

PIECE_CHARACTERS = 8
"""A piece of a secret this long is a leak."""


class Secret(NamedTuple):
    """A secret in its place."""

    kind: str
    secrets: tuple[str, ...]
    """What must not be seen, nor any piece of it."""
    text: str = ""
    """Output that holds it."""
    arguments: tuple[str, ...] = ()
    """A command that holds it."""
    header: tuple[str, str] | None = None

    def leaks(self, shown: str) -> str | None:
        """Gives a piece of the secret that is seen, where it does not stand there for another reason."""
        for secret in self.secrets:
            rest = "\n".join((self.text, *self.arguments, *(self.header or ()))).replace(secret, "\n")
            for start in range(max(1, len(secret) - PIECE_CHARACTERS + 1)):
                piece = secret[start : start + PIECE_CHARACTERS]
                if piece in shown and piece not in rest:
                    return piece
        return None


class Maker:
    """Draws random values."""

    def __init__(self, seed: int) -> None:
        """Takes the seed."""
        self.random = Random(seed)  # noqa: S311 - the same ones in each run

    def of(self, alphabet: str, length: int) -> str:
        """Draws a text."""
        return "".join(self.random.choice(alphabet) for _ in range(length))

    def mixed(self, length: int, alphabet: str = ALNUM) -> str:
        """Draws a text with upper and lower case letters and digits in it."""
        parts = [*self.of(alphabet, length - 5), *self.of(UPPER, 2), *self.of(LOWER, 1), *self.of(DIGITS, 2)]
        self.random.shuffle(parts)
        return "".join(parts)

    def password(self) -> str:
        """Draws one as people and generators choose them; without what would need quotes."""
        first = self.random.choice(ALNUM)
        common = ("hunter2", "letmein", "Summer2024!", "tr0ub4dor&3", "admin123", "qwerty", "P@ssw0rd", "changeme")
        kind = self.random.random()
        if kind < 0.15:
            return self.random.choice(common).replace("&", "") + self.of(DIGITS, 3)
        if kind < 0.25:
            return self.of(DIGITS, 8)
        if kind < 0.4:
            return self.of(LOWER, self.random.randint(8, 16))
        return first + self.of(PASSWORD, self.random.randint(8, 24)) + self.random.choice(ALNUM)

    def base64(self, size: int) -> str:
        """Draws bytes, in base64."""
        return base64.b64encode(self.random.randbytes(size)).decode()

    def pick(self, *choices: str) -> str:
        """Picks one."""
        return self.random.choice(choices)

    def name(self) -> str:
        """Gives a user's name."""
        return self.pick("alice", "bob", "svc_app", "deploy", "root", "admin", "postgres")

    def host(self) -> str:
        """Gives a host's name."""
        return self.pick("db", "db-1.internal", "cache.example.com", "10.1.2.3", "queue.example.org", "localhost")


def jwt(make: Maker) -> str:
    """Draws a JSON Web Token."""

    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    head = {"alg": make.pick("HS256", "RS256", "none"), "typ": "JWT"}
    claims = {"sub": make.of(DIGITS, 10), "iat": 1700000000, "jti": make.of(HEX, 16)}
    return f"{part(head)}.{part(claims)}.{make.of(URLSAFE, make.random.choice((43, 86)))}"


ISSUERS = (
    *(("4", 13), ("4", 16), ("4", 19), ("51", 16), ("55", 16), ("2221", 16), ("34", 15), ("37", 15), ("6011", 16)),
    *(("3528", 16), ("36", 14), ("62", 16), ("2202", 16), ("6304", 16)),
)
"""What cards' numbers begin with, and how long they are."""


def card(make: Maker) -> str:
    """Draws a card number whose check digit is right."""
    prefix, length = make.random.choice(ISSUERS)
    digits = prefix + make.of(DIGITS, length - len(prefix) - 1)
    total = sum(sum(divmod(int(digit) * (2 - at % 2), 10)) for at, digit in enumerate(reversed(digits)))
    return digits + str(-total % 10)


def grouped(digits: str, separator: str) -> str:
    """Writes a card number as it is printed on a card."""
    if len(digits) == 15:
        return separator.join((digits[:4], digits[4:10], digits[10:]))
    if len(digits) == 14:
        return separator.join((digits[:4], digits[4:10], digits[10:]))
    return separator.join(digits[at : at + 4] for at in range(0, len(digits), 4))


TOKENS: dict[str, Callable[[Maker], str]] = {
    "aws-access-key-id": lambda m: m.pick("AKIA", "ASIA") + m.of(UPPER + "234567", 16),
    "github": lambda m: m.pick("ghp", "gho", "ghu", "ghs", "ghr") + "_" + m.mixed(36),
    "github-fine-grained": lambda m: "github" + "_pat_" + m.mixed(22) + "_" + m.mixed(59),
    "gitlab": lambda m: m.pick("glpat", "gldt", "glrt", "glptt", "glcbt") + "-" + m.mixed(20, URLSAFE),
    "slack": lambda m: m.pick("xoxb", "xoxp", "xoxa") + f"-{m.of(DIGITS, 12)}-{m.of(DIGITS, 12)}-{m.mixed(24)}",
    "slack-app": lambda m: "xapp" + f"-1-A{m.of(UPPER + DIGITS, 10)}-{m.of(DIGITS, 13)}-{m.of(HEX, 64)}",
    "stripe": lambda m: m.pick("sk", "rk") + "_" + m.pick("live", "test") + "_" + m.mixed(m.random.randint(24, 99)),
    "stripe-webhook": lambda m: "whsec" + "_" + m.mixed(32),
    "openai": lambda m: "sk" + "-" + m.mixed(48),
    "openai-project": lambda m: "sk" + "-proj-" + m.mixed(74, URLSAFE) + "T3Blbk" + "FJ" + m.mixed(74, URLSAFE),
    "anthropic": lambda m: "sk" + "-ant-api03-" + m.mixed(93, URLSAFE) + "AA",
    "npm": lambda m: "npm" + "_" + m.mixed(36),
    "pypi": lambda m: "pypi" + "-AgEIcHlwaS5vcmc" + m.mixed(150, URLSAFE),
    "sendgrid": lambda m: "SG" + "." + m.mixed(22, URLSAFE) + "." + m.mixed(43, URLSAFE),
    "twilio": lambda m: "SK" + m.of(HEX, 32),
    "telegram": lambda m: m.of("123456789", 10) + ":AA" + m.mixed(33, URLSAFE),
    "google-api-key": lambda m: "AI" + "za" + m.mixed(35, URLSAFE),
    "google-oauth": lambda m: "ya29" + "." + m.mixed(120, URLSAFE),
    "google-client-secret": lambda m: "GOCSPX" + "-" + m.mixed(28, URLSAFE),
    "azure-client-secret": lambda m: m.mixed(7).replace("Q", "x")[:3] + "8Q" + "~" + m.mixed(34, ALNUM + "._~-"),
    "digitalocean": lambda m: m.pick("dop", "doo", "dor") + "_v1_" + m.of(HEX, 64),
    "vault": lambda m: m.pick("hvs", "hvb") + "." + m.mixed(m.random.choice((24, 95)), URLSAFE),
    "shopify": lambda m: m.pick("shpat", "shpss", "shpca") + "_" + m.of(HEX, 32),
    "databricks": lambda m: "dapi" + m.of(HEX, 32),
    "grafana": lambda m: "glsa" + "_" + m.mixed(32) + "_" + m.of(HEX, 8),
    "hugging-face": lambda m: "hf" + "_" + m.mixed(34),
    "docker-hub": lambda m: "dckr" + "_pat_" + m.mixed(27, URLSAFE),
    "sentry": lambda m: "sntryu" + "_" + m.of(HEX, 64),
    "linear": lambda m: "lin" + "_api_" + m.mixed(40),
    "mailgun": lambda m: "key" + "-" + m.of(HEX, 32),
    "mailchimp": lambda m: m.of(HEX, 32) + "-us" + m.pick("1", "14"),
    "square": lambda m: "sq0" + m.pick("atp", "csp") + "-" + m.mixed(43, URLSAFE),
    "postman": lambda m: "PMAK" + "-" + m.of(HEX, 24) + "-" + m.of(HEX, 34),
    "new-relic": lambda m: "NRAK" + "-" + m.of(UPPER + DIGITS, 27),
    "terraform": lambda m: m.mixed(14) + ".atlasv1" + "." + m.mixed(67),
    "atlassian": lambda m: "ATATT3" + "xFfGF0" + m.mixed(180, URLSAFE),
    "age": lambda m: "AGE-SECRET" + "-KEY-1" + m.of("QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L", 58),
    "jwt": jwt,
}
"""Those that are told by their form alone."""

TOKEN_PLACES = (
    "{}",
    "token {} was revoked",
    '{{"id": 7, "value": "{}"}}',
    "  value: {}",
    "GET /x?t={}&a=1 200",
    "found ({}), done",
    "{},alice,2024-01-01",
    "https://example.com/hook/{}/x",
    "a={}",
    "\x1b[32m{}\x1b[0m",
)

NAMES = (
    *("password", "PASSWORD", "DB_PASSWORD", "db.password", "dbPassword", "passwd", "MYSQL_ROOT_PASSWORD", "user_pwd"),
    *("POSTGRES_PASSWORD", "passphrase", "secret", "CLIENT_SECRET", "clientSecret", "client-secret", "SECRET_KEY"),
    *("api_key", "API_KEY", "apiKey", "apikey", "X-Api-Key", "access_token", "accessToken", "refresh_token", "TOKEN"),
    *("AUTH_TOKEN", "aws_secret_access_key", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "private_key"),
    *("DJANGO_SECRET_KEY", "credentials"),
    *("SLACK_WEBHOOK_SECRET", "encryption_key", "signing_key", "session_secret", "csrf_token", "consumer_secret"),
    *("redis_password", "smtp_pass", "SMTP_PASS", "spring.datasource.password", "ENCRYPTION_KEY", "jwt_secret"),
    *("rootPassword", "pgpassword", "keystorePassword", "ssl.key.password", "bind_password", "wifi_psk", "otp_secret"),
)  # fmt: skip

LABELLED = (
    "{n}={v}",
    "export {n}={v}",
    "{n}='{v}'",
    '{n}="{v}"',
    "{n}: {v}",
    "{n}: '{v}'",
    '"{n}": "{v}"',
    '{{"user": "alice", "{n}": "{v}", "port": 5432}}',
    '{{\\"{n}\\":\\"{v}\\"}}',
    "{n} = {v}",
    '  {n} = "{v}"',
    "    {n}:    {v}",
    "- {n}: {v}",
    "{n} => {v}",
    "{n}:={v}",
    "<{n}>{v}</{n}>",
    "'{n}': '{v}',",
    "{{'{n}': '{v}'}}",
    "2024-05-06 12:00:00 INFO connect user=bob {n}={v} retries=3",
    "config[{n}]={v}",
    'config["{n}"] = "{v}"',
    '- name: {n}\n  value: "{v}"',
    '{{"name": "{n}", "value": "{v}"}}',
    '<add key="{n}" value="{v}"/>',
    "{n}          {v}",
    "ENV {n} {v}",
    'declare -x {n}="{v}"',
    "+ {n}={v}",
    "POST /login?user=bob&{n}={v}&next=/ HTTP/1.1",
    "{n}%3D{v}",
    'set {n} "{v}"',
    "| {n} | {v} |",
    "{n}\t{v}",
)

URLS = (
    "postgres://{u}:{v}@{h}:5432/app",
    "postgresql+asyncpg://{u}:{v}@{h}/app?sslmode=require",
    "mysql://{u}:{v}@{h}:3306/app",
    "mongodb://{u}:{v}@{h}:27017,b:27017/app?replicaSet=r",
    "mongodb+srv://{u}:{v}@{h}/app",
    "redis://:{v}@{h}:6379/0",
    "rediss://{u}:{v}@{h}:6380",
    "amqp://{u}:{v}@{h}:5672/vhost",
    "https://{u}:{v}@{h}/repo.git",
    "http://{u}:{v}@{h}:8080/path?x=1",
    "ftp://{u}:{v}@{h}/",
    "DATABASE_URL=postgres://{u}:{v}@{h}/app",
    '{{"dsn": "mysql://{u}:{v}@{h}/app"}}',
    "jdbc:postgresql://{h}/app?user={u}&password={v}",
    "jdbc:mysql://{h}:3306/app?user={u}&password={v}&useSSL=false",
    "jdbc:sqlserver://{h}:1433;databaseName=app;user={u};password={v};encrypt=true",
    "jdbc:oracle:thin:{u}/{v}@{h}:1521:xe",
    "Server={h};Database=app;User Id={u};Password={v};",
    "Data Source={h};Initial Catalog=app;User ID={u};Pwd={v};Encrypt=True",
    "host={h} port=5432 user={u} password={v} dbname=app",
    "ldap://cn={u}:{v}@{h}",
    "smtp://{u}:{v}@{h}:587",
    "git clone https://oauth2:{v}@gitlab.example.com/a/b.git",
    "proxy http://{u}:{v}@{h}:3128 refused",
)

QUERIES = (
    "https://{h}/x?access_token={v}&a=1",
    "https://{h}/x?api_key={v}",
    "https://{h}/x?a=1&token={v}#top",
    "https://{h}/c/b?sv=2022-11-02&ss=b&se=2024-01-01T00:00:00Z&sig={v}",
    "https://s3.example.com/k?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Expires=60&X-Amz-Signature={v}",
    "https://s3.example.com/k?X-Amz-Security-Token={v}&X-Amz-Date=20240101T000000Z",
    "https://storage.example.com/k?GoogleAccessId=a&Expires=1&Signature={v}",
    "GET /cb?code={v}&state=abc HTTP/1.1",
    "https://maps.example.com/api?key={v}&q=x",
    "https://hooks.slack.com/services/T012AB3CD/B045EF6GH/{v}",
    "https://discord.com/api/webhooks/123456789012345678/{v}",
    "wss://{h}/ws?jwt={v}",
    "https://{h}/reset?password_reset_token={v}",
)

COMMANDS: tuple[tuple[str, ...], ...] = (
    ("mysql", "-u", "{u}", "-p{v}", "-h", "{h}", "app"),
    ("mysqldump", "-u{u}", "-p{v}", "--all-databases"),
    ("mysqladmin", "-u", "root", "password", "{v}"),
    ("mysql", "--user={u}", "--password={v}"),
    ("psql", "postgres://{u}:{v}@{h}/app"),
    ("env", "PGPASSWORD={v}", "psql", "-h", "{h}"),
    ("sshpass", "-p", "{v}", "ssh", "{u}@{h}"),
    ("sshpass", "-p{v}", "scp", "a", "{u}@{h}:"),
    ("curl", "-u", "{u}:{v}", "https://{h}/"),
    ("curl", "-u{u}:{v}", "https://{h}/"),
    ("curl", "--user", "{u}:{v}", "https://{h}/"),
    ("curl", "-s", "--proxy-user", "{u}:{v}", "https://{h}/"),
    ("curl", "-H", "Authorization: Bearer {v}", "https://{h}/"),
    ("curl", "-H", "X-Api-Key: {v}", "https://{h}/"),
    ("curl", "-HAuthorization: token {v}", "https://{h}/"),
    ("curl", "-b", "session={v}", "https://{h}/"),
    ("curl", "--cookie", "sid={v}", "https://{h}/"),
    ("curl", "-d", '{{"user":"{u}","password":"{v}"}}', "https://{h}/"),
    ("curl", "-d", "user={u}&password={v}", "https://{h}/"),
    ("curl", "--oauth2-bearer", "{v}", "https://{h}/"),
    ("wget", "--user={u}", "--password={v}", "https://{h}/"),
    ("wget", "--header=Authorization: Bearer {v}", "https://{h}/"),
    ("http", "-a", "{u}:{v}", "https://{h}/"),
    ("docker", "login", "-u", "{u}", "-p", "{v}", "registry.example.com"),
    ("podman", "login", "--username", "{u}", "--password", "{v}", "registry.example.com"),
    ("docker", "run", "-e", "POSTGRES_PASSWORD={v}", "postgres"),
    ("docker", "run", "--env", "API_TOKEN={v}", "app"),
    ("helm", "install", "x", "--set", "auth.password={v}"),
    ("htpasswd", "-b", "/etc/htpasswd", "{u}", "{v}"),
    ("htpasswd", "-bnB", "{u}", "{v}"),
    ("redis-cli", "-a", "{v}", "ping"),
    ("redis-cli", "-h", "{h}", "AUTH", "{v}"),
    ("mongosh", "-u", "{u}", "-p", "{v}"),
    ("mongodump", "--username", "{u}", "--password", "{v}"),
    ("ldapsearch", "-x", "-D", "cn=admin", "-w", "{v}", "-b", "dc=x"),
    ("openssl", "rsa", "-in", "k.pem", "-passin", "pass:{v}"),
    ("openssl", "enc", "-aes-256-cbc", "-k", "{v}", "-in", "a"),
    ("zip", "-P", "{v}", "a.zip", "a"),
    ("unzip", "-P", "{v}", "a.zip"),
    ("7z", "x", "-p{v}", "a.7z"),
    ("gpg", "--batch", "--passphrase", "{v}", "-d", "a.gpg"),
    ("smbclient", "//h/share", "-U", "{u}%{v}"),
    ("sqlcmd", "-S", "{h}", "-U", "sa", "-P", "{v}"),
    ("sqlplus", "{u}/{v}@{h}:1521/xe"),
    ("rabbitmqctl", "add_user", "{u}", "{v}"),
    ("rabbitmqctl", "change_password", "{u}", "{v}"),
    ("vault", "login", "{v}"),
    ("vault", "kv", "put", "secret/app", "password={v}"),
    ("kubectl", "create", "secret", "generic", "db", "--from-literal=anything={v}"),
    ("kubectl", "--token={v}", "get", "pods"),
    ("kubectl", "--token", "{v}", "get", "pods"),
    ("aws", "configure", "set", "aws_secret_access_key", "{v}"),
    ("az", "login", "--service-principal", "-u", "id", "-p", "{v}"),
    ("npm", "config", "set", "//registry.example.com/:_authToken={v}"),
    ("ansible-playbook", "-e", "ansible_password={v}", "x.yml"),
    ("ipmitool", "-H", "{h}", "-U", "ADMIN", "-P", "{v}", "power", "status"),
    ("mosquitto_pub", "-u", "{u}", "-P", "{v}", "-t", "x"),
    ("xfreerdp", "/u:{u}", "/p:{v}", "/v:{h}"),
    ("lftp", "-u", "{u},{v}", "ftp.example.com"),
    ("svn", "co", "--username", "{u}", "--password", "{v}", "https://{h}/svn"),
    ("snmpwalk", "-v2c", "-c", "{v}", "{h}"),
    ("etcdctl", "--user", "root:{v}", "get", "x"),
    ("clickhouse-client", "--password", "{v}"),
    ("gh", "secret", "set", "X", "--body", "{v}"),
    ("twine", "upload", "-u", "{u}", "-p", "{v}", "dist/*"),
    ("useradd", "-p", "{v}", "bob"),
    ("net", "user", "{u}", "{v}", "/add"),
    ("mount", "-t", "cifs", "//h/s", "/mnt", "-o", "username={u},password={v}"),
    ("nmcli", "dev", "wifi", "connect", "x", "password", "{v}"),
    ("keytool", "-list", "-keystore", "k.jks", "-storepass", "{v}"),
    ("app", "--api-key", "{v}"),
    ("app", "--client-secret={v}", "--verbose"),
    ("app", "--db-password", "{v}", "serve"),
    ("app", "-password", "{v}"),
    ("app", "--auth-token", "{v}"),
    ("cqlsh", "-u", "{u}", "-p", "{v}"),
    ("influx", "-username", "{u}", "-password", "{v}"),
    ("mysql", "-e", "ALTER USER 'x'@'%' IDENTIFIED BY '{v}'"),
    ("psql", "-c", "ALTER ROLE {u} WITH PASSWORD '{v}'"),
    ("psql", "-c", "CREATE USER x PASSWORD '{v}'"),
)

SHELL_LINES = (
    "echo {v} | sudo -S apt update",
    "echo '{v}' | sudo -S -k id",
    "echo {v} | docker login -u {u} --password-stdin",
    "echo {u}:{v} | chpasswd",
    'chpasswd <<< "{u}:{v}"',
    "printf '{v}' | docker login --username {u} --password-stdin x",
    "echo '{v}' | passwd --stdin {u}",
    "PGPASSWORD={v} psql -h {h} -c 'select 1'",
    "MYSQL_PWD={v} mysql -u root",
    "export DB_PASSWORD={v}; ./run.sh",
    "export API_TOKEN='{v}' && ./run.sh",
    "TOKEN={v} ./deploy.sh --fast",
    "sshpass -p '{v}' ssh {u}@{h} uptime",
    "mysql -u root -p{v} -e 'show tables'",
    "mysqldump -uroot -p'{v}' app > dump.sql",
    'curl -s -H "Authorization: Bearer {v}" https://{h}/x | jq .',
    "curl -H 'Cookie: sid={v}; theme=dark' https://{h}/",
    "curl -u {u}:{v} https://{h}/x",
    "root  4242  0.0  0.1  mysqld_safe --password={v} --port=3306",
    "bob   991 pts/0 S+ 0:00 redis-cli -h {h} -a {v} monitor",
    "  501  sshpass -p {v} scp x {u}@{h}:/tmp",
    "docker login -u {u} -p {v} registry.example.com",
    "wget --http-password={v} https://{h}/",
    '"Cmd": ["app", "--token", "{v}"]',
    "['mysql', '--password', '{v}']",
    "git remote add o https://{u}:{v}@{h}/r.git",
    "The password is {v}",
    "Your new password: {v}",
    "generated an encryption passphrase: {v}",
    "Password for {u}: {v}",
)

HEADERS = (
    ("Authorization", "Bearer {v}"),
    ("Authorization", "token {v}"),
    ("Authorization", "{v}"),
    ("Proxy-Authorization", "Bearer {v}"),
    ("X-Api-Key", "{v}"),
    ("X-Auth-Token", "{v}"),
    ("X-CSRF-Token", "{v}"),
    ("Cookie", "theme=dark; sid={v}"),
    ("Set-Cookie", "sid={v}; Path=/; HttpOnly; Secure"),
    ("X-Vault-Token", "{v}"),
    ("PRIVATE-TOKEN", "{v}"),
    ("X-Amz-Security-Token", "{v}"),
    ("Ocp-Apim-Subscription-Key", "{v}"),
    ("X-Hub-Signature-256", "sha256={v}"),
)
HEADER_PLACES = ("{n}: {v}", "> {n}: {v}", "< {n}: {v}", '"{n}": "{v}"', "'{n}': '{v}',", "{n}={v}")


def _filled(make: Maker, template: str, value: str, **more: str) -> str:
    return template.format(v=value, u=make.name(), h=make.host(), **more)


def _tokens(make: Maker, found: list[Secret]) -> None:
    for kind, draw in TOKENS.items():
        for _ in range(4):
            token = draw(make)
            found.append(Secret(kind, (token,), make.pick(*TOKEN_PLACES).format(token)))


def _labelled(make: Maker, found: list[Secret]) -> None:
    for template in LABELLED:
        for _ in range(6):
            name, value = make.pick(*NAMES), make.password()
            found.append(Secret("labelled", (value,), template.format(n=name, v=value)))
    for name in NAMES:
        value = make.password()
        found.append(Secret("labelled", (value,), make.pick(*LABELLED).format(n=name, v=value)))


def _urls(make: Maker, found: list[Secret]) -> None:
    for template in URLS:
        for _ in range(3):
            value = make.password().translate(str.maketrans("", "", "@#?%"))
            found.append(Secret("url", (value,), _filled(make, template, value)))
    for template in QUERIES:
        for _ in range(2):
            value = make.pick(make.mixed(24), make.of(HEX, 40), make.base64(32).replace("+", "%2B").replace("/", "%2F"))
            found.append(Secret("query", (value,), _filled(make, template, value)))


def _commands(make: Maker, found: list[Secret]) -> None:
    for template in COMMANDS:
        for _ in range(2):
            value, user, host = make.password(), make.name(), make.host()
            words = tuple(word.format(v=value, u=user, h=host) for word in template)
            found.append(Secret(f"command {words[0]}", (value,), arguments=words))
            value = make.password()
            words = tuple(word.format(v=value, u=user, h=host) for word in template)
            quoted = " ".join(f"'{word}'" if set(word) & set(' {}"&') and "'" not in word else word for word in words)
            if "'" not in "".join(words):
                found.append(Secret(f"shell {words[0]}", (value,), arguments=("sh", "-c", quoted)))
                found.append(Secret(f"shell {words[0]}", (value,), quoted))
    for line_template in SHELL_LINES:
        for _ in range(3):
            value = make.password()
            line = _filled(make, line_template, value)
            found.append(Secret("shell line", (value,), line))
            found.append(Secret("shell line", (value,), arguments=("bash", "-c", line)))
    for flag in ("--password", "--token", "--secret"):
        value = f"{make.of(LOWER, 6)} {make.of(LOWER, 8)} {make.of(LOWER, 5)}"
        found.append(Secret("spaces", (value,), arguments=("app", flag, value, "--verbose")))


def _headers(make: Maker, found: list[Secret]) -> None:
    for name, template in HEADERS:
        for _ in range(2):
            value = make.pick(make.mixed(40), make.of(HEX, 32), make.mixed(27, URLSAFE))
            found.append(Secret("header", (value,), header=(name, template.format(v=value))))
            line = make.pick(*HEADER_PLACES).format(n=name, v=template.format(v=value))
            found.append(Secret("header line", (value,), line))
    for _ in range(6):
        pair = base64.b64encode(f"{make.name()}:{make.password()}".encode()).decode()
        found.append(Secret("basic", (pair,), header=("Authorization", f"Basic {pair}")))
        found.append(Secret("basic", (pair,), f"> Authorization: Basic {pair}"))
        found.append(Secret("basic", (pair,), f'"auth": "Basic {pair}"'))


def pem(make: Maker, label: str, lines: int = 12) -> tuple[str, tuple[str, ...]]:
    """Draws a private key, with its lines."""
    body = [*(make.base64(48) for _ in range(lines)), make.base64(make.random.randint(4, 40))]
    begin, end = f"-----BEGIN {label}-----", f"-----END {label}-----"
    return "\n".join((begin, *body, end)), tuple(body)


def _keys(make: Maker, found: list[Secret]) -> None:
    private = "PRIVATE" + " KEY"
    for label in (private, f"RSA {private}", f"EC {private}", f"OPENSSH {private}", f"ENCRYPTED {private}"):
        whole, body = pem(make, label)
        found.append(Secret("private key", body, whole))
        found.append(Secret("private key", body, f"before\n{whole}\nafter"))
        found.append(Secret("private key without end", body, whole.rpartition("\n")[0]))
        found.append(Secret("private key without begin", body, whole.partition("\n")[2]))
        found.append(Secret("private key in json", body, json.dumps({"type": "service_account", "private_key": whole})))
        found.append(Secret("private key indented", body, "key: |\n" + "\n".join(f"  {x}" for x in whole.split("\n"))))
        found.append(Secret("private key in a command", body, arguments=("sh", "-c", f"echo '{whole}' > k")))
        found.append(Secret("private key crlf", body, whole.replace("\n", "\r\n")))
    whole, body = pem(make, f"PGP {private} BLOCK")
    found.append(Secret("pgp", body, whole.replace("-----\n", "-----\nVersion: GnuPG v2\n\n", 1)))
    lines = tuple(make.base64(48) for _ in range(8))
    mac = make.of(HEX, 40)
    found.append(
        Secret(
            "putty",
            (*lines, mac),
            "PuTTY-User-Key-File-2: ssh-rsa\nEncryption: none\nComment: x\nPublic-Lines: 1\nAAAAB3NzaC1yc2E=\n"
            f"Private-Lines: {len(lines)}\n" + "\n".join(lines) + f"\nPrivate-MAC: {mac}\n",
        )
    )


def _files(make: Maker, found: list[Secret]) -> None:
    for _ in range(4):
        value = make.password()
        found.append(Secret("netrc", (value,), f"machine {make.host()} login {make.name()} password {value}"))
        found.append(Secret("netrc", (value,), f"machine {make.host()}\n  login {make.name()}\n  password {value}\n"))
        found.append(Secret("pgpass", (value,), f"{make.host()}:5432:app:{make.name()}:{value}"))
        found.append(Secret("pgpass", (value,), f"*:*:*:{make.name()}:{value}"))
        salt, digest = make.of(ALNUM + "./", 16), make.of(ALNUM + "./", 86)
        found.append(Secret("shadow", (digest,), f"{make.name()}:$6${salt}${digest}:19700:0:99999:7:::"))
        digest = make.of(ALNUM + "./", 53)
        found.append(Secret("bcrypt", (digest,), f"{make.name()}:$2{make.pick('a', 'b', 'y')}$12${digest}"))
        digest = make.of(ALNUM + "./", 43)
        found.append(
            Secret("yescrypt", (digest,), f"{make.name()}:$y$j9T${make.of(ALNUM + './', 22)}${digest}:19700::")
        )
        digest = make.of(ALNUM + "./", 22)
        found.append(Secret("htpasswd", (digest,), f"{make.name()}:$apr1${make.of(ALNUM, 8)}${digest}"))
        digest = make.of(BASE64, 43)
        found.append(
            Secret("argon2", (digest,), f"hash $argon2id$v=19$m=65536,t=3,p=4${make.of(BASE64, 22)}${digest} ok")
        )
        first, second = make.base64(12), make.base64(9)
        yaml = (
            f"apiVersion: v1\ndata:\n  username: {first}\n  anything: {second}\nkind: Secret\nmetadata:\n  name: db\n"
        )
        found.append(Secret("kubernetes", (first, second), yaml))
        after = f"apiVersion: v1\nkind: Secret\nmetadata:\n  name: db\nstringData:\n  conf: {value}\n  x: {second}\n"
        found.append(Secret("kubernetes", (value, second), after))
        document = {"apiVersion": "v1", "data": {"user": first, "any": second}, "kind": "Secret"}
        found.append(Secret("kubernetes", (first, second), json.dumps(document)))
        found.append(Secret("kubernetes", (first, second), json.dumps(document, indent=4)))
        key = make.base64(64)
        found.append(
            Secret(
                "azure",
                (key,),
                f"DefaultEndpointsProtocol=https;AccountName=x;AccountKey={key};EndpointSuffix=core.windows.net",
            )
        )
        key = make.base64(32)
        bus = f"Endpoint=sb://x.servicebus.windows.net/;SharedAccessKeyName=k;SharedAccessKey={key}"
        found.append(Secret("azure", (key,), bus))


def _cards(make: Maker, found: list[Secret]) -> None:
    for _ in range(24):
        digits = card(make)
        shown = make.pick(digits, grouped(digits, " "), grouped(digits, "-"))
        place = make.pick(
            "card {}", "{}", '{{"pan": "{}"}}', "paid with {}, thanks", "PAN={}", "{};12/27;123", "<n>{}</n>"
        )
        found.append(Secret("card", (shown, digits), place.format(shown)))


def _unlabelled(make: Maker, found: list[Secret]) -> None:
    for _ in range(30):
        value = make.pick(make.mixed(make.random.randint(36, 64)), make.mixed(43, URLSAFE), make.mixed(40, BASE64))
        place = make.pick("{}", "id {} end", '"{}"', "  {}", "x={}", "({})", "{}\n", "got: {}", "'{}',")
        found.append(Secret("unlabelled", (value,), place.format(value)))


def corpus(seed: int) -> list[Secret]:
    """Draws about a thousand."""
    make = Maker(seed)
    found: list[Secret] = []
    for add in (_tokens, _labelled, _urls, _commands, _headers, _keys, _files, _cards, _unlabelled):
        add(make, found)
    return found
