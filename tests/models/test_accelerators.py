"""A missing accelerator is said as such, before anything else is done."""

import subprocess

import pytest

from abstain.models import accelerators
from abstain.models.accelerators import check_platforms
from abstain.models.errors import ConfigError


@pytest.mark.parametrize("platforms", ["nonsense", "nonsense,other"])
def test_a_missing_accelerator_is_an_error_of_the_environment(platforms):
    """It names the variable and what jax found."""
    with pytest.raises(
        ConfigError, match=rf"JAX_PLATFORMS={platforms} asks for an accelerator.*nonsense.*unset JAX_PLATFORMS"
    ):
        check_platforms({"JAX_PLATFORMS": platforms})


def test_a_platform_that_exists_is_accepted():
    """Also after one that does not, as jax does."""
    check_platforms({"JAX_PLATFORMS": "cpu,cuda"})


def test_nothing_is_started_without_a_reason(monkeypatch):
    """The variable is not set, or says `cpu`."""
    monkeypatch.setattr(subprocess, "run", None)
    check_platforms({})
    check_platforms({"JAX_PLATFORMS": "cpu"})


def test_a_driver_that_hangs_is_said_as_such(monkeypatch):
    """Instead of waiting for ever."""
    monkeypatch.setattr(accelerators, "_SECONDS", 0.001)
    with pytest.raises(ConfigError, match="no answer within"):
        check_platforms({"JAX_PLATFORMS": "cpu,cuda"})


def test_a_command_says_it_in_one_line(run, monkeypatch, store):
    """Instead of a traceback, or of an error about the network."""
    monkeypatch.setenv("JAX_PLATFORMS", "nonsense")
    code, out, stderr = run("show", "digits", "--store", store)
    assert (code, out) == (1, "")
    assert stderr.startswith("abstain: environment: JAX_PLATFORMS=nonsense asks for an accelerator")
