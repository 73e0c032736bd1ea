"""A thin layer over the library obstore: what a store needs of S3, Google Cloud Storage or Azure, with bounds and clear errors.

Two publishers are kept apart by conditional writes: *put if absent*, and *put if unchanged* by the tag of the object that was
read. S3, Google Cloud Storage and Azure promise both.

Credentials come from the environment alone. Without any, the library would ask the machine's metadata service for minutes,
so that is refused unless a variable names the service.

The library is the extra `remote`. It is imported only when a store elsewhere is used.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, cast

from abstain.models.bundles.remote.url import RemoteURL
from abstain.models.errors import ConfigError, StoreError, printable

CONNECT_SECONDS = 5.0
REQUEST_SECONDS = 20.0
"""The longest time of one request; one reads or writes at most `PART_BYTES`."""
RETRIES = 2
RETRY_SECONDS = 15.0
"""The time after which a failed request is not tried again."""
PART_BYTES = 4 * 2**20
MOST_ENTRIES = 100_000
"""Most names directly below a prefix."""
_MAX_REASON = 300
"""Most characters of the library's reason in an error."""
_TIMES = re.compile(r" in [\d.]+(ns|µs|ms|s)\b(, after \d+ retries, max_retries: \d+, retry_timeout: \d+s)?")
_CREDENTIALS = {
    "s3": (
        "AWS_ACCESS_KEY_ID",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_METADATA_ENDPOINT",
        "AWS_SKIP_SIGNATURE",
    ),
    "gs": (
        "GOOGLE_APPLICATION_CREDENTIALS",
        "GOOGLE_SERVICE_ACCOUNT",
        "GOOGLE_SERVICE_ACCOUNT_KEY",
        "GCE_METADATA_HOST",
        "GOOGLE_SKIP_SIGNATURE",
    ),
    "abfss": (
        "AZURE_STORAGE_ACCOUNT_KEY",
        "AZURE_STORAGE_SAS_KEY",
        "AZURE_STORAGE_CLIENT_ID",
        "AZURE_FEDERATED_TOKEN_FILE",
        "AZURE_MSI_ENDPOINT",
        "AZURE_SKIP_SIGNATURE",
    ),
}
"""The variables of which one must be set, by scheme; the library reads them."""


class Content(NamedTuple):
    """The bytes of an object, and the tag that changes whenever they do."""

    written: bytes
    tag: str


class Entries(NamedTuple):
    """The names directly below a prefix: folders, and objects with their tags."""

    folders: list[str]
    objects: dict[str, str]


def open_objects(url: RemoteURL) -> Objects:
    """Opens a prefix of a bucket; sends no request.

    Raises:
        ConfigError: the library is not installed, or the environment has no credentials or wrong settings.
    """
    library = _import_library(url)
    accepted = _CREDENTIALS[url.scheme]
    if not any(os.environ.get(name) for name in accepted):
        raise ConfigError(
            "no credentials",
            where=str(url),
            expected=f"one of {', '.join(accepted)} in the environment",
            found="none",
            fix="set them, and AWS_REGION or AWS_ENDPOINT_URL where needed (docs/remote-stores.md)"
            if url.scheme == "s3"
            else "set them (docs/remote-stores.md)",
        )
    settings: dict[str, Any] = {
        "prefix": url.prefix or None,
        "client_options": {
            "timeout": timedelta(seconds=REQUEST_SECONDS),
            "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
            "allow_http": os.environ.get("AWS_ALLOW_HTTP", "").lower() in {"1", "true"},
        },
        "retry_config": {
            "max_retries": RETRIES,
            "retry_timeout": timedelta(seconds=RETRY_SECONDS),
            "backoff": {
                "init_backoff": timedelta(seconds=0.1),
                "max_backoff": timedelta(seconds=1),
                "base": 2,
            },
        },
    }
    try:
        if url.scheme == "s3":
            store = library.store.S3Store(url.bucket, **settings)
        elif url.scheme == "gs":
            store = library.store.GCSStore(url.bucket, **settings)
        else:
            store = library.store.AzureStore(url.bucket, account_name=url.account, **settings)
    except (library.exceptions.BaseError, ValueError) as error:
        raise ConfigError("the environment's settings are wrong", where=str(url), found=_reason(error)) from error
    return Objects(str(url), store)


class Objects:
    """The objects below a prefix; paths are relative to it.

    Args:
        where: the prefix, for errors.
        store: a store of obstore.
    """

    def __init__(self, where: str, store: Any) -> None:
        self.url = where
        self._store = store
        self._library = import_module("obstore")

    def place(self, path: str) -> str:
        """Returns the full name of an object, for errors."""
        return f"{self.url}/{path}" if path else self.url

    def entries(self, path: str = "") -> Entries:
        """Returns the names directly below a folder; none if it does not exist.

        Raises:
            StoreError: the store cannot be read, or there are too many.
        """
        with self._errors(path):
            found = self._library.list_with_delimiter(self._store, f"{path}/" if path else None)
        folders, objects = found["common_prefixes"], found["objects"]
        if len(folders) + len(objects) > MOST_ENTRIES:
            raise StoreError(
                "has too many entries",
                where=self.place(path),
                expected=f"at most {MOST_ENTRIES:,}",
                found=f"{len(folders) + len(objects):,}",
                fix="choose a prefix that holds a store and nothing else",
            )
        own = f"{path}/" if path else ""
        return Entries(
            sorted(folder.removeprefix(own).rstrip("/") for folder in folders),
            {meta["path"].removeprefix(own): meta["e_tag"] or "" for meta in objects},
        )

    def sizes(self, path: str, most: int) -> dict[str, int]:
        """Returns the size in bytes of every object below a folder, by its path there.

        Raises:
            StoreError: the store cannot be read, or there are more than `most`.
        """
        sizes: dict[str, int] = {}
        with self._errors(path):
            for chunk in self._library.list(self._store, f"{path}/", chunk_size=1_000):
                sizes |= {meta["path"].removeprefix(f"{path}/"): int(meta["size"]) for meta in chunk}
                if len(sizes) > most:
                    raise StoreError(
                        "has too many objects", where=self.place(path), expected=f"at most {most:,}", found="more"
                    )
        return sizes

    def get(self, path: str, most: int) -> Content | None:
        """Reads an object of at most `most` bytes; returns None if it does not exist.

        Raises:
            StoreError: it is larger, or the store cannot be read.
        """
        with self._errors(path):
            try:
                found = self._library.get(self._store, path)
            except FileNotFoundError:
                return None
            parts, size = list[bytes](), int(found.meta["size"])
            if size <= most:
                size = 0
                for part in found.stream(min_chunk_size=PART_BYTES):
                    size += len(part)
                    if size > most:
                        break
                    parts.append(bytes(part))
        if size > most:
            raise StoreError("is too large", where=self.place(path), expected=f"at most {most:,} bytes", found="more")
        return Content(b"".join(parts), found.meta["e_tag"] or "")

    def exists(self, path: str) -> bool:
        """Whether an object exists.

        Raises:
            StoreError: the store cannot be read.
        """
        with self._errors(path):
            try:
                self._library.head(self._store, path)
            except FileNotFoundError:
                return False
        return True

    def download(self, path: str, size: int, target: Path) -> str:
        """Writes an object of `size` bytes into a new file; returns its sha256.

        Raises:
            StoreError: it does not exist or has another size, or the store cannot be read.
            OSError: the file cannot be written.
        """
        digest = hashlib.sha256()
        with target.open("xb") as file:
            for start in range(0, size, PART_BYTES):
                length = min(PART_BYTES, size - start)
                with self._errors(path):
                    part = bytes(self._library.get_range(self._store, path, start=start, length=length))
                if len(part) != length:
                    raise StoreError(
                        "was cut off", where=self.place(path), expected=f"{length:,} bytes", found=len(part)
                    )
                digest.update(part)
                file.write(part)
        return digest.hexdigest()

    def upload(self, path: str, source: Path) -> None:
        """Writes a file into an object, which may exist.

        Raises:
            StoreError: the store cannot be written.
        """
        with self._errors(path, "cannot be written"):
            self._library.put(self._store, path, source, chunk_size=2 * PART_BYTES, max_concurrency=2)

    def put(self, path: str, written: bytes) -> None:
        """Writes an object, which may exist.

        Raises:
            StoreError: the store cannot be written.
        """
        with self._errors(path, "cannot be written"):
            self._library.put(self._store, path, written, use_multipart=False)

    def put_if_absent(self, path: str, written: bytes) -> bool:
        """Writes an object if it does not exist; returns whether it does now hold these bytes because of this call or one alike.

        Raises:
            StoreError: the store cannot be written.
        """
        return self._put_if(path, written, "create")

    def put_if_unchanged(self, path: str, written: bytes, tag: str) -> bool:
        """Writes an object if it still has a tag; returns whether it holds these bytes.

        Raises:
            StoreError: the store cannot be written.
        """
        return self._put_if(path, written, {"e_tag": tag})

    def _put_if(self, path: str, written: bytes, mode: Any) -> bool:
        faults = self._library.exceptions
        with self._errors(path, "cannot be written"):
            try:
                self._library.put(self._store, path, written, mode=mode, use_multipart=False)
            except (faults.AlreadyExistsError, faults.PreconditionError, FileExistsError):
                # A request that was tried again after its answer was lost finds its own object.
                found = self.get(path, max(1, len(written)) + 2**20)
                return found is not None and found.written == written
        return True

    @contextmanager
    def _errors(self, path: str, what: str = "cannot be read") -> Generator[None]:
        """Converts the library's errors.

        Raises:
            StoreError: names the object and the library's reason.
        """
        faults = self._library.exceptions
        try:
            yield
        except StoreError:
            raise
        except (faults.PermissionDeniedError, faults.UnauthenticatedError, PermissionError) as error:
            raise StoreError(
                what,
                where=self.place(path),
                expected="access",
                found=_reason(error),
                fix="check the credentials in the environment, and what they may do in this bucket",
            ) from error
        except (faults.BaseError, OSError, ValueError) as error:
            raise StoreError(
                what,
                where=self.place(path),
                found=_reason(error),
                fix="check that the store can be reached from here, that the bucket exists, and its region "
                "(AWS_REGION, AWS_ENDPOINT_URL)",
            ) from error


def _reason(error: Exception) -> str:
    """Describes an error of the library in one line: without the query of a URL, which may hold a key, and without times.

    The same fault has the same text, so that a log says it once.
    """
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return printable(_TIMES.sub("", re.sub(r"\?\S*", "", line)))[:_MAX_REASON]


def _import_library(url: RemoteURL) -> Any:
    try:
        library = cast("Any", import_module("obstore"))
        import_module("obstore.store")
        import_module("obstore.exceptions")
    except ImportError as error:
        raise ConfigError(
            "stores elsewhere need a library",
            where=str(url),
            expected="obstore",
            found=str(error).splitlines()[0],
            fix="pip install 'abstain[remote]'",
        ) from error
    return library
