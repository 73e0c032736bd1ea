"""Bounds on what stands before and after a request's body: the line with its URL, headers, trailers.

uvicorn keeps all of it in memory, however much comes, and before any key is checked. Short headers take many times their bytes.
"""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 64 * 1024
"""That may come without a piece of a body or the end of a head among them; twice what proxies allow."""
MOST_HEADERS = 256
"""Of a request, trailers included."""
_REFUSAL = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n%s"
)


class BoundedHeads(HttpToolsProtocol):
    """uvicorn's protocol with bounds; beyond them a client gets 431, and its connection is closed."""

    _unread = 0
    _over = False

    def data_received(self, data: bytes) -> None:
        """Feeds the parser. What it keeps of heads is what has come since it last gave something away."""
        self._unread += len(data)
        super().data_received(data)
        if self._unread > HEAD_BYTES:
            self.send_400_response("")

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer."""
        if len(self.headers) >= MOST_HEADERS:
            self._over = True
            raise ValueError("too many headers")  # which ends the parsing, and calls send_400_response
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The end of a head."""
        self._unread = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of a body."""
        self._unread = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The end of a request."""
        self._unread = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """The answer to what is no request, or too long a one; none where another answer may have begun."""
        if not (self._over or self._unread > HEAD_BYTES):
            super().send_400_response(msg)
            return
        if self.transport.is_closing():
            return
        if not self.cycle or self.cycle.response_complete:
            expected = f"at most {HEAD_BYTES} bytes and {MOST_HEADERS} headers"
            body = b'{"error":"head of the request: expected %s, found more"}' % expected.encode()
            self.transport.write(_REFUSAL % (len(body), body))
        self.transport.close()
