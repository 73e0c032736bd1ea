"""Access: API keys, OpenID Connect tokens, rate limits, trusted proxies, TLS, and bounds on a request's head."""
