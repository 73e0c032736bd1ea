"""The addresses of stores: what is accepted, and that nothing with a key in it is shown."""

from pathlib import Path

import pytest

from abstain.models.bundles.remote.objects import open_objects
from abstain.models.bundles.remote.url import RemoteURL, local_store, parse_store
from abstain.models.errors import ConfigError

CREDENTIALS = ("AWS_ACCESS_KEY_ID", "GOOGLE_APPLICATION_CREDENTIALS", "AZURE_STORAGE_ACCOUNT_KEY")


@pytest.mark.parametrize(
    ("text", "store"),
    [
        ("artifacts", Path("artifacts")),
        ("/srv/models", Path("/srv/models")),
        ("file:///srv/our%20models", Path("/srv/our models")),
        ("s3://bucket", RemoteURL("s3", "bucket")),
        ("S3://bucket/a/b=1/", RemoteURL("s3", "bucket", "a/b=1")),
        ("gs://our_bucket.example/x", RemoteURL("gs", "our_bucket.example", "x")),
        ("abfss://box@account.dfs.core.windows.net/x", RemoteURL("abfss", "box", "x", "account")),
    ],
)
def test_addresses(text, store):
    """Paths and URLs; a URL is printed as it is parsed."""
    assert parse_store(text) == store
    assert parse_store(str(store)) == store


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("s3://", "expected s3://BUCKET/PREFIX"),
        ("s3://UPPER/x", "expected s3://BUCKET/PREFIX"),
        ("s3://bucket/../other", "expected s3://BUCKET/PREFIX"),
        ("s3://bucket/a//b", "expected s3://BUCKET/PREFIX"),
        ("s3://bucket/a\nb", "expected s3://BUCKET/PREFIX"),
        ("s3://id:SECRET@bucket/x", "more than a bucket and a prefix"),
        ("s3://bucket/x?key=SECRET", "more than a bucket and a prefix"),
        ("abfss://box@evil.example.org/x", "dfs.core.windows.net"),
        ("file://host/models", "expected file:///PATH"),
        ("hf://org/repo@rev", "found hf://, which is not supported"),
        ("s3:/bucket/x", "write s3:// with two slashes"),
        ("gs:bucket/x", "write gs:// with two slashes"),
        ("ftp://host/x", "found ftp://"),
        (f"s3://bucket/{'x/' * 600}", "at most 1024 characters"),
    ],
)
def test_wrong_addresses(text, said):
    """The error says what is expected, and shows no key."""
    with pytest.raises(ConfigError) as caught:
        parse_store(text)
    assert said in str(caught.value)
    assert "SECRET" not in str(caught.value)


def test_a_command_for_folders_names_push_and_pull():
    """A command that needs a folder says how to get one."""
    with pytest.raises(ConfigError, match="abstain push MODEL s3://bucket/x"):
        local_store("s3://bucket/x")


@pytest.mark.parametrize("url", ["s3://bucket", "gs://bucket", "abfss://box@account.dfs.core.windows.net"])
def test_without_credentials(url, monkeypatch):
    """No request is sent, to no metadata service either."""
    for name in CREDENTIALS:
        monkeypatch.delenv(name, raising=False)
    store = parse_store(url)
    assert isinstance(store, RemoteURL)
    with pytest.raises(ConfigError, match=r"no credentials: expected one of .* in the environment, found none"):
        open_objects(store)


def test_half_of_the_credentials(monkeypatch):
    """A key without its secret is refused before any request."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"the environment's settings are wrong: found .*Missing SecretAccessKey"):
        open_objects(RemoteURL("s3", "bucket"))


def test_without_the_library(monkeypatch):
    """The error names what to install."""
    monkeypatch.setitem(__import__("sys").modules, "obstore", None)
    with pytest.raises(ConfigError, match=r"pip install 'abstain\[remote\]'"):
        open_objects(RemoteURL("s3", "bucket"))
