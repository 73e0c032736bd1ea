"""`Client` and `AsyncClient`: predictions of a server over HTTP."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import httpx

from abstain.models.errors import ConfigError, clip_repr
from abstain.service.client import exchange
from abstain.service.client.exchange import Course, Failure, Reply, Send, Session, Wait
from abstain.service.client.facts import ModelVersion, Readiness, ServedModel
from abstain.service.client.results import ServedPredictions

T = TypeVar("T")
Verify = bool | str | Path | ssl.SSLContext
TIMEOUT = 60.0
RETRIES = 5
CONNECT_SECONDS = 5.0
"""The longest time to wait for one connection; the timeout of the call applies, too."""
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol, httpx.ProxyError)


class _Shared:
    """What both clients check and keep."""

    def __init__(self, url: str, key: str | None, timeout: float, retries: int) -> None:
        self.url = _check_url(url)
        self._headers = {"Accept": "application/json", "User-Agent": "abstain-client"}
        if key is not None:
            self._headers["X-API-Key"] = _check_key(key)
        if not timeout > 0:
            raise ConfigError("timeout", where="Client", expected="seconds above 0", found=timeout)
        if retries < 0:
            raise ConfigError("retries", where="Client", expected="0 or more", found=retries)
        self._session = Session(timeout, retries)

    def __repr__(self) -> str:
        """Shows the URL, and not the key."""
        return f"{type(self).__name__}({self.url!r})"


class Client(_Shared):
    """A client of one server. Several threads may use it at once; close it, or use it in a `with` statement.

    Args:
        url: the server, such as `https://models.example.org:3000`.
        key: an API key or an access token, sent in the header `X-API-Key`.
        timeout: seconds for a whole call, with all its requests, retries and waits.
        retries: how often a request is sent again after 429, 503, or a connection that could not be opened.
        verify: whether the server's certificate is checked (TLS): True, by the certificate authorities of certifi; the path of
            a file of certificates; an `ssl.SSLContext`; or False, which protects neither the rows nor the key.

    Raises:
        ConfigError: an argument is invalid.

    Examples:
        >>> with abstain.Client("http://127.0.0.1:3000") as client:
        ...     predictions = client.predict(rows, model="digits")
        >>> predictions.label[~predictions.reject]
        array(['3', '8'], dtype=object)
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        timeout: float = TIMEOUT,
        retries: int = RETRIES,
        verify: Verify = True,
    ) -> None:
        super().__init__(url, key, timeout, retries)
        self._http = httpx.Client(base_url=self.url, headers=self._headers, verify=_context(verify))

    def __enter__(self) -> Client:
        """Returns the client; leaving the `with` statement closes it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def predict(
        self,
        rows: object,
        *,
        model: str | None = None,
        percentile: float | None = None,
        coverage: float | None = None,
        max_error: float | None = None,
        fields: Sequence[str] | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> ServedPredictions:
        """Predicts rows; more than the server takes at once are sent in several requests, all to one version.

        Args:
            rows: nested lists of numbers, an array of numpy, JAX or PyTorch, a DataFrame of pandas or Polars, a table of
                pyarrow, or a list of dicts. Columns are found by name; None and NaN are gaps there.
            model: `name`, `name:version` or `name@label`; None for the only model of the server.
            percentile: the percentile of the decision, above 0 and below 100; the model's own if None.
            coverage: the coverage of prediction sets and intervals, above 0 and below 1; the model's own if None.
            max_error: the largest share of wrong answers among accepted rows, for a model that was calibrated with it.
            fields: the fields to return; all if None.
            request_id: an id for the server's log; a random one if None.
            timeout: seconds for this call; that of the client if None.

        Raises:
            InputError: a row or a parameter is wrong; the text names the row and the column.
            DataError: a value of a table is wrong.
            CalibrationError: there are too few calibration rows for the percentile, the coverage or the error.
            UnknownModel: the server does not serve such a model, version or label.
            RequestError: any other failure; see its subclasses.
        """
        options = _options(percentile, coverage, max_error, fields)
        course = exchange.predict(
            self._session, rows, model=model, options=options, request_id=request_id, timeout=timeout
        )
        return self._run(course)

    def models(self) -> tuple[ModelVersion, ...]:
        """Lists every version in the server's store, with its state."""
        return self._run(exchange.list_models(self._session))

    def model(self, name: str) -> ServedModel:
        """Describes the version that requests for `name`, `name:version` or `name@label` get.

        Raises:
            UnknownModel: the server does not serve it.
        """
        return self._run(exchange.describe_model(self._session, name))

    def rollout(self, name: str) -> dict[str, Any]:
        """Returns the rollout of a model as the server sees it: the response of `GET /models/NAME/rollout`.

        Raises:
            UnknownModel: there is no such model, or it had no rollout since the start of the server.
        """
        return self._run(exchange.describe_rollout(self._session, name))

    def ready(self) -> Readiness:
        """Asks whether all workers are ready, without waiting; the result is true in a condition if they are."""
        return self._run(exchange.ready(self._session))

    def live(self) -> bool:
        """Asks whether a worker runs."""
        return self._run(exchange.live(self._session))

    def _run(self, course: Course[T]) -> T:
        answer: Reply | Failure | None = None
        try:
            while True:
                step = course.send(answer)
                if isinstance(step, Wait):
                    time.sleep(step.seconds)
                    answer = None
                else:
                    answer = self._send(step)
        except StopIteration as end:
            return end.value

    def _send(self, step: Send) -> Reply | Failure:
        end, body = time.monotonic() + step.seconds, bytearray()
        try:
            with self._http.stream(
                step.method, step.path, headers=step.headers, content=step.content, timeout=_timeout(step.seconds)
            ) as response:
                for chunk in response.iter_bytes():
                    body += chunk
                    if time.monotonic() > end:  # httpx limits the time between two chunks, not that of all.
                        return Failure("no complete response", late=True, sent=True)
            return Reply(response.status_code, response.headers, bytes(body))
        except httpx.HTTPError as error:
            return _failure(error, end)


class AsyncClient(_Shared):
    """A client of one server for asyncio; its arguments and methods are those of `Client`.

    Examples:
        >>> async with abstain.AsyncClient("http://127.0.0.1:3000") as client:
        ...     predictions = await client.predict(rows, model="digits")
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        timeout: float = TIMEOUT,
        retries: int = RETRIES,
        verify: Verify = True,
    ) -> None:
        super().__init__(url, key, timeout, retries)
        self._http = httpx.AsyncClient(base_url=self.url, headers=self._headers, verify=_context(verify))

    async def __aenter__(self) -> AsyncClient:
        """Returns the client; leaving the `async with` statement closes it."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def predict(
        self,
        rows: object,
        *,
        model: str | None = None,
        percentile: float | None = None,
        coverage: float | None = None,
        max_error: float | None = None,
        fields: Sequence[str] | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> ServedPredictions:
        """Predicts rows, as `Client.predict` does."""
        options = _options(percentile, coverage, max_error, fields)
        course = exchange.predict(
            self._session, rows, model=model, options=options, request_id=request_id, timeout=timeout
        )
        return await self._run(course)

    async def models(self) -> tuple[ModelVersion, ...]:
        """Lists every version in the server's store, with its state."""
        return await self._run(exchange.list_models(self._session))

    async def model(self, name: str) -> ServedModel:
        """Describes the version that requests for a name get, as `Client.model` does."""
        return await self._run(exchange.describe_model(self._session, name))

    async def rollout(self, name: str) -> dict[str, Any]:
        """Returns the rollout of a model, as `Client.rollout` does."""
        return await self._run(exchange.describe_rollout(self._session, name))

    async def ready(self) -> Readiness:
        """Asks whether all workers are ready, without waiting."""
        return await self._run(exchange.ready(self._session))

    async def live(self) -> bool:
        """Asks whether a worker runs."""
        return await self._run(exchange.live(self._session))

    async def _run(self, course: Course[T]) -> T:
        answer: Reply | Failure | None = None
        try:
            while True:
                step = course.send(answer)
                if isinstance(step, Wait):
                    await asyncio.sleep(step.seconds)
                    answer = None
                else:
                    answer = await self._send(step)
        except StopIteration as end:
            return end.value

    async def _send(self, step: Send) -> Reply | Failure:
        end = time.monotonic() + step.seconds
        try:
            async with asyncio.timeout(step.seconds):
                response = await self._http.request(
                    step.method, step.path, headers=step.headers, content=step.content, timeout=_timeout(step.seconds)
                )
            return Reply(response.status_code, response.headers, response.content)
        except TimeoutError:
            return Failure("no complete response", late=True, sent=True)
        except httpx.HTTPError as error:
            return _failure(error, end)


def _options(percentile: float | None, coverage: float | None, max_error: float | None, fields: Any) -> dict[str, Any]:
    return {"percentile": percentile, "coverage": coverage, "max_error": max_error, "fields": fields}


def _timeout(seconds: float) -> httpx.Timeout:
    return httpx.Timeout(seconds, connect=min(seconds, CONNECT_SECONDS))


def _failure(error: httpx.HTTPError, end: float) -> Failure:
    """Describes an error of httpx; its text never has the headers, and so not the key."""
    late = isinstance(error, httpx.TimeoutException) and time.monotonic() >= end - 1e-3
    return Failure(str(error) or type(error).__name__, late, not isinstance(error, _NOT_SENT))


def _check_url(url: str) -> str:
    """Returns the URL without a final slash.

    Raises:
        ConfigError: it is not an http or https URL, or has a user name, a query or a fragment.
    """
    try:
        parts = httpx.URL(url)
    except (httpx.InvalidURL, TypeError):
        parts = httpx.URL("")
    if parts.userinfo:
        raise ConfigError("url", where="Client", expected="no user name or password", found="one", fix="give key=")
    if parts.scheme not in {"http", "https"} or not parts.host or parts.query or parts.fragment:
        expected = "a URL such as https://models.example.org:3000"
        raise ConfigError("url", where="Client", expected=expected, found=clip_repr(url))
    return str(parts).rstrip("/")


def _check_key(key: str) -> str:
    """Returns a key that a header can carry; no error shows the key.

    Raises:
        ConfigError: it is empty, or has other characters than printable ASCII without spaces.
    """
    if not (isinstance(key, str) and key.isascii() and key.isprintable() and key and " " not in key):  # pyright: ignore[reportUnnecessaryIsInstance]
        fix = "give the key as abstain key new has printed it, without spaces or line breaks"
        raise ConfigError(
            "key", where="Client", expected="printable ASCII without spaces", found="something else", fix=fix
        )
    return key


def _context(verify: Verify) -> ssl.SSLContext | bool:
    """Returns the TLS context for a file of certificates.

    Raises:
        ConfigError: the file cannot be read.
    """
    if not isinstance(verify, str | Path):
        return verify
    try:
        return ssl.create_default_context(cafile=str(verify))
    except (OSError, ssl.SSLError) as error:
        found = f"{verify}: {error.strerror or error}"
        raise ConfigError("verify", where="Client", expected="a file of certificates in PEM", found=found) from error
