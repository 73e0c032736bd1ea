"""Quotes in text tables: whether each quote that opens a cell is closed at the end of the cell (RFC 4180, section 2).

The reader of tables accepts text after a closing quote. Then a quote that is never closed ends at the next quote, in another
line, and the rows between them are lost without a word.
"""

from __future__ import annotations

import re

from abstain.models.errors import DataError, clip_repr

_SHOWN = 60
"""The number of bytes that an error shows."""


class QuoteCheck:
    """Follows the quotes of a text that is given piece by piece, in time that is linear in its length.

    A quote inside a cell that does not begin with one is text, as in `5" pipe`, and opens nothing.
    """

    def __init__(self, delimiter: str, where: str, most: int) -> None:
        """Begins a text.

        Args:
            where: the name of the text in errors.
            most: the largest number of bytes of a quoted cell.
        """
        ends = rf"[{re.escape(delimiter)}\r\n]".encode()
        opening, text = rb'(?<=%b)"' % ends, rb'[^"]*+(?:""[^"]*+)*+'
        # Possessive, so that nothing is remembered for going back.
        self._fine = re.compile(rb'(?:[^"]++|%b%b"(?= *+%b)|(?<!%b)")*+' % (opening, text, ends, ends))
        self._quoted = re.compile(rb'"%b("?)( *+)' % text)
        self._where, self._most = where, most
        self._rest = b"\n"
        self._feeds = self._returns = 0

    def feed(self, piece: bytes) -> None:
        """Checks the next bytes.

        Raises:
            DataError: text follows a closing quote, or a quoted cell is too long.
        """
        if len(self._rest) == 1 and b'"' not in piece:
            self._count(piece)
            self._rest = piece[-1:] or self._rest
            return
        text = self._rest + piece
        match = self._fine.match(text, 1)
        end = match.end() if match else 1
        self._count(text[1:end])
        self._rest = text[end - 1 :]
        quoted = self._quoted.match(self._rest, 1)
        if quoted and quoted.group(1) and quoted.end() < len(self._rest):
            self._refuse("a quote is never closed, or text follows a closing quote", quoted.start(1))
        if len(self._rest) > self._most:
            self._refuse("a line is too long, or a quote is never closed", 1)

    def finish(self) -> None:
        """Checks the end of the text.

        Raises:
            DataError: a quote is never closed.
        """
        self.feed(b"\n")
        if len(self._rest) > 1:
            self._refuse("a quote is never closed", 1)

    def _count(self, text: bytes) -> None:
        self._feeds += text.count(b"\n")
        self._returns += text.count(b"\r")

    def _refuse(self, what: str, place: int) -> None:
        """Raises the error about the quoted cell that begins the rest, and the place in it where the fault was found."""
        line = 1 + max(self._feeds, self._returns)
        self._count(self._rest[1:place])
        last = 1 + max(self._feeds, self._returns)
        shown = self._rest[max(place - _SHOWN, 1) : place + _SHOWN].decode("utf-8", "replace")
        raise DataError(
            what,
            where=f"{self._where}, line {line}",
            expected='each cell that begins with " to end with "',
            found=clip_repr(shown) + (f" up to line {last}" if last > line else ""),
            fix="close the quote, or double it if it is part of the text",
        )
