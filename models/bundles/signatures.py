"""Signatures: proofs of a version's author by a key pair; one file of the version's folder.

    model.sig       the output of `model_signing sign key` of OpenSSF's model-signing: an in-toto statement with the sha256
                    of `manifest.json` and of every file that it lists, signed by an elliptic curve key (a Sigstore bundle)

The statement is compared with the hashes in the manifest that was read, not with files on disk, so the bytes that are
verified are the bytes that are used. `models/bundles/manifest.py` compares the files with the manifest.

The library is the extra `signing`. It is imported only when a key is read.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, Field, ValidationError

from abstain.models.errors import ConfigError, SignatureError, clip_repr
from abstain.models.files.regular import read_bounded, refuse_other_writers

SIGNATURE = "model.sig"
SIGNATURE_BYTES = 4 * 2**20
"""Largest size of the file, which lists every file of the version; for 36 files it has 10,000 bytes."""
KEY_BYTES = 2**16
"""Largest size of a key's file; a few hundred bytes are usual."""
PASSWORD_BYTES = 2**12
CURVES = ("secp256r1", "secp384r1", "secp521r1")
"""NIST's P-256, P-384 and P-521, which the library supports."""
_MAX_REASON = 300
"""Most characters of the library's reason in an error."""
_MAX_FOUND = 40
"""Most bytes of a malformed signature in an error."""


@dataclass(frozen=True)
class TrustedKeys:
    """Public keys; a version is trusted if one of them has signed it."""

    verifiers: Mapping[str, tuple[Path, Any]]
    """The key's file and the library's settings for it, by the key's fingerprint, which signatures contain."""

    def __str__(self) -> str:
        names = [str(path) for path, _ in self.verifiers.values()]
        return names[0] if len(names) == 1 else f"one of {', '.join(names)}"


class _PublicKey(BaseModel):
    hint: str = Field(max_length=128)


class _Material(BaseModel):
    public_key: _PublicKey = Field(alias="publicKey")


class _Envelope(BaseModel):
    """The part of a signature that names its key; the library reads and checks the rest."""

    material: _Material = Field(alias="verificationMaterial")


def read_trusted(paths: Iterable[Path]) -> TrustedKeys | None:
    """Reads keys like `read_public_keys`; returns None, which means that no signature is needed, if there are no paths."""
    key_paths = tuple(paths)
    return read_public_keys(*key_paths) if key_paths else None


def read_public_keys(*paths: Path) -> TrustedKeys:
    """Reads public keys from files, or from the files `*.pem` of folders.

    Raises:
        ConfigError: a path does not exist, others can write to it, or it has no public key; or the library is missing.
    """
    return TrustedKeys(dict(_verifier(file) for path in paths for file in _key_files(path)))


def check_signature(folder: Path, covered: Mapping[str, str], trusted: TrustedKeys) -> Path:
    """Verifies the signature of the version in a folder; returns the file of the trusted key that has signed it.

    Args:
        covered: the sha256 of every file according to the manifest, and of the manifest itself, by path in the folder.

    Raises:
        SignatureError: the signature is missing or malformed, is not by a trusted key, or is for other content.
    """
    path = folder / SIGNATURE
    written = _read_signature(path, trusted)
    trusted_key = trusted.verifiers.get(_key_of(written, path))
    if trusted_key is None:
        raise SignatureError(
            "is not by a trusted key",
            where=str(path),
            expected=f"a signature by {trusted}",
            found="one by another key",
            fix=_sign_again(folder),
        )
    key, verifier = trusted_key
    # The library reads a path. It gets a copy of the bytes that were read above, because the file may have been replaced.
    with tempfile.TemporaryDirectory(prefix="abstain-signature-") as private:
        private_copy = Path(private) / SIGNATURE
        private_copy.write_bytes(written)
        try:
            # A copy of the settings, because another thread may check another version with the same key.
            copy(verifier).set_hashing_config(_listed(folder, covered)).verify(folder, private_copy)
        except Exception as error:  # the library may raise anything for a malformed file
            raise SignatureError(
                "does not fit the version",
                where=str(path),
                expected=f"a signature by {key} of its {len(covered)} files",
                found=_reason(error),
                fix=_sign_again(folder),
            ) from error
    return key


def make_signature(folder: Path, covered: Mapping[str, str], key: Path, password: bytes | None = None) -> bytes:
    """Returns the contents of `model.sig` for the version in a folder; writes nothing there.

    Args:
        covered: as in `check_signature`.
        key: the file of a private key.

    Raises:
        ConfigError: the key is missing or malformed, or the password is wrong; or the library is missing.
        SignatureError: the version has so many files that the signature is too large.
    """
    check_private_key(key, password)
    from model_signing import signing  # noqa: PLC0415

    with tempfile.TemporaryDirectory(prefix="abstain-signature-") as private:
        draft = Path(private) / SIGNATURE
        # The annotation is str, but the code that reads the key accepts only bytes.
        signer = signing.Config().use_elliptic_key_signer(private_key=key, password=cast("Any", password))
        signer.set_hashing_config(_listed(folder, covered)).sign(folder, draft)
        written = draft.read_bytes()
    if len(written) > SIGNATURE_BYTES:
        expected = f"at most {SIGNATURE_BYTES:,} bytes"
        raise SignatureError(
            "is too large", where=str(folder / SIGNATURE), expected=expected, found=f"{len(written):,}"
        )
    return written


def check_private_key(path: Path, password: bytes | None = None) -> None:
    """Checks that a file is a private key for signing.

    Raises:
        ConfigError: it is missing, is not an elliptic curve key of `CURVES`, or the password is wrong; or the library is
            missing.
    """
    check_library(str(path))
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

    _load(path, lambda content: load_pem_private_key(content, password), "private", "PUBLIC KEY")


def is_encrypted(path: Path) -> bool:
    """Whether a private key needs a password.

    Raises:
        ConfigError: the file cannot be read.
    """
    return b"ENCRYPTED" in _read_key(path, "private")


def read_password(path: Path) -> bytes:
    """Reads a password: the first line of a file, without the line break.

    Raises:
        ConfigError: the file cannot be read, or its first line is empty.
    """
    content = _read_user_file(path, PASSWORD_BYTES, "a file with the key's password")
    line = content.partition(b"\n")[0].rstrip(b"\r")
    if not line:
        raise ConfigError("password", where=str(path), expected="a password on the first line", found="an empty line")
    return line


def check_library(where: str) -> None:
    """Checks that the library is installed.

    Raises:
        ConfigError: it, or a package that it needs, is not installed.
    """
    try:
        import_module("model_signing")
    except ImportError as error:
        raise ConfigError(
            "signatures need a library",
            where=where,
            expected="model-signing and pyopenssl",
            found=str(error).splitlines()[0],
            fix="pip install 'abstain[signing]'",
        ) from error


def _key_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    refuse_other_writers(path, path.stat().st_mode, "trusted keys")
    files = sorted(path.glob("*.pem"))
    if not files:
        raise ConfigError("no keys", where=str(path), expected="public keys in files named *.pem", found="none")
    return files


def _verifier(path: Path) -> tuple[str, tuple[Path, Any]]:
    """Returns a public key's fingerprint; its file, and the library's settings to verify with it."""
    check_library(str(path))
    from cryptography.hazmat.primitives.serialization import (  # noqa: PLC0415
        Encoding,
        PublicFormat,
        load_pem_public_key,
    )
    from model_signing import verifying  # noqa: PLC0415

    key = _load(path, load_pem_public_key, "public", "PRIVATE KEY")
    canonical = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    verifier = verifying.Config().use_elliptic_key_verifier(public_key=path)
    return hashlib.sha256(canonical).hexdigest(), (path, verifier)


def _load(path: Path, load: Callable[[bytes], Any], kind: str, other: str) -> Any:
    """Loads the key in a file with a function of cryptography.

    Args:
        kind: "public" or "private".
        other: the words in the first line of a key of the other type.
    """
    content = _read_key(path, kind)
    expected = f"a {kind} key of an elliptic curve ({', '.join(CURVES)}), as PEM"
    if other.encode() in content:
        fix = "make it: openssl ec -in PRIVATE.pem -pubout -out PUBLIC.pem" if kind == "public" else None
        raise ConfigError("key", where=str(path), expected=expected, found=f"a {other.lower()}", fix=fix)
    try:
        key = load(content)
    except Exception as error:  # ValueError, TypeError, UnsupportedAlgorithm, and OpenSSL's errors for a damaged file
        raise ConfigError("key", where=str(path), expected=expected, found=_reason(error)) from error
    curve = getattr(getattr(key, "curve", None), "name", None)
    if curve not in CURVES:
        raise ConfigError(
            "key", where=str(path), expected=expected, found=curve or f"a key of type {type(key).__name__}"
        )
    return key


def _read_key(path: Path, kind: str) -> bytes:
    content = _read_user_file(path, KEY_BYTES, f"a {kind} key as PEM")
    if kind == "public":
        refuse_other_writers(path, path.stat().st_mode, "trusted keys")
    return content


def _read_user_file(path: Path, most: int, expected: str) -> bytes:
    """Reads a file that the user named; follows links, because mounted secrets are links."""
    try:
        return read_bounded(Path(os.path.realpath(path)), most, ConfigError)
    except OSError as error:
        raise ConfigError("cannot be read", where=str(path), expected=expected, found=error.strerror) from error


def _read_signature(path: Path, trusted: TrustedKeys) -> bytes:
    try:
        return read_bounded(path, SIGNATURE_BYTES, SignatureError)
    except FileNotFoundError as error:
        raise SignatureError(
            "is not signed",
            where=str(path.parent),
            expected=f"{SIGNATURE}, a signature by {trusted}",
            found="no such file",
            fix=_sign_again(path.parent),
        ) from error
    except OSError as error:
        raise SignatureError("cannot be read", where=str(path), found=error.strerror) from error


def _key_of(written: bytes, path: Path) -> str:
    """Returns the fingerprint that a signature states; it is only used to select one of the trusted keys."""
    try:
        return _Envelope.model_validate_json(written).material.public_key.hint
    except ValidationError as error:
        raise SignatureError(
            "is no signature",
            where=str(path),
            expected="what abstain sign or model_signing sign key writes",
            found=clip_repr(written[:_MAX_FOUND]),
            fix=_sign_again(path.parent),
        ) from error


def _listed(folder: Path, covered: Mapping[str, str]) -> Any:
    """Returns the library's hashing settings; they give it the known hashes, so that it does not read every file again."""
    from model_signing import hashing, manifest  # noqa: PLC0415
    from model_signing._hashing.hashing import Digest  # noqa: PLC0415

    # The same list that `model_signing sign key` makes, so that its `verify key` accepts the signature.
    kind = manifest.SerializationType.from_args(
        {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": [SIGNATURE]}
    )
    items = [kind.new_item(path, Digest("sha256", bytes.fromhex(digest))) for path, digest in covered.items()]
    known = manifest.Manifest(f"{folder.parent.name}:{folder.name}", items, kind)

    class Listed(hashing.Config):
        def hash(self, *_: Any, **__: Any) -> manifest.Manifest:
            return known

    return Listed()


def _reason(error: Exception) -> str:
    """Describes an error of the library in one line."""
    name = type(error).__name__
    if name == "InvalidSignature":
        return "a signature of other bytes"
    message = " ".join(str(error).split())
    if message.startswith("Signature mismatch"):
        # The library's message continues with the raw bytes of every digest that differs.
        return "a signature of other files or hashes"
    return clip_repr(message, _MAX_REASON) if message else name


def _sign_again(folder: Path) -> str:
    return (
        f"if you trust its author, sign it (abstain sign {folder.parent.name}:{folder.name} --key PRIVATE.pem), and restart "
        "the servers that refused it"
    )
