"""The settings from the environment, and the errors for an invalid environment."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from abstain.models.bundles.remote.url import RemoteURL
from abstain.models.errors import ConfigError
from abstain.models.files.room import DATA_BYTES
from abstain.models.networks.allowed import MODULES
from abstain.service.process import RUN_FOLDER
from abstain.service.settings import Settings, _variable, read_settings, unknown_variables
from tests.helpers.commands import abstain
from tests.helpers.paths import PROJECT
from tests.helpers.processes import PATIENCE

VARIABLES = [
    ("workers", "4", 4),
    ("max_body_bytes", "1000", 1000),
    ("max_rows", "7", 7),
    ("queue", "1", 1),
    ("timeout_seconds", "0.5", 0.5),
    ("grace_seconds", "2", 2.0),
    ("store", "/srv/models", Path("/srv/models")),
    ("store", "s3://bucket/models", RemoteURL("s3", "bucket", "models")),
    ("devices", "4", 4),
    ("require_sound", "true", True),
    ("refresh_seconds", "0.5", 0.5),
    ("memory_bytes", "1000000", 1_000_000),
    ("caller_header", "X-User-Id", "X-User-Id"),
    ("shadow_cpu", "0.5", 0.5),
    ("ready", "all", "all"),
    ("state", "/var/lib/abstain", Path("/var/lib/abstain")),
    ("compiled", "/var/cache/abstain", Path("/var/cache/abstain")),
    ("cache", "/var/cache/stores", Path("/var/cache/stores")),
    ("keys", "/etc/abstain/keys.json", Path("/etc/abstain/keys.json")),
    ("trusted_keys", "/etc/abstain/keys, /etc/abstain/a.pem", (Path("/etc/abstain/keys"), Path("/etc/abstain/a.pem"))),
    ("hosts", "abstain, 10.0.0.7", ("abstain", "10.0.0.7")),
    ("cors_origins", "https://app.example.org,", ("https://app.example.org",)),
    ("insecure", "1", True),
    ("quiet", "1", True),
    ("proxies", "10.0.0.7, 10.1.0.0/16", ("10.0.0.7", "10.1.0.0/16")),
    ("oidc_claim", "roles", "roles"),
]
TOGETHER = {
    "tls_cert": Path("/etc/abstain/server.crt"),
    "tls_key": Path("/etc/abstain/server.key"),
    "oidc_issuer": "https://login.example.org",
    "oidc_audience": "https://abstain.example.org",
    "oidc_jwks": "https://login.example.org/keys",
}


def test_an_empty_environment_is_a_working_server(monkeypatch, tmp_path):
    """One worker, limits for bodies, rows, queue and time; the store is `artifacts` in the current folder."""
    monkeypatch.chdir(tmp_path)
    settings = read_settings({})
    assert settings == Settings(
        store=tmp_path / "artifacts",
        workers=1,
        max_body_bytes=32 * 1024 * 1024,
        max_rows=10_000,
        queue=256,
        timeout_seconds=30.0,
        grace_seconds=30.0,
    )
    assert settings.store.is_absolute()


@pytest.mark.parametrize(("name", "text", "value"), VARIABLES)
def test_each_setting_has_its_variable(name, text, value):
    """`ABSTAIN_<NAME>` sets it, and nothing else."""
    settings = read_settings({f"ABSTAIN_{name.upper()}": text, name.upper(): "wrong", "UNRELATED": "x"})
    assert getattr(settings, name) == value
    assert settings == read_settings({}).model_copy(update={name: value})


def test_every_setting_is_tested_above():
    """A new setting needs a line in the test of the variables."""
    assert {name for name, _, _ in VARIABLES} | set(TOGETHER) == set(Settings.model_fields)


@pytest.mark.parametrize(
    ("missing", "text"),
    [
        ("tls_key", "ABSTAIN_TLS_KEY: expected a value, because ABSTAIN_TLS_CERT has one, found no value"),
        ("tls_cert", "ABSTAIN_TLS_CERT: expected a value, because ABSTAIN_TLS_KEY has one, found no value"),
        (
            "oidc_audience",
            "ABSTAIN_OIDC_AUDIENCE: expected a value, because ABSTAIN_OIDC_ISSUER has one, found no value",
        ),
        ("oidc_issuer", "ABSTAIN_OIDC_ISSUER: expected a value, because ABSTAIN_OIDC_AUDIENCE has one, found no value"),
    ],
)
def test_settings_that_need_each_other(missing, text):
    """Together they are accepted; if one is missing, the error names it."""
    environment = {f"ABSTAIN_{name.upper()}": str(value) for name, value in TOGETHER.items()}
    settings = read_settings(environment)
    assert {name: getattr(settings, name) for name in TOGETHER} == TOGETHER
    del environment[f"ABSTAIN_{missing.upper()}"]
    with pytest.raises(ConfigError, match=text):
        read_settings(environment)


@pytest.mark.parametrize("text", ["proxy", "10.0.0.7/8", "10.0.0.256", "*"])
def test_proxies_are_addresses(text):
    """A host name is refused, because it could later resolve to another machine."""
    with pytest.raises(ConfigError, match="ABSTAIN_PROXIES"):
        read_settings({"ABSTAIN_PROXIES": text})


@pytest.mark.parametrize("name", Settings.model_fields)
def test_an_empty_variable_counts_as_not_set(name):
    """Compose files and shells write it."""
    assert read_settings({f"ABSTAIN_{name.upper()}": ""}) == read_settings({})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("workers", "0"),
        ("workers", "two"),
        ("workers", "1.5"),
        ("max_rows", "-1"),
        ("max_body_bytes", "32M"),
        ("queue", "0"),
        ("timeout_seconds", "0"),
        ("timeout_seconds", "-3"),
        ("timeout_seconds", "nan"),
        ("grace_seconds", "soon"),
    ],
)
def test_an_invalid_value_is_an_error_with_its_variable(name, text):
    """The error also says what was expected and found."""
    with pytest.raises(ConfigError) as caught:
        read_settings({f"ABSTAIN_{name.upper()}": text})
    message = str(caught.value)
    assert message.startswith(f"environment: ABSTAIN_{name.upper()}: expected ")
    assert message.endswith(f"found '{text}'")


def test_unknown_variables_are_described():
    """A misspelt one with the nearest known name; those of other programs, of Kubernetes and of abstain are left out."""
    known = {_variable(name): "1" for name in Settings.model_fields} | {
        MODULES: "",
        DATA_BYTES: "1",
        RUN_FOLDER: "/run",
    }
    kubernetes = {
        "ABSTAIN_SERVICE_HOST": "10.0.0.7",
        "ABSTAIN_PORT": "tcp://10.0.0.7:3000",
        "ABSTAIN_PORT_3000_TCP": "x",
    }
    assert unknown_variables(known | kubernetes | {"KEY": "x", "abstain_key": "x", "ABSTAIN": "x"}) == []
    assert unknown_variables({"ABSTAIN_KEY": "a secret", "ABSTAIN_\x1b": "", "ABSTAIN_KEYS": "keys.json"}) == [
        "ABSTAIN_\\x1b: is no setting, and has no effect",
        "ABSTAIN_KEY: is no setting, and has no effect; did you mean ABSTAIN_KEYS?",
    ]


def test_a_server_logs_unknown_variables_once(tmp_path):
    """In the main process, as it starts."""
    environment = {"TMPDIR": str(tmp_path), "BENTOML_HOME": str(tmp_path), "ABSTAIN_KEY": "a secret"}
    code = "import abstain.service.app"
    paths = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment | paths, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("ABSTAIN_KEY: is no setting") == 1
    assert "a secret" not in result.stderr


def test_an_invalid_setting_ends_the_command_with_its_error(store):
    """`abstain serve` names the variable in one line, with exit code 1."""
    result = abstain("serve", "--store", store, "--port", "1", ABSTAIN_MAX_ROWS="many", timeout=PATIENCE)
    assert result.returncode == 1
    assert "environment: ABSTAIN_MAX_ROWS: expected" in result.stderr
    assert "found 'many'" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_settings_are_read_only_where_the_server_starts(tmp_path):
    """Importing other parts of the service changes neither the environment nor the disk."""
    code = """
import os
before = dict(os.environ)
from abstain.service.commands import cli
from abstain.service import http, process, live_versions, settings
ours = {k: v for k, v in os.environ.items() if k not in before and k.startswith(("ABSTAIN", "PROMETHEUS", "NPROC"))}
assert not ours, ours
"""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, env={"TMPDIR": str(tmp_path)}, capture_output=True, check=False
    )
    assert result.returncode == 0, result.stderr.decode()
    assert not list(tmp_path.glob("abstain-run-*"))
