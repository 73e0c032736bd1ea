"""Where a store is: a folder, or a prefix in a bucket of an object store."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from abstain.models.errors import ConfigError, clip_repr

_FORMS = {
    "s3": "s3://BUCKET/PREFIX",
    "gs": "gs://BUCKET/PREFIX",
    "abfss": "abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/PREFIX",
}
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,62}")
_AZURE = re.compile(r"([a-z0-9][a-z0-9-]{1,62})@([a-z0-9]{3,24})\.dfs\.core\.windows\.net")
_PART = re.compile(r"[A-Za-z0-9_=+.-]{1,128}")
_MAX_LENGTH = 1_024


@dataclass(frozen=True)
class RemoteURL:
    """A prefix in a bucket.

    Attributes:
        scheme: `s3`, `gs` or `abfss`.
        bucket: the bucket; for `abfss` the container.
        prefix: the folders below it, joined by `/`; may be empty.
        account: the account of Azure; empty for others.
    """

    scheme: str
    bucket: str
    prefix: str = ""
    account: str = ""

    def __str__(self) -> str:
        """The URL, without a slash at the end."""
        host = f"{self.bucket}@{self.account}.dfs.core.windows.net" if self.account else self.bucket
        return "/".join(part for part in (f"{self.scheme}://{host}", self.prefix) if part)

    @property
    def folder_name(self) -> str:
        """The name of the local folder that mirrors this store."""
        return hashlib.sha256(str(self).encode()).hexdigest()[:16]


def parse_store(text: str | Path | RemoteURL) -> Path | RemoteURL:
    """Parses the address of a store: a path, `file:///PATH`, or the URL of an object store.

    Raises:
        ConfigError: the URL is invalid or of a scheme that is not supported; it is not shown if it holds credentials.
    """
    if not isinstance(text, str):
        return text
    match = _SCHEME.match(text)
    if not match:
        if slip := re.match(r"(s3|gs|abfss|hf|file):/?", text, re.IGNORECASE):
            raise ConfigError(
                "store",
                expected="a folder, or a URL",
                found=clip_repr(text),
                fix=f"write {slip[1].lower()}:// with two slashes; a folder of this name is ./{slip[1]}:…",
            )
        return Path(text)
    scheme = match[1].lower()
    if scheme == "file":
        return _parse_file(text)
    if scheme == "hf":
        raise ConfigError(
            "store",
            expected="a folder, or a URL such as s3://BUCKET/PREFIX",
            found="hf://, which is not supported",
            fix="download the repository into a folder (hf download) and use that folder",
        )
    if scheme not in _FORMS:
        raise ConfigError(
            "store", expected=f"a folder, file:///PATH, {', '.join(_FORMS.values())}", found=f"{scheme[:20]}://"
        )
    if len(text) > _MAX_LENGTH:
        raise ConfigError("store", expected=f"a URL of at most {_MAX_LENGTH} characters", found=f"{len(text)}")
    rest = text[match.end() :]
    host, _, prefix = rest.partition("/")
    if "?" in rest or "#" in rest or (scheme != "abfss" and "@" in rest) or ":" in host:
        # Not shown: it may hold a key.
        raise ConfigError(
            "store",
            expected=_FORMS[scheme],
            found="more than a bucket and a prefix",
            fix="put credentials and the address of a server into the environment, such as AWS_ACCESS_KEY_ID and "
            "AWS_ENDPOINT_URL",
        )
    parts = [part for part in prefix.rstrip("/").split("/") if prefix.rstrip("/")]
    azure = _AZURE.fullmatch(host) if scheme == "abfss" else None
    valid = azure if scheme == "abfss" else _BUCKET.fullmatch(host)
    if not valid or not all(_PART.fullmatch(part) and part not in {".", ".."} for part in parts):
        raise ConfigError(
            "store",
            expected=f"{_FORMS[scheme]}, the prefix of letters, digits, dots, dashes, underscores, = and +",
            found=clip_repr(text, 120),
        )
    bucket, account = (azure[1], azure[2]) if azure else (host, "")
    return RemoteURL(scheme, bucket, "/".join(parts), account)


def local_store(text: str | Path | RemoteURL) -> Path:
    """Parses the address of a store that must be a folder.

    Raises:
        ConfigError: the address is invalid, or it is not a folder.
    """
    store = parse_store(text)
    if isinstance(store, RemoteURL):
        raise ConfigError(
            "store",
            expected="a folder for this command",
            found=str(store),
            fix=f"use a local store: abstain pull MODEL {store} copies a version into one, abstain push MODEL {store} "
            "publishes one from it",
        )
    return store


def _parse_file(text: str) -> Path:
    parts = urlsplit(text)
    if parts.netloc not in {"", "localhost"} or not parts.path.startswith("/") or parts.query or parts.fragment:
        raise ConfigError("store", expected="file:///PATH, the path absolute", found=clip_repr(text, 120))
    return Path(unquote(parts.path))
