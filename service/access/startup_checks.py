"""Checks keys, certificate, identity provider and trusted signers once, before a server starts.

A worker that finds an error in them ends and is restarted without end; the main process reports the error once.
"""

from __future__ import annotations

from abstain.models.bundles.signatures import read_trusted
from abstain.service.access.api_keys import read_keys
from abstain.service.access.oidc import provider_of
from abstain.service.access.tls import PemFiles, check_certificate
from abstain.service.settings import Settings


def check_access(settings: Settings) -> None:
    """Refuses settings with which no worker could start.

    Raises:
        ConfigError: the file of keys is invalid, the certificate or its key cannot be used, a trusted public key is
            invalid, or the identity provider's URL or a package of an extra is missing.
    """
    if settings.keys:
        read_keys(settings.keys)
    files = pem_files(settings)
    if files:
        check_certificate(files)
    provider_of(settings)
    read_trusted(settings.trusted_keys)


def pem_files(settings: Settings) -> PemFiles | None:
    """Returns the certificate and key of the settings; None if they have none."""
    return PemFiles(settings.tls_cert, settings.tls_key) if settings.tls_cert and settings.tls_key else None
