"""`finlora batch` in process and by a server: the same answers as over HTTP."""

import gc
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from finlora.batch.cli import main
from finlora.errors import ConfigError, FinLoRAError, RemoteError
from tests.api.live import LiveServer
from tests.batch.conftest import World

Requests = Sequence[dict[str, Any] | str]


def request(custom_id: str, url: str, **body: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": f"/v1/{url}", "body": body}


GOOD = [
    request("completion", "completions", model="news", prompt="Profit rose", max_tokens=6, seed=1),
    request("base", "completions", model="tiny-llama", prompt=["a", "b"], max_tokens=2, seed=2),
    request("labels", "classify", model="news", input=["Profit rose"], template="{input}: ",
            return_probabilities=True),
    request("chat", "chat/completions", model="news", max_tokens=4, temperature=0,
            messages=[{"role": "user", "content": "How are shares?"}]),
]  # fmt: skip
CHANGING = ("id", "created")


def write(path: Path, requests: Requests) -> Path:
    lines = [line if isinstance(line, str) else json.dumps(line) for line in requests]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def responses(path: Path) -> dict[str | None, dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert len({line["id"] for line in lines}) == len(lines)
    return {line["custom_id"]: line for line in lines}


def steady(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in CHANGING}


@pytest.mark.parametrize("way", ["in process", "by a server"])
def test_every_answer_is_the_one_of_the_server(
    way: str, world: World, server: LiveServer, tmp_path: Path
) -> None:
    source, output = write(tmp_path / "in.jsonl", [*GOOD]), tmp_path / "out.jsonl"
    flags = world.flags if way == "in process" else ["--url", server.url]
    assert main([str(source), "-o", str(output), *flags]) == 0
    found = responses(output)
    assert len(found) == len(GOOD)
    for line in GOOD:
        response = found[line["custom_id"]]["response"]
        direct = httpx.post(server.url + line["url"], json=line["body"], timeout=60)
        assert response["status_code"] == direct.status_code == 200
        assert response["request_id"]
        assert found[line["custom_id"]]["error"] is None
        assert json.dumps(steady(response["body"]))[:60] == json.dumps(steady(direct.json()))[:60]
        if line["custom_id"] != "labels":  # batched otherwise, float32 may differ in the last bits
            assert steady(response["body"])["choices"] == steady(direct.json())["choices"]


BAD: Requests = [
    "{oops",
    request("refused", "completions", model="news", prompt="a", nonsense=1),
    request("unknown", "completions", model="nobody", prompt="a"),
    request("stream", "completions", model="news", prompt="a", stream=True),
    request("elsewhere", "embeddings", model="news", input="a"),
    {"custom_id": "extra", "method": "GET", "url": "/v1/completions", "body": {}},
    request("twice", "completions", model="news", prompt="a", max_tokens=1),
    request("twice", "completions", model="news", prompt="b", max_tokens=1),
]


def test_what_is_wrong_has_a_line_too(
    server: LiveServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = write(tmp_path / "in.jsonl", BAD), tmp_path / "out.jsonl"
    assert main([str(source), "-o", str(output), "--url", server.url]) == 3
    lines = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    assert len(lines) == len(BAD)
    by_id = {line["custom_id"]: line for line in lines if line["custom_id"] not in (None, "twice")}
    assert by_id["refused"]["response"]["status_code"] == 400
    assert by_id["refused"]["response"]["body"]["error"]["param"] == "nonsense"
    assert by_id["unknown"]["response"]["status_code"] == 404
    assert by_id["stream"]["error"]["param"] == "stream"
    (unnamed,) = [line["error"]["message"] for line in lines if line["custom_id"] is None]
    assert unnamed.startswith(f"{source}:1: ")
    for name, number, param in (("elsewhere", 5, "url"), ("extra", 6, "method")):
        assert by_id[name]["error"]["message"].startswith(f"{source}:{number}: ")
        assert by_id[name]["error"]["param"] == param
    twice = [line for line in lines if line["custom_id"] == "twice"]
    assert sum(line["error"] is None for line in twice) == 1
    told = capsys.readouterr().err
    assert "refused: 400: " in told
    assert f"8 responses in {output}, 7 of them with errors" in told


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999", "9" * 5000, '"\\ud800"'])
def test_a_body_that_no_json_can_hold_ends_no_run(
    number: str, server: LiveServer, tmp_path: Path
) -> None:
    line = json.dumps(request("odd", "completions", model="news", prompt="a", top_p="?"))
    requests: Requests = [line.replace('"?"', number), GOOD[0]]
    source, output = write(tmp_path / "in.jsonl", requests), tmp_path / "out.jsonl"
    assert main([str(source), "-o", str(output), "--url", server.url]) == 3
    found = responses(output)
    assert found["completion"]["response"]["status_code"] == 200
    (odd,) = [line for name, line in found.items() if name != "completion"]
    assert odd["response"] is None
    assert odd["error"]["code"] == "invalid_request"
    assert odd["error"]["message"].startswith(f"{source}:1: ")


def test_a_run_goes_on_with_what_has_no_line(server: LiveServer, tmp_path: Path) -> None:
    source, output = write(tmp_path / "in.jsonl", [BAD[0], *GOOD]), tmp_path / "out.jsonl"
    arguments = [str(source), "-o", str(output), "--url", server.url]
    assert main(arguments) == 3
    lines = output.read_bytes().splitlines(keepends=True)
    output.write_bytes(lines[0] + lines[1] + lines[2][: len(lines[2]) // 2])
    main(arguments)
    again = output.read_bytes().splitlines(keepends=True)
    assert again[:2] == lines[:2]
    assert {json.loads(line)["custom_id"] for line in again} == {
        None,
        *(r["custom_id"] for r in GOOD),
    }
    assert len(again) == len(lines)
    assert main(arguments) == 3  # nothing is left to do, and one answer is an error still
    assert output.read_bytes() == b"".join(again)
    assert main([*arguments, "--overwrite"]) == 3
    assert len(output.read_bytes().splitlines()) == len(lines)


def test_the_first_of_two_equal_ids_is_answered_after_a_crash(
    server: LiveServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = write(tmp_path / "in.jsonl", BAD[-2:]), tmp_path / "out.jsonl"
    arguments = [str(source), "-o", str(output), "--url", server.url]
    assert main(arguments) == 3
    refusal = next(line for line in output.read_text("utf-8").splitlines() if "is there" in line)
    output.write_text(f"{refusal}\n", "utf-8")
    assert main(arguments) == 3
    lines = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    assert [line["error"] is None for line in lines] == [False, True]
    assert f"2 responses in {output}" in capsys.readouterr().err


def test_files_that_are_something_else(tmp_path: Path) -> None:
    source, output = write(tmp_path / "in.jsonl", [*GOOD]), tmp_path / "out.jsonl"
    output.write_text("a,b\n1,2\n", "utf-8")
    with pytest.raises(ConfigError, match="no file of responses; --overwrite"):
        main([str(source), "-o", str(output)])
    assert output.read_text("utf-8") == "a,b\n1,2\n"
    with pytest.raises(ConfigError, match="is the input"):
        main([str(source), "-o", str(source), "--overwrite"])
    with pytest.raises(ConfigError, match="No such file"):
        main([str(tmp_path / "none.jsonl"), "-o", str(tmp_path / "new.jsonl")])
    with pytest.raises(ConfigError, match="--threads is for the engine here"):
        main([str(source), "-o", str(tmp_path / "new.jsonl"), "--url", "x", "--threads", "1"])


@pytest.mark.parametrize(
    ("source", "flags"),
    [
        ("none.jsonl", []),
        ("in.jsonl", ["--url", "http://127.0.0.1:9"]),
        ("in.jsonl", ["--model", "/no/such/base"]),
    ],
)
def test_an_output_is_replaced_only_by_another(
    source: str, flags: list[str], server: LiveServer, tmp_path: Path
) -> None:
    write(tmp_path / "in.jsonl", GOOD[:1])
    empty, output = tmp_path / "empty.jsonl", tmp_path / "out.jsonl"
    output.write_text("precious", "utf-8")
    arguments = ["-o", str(output), "--overwrite"]
    with pytest.raises(FinLoRAError):
        main([str(tmp_path / source), *arguments, *flags])
    assert output.read_text("utf-8") == "precious"
    empty.touch()
    assert main([str(empty), *arguments, "--url", server.url]) == 0
    assert output.read_bytes() == b""


def test_a_pipe_is_an_input_too(
    server: LiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finlora.batch.run.SECONDS_BETWEEN_WRITES", -1.0)  # shows how far it is
    content = write(tmp_path / "in.jsonl", [*GOOD]).read_bytes()
    output = tmp_path / "out.jsonl"
    reading, writing = os.pipe()  # as of a shell's <(command)
    try:
        os.write(writing, content)
        os.close(writing)
        assert main([f"/dev/fd/{reading}", "-o", str(output), "--url", server.url]) == 0
    finally:
        os.close(reading)
    assert len(responses(output)) == len(GOOD)


def test_a_server_that_is_gone_is_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, output = write(tmp_path / "in.jsonl", [*GOOD]), tmp_path / "out.jsonl"
    with pytest.raises(RemoteError, match="does not answer"):
        main([str(source), "-o", str(output), "--url", "http://127.0.0.1:9"])
    assert output.read_bytes() == b""
    gc.collect()
    assert not caplog.records  # asyncio tells of errors that nobody looked at


def test_a_key_in_the_environment_does_not_lock_the_process_out(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINLORA_API_KEY", "secret")
    source, output = write(tmp_path / "in.jsonl", GOOD[:1]), tmp_path / "out.jsonl"
    assert main([str(source), "-o", str(output), *world.flags]) == 0
