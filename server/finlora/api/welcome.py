"""What a started server says: where it is, and three calls to try."""

import json
import shlex
from collections.abc import Sequence

from finlora.adapters.adapter import Adapter
from finlora.prompts import PromptTemplate

EXAMPLE_TEXT = "Operating profit rose 12 percent and the company raised its outlook."
EXAMPLE_PROMPT = (
    "Instruction: What is the sentiment of this news? Please choose an answer from "
    "{negative/neutral/positive}.\nInput: " + EXAMPLE_TEXT + "\nAnswer: "
)
MAX_NAMES = 12


def welcome(
    host: str, port: int, base: str, adapters: Sequence[Adapter], *, key: bool
) -> list[str]:
    """Lines for a person at a terminal; the calls can be pasted into a shell."""
    url = f"http://{_reachable(host)}:{port}"
    first = adapters[0] if adapters else None
    last = adapters[-1] if adapters else None
    header = ' -H "Authorization: Bearer $FINLORA_API_KEY"' if key else ""
    return [
        "",
        f"finlora serves {base} with {_listed(adapters)} at {url} (in a browser: a playground)",
        "",
        f"curl {url}/v1/models{header}",
        _completion(url, header, base, first),
        _completion(url, header, base, last, stream=True),
        "",
    ]


def _completion(
    url: str, header: str, base: str, adapter: Adapter | None, *, stream: bool = False
) -> str:
    body = {
        "model": base if adapter is None else adapter.name,
        "prompt": _prompt(adapter),
        "max_tokens": 4,
        "temperature": 0,
        **({"stream": True} if stream else {}),
    }
    return f"curl {'-N ' if stream else ''}{url}/v1/completions{header} -d {_quoted(body)}"


def _prompt(adapter: Adapter | None) -> str:
    if adapter is None or adapter.manifest.prompt_template is None:
        return EXAMPLE_PROMPT
    return PromptTemplate(adapter.manifest.prompt_template).render(EXAMPLE_TEXT)


def _quoted(body: dict[str, object]) -> str:
    return shlex.quote(json.dumps(body))


def _listed(adapters: Sequence[Adapter]) -> str:
    names = [adapter.name for adapter in adapters[:MAX_NAMES]]
    if not names:
        return "no adapters"
    more = len(adapters) - len(names)
    return ", ".join(names) + (f" and {more} more adapters" if more else "")


def _reachable(host: str) -> str:
    if host in ("0.0.0.0", "::"):
        return "localhost"
    return f"[{host}]" if ":" in host else host
