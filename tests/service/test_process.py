"""Processes: readiness, models that fail, workers that die, full queues, and how a server ends.

The tests start their own servers, and share those that no test ends; they end only processes that they started.
"""

import os
import shutil
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from abstain.service import process
from abstain.service.live_versions import LiveVersions
from tests.helpers.commands import abstain
from tests.helpers.golden_versions import publish_golden
from tests.helpers.processes import PATIENCE, alive, children, kill_all, until
from tests.helpers.servers import Server, start_server, stop_server, wait_until_ready

ROW = [7] * 64


def get(server: Server, path: str, timeout: float = 10) -> httpx.Response | None:
    """The response over a new connection; None if there is none."""
    try:
        return httpx.get(f"{server.url}{path}", timeout=timeout)
    except httpx.TransportError:
        return None


def predict(server: Server, rows: int = 1, model: str = "digits") -> httpx.Response:
    """The response to some rows."""
    width = {"digits": 64, "wave": 1}[model.split(":", maxsplit=1)[0]]
    body = {"inputs": [ROW[:width]] * rows, "model": model, "fields": ["reject"]}
    return httpx.post(f"{server.url}/predict", json=body, timeout=PATIENCE)


def started_requests(server: Server) -> float:
    """How many requests have started to be computed so far."""
    lines = get(server, "/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("abstain_queue_seconds_count"))


def slow_request(server: Server, pool: ThreadPoolExecutor, rows: int):
    """Sends a request, and returns when it is being computed."""
    before = started_requests(server)
    future = pool.submit(predict, server, rows)
    assert until(lambda: started_requests(server) > before)
    return future


@pytest.fixture(scope="module")
def small(store, tmp_path_factory) -> Path:
    """A store with only the stable digits, which loads fast."""
    root = tmp_path_factory.mktemp("small")
    (root / "digits").mkdir()
    shutil.copytree(store / "digits" / "1", root / "digits" / "1")
    return root


def damage(version: Path) -> Path:
    """Flips a bit in the largest of a bundle's draws; returns the file."""
    file = max(
        (path for path in (version / "draws").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    return file


@pytest.fixture(scope="module")
def watched(small, tmp_path_factory):
    """Two workers, and the responses of `/readyz` and `/predict` from their start until they were ready."""
    folder = tmp_path_factory.mktemp("watched")
    server = start_server(small, folder, workers=2, wait=False, TMPDIR=str(folder), ABSTAIN_QUIET="1")
    workers: set[int] = set()
    try:
        assert until(lambda: get(server, "/livez"))
        workers = children(server.process.pid)
        readiness, refused = [], []
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and (not readiness or readiness[-1][0] != 200):
            response = get(server, "/readyz")
            readiness.append((response.status_code, response.json()["ready"], response.json()["workers_ready"]))
            response = predict(server)
            if response.status_code != 200:
                refused.append((response.status_code, response.json()["error"]))
            assert get(server, "/livez").json() == {"live": True}
        yield server, readiness, refused
    finally:
        stop_server(server)
        kill_all(workers)


def test_ready_means_every_worker(watched):
    """503 until both workers have compiled all versions, also from the worker that is ready; then 200. Live at once."""
    _, readiness, refused = watched
    *before, last = readiness
    assert last == (200, True, 2)
    assert before
    assert all(code == 503 and not ready and count < 2 for code, ready, count in before)
    assert refused
    assert {code for code, _ in refused} == {503}
    assert all(error in {"digits:1 is loading", "not ready: the store has not been read yet"} for _, error in refused)


def test_the_start_is_told_in_plain_words(server):
    """What is loaded, what takes time, each worker, and, as the last line of the start, the address; once for all workers."""
    told = [line.removeprefix("abstain: ") for line in server.log.read_text().splitlines() if "abstain: " in line]
    assert told[:2] == [
        f"loading digits:1, wave:1; address {server.url}/; no keys",
        "starting 2 workers; this takes some seconds",
    ]
    start = "\n".join(told)
    for text in ("reading digits:1, 1 of 2", "compiling digits:1", "digits:1 is ready, compiled in", "wave:1 is ready"):
        assert start.count(text) == 1
    ready = [line for line in told if line.startswith(("worker", "ready for requests"))]
    assert sorted(ready[:2]) == ["worker 1 of 2 is ready", "worker 2 of 2 is ready"]
    console = f"open {server.url}/ in a browser for the console, stop with Ctrl+C"
    assert ready[2:] == [f"ready for requests; {console}"]


def test_a_quiet_server_prints_its_log_alone(watched):
    """`ABSTAIN_QUIET`, or `--quiet`: no line of progress."""
    log = watched[0].log.read_text()
    assert "Service abstain initialized" in log
    assert "abstain: " not in log


def test_workers_end_with_a_main_process_that_is_killed(watched):
    """`kill -9` of the main process leaves no orphan on the port."""
    server, _, _ = watched
    workers = children(server.process.pid)
    assert len(workers) == 2
    server.process.kill()
    server.process.wait()
    assert until(lambda: not alive(workers))
    assert get(server, "/livez") is None


def test_workers_end_with_a_main_process_that_is_killed_as_they_start(small, tmp_path):
    """Also if the main process ends before a worker starts to watch it."""
    server = start_server(small, tmp_path, workers=2, wait=False, TMPDIR=str(tmp_path))
    workers: set[int] = set()
    try:
        assert until(lambda: len(children(server.process.pid)) == 2)
        workers = children(server.process.pid)
        server.process.kill()
        server.process.wait()
        assert until(lambda: not alive(workers))
        assert get(server, "/livez") is None
    finally:
        stop_server(server)
        kill_all(workers)


def test_sigterm_ends_a_server_that_is_still_starting(small, tmp_path):
    """As soon as it is live, SIGTERM ends it with code 0 and no worker left."""
    server = start_server(small, tmp_path, workers=2, wait=False)
    workers: set[int] = set()
    try:
        assert until(lambda: get(server, "/livez"))
        workers = children(server.process.pid)
        server.process.terminate()
        assert server.process.wait(timeout=PATIENCE) == 0
        assert alive(workers) == set()
    finally:
        stop_server(server)
        kill_all(workers)


@pytest.fixture(scope="module")
def pair(small, tmp_path_factory):
    """Two workers that accept many rows; started again if a test has ended them."""
    running: list[Server] = []

    def start() -> Server:
        if not running or running[-1].process.poll() is not None:
            folder = tmp_path_factory.mktemp("pair")
            running.append(start_server(small, folder, workers=2, ABSTAIN_MAX_ROWS="200000", TMPDIR=str(folder)))
        return running[-1]

    yield start
    for server in running:
        stop_server(server)


def test_a_dead_worker_is_noticed_and_replaced(pair):
    """After SIGKILL the server is not ready, the other worker serves, and a new worker makes the server ready again."""
    server = pair()
    workers = children(server.process.pid)
    assert len(workers) == 2
    victim = min(workers)
    os.kill(victim, signal.SIGKILL)
    assert until(lambda: get(server, "/readyz").status_code == 503)
    assert get(server, "/readyz").json()["workers_ready"] == 1
    assert predict(server).status_code == 200
    wait_until_ready(server, 60)
    successors = children(server.process.pid)
    assert len(successors) == 2
    assert victim not in successors
    assert predict(server).status_code == 200


def test_a_worker_that_must_stop_is_not_ready_while_it_ends_its_work(pair):
    """The other reports 503 from then on, the running request succeeds, and a new worker replaces the old one."""
    server = pair()
    idle, busy = sorted(children(server.process.pid))
    with ThreadPoolExecutor(1) as pool:
        os.kill(idle, signal.SIGSTOP)
        try:
            running = slow_request(server, pool, 40_000)
        finally:
            os.kill(idle, signal.SIGCONT)
        os.kill(busy, signal.SIGTERM)
        assert until(lambda: get(server, "/readyz").status_code == 503)
        assert alive({busy}), "the request must still be running here"
        assert running.result().status_code == 200
    assert until(lambda: not alive({busy}))
    wait_until_ready(server, 60)
    assert len(children(server.process.pid)) == 2


def test_sigterm_lets_requests_end_and_leaves_nothing(pair):
    """The running request succeeds; then code 0, no worker, no port, and no folder of the run."""
    server = pair()
    workers = children(server.process.pid)
    assert list(server.log.parent.glob("abstain-run-*"))
    with ThreadPoolExecutor(1) as pool:
        running = slow_request(server, pool, 60_000)
        terminated = time.monotonic()
        server.process.terminate()
        response = running.result()
        assert (response.status_code, len(response.json()["predictions"])) == (200, 60_000)
        assert server.process.wait(timeout=PATIENCE) == 0
    assert time.monotonic() - terminated < 15
    assert alive(workers) == set()
    assert get(server, "/livez") is None
    assert not list(server.log.parent.glob("abstain-run-*"))
    assert "Traceback" not in server.log.read_text()


def test_a_server_that_ends_its_work_refuses_new_requests(small, tmp_path):
    """After SIGTERM with a running request, new requests get 503 at once and do not wait."""
    server = start_server(small, tmp_path, ABSTAIN_MAX_ROWS="200000", TMPDIR=str(tmp_path))
    try:
        with ThreadPoolExecutor(1) as pool:
            running = slow_request(server, pool, 100_000)
            server.process.terminate()
            assert until(lambda: (answer := get(server, "/readyz", timeout=1)) and answer.status_code == 503)
            for refused in (predict(server), predict(server, 25_000)):  # The second body has 5 MB.
                assert (refused.status_code, refused.json()["code"]) == (503, "draining")
            assert not running.done(), "the request must still be running here"
            assert running.result().status_code == 200
        assert server.process.wait(timeout=PATIENCE) == 0
    finally:
        stop_server(server)


@pytest.fixture(scope="module")
def strict(small, tmp_path_factory):
    """One worker with a short queue, a short timeout and a short grace time."""
    server = start_server(
        small,
        tmp_path_factory.mktemp("strict"),
        ABSTAIN_QUEUE="2",
        ABSTAIN_TIMEOUT_SECONDS="0.3",
        ABSTAIN_GRACE_SECONDS="1",
        ABSTAIN_MAX_ROWS="200000",
        ABSTAIN_MAX_BODY_BYTES="40000000",
    )
    yield server
    stop_server(server)


def test_a_full_queue_is_429_and_a_late_response_504(strict):
    """Some of several large requests get 429 at once and some 504 after the deadline; later requests succeed."""
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: predict(strict, 60_000), range(6)))
    by_status = {answer.status_code: answer for answer in answers}
    assert by_status.keys() >= {429, 504}
    assert by_status[429].headers["Retry-After"] == "1"
    assert by_status[429].json()["error"] == (
        "the queue is full: expected at most 2 waiting; send the request again after the seconds in Retry-After"
    )
    assert by_status[504].json()["error"] == (
        "past its deadline: expected a response within 0.3 s; send fewer rows in one request, or try again when fewer are waiting"
    )
    assert get(strict, "/livez").status_code == 200
    assert until(lambda: predict(strict).status_code == 200)
    assert get(strict, "/readyz").status_code == 200


def test_the_limit_of_a_body_is_the_setting(strict):
    """The error gives the limit of the setting."""
    response = httpx.post(
        f"{strict.url}/predict",
        content=b" " * 40_000_001,
        headers={"Content-Type": "application/json"},
        timeout=PATIENCE,
    )
    assert response.status_code == 413
    assert response.json()["error"] == "body: expected at most 40000000 bytes, found 40000001"


def test_the_grace_ends(strict):
    """After SIGTERM, a server does not wait forever for a body that never arrives."""
    workers = children(strict.process.pid)
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 999\r\n"
    with socket.create_connection(strict.address, timeout=PATIENCE) as line:
        line.sendall(head + b"Expect: 100-continue\r\n\r\n")
        assert line.recv(100).startswith(b"HTTP/1.1 100 ")
        terminated = time.monotonic()
        strict.process.terminate()
        assert strict.process.wait(timeout=PATIENCE) == 0
        assert time.monotonic() - terminated > 0.9
    assert alive(workers) == set()


@pytest.mark.parametrize(("requests", "expected"), [(0, 0.0), (1, 3.0)])
def test_a_worker_drains_for_the_grace_time_and_no_longer(monkeypatch, tmp_path, requests, expected):
    """By a simulated clock: the signal goes to the server's handler at once without requests, else after 3 s; then it ends."""
    now, events, ended = [0.0], [], threading.Event()
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: now.__setitem__(0, now[0] + seconds))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    traffic = process.Traffic()
    traffic.under_way = requests
    monkeypatch.setattr(process, "time", clock)
    monkeypatch.setattr(process.os, "kill", lambda pid, number: events.append((number, now[0])))
    monkeypatch.setattr(process.os, "_exit", lambda code: (events.append(("exit", now[0])), ended.set()))
    try:
        process.drain_on_stop(process.Process(1, 1, tmp_path), traffic, 3.0)
        signal.raise_signal(signal.SIGTERM)
        assert ended.wait(PATIENCE)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert traffic.draining
    (number, stopped), (_, exited) = events
    assert number == signal.SIGTERM
    assert stopped == pytest.approx(expected, abs=0.05)
    assert exited - stopped <= 2.0


@pytest.fixture(scope="module")
def failing(store, tmp_path_factory):
    """A server with a damaged `wave` and a valid `digits`, and the damaged file."""
    root = tmp_path_factory.mktemp("failing") / "store"
    shutil.copytree(store, root)
    file = damage(root / "wave" / "1")
    server = start_server(root, root.parent, wait=False)
    assert until(lambda: (answer := get(server, "/models")) and "loading" not in answer.text)
    assert until(lambda: predict(server).status_code == 200)
    yield server, file
    stop_server(server)


def within_store(file):
    """The path of a file of `wave:1` relative to the store, as in errors."""
    return file.as_posix()[file.as_posix().index("wave/1/") :]


def test_a_model_that_fails_does_not_keep_the_server_from_being_ready(failing):
    """`/readyz` is 200 and names the file relative to the store; the log has the whole path."""
    server, file = failing
    assert until(lambda: get(server, "/readyz").status_code == 200)
    content = get(server, "/readyz").json()
    assert (content["ready"], content["workers_ready"], content["workers"]) == (True, 1, 1)
    (why,) = content["why"]
    assert why.startswith(f"wave:1: {within_store(file)}: is damaged or was altered: expected sha256 ")
    assert f"wave:1 cannot be served: {file}: is damaged" in server.log.read_text()
    assert get(server, "/livez").status_code == 200


def test_a_model_that_fails_does_not_affect_others(failing):
    """The others are served; its own requests get 503 with the reason, and those for an unknown version still 404."""
    server, file = failing
    assert predict(server).status_code == 200
    refused = predict(server, model="wave")
    assert refused.status_code == 503
    assert refused.json()["error"].startswith(f"wave:1 is failed: {within_store(file)}: is damaged")
    assert str(file.parents[3]) not in refused.text
    assert predict(server, model="wave:7").status_code == 404


def test_the_listing_shows_why_a_model_failed(failing):
    """State `failed` with the same reason."""
    server, file = failing
    states = {
        (model["name"], version["version"]): (version["state"], version["why"])
        for model in get(server, "/models").json()["models"]
        for version in model["versions"]
    }
    assert states["digits", 1] == ("ready", None)
    assert states["digits", 2] == ("idle", None)
    state, why = states["wave", 1]
    assert state == "failed"
    assert why.startswith(f"{within_store(file)}: ")


def test_loads_are_counted_by_their_outcome(failing):
    """One loaded, one failed; only the loaded version has an info metric."""
    text = get(failing[0], "/metrics").text
    assert 'abstain_model_loads_total{model="digits",outcome="loaded",version="1"} 1.0' in text
    assert 'abstain_model_loads_total{model="wave",outcome="failed",version="1"} 1.0' in text
    infos = [line for line in text.splitlines() if line.startswith("abstain_model_info{")]
    assert len(infos) == 1
    assert 'model="digits"' in infos[0]


def test_serve_warns_of_a_damaged_model(failing):
    """The command reports it and starts the server nevertheless."""
    server, file = failing
    assert f"abstain: {file}: is damaged or was altered" in server.log.read_text()


def test_ctrl_c_ends_a_server(failing):
    """SIGINT to the main process, which a shell sends to the foreground, leaves no worker."""
    server, _ = failing
    workers = children(server.process.pid)
    assert workers
    server.process.send_signal(signal.SIGINT)
    server.process.wait(timeout=PATIENCE)
    assert until(lambda: not alive(workers))


@pytest.mark.parametrize("made", [True, False], ids=["empty", "missing"])
def test_nothing_to_serve_ends_the_command(tmp_path, made):
    """A store without models, if the server does not follow it, and no store: code 1, and an error with a fix."""
    root = tmp_path / "store"
    if made:
        root.mkdir()
    result = abstain("serve", "--store", root, timeout=PATIENCE, ABSTAIN_REFRESH_SECONDS="0" if made else "2")
    assert result.returncode == 1
    assert result.stdout == ""
    found = "no models" if made else "no such folder"
    fix = "publish a model with abstain fit, or choose another folder with --store"
    assert result.stderr == f"abstain: {root}: no version to serve: found {found}; {fix}\n"


def test_a_store_with_only_a_damaged_model_ends_the_command(small, tmp_path):
    """Code 1, and the error names the file."""
    root = tmp_path / "store"
    shutil.copytree(small, root)
    file = damage(root / "digits" / "1")
    result = abstain("serve", "--store", root, timeout=PATIENCE)
    assert result.returncode == 1
    assert result.stderr.startswith(f"abstain: {root}: no version to serve: found {file}: is damaged or was altered")


def test_a_port_in_use_ends_the_command_with_its_number(small):
    """Code 1 and one line, not a traceback."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = abstain("serve", "--store", small, "--port", str(port), timeout=PATIENCE)
    assert result.returncode == 1
    assert str(port) in result.stderr
    assert "in use" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_server_with_a_label_of_a_missing_version_is_not_ready(small, tmp_path):
    """For example after the stable version was removed."""
    root = tmp_path / "store"
    shutil.copytree(small, root)
    (root / "digits" / "labels.json").write_text('{"labels": {"stable": 9}, "previous": {}}')
    serving = LiveVersions(root)
    ready = threading.Event()
    serving.load_all(buckets=(1,), on_ready=ready.set)
    assert not ready.is_set()
    assert any("digits" in reason for reason in serving.reasons_not_ready())


def test_invalid_labels_do_not_affect_other_models(small, tmp_path):
    """The other models are served, and the error names the file."""
    root = tmp_path / "store"
    shutil.copytree(small, root)
    shutil.copytree(small / "digits", root / "other")
    (root / "other" / "labels.json").write_text('{"labels": {"stable": "one"}}')
    serving = LiveVersions(root)
    serving.load_all(buckets=(1,))
    assert serving.find("digits").version == 1
    assert serving.reasons_not_ready() == []
    assert any("other:1: other/labels.json: " in reason for reason in serving.shortcomings())
    strict = LiveVersions(root, all_ready=True)
    strict.load_all(buckets=(1,))
    assert any("other:1: other/labels.json: " in reason for reason in strict.reasons_not_ready())


def test_a_server_follows_its_store(tmp_path):
    """From an empty store on, in all workers, also in one that replaces another; labels wait for it."""
    root = tmp_path / "store"
    root.mkdir()
    settings = {"ABSTAIN_REFRESH_SECONDS": "0.1", "ABSTAIN_COMPILED": str(tmp_path / "compiled")}
    server = start_server(root, tmp_path, workers=2, wait=False, TMPDIR=str(tmp_path), **settings)

    def served() -> set[int]:
        """The versions in the responses over several new connections."""
        body = {"inputs": [[0.5]], "fields": ["mean"]}
        found = [httpx.post(f"{server.url}/predict", json=body, timeout=PATIENCE) for _ in range(6)]
        assert {answer.status_code for answer in found} == {200}
        return {answer.json()["model"]["version"] for answer in found}

    try:
        assert until(lambda: (answer := get(server, "/readyz")) and answer.status_code == 503)
        publish_golden(root)
        wait_until_ready(server)
        assert served() == {1}
        publish_golden(root, 1.5)
        moved = abstain("label", "golden:2", "stable", "--store", root, "--wait", server.url)
        assert moved.returncode == 0, moved.stderr
        assert f"{server.url} serves golden@stable as golden:2" in moved.stderr
        assert served() == {2}
        assert "abstain: golden@stable is golden:2 from now on" in server.log.read_text()
        victim = max(children(server.process.pid))
        os.kill(victim, signal.SIGKILL)
        assert until(lambda: not alive({victim}))
        wait_until_ready(server)
        assert served() == {2}
        absent = abstain(
            "label", "golden:1", "next", "--store", root, "--wait", "http://127.0.0.1:1", "--wait-seconds", "0"
        )
        assert absent.returncode == 1
        assert "http://127.0.0.1:1: the server does not follow: expected golden@next as golden:1" in absent.stderr
    finally:
        stop_server(server)
