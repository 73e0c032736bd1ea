"""TLS: the server's certificate and private key, read again when their files change.

A certificate of a public authority is renewed every few weeks. New connections then get the new one, and connections that are
open go on as they are.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from abstain.models.errors import ConfigError
from abstain.models.files.regular import read_bounded, refuse_other_writers

log = logging.getLogger("abstain.tls")

PEM_BYTES = 1024 * 1024
"""Of a file of certificates or of a key."""
CHECK_SECONDS = 1.0
"""How often a worker looks whether the files have changed."""


_FOUND = {
    "KEY_VALUES_MISMATCH": "the private key of another certificate",
    "BAD_PASSWORD_READ": "a key with a passphrase",
    "BAD_DECRYPT": "a key with a passphrase",
}
"""What OpenSSL's reasons mean."""


class PemFiles(NamedTuple):
    """A certificate, followed by those that vouch for it; and its private key."""

    certificate: Path
    key: Path


class Encrypted(NamedTuple):
    """A context that a worker's connections use, and the files that it is from."""

    context: ssl.SSLContext
    files: PemFiles


def check_certificate(files: PemFiles) -> None:
    """Refuses a certificate and key that a server could not use.

    Raises:
        ConfigError: a file cannot be read, is no PEM, or the key is encrypted or of another certificate.
    """
    _load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), _read(files), files)


async def follow_changes(encrypted: Encrypted) -> None:
    """Takes new files into use; runs until it is cancelled.

    Files that cannot be used, such as a new certificate whose key is still to come, leave the old ones in use.
    """
    context, files = encrypted
    state, fault = _state_of(files), ""
    while True:
        await asyncio.sleep(CHECK_SECONDS)
        found = _state_of(files)
        if found == state:
            continue
        try:
            content = _read(files)
            # A context that fails half-way has the certificate of one pair and the key of another.
            _load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), content, files)
            # Here and not in a thread: no connection may begin while the context changes.
            _load(context, content, files)
        except Exception as error:  # whatever it is, the next change must be seen
            if str(error) != fault:
                log.error("the certificate stays as it was: %s", error)
            fault = str(error)
            continue
        state, fault = found, ""
        log.warning("%s has changed: new connections get the new certificate", files.certificate)


def _read(files: PemFiles) -> tuple[bytes, bytes]:
    content: list[bytes] = []
    for path in files:
        try:
            # Those who renew certificates let links point to the newest.
            content.append(read_bounded(Path(os.path.realpath(path)), PEM_BYTES, ConfigError))
            refuse_other_writers(path, path.stat().st_mode, "TLS")
        except OSError as error:
            raise ConfigError(
                "cannot be read", where=str(path), expected="a file in PEM", found=error.strerror, fix="check the path"
            ) from error
    return content[0], content[1]


def _load(context: ssl.SSLContext, content: tuple[bytes, bytes], files: PemFiles) -> None:
    """Loads exactly what has been read: files may change in between, and OpenSSL takes only paths."""
    try:
        with _in_memory(content[0]) as certificate, _in_memory(content[1]) as key:
            # Without a password OpenSSL asks for one on the terminal, and waits.
            context.load_cert_chain(certificate, key, password=lambda: "")
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(
            "TLS",
            where=f"{files.certificate}, {files.key}",
            expected="a certificate in PEM, and its own private key without a passphrase",
            found=_FOUND.get(getattr(error, "reason", None) or "", "what is none; are the two files exchanged?"),
            fix=f"compare their public keys: openssl x509 -in {files.certificate} -pubkey -noout, and "
            f"openssl pkey -in {files.key} -pubout",
        ) from error


@contextmanager
def _in_memory(content: bytes) -> Generator[str]:
    """A file without a place on disk, by its path."""
    descriptor = os.memfd_create("abstain-tls")
    try:
        os.write(descriptor, content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _state_of(files: PemFiles) -> tuple[tuple[int, int, int] | None, ...]:
    """What changes when a file, or what a link points to, is written or replaced; None for one that is not there."""
    return tuple(_facts(path) for path in files)


def _facts(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
