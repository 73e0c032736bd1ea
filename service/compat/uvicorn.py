"""Limits for the head of a request: its first line with the URL, headers and trailers.

uvicorn keeps all of it in memory before any key is checked, without a limit. Short headers need many times their bytes.
"""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 64 * 1024
"""The most bytes that may arrive without a part of a body or the end of a head; twice what proxies allow."""
MAX_HEADERS = 256
"""The limit for one request, including trailers."""
_REFUSAL = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n%s"
)


class BoundedHeads(HttpToolsProtocol):
    """uvicorn's protocol with limits; a client beyond them gets 431, and its connection is closed."""

    _unread = 0
    _over = False
    _trailers: int | None = None
    """The number of trailers so far; None before the end of the head."""

    def data_received(self, data: bytes) -> None:
        """Feeds the parser, and counts the bytes since it last passed on a head or a part of a body."""
        self._unread += len(data)
        super().data_received(data)
        if self._unread > HEAD_BYTES:
            self.send_400_response("")

    def on_message_begin(self) -> None:
        """Begins the next request of the connection."""
        self._trailers = None
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Adds a header, up to the limit, and drops a trailer.

        A field after the body must not count as a header (RFC 9110, §6.5.1): no proxy has seen it there.
        """
        if len(self.headers) + (self._trailers or 0) >= MAX_HEADERS:
            self._over = True
            raise ValueError("too many headers")  # ends the parsing, and calls send_400_response
        if self._trailers is None:
            super().on_header(name, value)
        else:
            self._trailers += 1

    def on_headers_complete(self) -> None:
        """Resets the count at the end of a head."""
        self._unread, self._trailers = 0, 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Resets the count at each part of a body."""
        self._unread = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Resets the count at the end of a request."""
        self._unread = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Responds to an invalid request, or to one beyond the limits, unless another response may have begun."""
        if not (self._over or self._unread > HEAD_BYTES):
            super().send_400_response(msg)
            return
        if self.transport.is_closing():
            return
        if not self.cycle or self.cycle.response_complete:
            expected = f"at most {HEAD_BYTES} bytes and {MAX_HEADERS} headers"
            body = b'{"error":"head of the request: expected %s, found more"}' % expected.encode()
            self.transport.write(_REFUSAL % (len(body), body))
        self.transport.close()
