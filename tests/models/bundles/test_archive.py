"""Archives: a version travels whole from store to store, and a hostile or broken archive leaves nothing behind."""

import gzip
import io
import os
import shutil
import tarfile
from pathlib import Path

import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from abstain.models.bundles import archive as archives
from abstain.models.bundles.archive import export_version, unpack_version
from abstain.models.bundles.bundle import read_published, sign_published, verify_published
from abstain.models.bundles.manifest import verify_files
from abstain.models.bundles.signatures import read_public_keys
from abstain.models.bundles.store import model_names, publish, versions
from abstain.models.errors import AbstainError, BundleError, SignatureError, StoreError
from tests.helpers.golden_versions import GOLDEN, damage_version
from tests.helpers.hostile_bundles import sign

REPORT = "report.html"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A store with version 1 of `golden`."""
    store = tmp_path_factory.mktemp("original")
    shutil.copytree(GOLDEN, store / "golden" / "1")
    return store


@pytest.fixture(scope="module")
def packed(root, tmp_path_factory) -> Path:
    """Its archive."""
    path = tmp_path_factory.mktemp("packed") / "golden.tar"
    export_version(root, "golden", 1, path)
    return path


def files_in(folder):
    """Every file of a folder and its content."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def entries_of(path):
    """The headers of an archive and the contents."""
    with tarfile.open(path) as archive:
        return [(info, archive.extractfile(info).read()) for info in archive]


def write_entries(path, entries, **options):
    """Writes an archive of headers and contents."""
    with tarfile.open(path, "w", format=options.pop("format", tarfile.USTAR_FORMAT), **options) as archive:
        for info, content in entries:
            archive.addfile(info, io.BytesIO(content))
    return path


def entry(name, content=b"", kind=tarfile.REGTYPE, **fields):
    """A header and its content."""
    info = tarfile.TarInfo(name)
    info.size, info.type = len(content), kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def test_a_version_travels_to_another_store(run, root, packed, tmp_path):
    """With its name, number and digest; a second time changes nothing. No time, user or draft stays in either."""
    again = tmp_path / "again.tar"
    status, out, _ = run("export", "golden", again, "--store", root, "--json")
    digest = read_published(root, "golden", 1).digest
    printed = {"name": "golden", "version": 1, "digest": digest, "file": str(again), "bytes": again.stat().st_size}
    assert (status, orjson.loads(out)) == (0, printed)
    assert again.read_bytes() == packed.read_bytes()
    infos = [info for info, _ in entries_of(packed)]
    assert {(info.mode, info.uid, info.gid, info.mtime, info.uname) for info in infos} == {(0o644, 0, 0, 0, "")}
    names = [info.name for info in infos]
    assert names == ["manifest.json", *sorted(names[1:])]
    store = tmp_path / "store"
    assert run("unpack", again, "--store", store)[:2] == (0, f"golden:1 is in {store} ({digest})\n")
    assert files_in(store / "golden" / "1") == files_in(GOLDEN)
    verify_files(store / "golden" / "1", read_published(store, "golden", 1))
    status, out, _ = run("unpack", again, "--store", store, "--json")
    assert (status, orjson.loads(out)["new"]) == (0, False)
    assert sorted(path.name for path in (store / "golden").iterdir()) == [".lock", "1"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.tar", "store"]


def test_the_number_is_kept_and_later_versions_follow_it(packed, tmp_path):
    """A hole is filled if its number is free."""
    store = tmp_path / "store"
    for _ in range(2):
        publish(store, "golden", lambda _folder: None, lambda _folder, _version: None)
    shutil.rmtree(store / "golden" / "1")
    assert unpack_version(store, packed).new
    publish(store, "golden", lambda _folder: None, lambda _folder, _version: None)
    assert versions(store, "golden") == [1, 2, 3]


def test_another_version_under_the_number_is_refused(root, packed, tmp_path):
    """Also one that is damaged there, which looks the same by its digest; the store is unchanged."""
    store = tmp_path / "store"
    shutil.copytree(root, store)
    damage_version(store, 1)
    before = files_in(store / "golden" / "1")
    with pytest.raises(StoreError, match=r"the store has another golden:1: .*found a damaged one .*or move .* away"):
        unpack_version(store, packed)
    sign(store / "golden" / "1", created="2020-01-01T00:00:00Z")
    with pytest.raises(StoreError, match=r"expected sha256:\w+, found sha256:"):
        unpack_version(store, packed)
    assert files_in(store / "golden" / "1").keys() == before.keys()


def test_an_archive_is_written_whole_or_not_at_all(run, root, packed, tmp_path):
    """Not of a damaged version, not over another file without --force, and not under a name that says something else."""
    store, target = tmp_path / "store", tmp_path / "out.tar"
    shutil.copytree(root, store)
    damage_version(store, 1)
    assert "is damaged or was altered: expected sha256" in run("export", "golden:1", target, "--store", store)[2]
    assert not target.exists()
    target.write_text("mine")
    assert "the archive exists; name another file" in run("export", "golden:1", target, "--store", root)[2]
    assert target.read_text() == "mine"
    assert run("export", "golden:1", target, "--store", root, "--force")[0] == 0
    assert target.read_bytes() == packed.read_bytes()
    for name, words in (("out.tar.gz", "expected the ending .tar"), ("nosuch/out.tar", "nosuch: no such folder")):
        assert words in run("export", "golden:1", tmp_path / name, "--store", root)[2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.tar", "store"]


def test_signatures_travel_and_are_checked(root, packed, tmp_path, monkeypatch, run):
    """Where keys are trusted, an unsigned archive is refused, and one of another key."""
    store = tmp_path / "store"
    shutil.copytree(root, store)
    keys = {}
    for name in ("release", "other"):
        key = ec.generate_private_key(ec.SECP256R1())
        private, public = tmp_path / f"{name}.key", tmp_path / f"{name}.pem"
        private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        public.chmod(0o644)
        keys[name] = read_public_keys(public)
    sign_published(store, "golden", 1, tmp_path / "release.key")
    signed = tmp_path / "signed.tar"
    export_version(store, "golden", 1, signed)
    with pytest.raises(
        SignatureError, match=r"signed.tar: model.sig: is not by a trusted key.* sign the version in its own"
    ):
        unpack_version(tmp_path / "new", signed, keys["other"])
    monkeypatch.setenv("ABSTAIN_TRUSTED_KEYS", str(tmp_path / "release.pem"))
    assert "golden.tar: is not signed" in run("unpack", packed, "--store", tmp_path / "new")[2]
    assert not (tmp_path / "new").exists()
    assert run("unpack", signed, "--store", tmp_path / "new")[0] == 0
    verify_published(tmp_path / "new", "golden", 1, keys["release"])


def altered(entries, name, change):
    """Entries of which one content is changed, with its size."""
    return [(info, content) if info.name != name else entry(name, change(content)) for info, content in entries]


def without(entries, name):
    """Entries without one of them."""
    return [(info, content) for info, content in entries if info.name != name]


def renamed(entries, name):
    """Entries whose last has another name."""
    return [*entries[:-1], entry(name, entries[-1][1])]


HOSTILE = {
    "a flipped byte": (
        lambda all_: altered(all_, REPORT, lambda content: bytes([content[0] ^ 1]) + content[1:]),
        "report.html: is damaged or was altered",
    ),
    "altered manifest": (
        lambda all_: altered(all_, "manifest.json", lambda content: content.replace(b'"seed": 0', b'"seed": 1')),
        r"x.tar: manifest.json: digest: expected",
    ),
    "no manifest": (lambda all_: without(all_, "manifest.json"), r"x.tar: manifest.json is missing"),
    "no report": (lambda all_: without(all_, REPORT), "report.html: is missing"),
    "one more": (lambda all_: [*all_, entry("more", b"x")], "'more': is not listed in the manifest"),
    "twice": (lambda all_: [*all_, all_[3]], "an entry occurs twice"),
    "outside": (lambda all_: renamed(all_, "../report.html"), r"'\.\./report.html': is not listed"),
    "absolute": (lambda all_: renamed(all_, "/etc/passwd"), "'/etc/passwd': is not listed"),
    "line break": (lambda all_: renamed(all_, "a\nb"), r"'a\\nb': is not listed"),
    "folder": (lambda all_: [entry("draws", b"", tarfile.DIRTYPE), *all_], "no regular file: .* found a folder"),
    "link": (lambda all_: [*all_, entry("x", b"", tarfile.SYMTYPE, linkname="/etc")], "found a symbolic link"),
    "hard link": (lambda all_: [*all_, entry("x", b"", tarfile.LNKTYPE, linkname=REPORT)], "found a hard link"),
    "pipe": (lambda all_: [*all_, entry("x", b"", tarfile.FIFOTYPE)], "found a named pipe"),
    "device": (lambda all_: [*all_, entry("x", b"", tarfile.CHRTYPE)], "found a device"),
    "unknown type": (lambda all_: [*all_, entry("x", b"", b"9")], "found another type"),
    "many": (lambda all_: [*all_, *(entry(f"{n}") for n in range(40))], "too many entries: expected at most 32"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_is_refused_and_leaves_nothing(packed, tmp_path, monkeypatch, name):
    """Whatever is in it besides the files of its manifest, and whatever is missing or altered."""
    monkeypatch.setattr(archives, "MOST_FILES", 30)
    change, message = HOSTILE[name]
    hostile = write_entries(tmp_path / "x.tar", change(entries_of(packed)))
    with pytest.raises(BundleError, match=message):
        unpack_version(tmp_path / "store", hostile)
    assert model_names(tmp_path / "store") == []
    assert [path.name for path in (tmp_path / "store").rglob("*") if path.name != ".lock"] in ([], ["golden"])


def test_extensions_of_the_format_are_refused(packed, tmp_path):
    """Long names and pax records have sizes of their own, which nothing limits."""
    (first, content), *rest = entries_of(packed)
    first.pax_headers = {"comment": "x" * 200}
    for form, words in ((tarfile.PAX_FORMAT, "a record of pax"), (tarfile.GNU_FORMAT, "a long name of GNU tar")):
        entries = [(first, content), *rest, entry("x" * 120)]
        hostile = write_entries(tmp_path / "x.tar", entries, format=form)
        with pytest.raises(BundleError, match=f"found {words}"):
            unpack_version(tmp_path / "store", hostile)


def header(size, **fields):
    """A header of the manifest that states a size."""
    info, _ = entry("manifest.json", b"", **fields)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda whole: whole[: len(whole) // 2], "is incomplete"),
        (lambda whole: whole[:1_000], "is incomplete: expected the whole file, found 488 of"),
        (lambda whole: whole.rstrip(b"\0"), "is incomplete|end: expected two or more"),
        (lambda whole: whole + whole, "end: expected two or more blocks of zeros, found more, or other bytes"),
        (lambda whole: gzip.compress(whole, 1), "is compressed: expected a plain tar, found gzip"),
        (lambda _: b"", "is no tar: expected what abstain export writes, found empty header"),
        (lambda _: b"text " * 1_000, "is no tar"),
        (lambda _: bytes(10_240), "manifest.json is missing"),
        (lambda _: bytes(512), "end: expected two or more blocks of zeros, found less"),
        (lambda _: header(2**62), "is incomplete: .* found 0 of 4,611,686,018,427,387,904 bytes"),
        (lambda _: header(-512), "is incomplete"),
    ],
)
def test_what_is_no_whole_tar_is_refused(packed, tmp_path, make, message):
    """By a reason that names the archive; sizes are only claims."""
    path = tmp_path / "x.tar"
    path.write_bytes(make(packed.read_bytes()))
    with pytest.raises(BundleError, match=message) as refused:
        unpack_version(tmp_path / "store", path)
    assert str(refused.value).startswith(str(path))


def test_a_sparse_archive_is_refused_before_anything_is_written(packed, tmp_path):
    """A file of 65 GiB of zeros takes no room, but what it would become does; a manifest of 17 MiB is not read either."""
    for name, size, words in (
        (REPORT, 65 * 2**30, "expected at most 68,719,476,736 bytes"),
        ("manifest.json", 17 * 2**20, "manifest.json: is too large: expected at most 16,777,216 bytes"),
    ):
        path = tmp_path / "x.tar"
        with path.open("wb") as file:
            for info, content in without(entries_of(packed), name):
                file.write(info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % 512))
            info = tarfile.TarInfo(name)
            info.size = size
            file.write(info.tobuf(tarfile.GNU_FORMAT))
            file.truncate(file.tell() + size + 1_024)
        with pytest.raises(BundleError, match=words):
            unpack_version(tmp_path / "store", path)
        assert not (tmp_path / "store").exists()


def test_paths_and_numbers_of_a_hostile_manifest_are_refused(tmp_path):
    """Which its author can hash correctly."""
    for changes, words in (
        ({"files": {"../x": "0" * 64}}, "expected paths inside the bundle, found ../x"),
        ({"files": {"a": "0" * 64, "a/b": "0" * 64}}, "x.tar: a: is a file and a folder"),
        ({"name": "../x"}, "x.tar: manifest.json: name"),
        ({"version": 10**9 - 1}, "version: expected from 1 to 100,000,000"),
    ):
        folder = tmp_path / "bundle"
        shutil.copytree(GOLDEN, folder)
        sign(folder, **changes)
        names = changes.get("files", {REPORT: ""})
        entries = [entry("manifest.json", (folder / "manifest.json").read_bytes()), *(entry(name) for name in names)]
        with pytest.raises(AbstainError, match=words):
            unpack_version(tmp_path / "store", write_entries(tmp_path / "x.tar", entries))
        shutil.rmtree(folder)
    assert not (tmp_path / "store").exists()


def test_what_is_no_file_is_refused(run, tmp_path):
    """Without waiting for the writer of a pipe."""
    os.mkfifo(tmp_path / "x.tar")
    assert "found a named pipe" in run("unpack", tmp_path / "x.tar", "--store", tmp_path / "store")[2]
    assert "No such file or directory" in run("unpack", tmp_path / "y.tar", "--store", tmp_path / "store")[2]
