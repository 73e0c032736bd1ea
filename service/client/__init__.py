"""The Python client of a server: `abstain.Client` and `abstain.AsyncClient`. It imports neither JAX nor BentoML.

`rows` makes bodies of what a caller has, `results` makes records of responses, `exchange` decides what to send, when to wait
and when to give up, and `client` does that over HTTP, with or without asyncio.
"""
