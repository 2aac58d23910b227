"""`finlora serve` as a process: what it prints, how it stops, what it refuses."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import pytest

from finlora.api.cli import _listen, main
from finlora.api.heads import MAX_HEAD_BYTES
from finlora.config import Settings
from finlora.errors import ConfigError
from tests.api.live import POLL_SECONDS

SERVE = [sys.executable, "-m", "finlora", "serve"]
DEADLINE_SECONDS = 120


@contextmanager
def started(settings: Settings, *flags: str) -> Iterator[subprocess.Popen[str]]:
    """The command with a small model, on a free port."""
    small = ["--model", settings.model, "--quantization", "none", "--port", "0"]
    small += ["--registry", str(settings.registry), "--kv-cache-bytes", "4000000"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*SERVE, *small, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if "json" in flags else None,
        text=True,
        env=environment,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def lines_until(process: subprocess.Popen[str], pattern: str) -> tuple[str, re.Match[str]]:
    """What the process prints up to a line that matches."""
    assert process.stdout is not None
    printed = ""
    for line in process.stdout:
        printed += line
        if match := re.search(pattern, line):
            return printed, match
    raise AssertionError(f"the server ended before it printed {pattern}:\n{printed}")


def address_of(process: subprocess.Popen[str]) -> str:
    return lines_until(process, r"at (http://\S+)")[1][1]


def test_the_printed_calls_can_be_pasted(settings: Settings) -> None:
    with started(settings) as process:
        lines_until(process, r"serves tiny-llama with news, tweets at")
        assert process.stdout is not None
        process.stdout.readline()
        calls = [process.stdout.readline() for _ in range(3)]
        for call in calls:
            answer = subprocess.run(call, shell=True, capture_output=True, text=True, check=True)
            assert '"object"' in answer.stdout
        assert answer.stdout.endswith("data: [DONE]\n\n")


def test_with_json_every_line_is_an_object(settings: Settings) -> None:
    with started(settings, "--log-format", "json") as process:
        assert process.stderr is not None
        lines = map(json.loads, process.stderr)
        ready = next(line for line in lines if line["message"] == "ready")
        assert httpx.get(f"http://{ready['host']}:{ready['port']}/v1/models").status_code == 200
        assert next(line for line in lines if line["message"] == "request")["status"] == 200
        process.send_signal(signal.SIGTERM)
        assert all(lines)
        assert process.stdout is not None
        assert process.stdout.read() == ""
        assert process.wait(DEADLINE_SECONDS) == 0


def test_a_signal_lets_requests_end_and_the_status_is_0(settings: Settings) -> None:
    with started(settings) as process:
        url = address_of(process)
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
            stream = client.completions.create(
                model="news",
                prompt="a",
                max_tokens=400,
                stream=True,
                extra_body={"ignore_eos": True},
            )
            next(stream)
            process.send_signal(signal.SIGTERM)
            *_, last = stream
        assert last.choices[0].finish_reason == "length"
        assert process.wait(DEADLINE_SECONDS) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health")


def test_time_to_drain_is_bounded_and_who_is_cut_off_is_told(settings: Settings) -> None:
    with started(settings, "--shutdown-seconds", "0") as process:
        with openai.OpenAI(base_url=f"{address_of(process)}/v1", api_key="none") as client:
            stream = client.completions.create(
                model="news",
                prompt="a",
                n=64,
                max_tokens=400,
                stream=True,
                extra_body={"ignore_eos": True},
            )
            next(stream)
            process.send_signal(signal.SIGTERM)
            with pytest.raises(openai.APIError, match="stopped"):
                list(stream)
        assert process.wait(DEADLINE_SECONDS) == 0


def test_large_heads_are_refused(settings: Settings) -> None:
    with started(settings) as process:
        large = {"X-Large": "x" * (MAX_HEAD_BYTES + 1)}
        assert httpx.get(f"{address_of(process)}/health", headers=large).status_code == 431


def test_a_second_signal_ends_it_at_once(settings: Settings) -> None:
    with started(settings) as process:
        url = address_of(process)
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
            stream = client.completions.create(
                model="news",
                prompt="a",
                n=128,
                max_tokens=400,
                stream=True,
                extra_body={"ignore_eos": True},
            )
            next(stream)
            process.send_signal(signal.SIGTERM)
            while port_is_open(url):
                next(stream)
            process.send_signal(signal.SIGTERM)
            assert process.wait(DEADLINE_SECONDS) == 128 + signal.SIGTERM


def port_is_open(url: str) -> bool:
    try:
        socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))).close()
    except ConnectionRefusedError:
        return False
    return True


def test_a_server_outlives_the_reader_of_its_greeting(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with started(settings, "--port", str(port)) as process:
        lines_until(process, "importing")
        assert process.stdout is not None
        process.stdout.close()  # as `finlora serve | head -1` does
        wait_until_ready(f"http://127.0.0.1:{port}/ready", process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_SECONDS) == 0


def wait_until_ready(url: str, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while httpx.get(url).status_code != 200:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(POLL_SECONDS)


def test_an_interrupt_while_it_loads_ends_it(settings: Settings) -> None:
    with started(settings) as process:
        lines_until(process, "importing")
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_SECONDS) == 0


def test_a_base_that_is_not_there_is_one_line(settings: Settings, tmp_path: Path) -> None:
    command = [*SERVE, "--port", "0", "--model", str(tmp_path / "missing")]
    command += ["--registry", str(settings.registry)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_SECONDS)
    assert ended.returncode == 1
    assert re.fullmatch(r"finlora serve: .*missing.*\n", ended.stderr)
    assert "failed" not in ended.stdout


def test_a_used_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}: "):
            main(["--port", str(port)])


def test_a_public_address_needs_a_key() -> None:
    with pytest.raises(ConfigError, match="FINLORA_API_KEY"):
        main(["--host", "0.0.0.0"])


@pytest.mark.parametrize(
    "flags", [["--port", "many"], ["--quantization", "nf5"], ["--no-such-flag"]]
)
def test_wrong_usage_is_told_apart(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(flags)
    assert raised.value.code == 2
    assert flags[0] in capsys.readouterr().err


def test_every_setting_is_a_flag_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in shown
        if field.default is not None:
            assert f"(default: {field.default})" in shown


def test_answers_leave_at_once_on_any_event_loop(settings: Settings) -> None:
    with _listen(settings.model_copy(update={"port": 0})) as listener:
        assert (
            listener.proto == socket.IPPROTO_TCP
        )  # by this asyncio tells where to set TCP_NODELAY
