"""TLS: a real server with a certificate that is renewed while it runs."""

import asyncio
import os
import shutil
import socket
import ssl
import time
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from abstain.models.errors import ConfigError
from abstain.service.access import tls
from abstain.service.access.tls import PemFiles, check_certificate
from tests.helpers.certificates import private_pem, write_certificate
from tests.helpers.processes import PATIENCE, until
from tests.helpers.servers import start_server, stop_server

ROW = [[16.0] * 64]


@pytest.fixture(scope="module")
def pem(tmp_path_factory):
    """The files that the server reads."""
    folder = tmp_path_factory.mktemp("pem")
    return PemFiles(*write_certificate(folder))


@pytest.fixture(scope="module")
def encrypted(store, pem, tmp_path_factory):
    """A server that accepts only TLS."""
    more = {"ABSTAIN_TLS_CERT": str(pem.certificate), "ABSTAIN_TLS_KEY": str(pem.key)}
    started = start_server(store, tmp_path_factory.mktemp("tls"), wait=False, **more)
    running = replace(started, url=started.url.replace("http:", "https:"))

    def ready():
        try:
            return (
                httpx.get(f"{running.url}/readyz", verify=trusting(pem.certificate), timeout=PATIENCE).status_code
                == 200
            )
        except httpx.TransportError:
            return False

    if not until(ready):
        stop_server(running)
        pytest.fail(running.log.read_text())
    yield running
    stop_server(running)


def trusting(certificate):
    """A client's context that trusts only one certificate."""
    return ssl.create_default_context(cafile=str(certificate))


def served(server):
    """The certificate that a new connection gets."""
    return ssl.get_server_certificate(("127.0.0.1", int(server.url.rsplit(":", 1)[1])))


def test_predictions_over_tls(encrypted, pem):
    """The client checks the certificate; the command prints an https address at start."""
    with httpx.Client(verify=trusting(pem.certificate), timeout=PATIENCE) as client:
        response = client.post(f"{encrypted.url}/predict", json={"inputs": ROW, "model": "digits"})
        origin = client.post(
            f"{encrypted.url}/predict", json={"inputs": ROW, "model": "digits"}, headers={"Origin": encrypted.url}
        )
        unencrypted = client.post(
            f"{encrypted.url}/predict",
            json={"inputs": ROW, "model": "digits"},
            headers={"Origin": encrypted.url.replace("https:", "http:")},
        )
    assert response.status_code == origin.status_code == 200
    assert (unencrypted.status_code, unencrypted.json()["code"]) == (403, "foreign_origin")
    assert f"address {encrypted.url}/" in encrypted.log.read_text()


def test_connections_without_secure_tls_are_refused(encrypted):
    """Plain HTTP, and an insecure version of TLS."""
    plain = encrypted.url.replace("https:", "http:")
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{plain}/livez", timeout=PATIENCE)
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    with warnings.catch_warnings(action="ignore"):  # about the old version
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    port = int(encrypted.url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port)) as raw, pytest.raises((ssl.SSLError, ConnectionError)):
        old.wrap_socket(raw)


def test_a_renewed_certificate_is_loaded_while_the_server_runs(encrypted, pem, tmp_path):
    """Open connections continue; a certificate without its key, or a damaged one, changes nothing and is logged."""
    before = pem.certificate.read_text()
    with httpx.Client(verify=trusting(pem.certificate), timeout=PATIENCE) as client:
        assert client.get(f"{encrypted.url}/livez").status_code == 200
        new = PemFiles(*write_certificate(tmp_path, "renewed"))
        # First only the certificate, as a client of a certificate authority may write it.
        shutil.copy(new.certificate, pem.certificate)
        assert until(lambda: "the certificate is not reloaded" in encrypted.log.read_text())
        assert served(encrypted) == before
        pem.key.write_text("no key at all")
        pem.certificate.unlink()
        pem.certificate.symlink_to(pem.certificate.name)
        assert until(lambda: "found a symbolic link" in encrypted.log.read_text())
        pem.certificate.unlink()
        shutil.copy(new.certificate, pem.certificate)
        shutil.copy(new.key, pem.key)
        assert until(lambda: served(encrypted) == new.certificate.read_text())
        assert client.get(f"{encrypted.url}/livez").status_code == 200
    with httpx.Client(verify=trusting(new.certificate), timeout=PATIENCE) as client:
        assert client.get(f"{encrypted.url}/livez").status_code == 200


def test_a_change_is_seen_within_a_second(tmp_path, monkeypatch, caplog):
    """By the seconds that the watcher sleeps: after one sleep of at most a second, the new certificate is in use."""
    files = PemFiles(*write_certificate(tmp_path))
    new = PemFiles(*write_certificate(tmp_path, "renewed"))
    slept = []

    async def sleep(seconds):
        slept.append(seconds)
        if len(slept) == 1:
            shutil.copy(new.certificate, files.certificate)
            shutil.copy(new.key, files.key)
        else:
            raise asyncio.CancelledError

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    monkeypatch.setattr(tls, "asyncio", SimpleNamespace(sleep=sleep))
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(tls.follow_changes(tls.Encrypted(context, files)))
    assert slept[0] <= 1
    assert "has changed: new connections get the new certificate" in caplog.text


def encrypt_key(files):
    """Encrypts the key with a passphrase."""
    key = serialization.load_pem_private_key(files.key.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    files.key.write_bytes(private_pem(key, serialization.BestAvailableEncryption(b"secret")))


def pipe(files):
    """Replaces the key by a named pipe, on which a reader waits."""
    files.key.unlink()
    os.mkfifo(files.key)


WRONG = {
    "no file": (lambda files: files.certificate.unlink(), "cannot be read: expected a PEM file, found No such file"),
    "not PEM": (lambda files: files.certificate.write_text("x"), "TLS: expected a certificate in PEM"),
    "empty": (lambda files: files.certificate.write_text(""), "TLS: expected a certificate in PEM"),
    "the two exchanged": (lambda files: files.certificate.rename(files.key), "cannot be read"),
    "another's key": (
        lambda files: shutil.copy(write_certificate(files.key.parent, "other")[1], files.key),
        "found the private key of another certificate",
    ),
    "an encrypted key": (encrypt_key, "without a passphrase"),
    "a key that others may write to": (lambda files: files.key.chmod(0o666), "found mode -rw-rw-rw-; chmod go-w"),
    "a named pipe": (pipe, "expected a regular file, found a named pipe"),
    "a folder": (lambda files: (files.key.unlink(), files.key.mkdir()), "expected a regular file, found a folder"),
    "too large": (lambda files: os.truncate(files.key, 2**30), "is too large: expected at most"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_certificate_that_cannot_be_used_is_refused(tmp_path, name):
    """The error names the reason, and no check waits."""
    alter, message = WRONG[name]
    files = PemFiles(*write_certificate(tmp_path))
    check_certificate(files)
    alter(files)
    began = time.monotonic()
    with pytest.raises(ConfigError, match=message):
        check_certificate(files)
    assert time.monotonic() - began < 10


def test_certificates_load_without_files_in_memory(tmp_path, monkeypatch):
    """As on macOS, which has neither memfd_create nor /proc: through files that only the owner may read, removed at once."""
    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    check_certificate(PemFiles(*write_certificate(tmp_path)))
    with tls._in_memory(b"secret") as path:
        assert Path(path).read_bytes() == b"secret"
        assert Path(path).stat().st_mode & 0o077 == 0
    assert not list((tmp_path / "temporary").iterdir())


def test_links_are_followed(tmp_path):
    """Renewing a certificate may change the target of a link."""
    files = write_certificate(tmp_path)
    links = PemFiles(tmp_path / "live.crt", tmp_path / "live.key")
    for link, target in zip(links, files, strict=True):
        link.symlink_to(target.name)
    check_certificate(links)


def test_a_server_with_an_invalid_certificate_does_not_start(run, store, tmp_path, monkeypatch):
    """It prints one line before a model is loaded; a certificate needs its key."""
    certificate, key = write_certificate(tmp_path)
    key.write_text("")
    for name in ("ABSTAIN_TLS_CERT", "ABSTAIN_TLS_KEY", "ABSTAIN_INSECURE"):
        monkeypatch.setenv(name, "")
    code, _, error = run("serve", "--store", store, "--tls-cert", certificate, "--tls-key", key)
    assert code == 1
    assert error.startswith(f"abstain: {certificate}, {key}: TLS: expected a certificate in PEM")
    monkeypatch.setenv("ABSTAIN_TLS_KEY", "")
    code, _, error = run("serve", "--store", store, "--tls-cert", certificate)
    assert code == 2
    assert "--tls-key: expected a file, because --tls-cert has one, found none" in error
