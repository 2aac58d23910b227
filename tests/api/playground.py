"""What a visitor does on the playground, and what the API says to the same."""

import json
from typing import Any

import httpx

from tests.api.browser import Page

TEXTS = ["The bank raised its outlook", 'Shares "fell", <b>sharply</b>']
TEMPLATE = "News: {input}\nAnswer: "  # of `news`, lent to the models that have none
LABELS = ["negative", "positive"]
PROBABILITIES = ["probability_negative", "probability_positive"]


def choose(page: Page, *names: str) -> None:
    page.run(
        "for (const item of document.querySelectorAll('#models li')) {"
        f" const box = item.querySelector('input'); const wanted = {json.dumps(names)};"
        " if (box.checked !== wanted.includes(item.dataset.model)) box.click(); }"
    )


def classify(page: Page, texts: list[str]) -> None:
    page.run("document.querySelector('#texts').value = ''")
    page.click("#texts")
    page.type("\n".join(texts))
    page.press("Enter", "Control")


def wait_until_done(page: Page) -> None:
    page.wait("document.querySelector('#stop').disabled")


def written_by(http: httpx.Client, model: str, text: str) -> str:
    body = {"model": model, "prompt": TEMPLATE.replace("{input}", text), "max_tokens": 12}
    answer = http.post("/v1/completions", json=body | {"temperature": 0})
    return str(answer.json()["choices"][0]["text"])


def probabilities_by(http: httpx.Client, model: str, text: str) -> dict[str, float]:
    body = {"model": model, "input": text, "labels": LABELS, "template": TEMPLATE}
    answer = http.post("/v1/classify", json=body | {"return_probabilities": True})
    found: dict[str, float] = answer.json()["data"][0]["probabilities"]
    return found


def shown(page: Page, row: int, column: int) -> dict[str, Any]:
    found: dict[str, Any] = page.run(f"""(() => {{
        const cell = document.querySelectorAll('.compare tbody tr')[{row}].cells[{column} + 1];
        const texts = (s) => [...cell.querySelectorAll(s)].map((node) => node.textContent);
        return {{
            labels: texts('.bars .name'), values: texts('.bars .value').map(Number),
            top: texts('.chip')[0], says: texts('.says')[0],
        }};
    }})()""")
    return found
