import signal
import sys
import urllib.request
from pathlib import Path

import psutil
import pytest

from loadtest.peers.process import ServerFailedError, free_port, get, serving

FILE_SERVER = [sys.executable, "-u", "-m", "http.server", "--bind", "127.0.0.1"]


def test_a_server_answers_inside_and_is_gone_outside(tmp_path: Path) -> None:
    port = free_port()
    command = [*FILE_SERVER, str(port)]
    with serving(command, port=port, ready_path="/", log=tmp_path / "log") as server:
        assert urllib.request.urlopen(server.address).status == 200
        assert server.resident_bytes() > 1_000_000
        assert server.seconds_to_ready > 0
    assert server.process.returncode == -signal.SIGTERM


@pytest.mark.usefixtures("proxied")
def test_a_server_of_this_machine_is_not_asked_through_a_proxy(tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "log"
    command = [*FILE_SERVER, str(port), "--directory", str(tmp_path)]
    with serving(command, port=port, ready_path="/", log=log, deadline_seconds=20) as server:
        assert "log" in get(server.address)


def test_a_server_that_is_gone_or_refuses_has_failed(tmp_path: Path) -> None:
    port = free_port()
    with pytest.raises(ServerFailedError, match=f"{port}/metrics: .*refused"):
        get(f"http://127.0.0.1:{port}/metrics")
    command = [*FILE_SERVER, str(port), "--directory", str(tmp_path)]
    with (
        serving(command, port=port, ready_path="/", log=tmp_path / "log") as server,
        pytest.raises(ServerFailedError, match="404"),
    ):
        get(f"{server.address}/metrics")


def test_children_of_the_server_end_with_it(tmp_path: Path) -> None:
    port = free_port()
    shell = f"sleep 600 & {' '.join(FILE_SERVER)} {port}; wait"
    with serving(["sh", "-c", shell], port=port, ready_path="/", log=tmp_path / "log") as server:
        children = psutil.Process(server.process.pid).children(recursive=True)
        assert len(children) == 2
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


def test_a_server_that_ends_early_leaves_its_last_words(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('no such model')"]
    with (
        pytest.raises(ServerFailedError, match=r"ended with code 1:\nno such model"),
        serving(command, port=free_port(), ready_path="/", log=tmp_path / "log"),
    ):
        pass


def test_a_server_that_never_answers_is_ended_at_the_deadline(tmp_path: Path) -> None:
    marker = tmp_path / "ended"
    code = (
        "import pathlib, signal, sys\n"
        f"def end(*_): pathlib.Path({str(marker)!r}).touch(); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "signal.pause()\n"
    )
    with (
        pytest.raises(ServerFailedError, match="was not ready after"),
        serving(
            [sys.executable, "-c", code],
            port=free_port(),
            ready_path="/",
            log=tmp_path / "log",
            deadline_seconds=2,
        ),
    ):
        pass
    assert marker.exists()
