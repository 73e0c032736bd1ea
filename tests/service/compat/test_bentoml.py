"""What is changed in BentoML: its process manager takes commands from its own user alone, and reports go nowhere."""

import socket
from types import SimpleNamespace

import pytest

from abstain.models.errors import ConfigError
from abstain.service.compat import bentoml as compat
from tests.helpers.doors import check_closed


def test_the_process_manager_of_abstain_serve_is_closed(server):
    """`tests/service/test_bento.py` holds the same of `bentoml serve` and of a Bento."""
    check_closed(server)


def test_a_worker_of_an_open_process_manager_does_not_start(tmp_path):
    """As after a change of BentoML: nothing takes commands where it should; nor is a mere file such a socket."""
    with pytest.raises(ConfigError, match="the process manager is not closed: expected the socket"):
        compat.check_process_manager(tmp_path)
    (tmp_path / compat.COMMANDS).write_text("")
    with pytest.raises(ConfigError, match="the process manager is not closed"):
        compat.check_process_manager(tmp_path)
    (tmp_path / compat.COMMANDS).unlink()
    with socket.socket(socket.AF_UNIX) as commands:
        commands.bind(str(tmp_path / compat.COMMANDS))
        compat.check_process_manager(tmp_path)


def allow(host):
    """Any address may be listened on."""


class Arbiter:
    """Circus's, as far as it is changed."""

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
    """A class of its own for each test, in place of circus's."""
    own = type("Arbiter", (Arbiter,), {"__init__": Arbiter.__init__})
    monkeypatch.setattr(compat, "Arbiter", own)
    return own


def test_ports_that_are_asked_for_become_sockets_in_the_folder(arbiter, tmp_path):
    """By name or by place, of the class and of those derived from it, as BentoML has one."""
    compat.close_process_manager(tmp_path, allow)
    derived = type("Derived", (arbiter,), {})
    expected = f"ipc://{tmp_path}/commands", f"ipc://{tmp_path}/events"
    assert derived([], endpoint="tcp://127.0.0.1:1", pubsub_endpoint="tcp://127.0.0.1:2").endpoints == expected
    assert arbiter([], "tcp://127.0.0.1:1", "tcp://127.0.0.1:2").endpoints == expected


@pytest.mark.parametrize("way", ["statsd", "stats_endpoint", "multicast_endpoint", "httpd", "ssh_server"])
def test_no_further_way_to_the_process_manager_is_opened(arbiter, tmp_path, way):
    """Circus has more of them, and BentoML might come to use one."""
    compat.close_process_manager(tmp_path, allow)
    with pytest.raises(ConfigError, match=f"expected no further way to reach it, found {way}"):
        arbiter([], "tcp://127.0.0.1:1", "tcp://127.0.0.1:2", **{way: "tcp://127.0.0.1:3"})


def test_an_unknown_circus_is_refused(monkeypatch, tmp_path):
    """Rather than left open."""
    monkeypatch.setattr(compat, "Arbiter", type("Arbiter", (), {"__init__": lambda self, watchers, address: None}))
    with pytest.raises(ConfigError, match=r"cannot be closed: .* found no endpoint, pubsub_endpoint"):
        compat.close_process_manager(tmp_path, allow)


def test_a_path_too_long_for_a_socket_is_refused(arbiter, tmp_path):
    """Before circus fails to bind it."""
    compat.close_process_manager(tmp_path / ("long" * 30), allow)
    with pytest.raises(ConfigError, match=r"TMPDIR: expected .* at most 107 bytes, found .*, \d+ bytes; set TMPDIR"):
        arbiter([], "tcp://127.0.0.1:1", "tcp://127.0.0.1:2")


def test_an_address_that_must_not_be_listened_on_ends_the_process(arbiter, tmp_path):
    """In one line, before anything is bound; sockets of the file system are none of the network's."""

    def refuse(host):
        raise ConfigError("others could reach this server", where=host)

    compat.close_process_manager(tmp_path, refuse)
    unix = SimpleNamespace(is_unix=True, host="localhost")
    arbiter([], "tcp://127.0.0.1:1", "tcp://127.0.0.1:2", sockets=[unix])
    public = SimpleNamespace(is_unix=False, host="192.168.1.2")
    with pytest.raises(SystemExit, match=r"^abstain: 192\.168\.1\.2: others could reach this server$"):
        arbiter([], "tcp://127.0.0.1:1", "tcp://127.0.0.1:2", sockets=[unix, public])


def test_usage_reports_are_off_even_if_asked_for_before(monkeypatch):
    """The command `bentoml serve` has looked, and kept the answer, by the time that it imports the service."""
    monkeypatch.setenv("BENTOML_DO_NOT_TRACK", "False")
    compat.usage_stats.do_not_track.cache_clear()
    assert not compat.usage_stats.do_not_track()
    compat.stop_usage_reports()
    assert compat.usage_stats.do_not_track()
