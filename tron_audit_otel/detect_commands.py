"""Secrets that are told by the program that takes them: ``mysql -pX``, ``curl -u user:X``, ``echo X | sudo -S``."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from tron_audit_otel.detect_values import ABOUT, cookies

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

Span = tuple[int, int]


class Program(NamedTuple):
    """How a program is given secrets."""

    flags: frozenset[str] = frozenset()
    """Short flags whose value is one: ``-p X``, ``-pX``."""
    whole: frozenset[str] = frozenset()
    """The same where long flags begin with one dash as well: only ``-p X``."""
    attached: frozenset[str] = frozenset()
    """Short flags whose value is one where it is attached: ``-pX``."""
    users: frozenset[str] = frozenset()
    """Flags whose value is a user and a password."""
    cookies: frozenset[str] = frozenset()
    after: frozenset[str] = frozenset()
    """Words after which the last word is one."""
    with_word: frozenset[str] = frozenset()
    """Counts only where this word stands too."""
    login: bool = False
    """A word ``user/password@host`` is one."""


def _of(names: str, *, login: bool = False, **words: str) -> dict[str, Program]:
    how = {kind: frozenset(each.split()) for kind, each in words.items()}
    return dict.fromkeys(names.split(), Program(login=login, **how))


PROGRAMS: dict[str, Program] = {
    **_of("mysql mysqldump mysqladmin mysqlimport mysqlcheck mysqlsh mysqlshow mysqlbinlog mysqld_safe mysqld"
          " mysqlslap mariadb mariadb-dump mariadb-admin", attached="-p", after="password old-password"),
    **_of("7z 7za 7zr rar unrar", attached="-p"),
    **_of("sshpass mongo mongosh mongodump mongorestore mongoexport mongoimport mongostat twine cqlsh useradd"
          " usermod evil-winrm psexec cbq cockroach cypher-shell airflow superset rabbitmqadmin"
          " supervisorctl ncftpget ncftpput", flags="-p"),
    **_of("influx", whole="-password -p"),
    **_of("az", flags="-p --value"),
    **_of("aws", whole="--value --secret-string --secret-binary"),
    **_of("ssh-keygen", flags="-N -P"),
    **_of("kadmin kadmin.local", whole="-w -pw"),
    **_of("mosquitto_passwd", after="-b"),
    **_of("neo4j-admin grafana-cli", after="set-initial-password reset-admin-password"),
    **_of("ngrok", after="authtoken add-authtoken"),
    **_of("cargo", after="login"),
    **_of("snyk", after="auth"),
    **_of("mc", after="set add", with_word="alias"),
    **_of("docker podman nerdctl helm oc oras skopeo crane buildah regctl", flags="-p", with_word="login"),
    **_of("redis-cli valkey-cli", flags="-a", after="AUTH auth"),
    **_of("ldapsearch ldapadd ldapmodify ldapdelete ldappasswd ldapwhoami ldapcompare", flags="-w -s"),
    **_of("openssl", whole="-k -K -pass -passin -passout -hmac", after="passwd"),
    **_of("zip unzip zipcloak sqlcmd bcp isql ipmitool mosquitto_pub mosquitto_sub", flags="-P"),
    **_of("htpasswd", after="-b -bB -bn -nb -bnB -nbB -Bb -bc -cb -bBC -Bbn -nbBC"),
    **_of("curl", users="-u -U --user --proxy-user -E --cert", cookies="-b --cookie", flags="--oauth2-bearer"),
    **_of("http https httpie xh", users="-a --auth"),
    **_of("lftp ncftp", users="-u"),
    **_of("smbclient rpcclient winexe smbget net-rpc mount.cifs", users="-U --user"),
    **_of("etcdctl", users="--user"),
    **_of("sqlplus sqlldr exp imp expdp impdp rman", login=True),
    **_of("rabbitmqctl", after="add_user change_password authenticate_user"),
    **_of("vault bao", after="login unseal"),
    **_of("gh glab", flags="-b --body", with_word="secret"),
    **_of("snmpwalk snmpget snmpset snmpbulkwalk snmptable snmpstatus", flags="-c -A -X"),
    **_of("net net.exe", after="user use"),
    **_of("wpa_passphrase", after="wpa_passphrase"),
    **_of("htdigest rclone", after="obscure"),
    **_of("chpasswd", flags="-"),
}  # fmt: skip
_PROGRAM = re.compile(
    rf"(?<![\w.=-])(?:{'|'.join(sorted(map(re.escape, PROGRAMS), key=len, reverse=True))})(?![\w.=:-])"
)

_NAME = re.compile(r"[a-z7][\w-]{1,}+")

SEGMENT_CHARACTERS_MAX = 4096
_SEGMENT = re.compile(rf"(?:[^\n|;&\x1f\\]|\\.|&(?!&)|\\\n){{0,{SEGMENT_CHARACTERS_MAX}}}+")
_WORD = re.compile(r"""(?:[^\s"'\\\x1f]++|\\.|"(?:[^"\\\n]|\\.){0,1024}+"|'[^'\n]{0,1024}+')++|["']""")
_SLASH_PASSWORD = re.compile(r"/p(?:ass(?:word)?)?:(?P<value>[^\s\x1f]++)")
_LITERAL = re.compile(r"--from-literal[=\s\x1f]['\"]?[^=\s\x1f]{1,253}=(?P<value>[^\s\x1f]++)")
_PASS = re.compile(r"(?<![\w])pass:(?P<value>[^\s\x1f\"',;)]{3,}+)")
_WIFI = re.compile(r"(?:psk|password|wep-key\d?)[\s\x1f]+(?P<value>[^\s\x1f]++)")
_ECHO = re.compile(
    r"(?:echo|printf|print|<<<)[ \t]{1,8}(?:-[neE]{1,3}[ \t]{1,8}|['\"]?%s(?:\\n)?['\"]?[ \t]{1,8}){0,2}"
    r"(?P<value>\"[^\"\n|]{1,512}+\"|'[^'\n|]{1,512}+'|[^\s|;&\"'\x1f][^\s|;&\x1f]{0,511}+)"
    r"[ \t]{0,8}\|[ \t]{0,8}[^\n|;]{0,256}?"
    r"(?:sudo[ \t][^\n|;]{0,64}?-\w{0,4}S|-stdin\b|--stdin\b|chpasswd|passphrase-fd|cryptsetup|-with-token\b|passwd\b"
    r"|secrets?[ \t](?:create|versions|put)\b|kinit\b)"
)
_HERE = re.compile(
    r"(?:chpasswd|passwd|-stdin|-with-token|passphrase-fd|cryptsetup|kinit"
    r"|sudo[ \t][^\n|;<]{0,64}?-\w{0,4}S)[^\n|;<]{0,128}?<<<[ \t]{0,8}"
    r"(?P<value>\"[^\"\n]{1,512}+\"|'[^'\n]{1,512}+'|[^\s\"'\x1f]{1,512}+)"
)
_OPTION = re.compile(r"[-/>]")
_FLAG_CHARACTERS = len("-p")
_LOGIN = re.compile(r"[\"']?[\w$.-]{1,64}/(?P<value>\S{1,256}(?=@)|[^@\s]{1,256}+\Z)")
_BEFORE_PASSWORD = re.compile(r"[^:%,]*+[:%,]")
_ELSEWHERE = re.compile(r"(?:env|file|fd|pass):|stdin")
_NO_VALUE = re.compile(r"\$\{?[A-Z_]+\}?|-.*|\[masked.*")
_USER = re.compile(r"[\w.@-]{1,64}:")


def in_text(text: str) -> Iterator[Span]:
    """Finds them in lines of a shell, wherever they stand: a history, a list of processes, a trace."""
    done = 0
    for found in _PROGRAM.finditer(text) if not PROGRAMS.keys().isdisjoint(_NAME.findall(text)) else ():
        if found.start() < done:
            continue
        segment = _SEGMENT.match(text, found.start())
        done = segment.end() if segment is not None else found.end()
        words = [each.span() for each in _WORD.finditer(text, found.start(), done)]
        yield from _of_words(text, words)
    if "/p" in text:
        yield from _values(_SLASH_PASSWORD, text, ("freerdp", "rdesktop", "mstsc", "cmdkey", "net use", "/u:"))
    yield from _values(_LITERAL, text, ("--from-literal",))
    yield from _values(_PASS, text, ("pass:",))
    yield from _values(_WIFI, text, ("wifi", "wpa"))
    if "|" in text or "<<<" in text:
        for rule in (_ECHO, _HERE):
            for found in rule.finditer(text):
                start, end = _unquoted(text, *found.span("value"))
                user = _USER.match(text, start, end)
                yield (user.end() if user is not None and user.end() < end else start), end


def in_arguments(text: str, words: Sequence[Span]) -> Iterator[Span]:
    """Finds them in a command that is a list; ``words`` says where in ``text`` each argument stands."""
    yield from _of_words(text, words)
    before = ""
    for start, end in words:
        name, equals, _ = text[start:end].partition("=")
        is_program = len(words) == 1 or _TAKES_PROGRAM.fullmatch(before) is not None
        before = text[start:end]
        if equals and not is_program and re.fullmatch(r"-{0,2}[\w.-]{1,128}", name) and _names_secret(name):
            yield start + len(name) + 1, end
    for (start, end), (after, after_end) in pairwise(words):
        flag = text[start:end]
        if re.fullmatch(r"--?[\w.-]{1,128}", flag) and _names_secret(flag) and not text.startswith("-", after):
            yield after, after_end


_TAKES_PROGRAM = re.compile(r"-[a-z]{0,3}c")
_SECRET_NAME = re.compile(
    r"(?:passw(?:or)?d|passphrase|secret|token|storepass|keypass|(?:^|[_.-])(?:pass|pwd|psk)|credentials?"
    r"|(?:api|access|private|encryption|signing|master|account|auth)[_.-]?key)s?(?:[_.-]?\d{0,2}|(?-i:_[A-Z0-9]{1,24}))$",
    re.IGNORECASE,
)


def _names_secret(name: str) -> bool:
    return _SECRET_NAME.search(name) is not None and re.split(r"[_.-]", name)[-1].lower() not in ABOUT


def _values(rule: re.Pattern[str], text: str, hints: Iterable[str]) -> Iterator[Span]:
    if any(hint in text for hint in hints):
        for found in rule.finditer(text):
            yield _unquoted(text, *found.span("value"))


def _unquoted(text: str, start: int, end: int) -> Span:
    if end - start > 1 and text[start] in "\"'" and text[end - 1] == text[start]:
        return start + 1, end - 1
    while end > start and text[end - 1] in "\"'":
        end -= 1
    return start, end


def _of_words(text: str, words: Sequence[Span]) -> Iterator[Span]:
    shown = [text[start:end] for start, end in words]
    last = next((at for at in reversed(range(len(shown))) if not _OPTION.match(shown[at])), -1)
    there, program = set(shown), None
    for at, word in enumerate(shown):
        if (known := PROGRAMS.get(word.rpartition("/")[2])) is not None:
            program = known if there.issuperset(known.with_word) else None
        if program is None:
            continue
        if word.rpartition("/")[2] in program.after and last > at:
            yield _unquoted(text, *words[last])
        elif word in program.flags | program.whole | program.users | program.cookies:
            if at + 1 < len(words):
                yield from _value(text, *words[at + 1], word, program)
        elif known is None:
            yield from _attached(text, *words[at], program)


def _attached(text: str, start: int, end: int, program: Program) -> Iterator[Span]:
    """Looks within a word: ``-pX``, ``--user=a:X``, ``user/X@host``."""
    start, end = _unquoted(text, start, end)
    word = text[start:end]
    flag, rest = word[:_FLAG_CHARACTERS], word[_FLAG_CHARACTERS:]
    name = word.partition("=")[0]
    if name in program.users | program.cookies and name != word:
        yield from _value(text, start + len(name) + 1, end, name, program)
    elif rest and flag in program.attached | program.flags | program.users and flag != "--":
        yield from _value(text, end - len(rest.removeprefix("=")), end, flag, program)
    elif program.login and (found := _LOGIN.match(word)) is not None:
        yield start + found.start("value"), start + found.end("value")


def _value(text: str, start: int, end: int, flag: str, program: Program) -> Iterator[Span]:
    start, end = _unquoted(text, start, end)
    if flag in program.cookies:
        if "=" in text[start:end]:
            yield from cookies(text, start, end, is_set=False)
        return
    if flag in program.users:
        user = _BEFORE_PASSWORD.match(text, start, end)
        start = end if user is None else user.end()
    elif _ELSEWHERE.match(text, start, end) is not None:
        return
    if start < end and not _NO_VALUE.fullmatch(text, start, end):
        yield start, end
