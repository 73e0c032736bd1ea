"""The changes to BentoML: its process manager accepts commands only from its own user, and usage reports are off."""

import socket
from types import SimpleNamespace

import pytest

from abstain.models.errors import ConfigError
from abstain.service.compat import bentoml as compat
from tests.helpers.doors import check_closed


def test_the_process_manager_of_abstain_serve_is_closed(server):
    """`tests/service/test_bento.py` checks the same for `bentoml serve` and for a Bento."""
    check_closed(server)


def test_a_worker_of_an_open_process_manager_does_not_start(tmp_path):
    """For example after a change of BentoML: the socket for commands is missing, or is a regular file."""
    with pytest.raises(ConfigError, match="not restricted to this user: expected the socket"):
        compat.check_process_manager(tmp_path)
    (tmp_path / compat.COMMANDS).write_text("")
    with pytest.raises(ConfigError, match="the process manager is not restricted"):
        compat.check_process_manager(tmp_path)
    (tmp_path / compat.COMMANDS).unlink()
    with socket.socket(socket.AF_UNIX) as commands:
        commands.bind(str(tmp_path / compat.COMMANDS))
        compat.check_process_manager(tmp_path)


def do_nothing():
    """Stands for what the main process does at its start."""


def allow(host):
    """Allows to listen on any address."""


class Arbiter:
    """The part of circus's class that is changed."""

    def __init__(
        self,
        watchers,
        endpoint,
        pubsub_endpoint,
        statsd=False,
        stats_endpoint=None,
        multicast_endpoint=None,
        httpd=False,
        ssh_server=None,
        sockets=None,
    ):
        self.endpoints = endpoint, pubsub_endpoint


@pytest.fixture
def arbiter(monkeypatch):
    """A new class for each test, instead of circus's."""
    own = type("Arbiter", (Arbiter,), {"__init__": Arbiter.__init__})
    monkeypatch.setattr(compat, "Arbiter", own)
    return own


def test_requested_ports_become_sockets_in_the_folder(arbiter, tmp_path):
    """As named or positional arguments, of the class and of a derived class, which BentoML has."""
    compat.restrict_process_manager(tmp_path, allow, do_nothing)
    derived = type("Derived", (arbiter,), {})
    expected = f"ipc://{tmp_path}/commands", f"ipc://{tmp_path}/events"
    assert derived([], endpoint="tcp://127.0.0.1:1", pubsub_endpoint="tcp://127.0.0.1:2").endpoints == expected
    assert arbiter([], "tcp://127.0.0.1:1", "tcp://127.0.0.1:2").endpoints == expected


@pytest.mark.parametrize("way", ["statsd", "stats_endpoint", "multicast_endpoint", "httpd", "ssh_server"])
def test_no_further_way_to_the_process_manager_is_opened(arbiter, tmp_path, way):
    """Circus has more of them, and a later BentoML might use one."""
    compat.restrict_process_manager(tmp_path, allow, do_nothing)
    with pytest.raises(ConfigError, match=f"expected no further way to reach it, found {way}"):
        arbiter([], "tcp://127.0.0.1:1", "tcp://127.0.0.1:2", **{way: "tcp://127.0.0.1:3"})


def test_an_unknown_circus_is_refused(monkeypatch, tmp_path):
    """Otherwise its process manager would stay open."""
    monkeypatch.setattr(compat, "Arbiter", type("Arbiter", (), {"__init__": lambda self, watchers, address: None}))
    with pytest.raises(ConfigError, match=r"cannot be restricted to this user: .* found no endpoint, pubsub_endpoint"):
        compat.restrict_process_manager(tmp_path, allow, do_nothing)


def test_a_path_too_long_for_a_socket_is_refused(arbiter, tmp_path):
    """Before circus fails to bind it."""
    compat.restrict_process_manager(tmp_path / ("long" * 30), allow, do_nothing)
    with pytest.raises(ConfigError, match=r"TMPDIR: expected .* at most 107 bytes, found .*, \d+ bytes; set TMPDIR"):
        arbiter([], "tcp://127.0.0.1:1", "tcp://127.0.0.1:2")


def test_an_address_that_is_not_allowed_ends_the_process(arbiter, tmp_path):
    """With one line, before a socket is bound; Unix sockets are always allowed."""

    def refuse(host):
        raise ConfigError("others could reach this server", where=host)

    compat.restrict_process_manager(tmp_path, refuse, do_nothing)
    unix = SimpleNamespace(is_unix=True, host="localhost")
    arbiter([], "tcp://127.0.0.1:1", "tcp://127.0.0.1:2", sockets=[unix])
    public = SimpleNamespace(is_unix=False, host="192.168.1.2")
    with pytest.raises(SystemExit, match=r"^abstain: 192\.168\.1\.2: others could reach this server$"):
        arbiter([], "tcp://127.0.0.1:1", "tcp://127.0.0.1:2", sockets=[unix, public])


def test_usage_reports_are_off_even_if_the_setting_was_read_before(monkeypatch):
    """The command `bentoml serve` has read and cached the setting before it imports the service."""
    monkeypatch.setenv("BENTOML_DO_NOT_TRACK", "False")
    compat.usage_stats.do_not_track.cache_clear()
    assert not compat.usage_stats.do_not_track()
    compat.stop_usage_reports()
    assert compat.usage_stats.do_not_track()
