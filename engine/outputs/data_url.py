"""Data URLs (RFC 2397), decoded a slice at a time: one of a hundred megabytes must not hold the loop. Pure."""

from __future__ import annotations

import binascii
from collections.abc import Iterator
from urllib.parse import unquote_to_bytes

from attrs import frozen

from engine.outputs.errors import bad

SLICE = 64 * 1024
LONGEST_HEAD = 1024


@frozen
class DataUrl:
    """What stands before the comma, and where the data begin."""

    url: str
    start: int
    content_type: str | None
    base64: bool

    def slices(self) -> Iterator[bytes]:
        """The bytes. Raises OutputRefused (`bad_output`) at the first character that does not belong there."""
        return _base64(self.url, self.start) if self.base64 else _percent(self.url, self.start)


def read_data_url(url: str) -> DataUrl:
    """Looks at the head alone. Raises OutputRefused."""
    comma = url.find(",", 0, LONGEST_HEAD)
    if not url.startswith("data:") or comma < 0:
        raise bad("The provider's data URL has no data.")
    media, _, encoding = url[5:comma].rpartition(";")
    base64 = encoding.strip().lower() == "base64"
    content_type = (media if base64 else url[5:comma]).partition(";")[0].strip().lower()
    return DataUrl(url, comma + 1, content_type or None, base64)


def _base64(url: str, start: int) -> Iterator[bytes]:
    """White space is passed over, and the padding may be missing; anything else that is no base64 is refused."""
    rest = ""
    ended = False
    for at in range(start, len(url), SLICE):
        text = rest + "".join(url[at : at + SLICE].split())
        if ended and text:
            raise bad("The provider's data URL goes on after its end.")
        whole = len(text) - len(text) % 4
        ended = "=" in text
        rest = text[whole:]
        if whole:
            yield _decoded(text[:whole])
    if rest:
        yield _decoded(rest + "=" * (-len(rest) % 4))


def _decoded(text: str) -> bytes:
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except (ValueError, binascii.Error):
        raise bad("The provider's data URL is not base64.") from None


def _percent(url: str, start: int) -> Iterator[bytes]:
    rest = ""
    for at in range(start, len(url), SLICE):
        text = rest + url[at : at + SLICE]
        cut = next((len(text) - back for back in (1, 2) if text[-back : -back + 1 or None] == "%"), len(text))
        rest = text[cut:]
        yield unquote_to_bytes(text[:cut])
    if rest:
        yield unquote_to_bytes(rest)
