"""Trusted proxies: the client, host and scheme in their headers replace those of the connection.

Every client can send X-Forwarded headers. They are used only if the request is from one of the addresses in `ABSTAIN_PROXIES`.
"""

from __future__ import annotations

import ipaddress
from typing import Any, cast

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

_FORWARDED_HOST = b"x-forwarded-host"


def trust_proxies(app: ASGIApp, proxies: tuple[str, ...]) -> ASGIApp:
    """Wraps an application so that it sees the client of a request, not the proxy that forwarded it.

    Args:
        proxies: addresses and networks; if empty, the application is returned unchanged.
    """
    if not proxies:
        return app
    networks = [ipaddress.ip_network(proxy) for proxy in proxies]
    with_client = cast("ASGIApp", ProxyHeadersMiddleware(cast("Any", app), list(proxies)))

    async def forwarded(scope: Scope, receive: Receive, send: Send) -> None:
        """Takes the host that a trusted proxy forwards."""
        if _is_in(networks, scope.get("client")):
            # The client's Host header: the proxy may use another name for this server in its own request.
            for name, value in scope["headers"]:
                if name == _FORWARDED_HOST:
                    others = [header for header in scope["headers"] if header[0] != b"host"]
                    scope["headers"] = [(b"host", value.split(b",")[-1].strip()), *others]
        await with_client(scope, receive, send)

    return forwarded


def _is_in(networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network], client: tuple[str, int] | None) -> bool:
    try:
        address = ipaddress.ip_address(client[0]) if client else None
    except ValueError:
        return False
    return address is not None and any(address in network for network in networks)
