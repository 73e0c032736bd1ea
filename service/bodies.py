"""Request bodies: read up to a limit, or refused without being read."""

from __future__ import annotations

import asyncio
import logging

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from abstain.service.errors import UnreadBody

log = logging.getLogger("abstain.http")

DRAIN_BYTES = 512 * 1024 * 1024
"""How much of a refused body is read and discarded."""
DRAIN_SECONDS = 10.0
DRAIN_IDLE_SECONDS = 2.0


class BodyTooLong(UnreadBody):
    """A body beyond the limit."""


async def read_body(request: Request, limit: int) -> bytes:
    """Reads the whole body.

    Args:
        limit: bytes.

    Raises:
        BodyTooLong: `Content-Length` is above the limit, or more bytes than the limit arrive.
    """
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > limit:
        raise BodyTooLong(413, where="body", expected=f"at most {limit} bytes", found=length)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise BodyTooLong(413, where="body", expected=f"at most {limit} bytes", found="more")
    return bytes(body)


class BodyRefusal(Response):
    """A response to a request with an unread body: sends the response, then discards what the client still writes.

    Otherwise a client that writes its whole body before it reads would see a reset connection, not the response.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Sends the response, drains the body within limits, and lets the server close the connection."""
        headers = [*self.raw_headers, (b"connection", b"close")]
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        # The response is complete, but "more" keeps the server from closing while the client still writes.
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        await _drain(receive)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _drain(receive: Receive) -> None:
    left = DRAIN_BYTES
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            while left > 0:
                async with asyncio.timeout(DRAIN_IDLE_SECONDS):
                    message = await receive()
                left -= len(message.get("body", b""))
                if message["type"] != "http.request" or not message.get("more_body"):
                    return
    except TimeoutError:
        log.debug("a client did not finish writing a refused body in time")
