"""What a load test that is ended leaves behind: nothing."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
# Answers, and asks its parent to end once more as soon as it is asked itself: `timeout` and `make`
# both signal, and the second signal comes while the first is dealt with.
SERVER = """
import http.server, os, signal, sys
def end(*_):
    os.kill(os.getppid(), signal.SIGTERM)
    os._exit(0)
signal.signal(signal.SIGTERM, end)
address = "127.0.0.1", int(sys.argv[1])
http.server.HTTPServer(address, http.server.SimpleHTTPRequestHandler).serve_forever()
"""
FLEET = f"""
import signal, sys
from pathlib import Path
from loadtest.peers.candidates import Candidate
from loadtest.peers.fleet import Fleet
from loadtest.subject import end_in_order

end_in_order()
made = [
    Candidate(name, lambda port: [sys.executable, "-c", {SERVER!r}, str(port)], "b", "/")
    for name in ("one", "other", "third")
]
with Fleet({{each.name: each for each in made}}, Path(sys.argv[1]), lambda _: None) as fleet:
    pids = [fleet.focus(each.name).pid for each in made]
    print(*pids, flush=True)
    while True:
        signal.pause()
"""
ENTRY = """
import runpy, signal, sys

sys.argv = ["entry", "--help"]
try:
    runpy.run_module({module!r}, run_name="__main__")
except SystemExit:
    print("SIGTERM", "kills" if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL else "unwinds")
"""


def test_a_fleet_that_is_told_to_end_twice_ends_all_it_started(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FLEET, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        servers = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
        stopped = [server.status() == psutil.STATUS_STOPPED for server in servers]
        assert stopped == [True, True, False]
        process.terminate()
        assert process.wait(60) == 128 + signal.SIGTERM
    _, alive = psutil.wait_procs(servers, timeout=10)
    assert not alive


@pytest.mark.parametrize(
    "module",
    [
        "loadtest.capacity",
        "loadtest.peers.run",
        "loadtest.peers.startup",
        "loadtest.run",
        "loadtest.training.memory",
        "loadtest.training.run",
    ],
)
def test_what_starts_processes_ends_in_order(module: str) -> None:
    command = [sys.executable, "-c", ENTRY.format(module=module)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "SIGTERM unwinds"
