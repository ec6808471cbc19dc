"""The head of a request, read: RFC 9112's grammar and nothing that is merely tolerated elsewhere.

Two parties that read the same bytes differently are how requests are smuggled, so whatever a proxy could see in another
way is refused: bare line feeds, folded lines, control characters, two lengths, a length beside chunks. What is accepted
means the same to every reader. Pure; imports nothing of ours.

Each pattern is possessive (`*+`): it never tries a second reading, so that no header costs more than its length.
"""

from __future__ import annotations

import re

from attrs import define

Headers = list[tuple[bytes, bytes]]

END = b"\r\n\r\n"
_TOKEN = rb"[-!#$%&'*+.^_`|~0-9A-Za-z]++"
_FIELD = rb"(" + _TOKEN + rb"):([\t\x20-\x7e\x80-\xff]*+)\r\n"
_LINE = re.compile(rb"(" + _TOKEN + rb") ([\x21-\x7e]++) HTTP/([0-9]\.[0-9])\r\n")
_FIELDS = re.compile(rb"(?:" + _FIELD + rb")*+\r\n")
_ONE_FIELD = re.compile(_FIELD)
_LENGTH = re.compile(rb"[0-9]{1,18}")
_OPENING = re.compile(_TOKEN + rb"(?: |\Z)")
LONGEST_METHOD = 32


class Malformed(Exception):
    """Not a request that is answered; `status` and `code` say how it is refused, `detail` in our own words why."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail


@define
class Head:
    """`headers` in their order, names in lower case. `length` is the body's in bytes; None: it comes in chunks."""

    method: str
    target: bytes
    version: str
    headers: Headers
    length: int | None
    keep_alive: bool
    expects_continue: bool
    upgrades: bool


def hopeless(data: bytes) -> bool:
    """Whether these first bytes can become no request, whatever follows: no method of HTTP begins so."""
    return _OPENING.match(data[:LONGEST_METHOD]) is None


def read_head(data: bytes) -> Head:
    """The request that `data`, everything up to and with the empty line, is. Raises Malformed."""
    line = _LINE.match(data)
    if line is None:
        raise Malformed(400, "bad_request", "a request line that is none")
    method, target, version = line.groups()
    if version not in (b"1.1", b"1.0"):
        raise Malformed(505, "http_version_not_supported", "a version of HTTP that is not spoken here")
    if _FIELDS.fullmatch(data, line.end()) is None:
        raise Malformed(400, "bad_request", "a header that is none")
    headers = [(name.lower(), value.strip(b" \t")) for name, value in _ONE_FIELD.findall(data, line.end())]
    found = dict(headers)
    if len(found) != len(headers):
        _refuse_repeated(headers)
    modern = version == b"1.1"
    if b"host" not in found and modern:
        raise Malformed(400, "bad_request", "no Host")
    connection = found.get(b"connection")
    return Head(
        method=method.decode("ascii").upper(),
        target=target,
        version="1.1" if modern else "1.0",
        headers=headers,
        length=_length(found, modern),
        keep_alive=modern and (connection is None or b"close" not in tokens(headers, b"connection")),
        expects_continue=modern and found.get(b"expect", b"").lower() == b"100-continue",
        upgrades=b"upgrade" in found,
    )


def tokens(headers: Headers, name: bytes) -> list[bytes]:
    """The members of a comma-separated header, in lower case, however many lines it has."""
    lines = (value for found, value in headers if found == name)
    return [token.strip() for line in lines for token in line.lower().split(b",")]


def _length(found: dict[bytes, bytes], modern: bool) -> int | None:
    """The body's framing (RFC 9112 6.3); None for chunks."""
    length, coding = found.get(b"content-length"), found.get(b"transfer-encoding")
    if coding is not None:
        if coding.lower() != b"chunked":
            raise Malformed(501, "not_implemented", "a transfer coding other than chunked")
        if length is not None or not modern:
            raise Malformed(400, "bad_request", "two ways of telling where the body ends")
        return None
    if length is None:
        return 0
    if _LENGTH.fullmatch(length) is None:
        raise Malformed(400, "bad_request", "a Content-Length that is no number")
    return int(length)


_ONCE = frozenset({b"host", b"content-length", b"transfer-encoding", b"expect"})


def _refuse_repeated(headers: Headers) -> None:
    names = [name for name, _ in headers]
    if any(names.count(name) > 1 for name in _ONCE):
        raise Malformed(400, "bad_request", "a header twice that may stand but once")
