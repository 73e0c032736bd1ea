"""Trusted proxies: the client, the host and the scheme that they name replace those of the connection.

Anybody can send X-Forwarded headers. They are believed if the request comes from one of the addresses in `ABSTAIN_PROXIES`, and
mean nothing otherwise.
"""

from __future__ import annotations

import ipaddress
from typing import Any, cast

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

_FORWARDED_HOST = b"x-forwarded-host"


def behind_proxies(app: ASGIApp, proxies: tuple[str, ...]) -> ASGIApp:
    """Wraps an application so that it sees the client, and not the proxy that the request came through.

    Args:
        proxies: addresses and networks; with none the application is returned as it is.
    """
    if not proxies:
        return app
    networks = [ipaddress.ip_network(proxy) for proxy in proxies]
    with_client = cast("ASGIApp", ProxyHeadersMiddleware(cast("Any", app), list(proxies)))

    async def forwarded(scope: Scope, receive: Receive, send: Send) -> None:
        if _is_in(networks, scope.get("client")):
            # What the proxy was asked for: its own request may name this server in another way.
            for name, value in scope["headers"]:
                if name == _FORWARDED_HOST:
                    kept = [header for header in scope["headers"] if header[0] != b"host"]
                    scope["headers"] = [(b"host", value.split(b",")[-1].strip()), *kept]
        await with_client(scope, receive, send)

    return forwarded


def _is_in(networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network], client: tuple[str, int] | None) -> bool:
    try:
        address = ipaddress.ip_address(client[0]) if client else None
    except ValueError:
        return False
    return address is not None and any(address in network for network in networks)
