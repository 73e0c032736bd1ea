"""TLS: the server's certificate and private key, reloaded when their files change.

A certificate of a public authority is renewed every few weeks. New connections then get the new one, and open connections
continue unchanged.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from abstain.models.errors import ConfigError
from abstain.models.files.regular import read_bounded, refuse_other_writers

log = logging.getLogger("abstain.tls")

PEM_BYTES = 1024 * 1024
"""The largest accepted file of certificates or of a key."""
CHECK_SECONDS = 1.0
"""The time between two checks of a worker whether the files have changed."""


_REASONS = {
    "KEY_VALUES_MISMATCH": "the private key of another certificate",
    "BAD_PASSWORD_READ": "a key with a passphrase",
    "BAD_DECRYPT": "a key with a passphrase",
}
"""OpenSSL's reasons for an error, in plain words."""


class PemFiles(NamedTuple):
    """The files of a certificate, followed by its chain, and of its private key."""

    certificate: Path
    key: Path


class Encrypted(NamedTuple):
    """The TLS context of a worker's connections, and the files that it was loaded from."""

    context: ssl.SSLContext
    files: PemFiles


def check_certificate(files: PemFiles) -> None:
    """Refuses a certificate and key that a server could not use.

    Raises:
        ConfigError: a file cannot be read or is not PEM, or the key is encrypted or belongs to another certificate.
    """
    _load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), _read(files), files)


async def follow_changes(encrypted: Encrypted) -> None:
    """Reloads the files when they change; runs until it is cancelled.

    If the new files cannot be used, for example because only one of them is new, the old certificate stays in use.
    """
    context, files = encrypted
    state, fault = _state_of(files), ""
    while True:
        await asyncio.sleep(CHECK_SECONDS)
        new_state = _state_of(files)
        if new_state == state:
            continue
        try:
            content = _read(files)
            # Loaded into a new context first: an error half-way would leave a certificate with the key of another one.
            _load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), content, files)
            # Not in a thread, because no connection may begin while the context changes.
            _load(context, content, files)
        except Exception as error:  # any error, so that the next change is not missed
            if str(error) != fault:
                log.error("the certificate is not reloaded: %s", error)
            fault = str(error)
            continue
        state, fault = new_state, ""
        log.warning("%s has changed: new connections get the new certificate", files.certificate)


def _read(files: PemFiles) -> tuple[bytes, bytes]:
    content: list[bytes] = []
    for path in files:
        try:
            # Renewing a certificate may change the target of a link.
            content.append(read_bounded(Path(os.path.realpath(path)), PEM_BYTES, ConfigError))
            refuse_other_writers(path, path.stat().st_mode, "TLS")
        except OSError as error:
            raise ConfigError(
                "cannot be read", where=str(path), expected="a PEM file", found=error.strerror, fix="check the path"
            ) from error
    return content[0], content[1]


def _load(context: ssl.SSLContext, content: tuple[bytes, bytes], files: PemFiles) -> None:
    """Loads the bytes that were read, through files in memory: OpenSSL takes only paths, and the files may change."""
    try:
        with _in_memory(content[0]) as certificate, _in_memory(content[1]) as key:
            # Without a password OpenSSL asks for one on the terminal, and waits.
            context.load_cert_chain(certificate, key, password=lambda: "")
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(
            "TLS",
            where=f"{files.certificate}, {files.key}",
            expected="a certificate in PEM, and its private key without a passphrase",
            found=_REASONS.get(getattr(error, "reason", None) or "", "invalid files; are the two exchanged?"),
            fix=f"compare their public keys: openssl x509 -in {files.certificate} -pubkey -noout, and "
            f"openssl pkey -in {files.key} -pubout",
        ) from error


@contextmanager
def _in_memory(content: bytes) -> Generator[str]:
    """Yields the path of a file that is only in memory; where there are no such files, of one that only its owner may read."""
    if not hasattr(os, "memfd_create"):  # macOS
        with TemporaryDirectory(prefix="abstain-tls-") as folder:
            file = Path(folder) / "part.pem"
            file.touch(mode=0o600)
            file.write_bytes(content)
            yield str(file)
        return
    descriptor = os.memfd_create("abstain-tls")
    try:
        os.write(descriptor, content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _state_of(files: PemFiles) -> tuple[tuple[int, int, int] | None, ...]:
    """Returns facts that change when a file, or the target of a link, is written or replaced; None for a missing file."""
    return tuple(_facts(path) for path in files)


def _facts(path: Path) -> tuple[int, int, int] | None:
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_mtime_ns, facts.st_size, facts.st_ino
