"""What a started server says; that its calls work is tested on the process (test_cli.py)."""

from pathlib import Path

import pytest

from finlora.adapters.adapter import Adapter, LoRAConfig, Manifest
from finlora.api.welcome import EXAMPLE_TEXT, welcome


def adapter(name: str, template: str | None = None) -> Adapter:
    manifest = Manifest(prompt_template=template)
    return Adapter(name, "4bits_r4", "0" * 64, Path(), LoRAConfig(r=4, lora_alpha=8), manifest)


def test_calls_use_the_adapters_and_their_own_prompts() -> None:
    adapters = [adapter("news", "Judge it's mood: {input} ->"), adapter("tweets")]
    text = "\n".join(welcome("127.0.0.1", 8000, "base", adapters, key=False))
    assert text.count("curl http://127.0.0.1:8000/v1/") == 2
    assert text.count("curl -N http://127.0.0.1:8000/v1/") == 1
    assert f"mood: {EXAMPLE_TEXT} ->" in text
    assert '"model": "news"' in text
    assert '"model": "tweets"' in text
    assert "Authorization" not in text


def test_without_adapters_the_base_is_called() -> None:
    text = "\n".join(welcome("127.0.0.1", 8000, "base", [], key=False))
    assert text.count('"model": "base"') == 2


def test_the_key_is_named_and_not_shown() -> None:
    text = "\n".join(welcome("127.0.0.1", 8000, "base", [], key=True))
    assert text.count("Bearer $FINLORA_API_KEY") == 3


def test_a_long_registry_is_summed_up() -> None:
    adapters = [adapter(f"a{i}") for i in range(100)]
    text = "\n".join(welcome("127.0.0.1", 8000, "base", adapters, key=False))
    assert "and 88 more adapters" in text


@pytest.mark.parametrize(
    ("host", "shown"), [("0.0.0.0", "localhost"), ("::", "localhost"), ("::1", "[::1]")]
)
def test_the_address_can_be_reached(host: str, shown: str) -> None:
    assert f"http://{shown}:80/v1/models" in welcome(host, 80, "base", [], key=False)[3]
