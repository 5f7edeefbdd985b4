"""Secrets that are told by the program that takes them: ``mysql -pX``, ``curl -u user:X``, ``echo X | sudo -S``."""

from __future__ import annotations

import re
from bisect import bisect_right
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from tron_audit_otel.detect_values import cookies, names_secret, words

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
    second: frozenset[str] = frozenset()
    """Words after which the second word is one, behind that of a user."""
    pairs: frozenset[str] = frozenset()
    """Words after which each ``name=value`` is one."""
    with_word: frozenset[str] = frozenset()
    """Counts only where one of these words stands too."""
    login: bool = False
    """A word ``user/password@host`` is one."""


def _of(names: str, *, login: bool = False, **told: str) -> dict[str, Program]:
    how = {kind: words(each) for kind, each in told.items()}
    return dict.fromkeys(names.split(), Program(login=login, **how))


_SETS_PASSWORD = words(
    "set-password set_password change-password change_password update-password reset-password reset_password"
)
"""Commands of many an application: a user's name is behind them, then a password."""

PROGRAMS: dict[str, Program] = {
    **_of("mysql mysqldump mysqladmin mysqlimport mysqlcheck mysqlsh mysqlshow mysqlbinlog mysqld_safe mysqld"
          " mysqlslap mysqlpump mariadb mariadb-dump mariadb-admin mariabackup proxysql-admin",
          attached="-p", after="password old-password"),
    **_of("7z 7za 7zr rar unrar", attached="-p"),
    **_of("sshpass mongo mongosh mongodump mongorestore mongoexport mongoimport mongostat twine cqlsh useradd"
          " usermod evil-winrm psexec cbq cockroach cypher-shell airflow superset rabbitmqadmin"
          " supervisorctl ncftpget ncftpput crackmapexec netexec beeline mydumper myloader expo"
          " elasticsearch-users", flags="-p"),
    **_of("sendemail", whole="-xp"),
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
    **_of("mc", after="set add", with_word="alias user host"),
    **_of("cf", flags="-p", second="auth create-user set-env", with_word="login auth create-user set-env"),
    **_of("doctl flyctl fly doppler infisical", flags="-t", pairs="set", with_word="auth secrets"),
    **_of("nomad", pairs="put", with_word="var"),
    **_of("dotnet", flags="-k -p", with_word="nuget"),
    **_of("pdftk", whole="input_pw user_pw owner_pw"),
    **_of("oathtool", whole="--totp -b --base32"),
    **_of("bw", second="login", after="unlock"),
    **_of("twilio", second="login"),
    **_of("ansible-vault", second="ansible-vault", with_word="encrypt_string"),
    **_of("drush console artisan occ", second="user:password upwd user:create user:add fos:user:change-password",
          after="security:hash-password"),
    **dict.fromkeys(_SETS_PASSWORD, Program(second=_SETS_PASSWORD)),
    **_of("samba-tool", second="create add setpassword", with_word="user"),
    **_of("mattermost", second="password"),
    **_of("docker podman nerdctl helm oc oras skopeo crane buildah regctl", flags="-p", with_word="login"),
    **_of("redis-cli valkey-cli keydb-cli", flags="-a", after="AUTH auth"),
    **_of("ldapsearch ldapadd ldapmodify ldapdelete ldappasswd ldapwhoami ldapcompare slappasswd", flags="-w -s"),
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
    **_of("vault bao", after="login unseal unwrap", pairs="put patch"),
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
_LIST = re.compile(r"""(?:(?:"(?:[^"\\\n]|\\.){0,1024}+"|'[^'\n]{0,1024}+')[,\s]{0,64}+){1,64}+""")
_ITEM = re.compile(r""""(?P<double>(?:[^"\\\n]|\\.){0,1024}+)"|'(?P<single>[^'\n]{0,1024}+)'""")
_SLASH_PASSWORD = re.compile(r"/p(?:ass(?:word)?)?:(?P<value>[^\s\x1f]++)")
_LITERAL = re.compile(r"--from-literal[=\s\x1f]['\"]?[^=\s\x1f]{1,253}=(?P<value>[^\s\x1f]++)")
_PASS = re.compile(r"(?<![\w])pass:(?P<value>[^\s\x1f\"',;)]{3,}+)")
_WIFI = re.compile(r"(?:psk|password|wep-key\d?)[\s\x1f]+(?P<value>[^\s\x1f]++)")
_PRINTED = (
    r"(?:echo|printf|print|<<<)[ \t]{1,8}(?:-[neE]{1,3}[ \t]{1,8}|['\"]?(?:%s(?:\\n)?){1,3}['\"]?[ \t]{1,8}){0,2}"
)
_ECHO = re.compile(
    _PRINTED + r"(?P<value>\"[^\"\n|]{1,512}+\"|'[^'\n|]{1,512}+'|[^\s|;&\"'\x1f][^\s|;&\x1f]{0,511}+)"
    r"(?:[ \t]{1,8}(?P<again>\"[^\"\n|]{1,512}+\"|'[^'\n|]{1,512}+'))?"
    r"[ \t]{0,8}\|[ \t]{0,8}[^\n|;]{0,256}?"
    r"(?:sudo[ \t][^\n|;]{0,64}?-\w{0,4}S|-stdin\b|--stdin\b|chpasswd|passphrase-fd|cryptsetup|-with-token\b|passwd\b"
    r"|secrets?[ \t](?:create|versions|put)\b|kinit\b|\bsu[ \t]|password_stdin|tee[ \t][^\n|;]{0,64}?secret"
    r"|keystore[ \t]add|pass[ \t]insert)"
)
_STORED = re.compile(
    _PRINTED + r"(?P<value>\"[^\"\s|]{6,512}+\"|'[^'\s|]{6,512}+'|[^\s|;&<>\"'\x1f]{6,512}+)[ \t]{0,8}"
    r"(?:\|[ \t]{0,8}(?:base64(?![ \t]+-{1,2}[dD])|(?:sha\d{1,3}|md5)sum|openssl[ \t])"
    r"|>{1,2}[ \t]{0,8}[\w./~$-]{0,128}?(?i:secret|(?<![a-z])(?:pg)?pass|passw|token|credential|userlist|api_?key))"
)
"""Only of one word: what is written to a file can be a program."""
_SUBSTITUTED = re.compile(rf"<\({_PRINTED}(?P<value>[^\s()]{{6,512}}+)\)")
_HERE = re.compile(
    r"(?:chpasswd|passwd|-stdin|-with-token|passphrase-fd|cryptsetup|kinit|[ \t]login|secret|pass insert"
    r"|createuser|keystore|password_stdin|ssh-add"
    r"|sudo[ \t][^\n|;<]{0,64}?-\w{0,4}S)[^\n|;<]{0,128}?<<<[ \t]{0,8}\$?"
    r"(?P<value>\"[^\"\n]{1,512}+\"|'[^'\n]{1,512}+'|[^\s\"'\x1f]{1,512}+)"
)
_SHOWN = ((("|",), _ECHO), (("|", ">"), _STORED), (("<<<",), _HERE), (("<(",), _SUBSTITUTED))
_OPTION = re.compile(r"[-/>]")
_FLAG_CHARACTERS = len("-p")
_LOGIN = re.compile(r"[\"']?[\w$.-]{1,64}/(?P<value>\S{1,256}(?=@)|[^@\s]{1,256}+\Z)")
_BEFORE_PASSWORD = re.compile(r"[^:%,]*+[:%,]")
_ELSEWHERE = re.compile(r"(?:env|file|fd|pass):|stdin")
_NO_VALUE = re.compile(r"\$\{?[A-Z_]+\}?|-.*|\[masked.*")
_COMMAND = re.compile(r"\$\(|`")
"""What another command gives: that is to be seen."""
_USER = re.compile(r"[\w.@-]{1,64}:")


def in_text(text: str) -> Iterator[Span]:
    """Finds them in lines of a shell, wherever they stand: a history, a list of processes, a trace."""
    done = 0
    for found in _PROGRAM.finditer(text) if not PROGRAMS.keys().isdisjoint(_NAME.findall(text)) else ():
        start = found.start()
        if start < done:
            continue
        is_list = start > 0 and text[start - 1] in "\"'" and text.startswith(text[start - 1] + ",", found.end())
        segment = _LIST.match(text, start - 1) if is_list else _SEGMENT.match(text, start)
        done = segment.end() if segment is not None else found.end()
        words = (_ITEM if is_list else _WORD).finditer(text, start - is_list, done)
        yield from _of_words(text, [each.span(each.lastgroup or 0) for each in words])
    if "/p" in text:
        yield from _values(_SLASH_PASSWORD, text, ("freerdp", "rdesktop", "mstsc", "cmdkey", "net use", "/u:"))
    yield from _values(_LITERAL, text, ("--from-literal",))
    yield from _values(_PASS, text, ("pass:",))
    yield from _values(_WIFI, text, ("wifi", "wpa"))
    for signs, rule in _SHOWN:
        for found in rule.finditer(text) if any(sign in text for sign in signs) else ():
            for kind in found.re.groupindex:
                if found[kind] is not None:
                    yield from _printed(text, *found.span(kind))


def _printed(text: str, start: int, end: int) -> Iterator[Span]:
    start, end = _unquoted(text, start, end)
    user = _USER.match(text, start, end)
    yield from _told(text, user.end() if user is not None and user.end() < end else start, end)


def _told(text: str, start: int, end: int) -> Iterator[Span]:
    start, end = _unquoted(text, start, end)
    if start < end and not _NO_VALUE.fullmatch(text, start, end) and not _COMMAND.match(text, start):
        yield start, end


def in_arguments(text: str, words: Sequence[Span]) -> Iterator[Span]:
    """Finds them in a command that is a list; ``words`` says where in ``text`` each argument stands."""
    yield from _of_words(text, words)
    before = ""
    for start, end in words:
        name, equals, _ = text[start:end].partition("=")
        is_program = len(words) == 1 or _TAKES_PROGRAM.fullmatch(before) is not None
        before = text[start:end]
        if equals and not is_program and re.fullmatch(r"-{0,2}[\w.-]{1,128}", name) and names_secret(name):
            yield start + len(name) + 1, end
    for (start, end), (after, after_end) in pairwise(words):
        flag = text[start:end]
        if re.fullmatch(r"--?[\w.-]{1,128}", flag) and names_secret(flag) and not text.startswith("-", after):
            yield after, after_end


_TAKES_PROGRAM = re.compile(r"-[a-z]{0,3}c")


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
    plain = [at for at, word in enumerate(shown) if not _OPTION.match(word)]
    there, program, is_pair = set(shown), None, False
    for at, word in enumerate(shown):
        name = word.rpartition("/")[2]
        if (known := PROGRAMS.get(name)) is not None:
            program = known if not known.with_word or known.with_word & there else None
        if program is None:
            continue
        is_pair = is_pair or word in program.pairs
        if name in program.after | program.second:
            for each in _behind(plain, at, is_second=name in program.second):
                yield from _told(text, *words[each])
        elif is_pair and "=" in word:
            yield from _pair(text, *words[at])
        elif word in program.flags | program.whole | program.users | program.cookies:
            for after in words[at + 1 : at + 2]:
                yield from _value(text, *after, word, program)
        elif known is None:
            yield from _attached(text, *words[at], program)


def _behind(plain: Sequence[int], at: int, *, is_second: bool) -> Sequence[int]:
    """Gives the last of the words behind this one that are no options, or the second."""
    first = bisect_right(plain, at)
    return plain[first + 1 : first + 2] if is_second else plain[max(first, len(plain) - 1) :]


def _pair(text: str, start: int, end: int) -> Iterator[Span]:
    start, end = _unquoted(text, start, end)
    name, _, value = text[start:end].partition("=")
    if not name.startswith("-") and not value.startswith("@"):
        yield from _told(text, start + len(name) + 1, end)


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
        if user is not None and user.end() == end:  # a token is the user, and no password behind it
            end -= 1
        else:
            start = end if user is None else user.end()
    elif _ELSEWHERE.match(text, start, end) is not None:
        return
    if start < end and not _NO_VALUE.fullmatch(text, start, end):
        yield start, end
