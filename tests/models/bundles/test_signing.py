"""A version that a trusted key has signed is served; any other is refused by name, where keys are trusted.

The versions are copies of the golden bundle, keys and signatures are real, and so is the server.
"""

import base64
import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import model_signing
import numpy as np
import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from abstain.models.bundles import signatures
from abstain.models.bundles.bundle import load, load_published, read_published, sign_published, verify_published
from abstain.models.bundles.manifest import MANIFEST, read_manifest, write_manifest
from abstain.models.bundles.signatures import SIGNATURE, SIGNATURE_BYTES, make_signature, read_public_keys, read_trusted
from abstain.models.bundles.store import set_label, versions
from abstain.models.errors import BundleError, ConfigError, SignatureError, StoreError
from abstain.service.live_versions import LiveVersions
from abstain.service.settings import read_settings
from abstain.training.calibration.pipeline import Calibrated
from abstain.training.publish import publish_version
from tests.helpers.paths import PROJECT
from tests.helpers.processes import PATIENCE
from tests.helpers.servers import start_server, stop_server

GOLDEN = PROJECT / "tests" / "data" / "golden" / "2"
SECONDS = int(PATIENCE)


def publish(store, name, version=1, **changes):
    """A copy of the golden bundle under a name and a number of its own, unsigned."""
    folder = store / name / str(version)
    shutil.copytree(GOLDEN, folder)
    write_manifest(folder, read_manifest(folder).model_copy(update={"name": name, "version": version, **changes}))
    return folder


def write_pair(folder, name, key=None, password=None):
    """A private and a public key as OpenSSL writes them; their paths."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    hidden = BestAvailableEncryption(password) if password else NoEncryption()
    private, public = folder / f"{name}.key", folder / f"{name}.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, hidden))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    public.chmod(0o644)
    return private, public


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """A folder with two pairs: `release`, which is trusted, and `other`."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("release", "other"):
        write_pair(folder, name)
    return folder


@pytest.fixture(scope="module")
def trusted(keys):
    """The public key of `release`."""
    return read_public_keys(keys / "release.pem")


@pytest.fixture(scope="module")
def original(tmp_path_factory, keys):
    """A store with `toy:1` and `toy:2`, both signed by `release`; no test may change it."""
    store = tmp_path_factory.mktemp("signed") / "store"
    for version in (1, 2):
        publish(store, "toy", version)
        sign_published(store, "toy", version, keys / "release.key")
    return store


@pytest.fixture
def store(original, tmp_path):
    """A copy of it to be harmed."""
    return Path(shutil.copytree(original, tmp_path / "store"))


@pytest.fixture
def bounded():
    """Ends what waits for a pipe or computes without end."""

    def give_up(*_):
        raise TimeoutError(f"not done within {SECONDS} seconds")

    earlier = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, earlier)


@pytest.fixture
def offline(monkeypatch):
    """No connection can be made, and no name looked up."""

    def refuse(*_, **__):
        raise AssertionError("a connection was made")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)


# ---- sound versions --------------------------------------------------------------------------------------------------


def test_a_version_is_signed_and_verified_by_the_command(run, tmp_path, keys, trusted, offline):
    """Without a network; the signature lies in the version's folder, and the version is loaded as before."""
    folder = publish(tmp_path, "toy")
    before = read_manifest(folder)
    (tmp_path / "toy" / ".signature-of-a-killed-writer").touch()
    code, out, stderr = run("sign", "toy", "--key", keys / "release.key", "--store", tmp_path, "--json")
    assert code == 0, stderr
    assert orjson.loads(out)["signature"] == str(folder / SIGNATURE)
    code, out, stderr = run("verify", "toy:1", "--key", keys / "release.pem", "--store", tmp_path, "--json")
    assert code == 0, stderr
    result = orjson.loads(out)
    assert (result["key"], result["files"]) == (str(keys / "release.pem"), len(before.files) + 1)
    assert load_published(tmp_path, "toy", 1, trusted).manifest == load(folder).manifest == before
    assert not list((tmp_path / "toy").glob(".signature-*"))


def test_the_library_s_own_command_takes_the_signature(store, keys):
    """And it finds an altered file, of those that the manifest lists."""
    folder = store / "toy" / "1"

    def verified():
        command = [sys.executable, "-m", "model_signing", "verify", "key", folder, "--signature", folder / SIGNATURE]
        command += ["--public_key", keys / "release.pem"]
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)

    assert verified().returncode == 0
    (folder / "report.html").write_text("other")
    harmed = verified()
    assert harmed.returncode == 1
    assert "report.html" in harmed.stderr


def test_a_signature_by_the_library_s_own_command_is_taken(store, keys, trusted):
    """Whatever it leaves out by default."""
    folder = store / "toy" / "1"
    (folder / SIGNATURE).unlink()
    signed_by_library(folder, keys / "release.key")
    assert verify_published(store, "toy", 1, trusted)[1] == keys / "release.pem"


def test_a_folder_of_keys_is_many_trusted_keys(store, keys):
    """A version by any of them is trusted, and the key is named."""
    both = read_public_keys(keys)
    sign_published(store, "toy", 2, keys / "other.key")
    signers = [verify_published(store, "toy", version, both)[1].name for version in (1, 2)]
    assert signers == ["release.pem", "other.pem"]


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP521R1()], ids=["P-384", "P-521"])
def test_larger_curves_sign_too(store, tmp_path, curve):
    """All that the library signs with."""
    private, public = write_pair(tmp_path, "large", ec.generate_private_key(curve))
    sign_published(store, "toy", 1, private)
    assert verify_published(store, "toy", 1, read_public_keys(public))[1] == public


def test_a_key_with_a_password(run, store, tmp_path):
    """From a file; a wrong one is reported in one line."""
    private, public = write_pair(tmp_path, "hidden", password=b"open sesame")
    for name, content in (("right", "open sesame\n"), ("wrong", "open barley\n"), ("empty", "\n")):
        (tmp_path / name).write_text(content)
    command = ("sign", "toy:1", "--store", store, "--key", private)
    code, _, stderr = run(*command, "--password-file", tmp_path / "wrong")
    assert (code, stderr.startswith(f"abstain: {private}: key: expected a private key")) == (1, True), stderr
    code, _, stderr = run(*command, "--password-file", tmp_path / "empty")
    assert (code, f"{tmp_path / 'empty'}: password: expected a password" in stderr) == (1, True), stderr
    assert run(*command, "--password-file", tmp_path / "right")[0] == 0
    assert verify_published(store, "toy", 1, read_public_keys(public))[1] == public


def test_a_password_is_requested(run, store, tmp_path, monkeypatch):
    """Where the key needs one and no file is given."""
    private, _ = write_pair(tmp_path, "hidden", password=b"open sesame")
    monkeypatch.setattr("typer.prompt", lambda *_, **__: "open sesame")
    assert run("sign", "toy:1", "--store", store, "--key", private)[0] == 0


def test_a_new_version_does_not_carry_the_signature(original, tmp_path):
    """Of what `calibrate` publishes nothing is signed, nor of a folder that gets a new manifest."""
    old = load(original / "toy" / "1")
    # What is published does not need the predictor.
    calibrated = Calibrated(None, old.calibration, old.feature_scores, old.manifest.calibration.recalibration)
    number = publish_version(tmp_path, old.manifest, old.posterior, calibrated).number
    assert not (tmp_path / "toy" / str(number) / SIGNATURE).exists()
    folder = Path(shutil.copytree(original / "toy" / "1", tmp_path / "copy"))
    write_manifest(folder, old.manifest)
    assert not (folder / SIGNATURE).exists()
    assert SIGNATURE not in read_manifest(folder).files


def test_a_full_disk_leaves_the_old_signature_and_no_draft(store, keys, monkeypatch):
    """The signature exists whole, old or new."""
    path = store / "toy" / "1" / SIGNATURE
    before = path.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StoreError, match=r"model\.sig: cannot be written: .*No space left on device"):
        sign_published(store, "toy", 1, keys / "other.key")
    assert path.read_bytes() == before
    assert sorted(entry.name for entry in path.parents[1].iterdir()) == [".lock", "1", "2"]
    assert versions(store, "toy") == [1, 2]


def test_a_damaged_version_is_not_signed(store, keys):
    """A signature says that the files are what was published."""
    path = store / "toy" / "1" / "report.html"
    path.write_text("other")
    with pytest.raises(BundleError, match=r"report\.html: is damaged or was altered"):
        sign_published(store, "toy", 1, keys / "release.key")


# ---- versions that are refused ---------------------------------------------------------------------------------------


def signed_by_library(folder, private, **settings):
    """`model.sig` as the library writes it."""
    hashes = model_signing.hashing.Config().use_file_serialization(**settings).set_ignored_paths(paths=[SIGNATURE])
    config = model_signing.signing.Config().use_elliptic_key_signer(private_key=private).set_hashing_config(hashes)
    config.sign(folder, folder / SIGNATURE)


def altered(**parts):
    """Writes over parts of the signature's JSON: dots for levels, numbers for places."""

    def alter(folder, keys):
        content = orjson.loads((folder / SIGNATURE).read_bytes())
        for where, value in parts.items():
            *levels, last = [int(part) if part.isdecimal() else part for part in where.split("__")]
            inner = content
            for level in levels:
                inner = inner[level]
            inner[last] = value
        (folder / SIGNATURE).write_bytes(orjson.dumps(content))

    return alter


def contents(content):
    """Another file in the signature's place."""
    return lambda folder, keys: (folder / SIGNATURE).write_bytes(content)


def in_its_place(make):
    """Another kind of entry in the signature's place."""

    def harm(folder, keys):
        (folder / SIGNATURE).unlink()
        make(folder / SIGNATURE)

    return harm


def huge(path):
    """1 GB that takes no room."""
    with path.open("wb") as file:
        file.truncate(10**9)


def flip(name, place):
    """Another byte in the middle of a file."""

    def harm(folder, keys):
        path = next(folder.glob(name))
        content = bytearray(path.read_bytes())
        content[int(place * len(content))] ^= 1
        path.write_bytes(content)

    return harm


def by_another_key(folder, keys):
    """Signed anew."""
    sign_published(folder.parents[1], folder.parent.name, int(folder.name), keys / "other.key")


def by_another_key_in_disguise(folder, keys):
    """It says that it is by the trusted key."""
    hint = orjson.loads((folder / SIGNATURE).read_bytes())["verificationMaterial"]["publicKey"]["hint"]
    by_another_key(folder, keys)
    altered(verificationMaterial__publicKey__hint=hint)(folder, keys)


def rewritten(folder, keys):
    """Another manifest, in which everything is right but the signature of before."""
    before = (folder / SIGNATURE).read_bytes()
    write_manifest(folder, read_manifest(folder).model_copy(update={"seed": 12345}))
    (folder / SIGNATURE).write_bytes(before)


def rewritten_and_listed(folder, keys):
    """The same with the signed list altered to fit."""
    before = orjson.loads((folder / SIGNATURE).read_bytes())
    rewritten(folder, keys)
    covered = dict(read_manifest(folder).files)
    payload = make_signature(folder, covered, keys / "other.key")
    before["dsseEnvelope"]["payload"] = orjson.loads(payload)["dsseEnvelope"]["payload"]
    (folder / SIGNATURE).write_bytes(orjson.dumps(before))


def of_fewer_files(folder, keys):
    """By the trusted key, but without the draws."""
    covered = {name: digest for name, digest in read_manifest(folder).files.items() if not name.startswith("draws")}
    (folder / SIGNATURE).write_bytes(make_signature(folder, covered, keys / "release.key"))


def of_a_link_beside(folder, keys):
    """The right signature, but elsewhere."""
    outside = shutil.move(folder / SIGNATURE, folder.parents[1] / "elsewhere")
    (folder / SIGNATURE).symlink_to(outside)


NO_SIGNATURE = f"{SIGNATURE}: is no signature: expected what abstain sign or model_signing sign key writes"
UNFIT = f"{SIGNATURE}: does not fit the version: expected a signature by "
UNTRUSTED = {
    "unsigned": (lambda folder, keys: (folder / SIGNATURE).unlink(), "is not signed: expected model.sig"),
    "by another key": (by_another_key, "is not by a trusted key: expected a signature by "),
    "by another key in disguise": (by_another_key_in_disguise, "found a signature of other bytes"),
    "a manifest rewritten": (rewritten, UNFIT),
    "a manifest rewritten and listed": (rewritten_and_listed, "found a signature of other bytes"),
    "of another version": (
        lambda folder, keys: shutil.copy(folder.with_name("2") / SIGNATURE, folder / SIGNATURE),
        "found a signature of other files or hashes",
    ),
    "of fewer files": (of_fewer_files, "found a signature of other files or hashes"),
    "with other hashes": (
        lambda folder, keys: signed_by_library(folder, keys / "release.key", hashing_algorithm="blake3"),
        UNFIT,
    ),
    "a flipped byte": (flip(SIGNATURE, 0.5), ""),
    "another payload": (altered(dsseEnvelope__payload=base64.b64encode(b"{}").decode()), UNFIT),
    "another payload's type": (altered(dsseEnvelope__payloadType="text/plain"), UNFIT),
    "another media type": (altered(mediaType="application/json"), UNFIT),
    "no envelope": (altered(dsseEnvelope=None), UNFIT),
    "no signature in it": (altered(dsseEnvelope__signatures=[]), UNFIT),
    "an empty signature": (altered(dsseEnvelope__signatures__0__sig=""), UNFIT),
    "a certificate": (altered(verificationMaterial={"certificate": {"rawBytes": "AAAA"}}), NO_SIGNATURE),
    "a key without a name": (altered(verificationMaterial__publicKey={"hint": None}), NO_SIGNATURE),
    "a key's name without end": (altered(verificationMaterial__publicKey={"hint": "a" * 10**6}), NO_SIGNATURE),
    "empty": (contents(b""), NO_SIGNATURE),
    "no JSON": (contents(b"\xff\xfe\x00garbage"), NO_SIGNATURE),
    "nested deeply": (contents(b"[" * (SIGNATURE_BYTES - 1)), NO_SIGNATURE),
    "objects nested deeply": (contents(b'{"verificationMaterial":' * 10**5), NO_SIGNATURE),
    "a number without end": (contents(b'{"verificationMaterial":' + b"9" * 10**6 + b"}"), NO_SIGNATURE),
    "huge": (in_its_place(huge), f"{SIGNATURE}: is too large: expected at most 4,194,304 bytes"),
    "a named pipe": (in_its_place(os.mkfifo), f"{SIGNATURE}: is no regular file"),
    "a folder": (in_its_place(Path.mkdir), f"{SIGNATURE}: is no regular file"),
    "a link": (of_a_link_beside, f"{SIGNATURE}: is no regular file"),
    "a link to a device": (
        in_its_place(lambda path: path.symlink_to("/dev/zero")),
        f"{SIGNATURE}: is no regular file",
    ),
}


@pytest.mark.parametrize("name", UNTRUSTED)
def test_what_no_trusted_key_has_signed_is_refused_by_name(store, keys, trusted, bounded, offline, capsys, name):
    """By its manifest alone, and when it is loaded, in one line and without a word on stdout."""
    harm, message = UNTRUSTED[name]
    folder = store / "toy" / "1"
    harm(folder, keys)
    for read in (read_published, load_published):
        with pytest.raises(SignatureError) as error:
            read(store, "toy", 1, trusted)
        assert message in str(error.value)
        assert str(folder) in str(error.value)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 1000
    assert load_published(store, "toy", 2, trusted).manifest.version == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (flip(MANIFEST, 0.5), rf"toy/1/{MANIFEST}: "),
        (flip("draws/**/d/*", 0.5), "is damaged or was altered"),
        (lambda folder, keys: (folder / "more").touch(), "toy/1/more: is not listed in the manifest"),
    ],
    ids=["manifest", "draws", "one file more"],
)
def test_a_signed_version_that_was_altered_is_refused_as_before(store, keys, trusted, bounded, harm, message):
    """The file at fault is named."""
    harm(store / "toy" / "1", keys)
    with pytest.raises(BundleError, match=message):
        load_published(store, "toy", 1, trusted)
    with pytest.raises(BundleError, match=message):
        verify_published(store, "toy", 1, trusted)


@pytest.mark.parametrize("name", ["huge", "a named pipe", "a folder", "a link"])
def test_what_is_no_signature_file_is_refused_also_where_no_key_is_trusted(store, keys, bounded, name):
    """As any other file of a version."""
    UNTRUSTED[name][0](store / "toy" / "1", keys)
    with pytest.raises(BundleError, match=SIGNATURE):
        load_published(store, "toy", 1)


def test_a_manifest_that_lists_the_signature_is_refused(store):
    """No signature can be of itself."""
    folder = store / "toy" / "1"
    content = orjson.loads((folder / MANIFEST).read_bytes())
    from abstain.models.bundles.listing import digest_of, dumped

    content["files"][SIGNATURE] = "0" * 64
    content["digest"] = digest_of(content)
    (folder / MANIFEST).write_bytes(dumped(content))
    with pytest.raises(BundleError, match=r"files: expected paths inside the bundle, found model\.sig"):
        load(folder)


def test_the_manifest_that_was_verified_is_the_one_that_is_loaded(store, trusted, monkeypatch):
    """Another one, put there right after the signature was checked, is not looked at."""
    folder, check = store / "toy" / "1", signatures.check_signature
    expected = read_manifest(folder)

    def check_and_swap(*arguments):
        found = check(*arguments)
        rewritten(folder, None)
        return found

    monkeypatch.setattr("abstain.models.bundles.manifest.check_signature", check_and_swap)
    assert load_published(store, "toy", 1, trusted).manifest == expected
    assert read_manifest(folder).seed == 12345


# ---- settings --------------------------------------------------------------------------------------------------------


def unfit_keys(folder, keys):
    """Paths that are not trusted keys, and the error for each."""
    _, rsa_public = write_pair(folder, "rsa", rsa.generate_private_key(65537, 2048))
    _, edwards = write_pair(folder, "edwards", ed25519.Ed25519PrivateKey.generate())
    _, koblitz = write_pair(folder, "koblitz", ec.generate_private_key(ec.SECP256K1()))
    _, open_to_all = write_pair(folder, "open")
    open_to_all.chmod(0o666)
    (folder / "text.pem").write_text("no key")
    (folder / "empty").mkdir()
    os.mkfifo(folder / "pipe.pem")
    huge(folder / "huge.pem")
    yield folder / "missing.pem", "cannot be read: expected a public key as PEM, found No such file or directory"
    yield folder / "text.pem", "key: expected a public key of an elliptic curve"
    yield keys / "release.key", "found a private key; make it: openssl ec -in PRIVATE.pem -pubout"
    yield (
        rsa_public,
        "key: expected a public key of an elliptic curve (secp256r1, secp384r1, secp521r1), as PEM, found a",
    )
    yield edwards, "key: expected a public key of an elliptic curve"
    yield koblitz, "found secp256k1"
    yield open_to_all, "expected a file or folder that only its owner may write to, found mode -rw-rw-rw-"
    yield folder / "empty", "no keys: expected public keys in files named *.pem, found none"
    yield folder / "pipe.pem", "is no regular file"
    yield folder / "huge.pem", "is too large"


def test_what_is_no_trusted_key_is_refused_at_start_by_name(run, original, tmp_path, keys, bounded, monkeypatch):
    """By the server's command before anything starts, and by `verify`."""
    for path, message in unfit_keys(tmp_path, keys):
        with pytest.raises(ConfigError) as error:
            read_public_keys(keys / "release.pem", path)
        assert str(error.value).startswith(f"{path}: ")
        assert message in str(error.value), path
        monkeypatch.setenv("ABSTAIN_TRUSTED_KEYS", f"{keys / 'release.pem'},{path}")
        assert run("serve", "--store", original) == (1, "", " ".join(f"abstain: {error.value}".split()))
        assert run("verify", "toy:1", "--key", path, "--store", original)[0] == 1


def test_a_setting_that_names_no_key_is_refused():
    """It would mean that any version is believed."""
    with pytest.raises(
        ConfigError, match=r"ABSTAIN_TRUSTED_KEYS: expected .*at least one path of a public key, separated by commas"
    ):
        read_settings({"ABSTAIN_TRUSTED_KEYS": " , "})
    assert read_settings({}).trusted_keys == ()
    assert read_trusted(()) is None


def test_a_link_to_a_key_is_followed(keys, tmp_path):
    """As mounted secrets are links."""
    (tmp_path / "mounted.pem").symlink_to(keys / "release.pem")
    assert read_public_keys(tmp_path).verifiers.keys() == read_public_keys(keys / "release.pem").verifiers.keys()


@pytest.mark.parametrize("missing", ["model_signing", "OpenSSL"])
def test_a_missing_library_is_reported_in_one_line(original, keys, missing):
    """By the server's command before anything starts, by `sign` and by `verify`: how to install it."""
    code = f"""
import sys
sys.modules[{missing!r}] = None
from abstain.service.commands.cli import main
main()
"""
    commands = [
        ("serve", "--store", original),
        ("sign", "toy:1", "--key", keys / "release.key", "--store", original),
        ("verify", "toy:1", "--key", keys / "release.pem", "--store", original),
    ]
    for arguments in commands if missing == "model_signing" else commands[-1:]:
        result = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            env={**os.environ, "ABSTAIN_TRUSTED_KEYS": str(keys / "release.pem")},
            cwd=PROJECT,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        assert result.returncode == 1
        (line,) = result.stderr.splitlines()
        assert "expected model-signing and pyopenssl, found " in line
        assert line.endswith("; pip install 'abstain[signing]'")


def test_nothing_is_imported_where_no_key_is_trusted(original, monkeypatch):
    """A signed version is loaded without the library."""
    for name in [*sys.modules]:
        if name.split(".")[0] in {"model_signing", "cryptography", "sigstore", "OpenSSL"}:
            monkeypatch.setitem(sys.modules, name, None)
    assert load_published(original, "toy", 1, read_trusted(())).manifest.version == 1


# ---- serving ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, original, keys):
    """A store of one sound model and several that no trusted key has signed."""
    store = tmp_path_factory.mktemp("mixed") / "store"
    for name in ("sound", "unsigned", "foreign", "rewritten", "pipe"):
        folder = publish(store, name, shortfalls=())
        if name != "unsigned":
            sign_published(store, name, 1, keys / "release.key")
        harm = {"foreign": by_another_key, "rewritten": rewritten, "pipe": UNTRUSTED["a named pipe"][0]}.get(name)
        if harm:
            harm(folder, keys)
    publish(store, "sound", 2)
    set_label(store, "sound", 1, "stable")
    return store


@pytest.fixture(scope="module")
def strict(mixed, keys, tmp_path_factory):
    """A server of it that trusts one key, named by a path relative to where it is started."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(keys / "release.pem", folder)
    server = start_server(mixed, folder, ABSTAIN_TRUSTED_KEYS="release.pem")
    yield server
    stop_server(server)


def test_a_server_serves_the_signed_version_and_refuses_the_others_by_name(strict, keys):
    """It is ready; `/models` says why of each, and requests for one are 503 with the reason."""
    listed = {
        (model["name"], version["version"]): version
        for model in httpx.get(f"{strict.url}/models", timeout=PATIENCE).json()["models"]
        for version in model["versions"]
    }
    states = {f"{name}:{number}": version["state"] for (name, number), version in listed.items()}
    expected = {f"{name}:1": "refused" for name in ("unsigned", "foreign", "rewritten", "pipe")}
    assert states == {"sound:1": "ready", "sound:2": "idle", **expected}
    assert (listed["sound", 1]["why"], listed["sound", 1]["sound"]) == (None, True)
    for name, reason in (
        ("unsigned", "unsigned/1: is not signed: expected model.sig"),
        ("foreign", "foreign/1/model.sig: is not by a trusted key"),
        ("rewritten", "rewritten/1/model.sig: does not fit the version"),
        ("pipe", "pipe/1/model.sig: is no regular file"),
    ):
        assert listed[name, 1]["why"].startswith(reason)
        assert (listed[name, 1]["digest"], listed[name, 1]["sound"]) == (None, False)
        answer = httpx.post(f"{strict.url}/predict", json={"model": name, "inputs": [[0.0]]}, timeout=PATIENCE)
        assert answer.status_code == 503
        assert f"{name}:1 is refused: {reason}" in answer.json()["error"]
    answer = httpx.post(f"{strict.url}/predict", json={"model": "sound", "inputs": [[0.0]]}, timeout=PATIENCE)
    assert answer.status_code == 200
    assert np.isfinite(answer.json()["predictions"][0]["mean"])
    assert httpx.get(f"{strict.url}/readyz", timeout=PATIENCE).status_code == 200
    assert "unsigned/1: is not signed" in strict.log.read_text()


def test_what_an_unsigned_version_holds_is_not_shown(strict):
    """Neither its report, nor that of a version which is not served; that of the signed one is."""
    for name, version, status in (("sound", 1, 200), ("sound", 2, 503), ("unsigned", 1, 503)):
        answer = httpx.get(f"{strict.url}/console/models/{name}/versions/{version}/report.html", timeout=PATIENCE)
        assert answer.status_code == status
    assert "is not signed" in answer.json()["error"]


def test_refusals_are_counted(strict):
    """As those of versions with shortfalls, but the reason is not the fit."""
    text = httpx.get(f"{strict.url}/metrics", timeout=PATIENCE).text
    assert 'abstain_model_loads_total{model="unsigned",outcome="refused",version="1"} 1.0' in text
    assert 'abstain_model_sound{model="unsigned"' not in text


def test_a_server_that_trusts_no_key_serves_all_but_what_is_no_file(mixed, tmp_path):
    """No signatures are required."""
    for name in ("unsigned", "foreign"):
        shutil.copytree(mixed / name, tmp_path / name)
    UNTRUSTED["a named pipe"][0](Path(shutil.copytree(mixed / "foreign", tmp_path / "pipe")) / "1", None)
    serving = LiveVersions(tmp_path)
    serving.load_all(buckets=(1,))
    states = {model["name"]: model["versions"][0]["state"] for model in serving.list_models()["models"]}
    assert states == {"foreign": "ready", "pipe": "failed", "unsigned": "ready"}


def test_a_server_that_has_refused_everything_is_not_ready(mixed, trusted, tmp_path):
    """And says why."""
    shutil.copytree(mixed / "unsigned", tmp_path / "unsigned")
    serving = LiveVersions(tmp_path, trusted=trusted)
    serving.load_all(buckets=(1,))
    (why,) = serving.reasons_not_ready()
    assert why.startswith("unsigned:1: unsigned/1: is not signed: ")


def test_a_signed_version_with_shortfalls_is_refused_for_them(run, original, keys, trusted, monkeypatch):
    """Under `require_sound`, by the server and by its command: a signature says who made it, not how well."""
    serving = LiveVersions(original, trusted=trusted, require_sound=True)
    serving.load_all(buckets=(1,))
    (why,) = serving.reasons_not_ready()
    assert why.startswith("toy:2: failed publication checks: ")
    monkeypatch.setenv("ABSTAIN_TRUSTED_KEYS", str(keys / "release.pem"))
    code, _, stderr = run("serve", "--store", original, "--require-sound")
    assert (code, "found toy:2 is refused: it failed publication checks: " in stderr) == (1, True)


def test_the_commands_refuse_what_no_trusted_key_has_signed(run, mixed, keys, tmp_path, monkeypatch):
    """`serve` where nothing is left to serve, and `predict`."""
    monkeypatch.setenv("ABSTAIN_TRUSTED_KEYS", str(keys / "release.pem"))
    shutil.copytree(mixed / "unsigned", tmp_path / "store" / "unsigned")
    code, _, stderr = run("serve", "--store", tmp_path / "store")
    assert code == 1
    assert f"no version to serve: found {tmp_path}/store/unsigned/1: is not signed" in stderr
    np.savez(tmp_path / "rows.npz", x=np.zeros((3, 1)))
    command = ("--data", tmp_path / "rows.npz", "--out", tmp_path / "out.csv", "--store", mixed)
    code, _, stderr = run("predict", "unsigned", *command)
    assert (code, "unsigned/1: is not signed: expected model.sig" in stderr) == (1, True)
    assert not (tmp_path / "out.csv").exists()
    assert run("predict", "sound", *command)[0] == 0


def test_the_command_says_what_it_refuses_before_it_starts(run, mixed, keys, monkeypatch):
    """One bad version of a model does not hide the others; the server gets the keys by absolute paths."""
    started = []

    def execv(*_):
        started.append(os.environ["ABSTAIN_TRUSTED_KEYS"])
        raise SystemExit(0)

    monkeypatch.setattr("os.execv", execv)
    monkeypatch.setattr("abstain.service.commands.serve._check_port", lambda *_: None)
    monkeypatch.setattr("os.environ", {**os.environ, "ABSTAIN_TRUSTED_KEYS": "release.pem"})
    monkeypatch.chdir(keys)
    code, _, stderr = run("serve", "--store", mixed)
    assert (code, started) == (0, [str(keys / "release.pem")])
    assert "loading sound:1; address " in stderr
    for name in ("foreign", "pipe", "rewritten", "unsigned"):
        assert f"{mixed}/{name}/1" in stderr
