"""A real Chromium, driven over its DevTools pipe: no port, no driver program, no package.

Protocol: https://chromedevtools.github.io/devtools-protocol/; each message ends with a NUL byte.
"""

import base64
import itertools
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

DEADLINE_SECONDS = 60
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # CI runs as root; the pages are our own
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--hide-scrollbars",
    "--no-first-run",
    "--no-default-browser-check",
    "--remote-debugging-pipe",
)
# The pipe of commands must be the browser's descriptor 3, that of its answers 4.
LAUNCH = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
for end, number in zip(ends, (3, 4)):
    os.dup2(end, number)
os.execv(sys.argv[3], sys.argv[3:])
"""
MODIFIERS = {"Alt": 1, "Control": 2, "Meta": 4, "Shift": 8}
KEY_CODES = {"Enter": 13, "Escape": 27, "Tab": 9, " ": 32, "ArrowRight": 39, "ArrowLeft": 37}


def find_chromium() -> str | None:
    """The program, where it is installed."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((found for name in names if (found := shutil.which(name))), None)


class BrowserError(Exception):
    """The browser refused a command, or a script in the page threw."""


class Browser:
    """One process; it sends commands and keeps the events."""

    def __init__(self, program: str, profile: Path) -> None:
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-c", LAUNCH, str(to_browser), str(from_browser)),
                *(program, *FLAGS, f"--user-data-dir={profile}", "about:blank"),
            ],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._ids = itertools.count(1)
        self._answers: dict[int, queue.SimpleQueue[dict[str, Any]]] = {}
        self.events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, name="browser", daemon=True)
        self._reader.start()
        try:
            self.command("Browser.getVersion")
        except (BrowserError, OSError, queue.Empty) as error:
            self._process.kill()
            self._end()
            raise BrowserError(f"{program} cannot be driven here") from error

    def command(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """The result of one command. Raises BrowserError, queue.Empty when there is none."""
        number = next(self._ids)
        message = {"id": number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        answer = self._answers[number] = queue.SimpleQueue()
        os.write(self._out, json.dumps(message).encode() + b"\0")
        result = answer.get(timeout=DEADLINE_SECONDS)
        if "error" in result:
            raise BrowserError(f"{method}: {result['error']}")
        found: dict[str, Any] = result["result"]
        return found

    def close(self) -> None:
        """End the process."""
        self.command("Browser.close")
        self._end()

    def _end(self) -> None:
        self._process.wait(DEADLINE_SECONDS)
        self._reader.join(DEADLINE_SECONDS)
        os.close(self._out)
        os.close(self._in)

    def _read(self) -> None:
        rest = b""
        while chunk := os.read(self._in, 1 << 16):
            *messages, rest = (rest + chunk).split(b"\0")
            for message in map(json.loads, messages):
                if "id" in message:
                    self._answers.pop(message["id"]).put(message)
                else:
                    self.events.put(message)
        for answer in list(self._answers.values()):  # it is gone, and nothing is answered any more
            answer.put({"error": "the browser ended"})


class Page:
    """One tab with cookies and storage of its own."""

    def __init__(self, browser: Browser, downloads: Path) -> None:
        self._browser = browser
        self.downloads = downloads
        self._context = browser.command("Target.createBrowserContext")["browserContextId"]
        created = browser.command(
            "Target.createTarget", url="about:blank", browserContextId=self._context
        )
        attached = browser.command(
            "Target.attachToTarget", targetId=created["targetId"], flatten=True
        )
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.command(f"{domain}.enable")
        browser.command(
            "Browser.setDownloadBehavior",
            behavior="allow",
            downloadPath=str(downloads),
            browserContextId=self._context,
            eventsEnabled=True,
        )

    def command(self, method: str, **params: Any) -> dict[str, Any]:
        """A command to this tab."""
        return self._browser.command(method, self._session, **params)

    def open(self, url: str) -> Self:
        """Go there, and wait until the document is parsed."""
        self.command("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")
        return self

    def run(self, script: str) -> Any:
        """The JSON value of an expression, awaited. Raises BrowserError for what it throws."""
        result = self.command(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in result:
            raise BrowserError(result["exceptionDetails"]["exception"].get("description", result))
        return result["result"].get("value")

    def wait(self, condition: str) -> None:
        """Return once the expression is true; TimeoutError when it stays false."""
        met = self.run(
            "new Promise((resolve) => {"
            f" const end = performance.now() + {DEADLINE_SECONDS - 5} * 1000;"
            f" const look = () => {{ if ({condition}) resolve(true);"
            "  else if (performance.now() > end) resolve(false); else setTimeout(look, 20); };"
            " look(); })"
        )
        if not met:
            raise TimeoutError(f"never true: {condition}\n{self.text()}")

    def text(self, selector: str = "body") -> str:
        """What a person reads there."""
        return str(self.run(f"document.querySelector({json.dumps(selector)}).innerText"))

    def click(self, selector: str) -> None:
        """Click in the middle of an element, as a mouse does."""
        x, y = self._middle(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.command(
                "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1
            )

    def drop(self, selector: str, file: Path) -> None:
        """Drop a file from outside on an element."""
        x, y = self._middle(selector)
        dragged = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.command("Input.dispatchDragEvent", type=kind, x=x, y=y, data=dragged)

    def press(self, key: str, *modifiers: str) -> None:
        """Press and release a key."""
        mask = sum(MODIFIERS[modifier] for modifier in modifiers)
        code = f"Digit{key}" if key.isdigit() else key
        number = KEY_CODES.get(key, ord(key.upper()) if len(key) == 1 else 0)
        event = {"key": key, "code": code, "modifiers": mask, "windowsVirtualKeyCode": number}
        text = "\r" if key == "Enter" else key
        typed = {"text": text} if not mask and (len(key) == 1 or key == "Enter") else {}
        self.command("Input.dispatchKeyEvent", type="keyDown", **event, **typed)
        self.command("Input.dispatchKeyEvent", type="keyUp", **event)

    def type(self, text: str) -> None:
        """Enter text where the focus is."""
        self.command("Input.insertText", text=text)

    def show(self, width: int, height: int, *, scheme: str = "light", mobile: bool = False) -> None:
        """The size of the window, and whether people like it dark."""
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if mobile else 1,
            mobile=mobile,
        )
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.command("Emulation.setEmulatedMedia", features=[feature])

    def screenshot(self, path: Path) -> None:
        """The whole page as a PNG."""
        picture = self.command("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(picture["data"]))

    def wait_for(self, method: str) -> dict[str, Any]:
        """The parameters of the next event of this kind; earlier ones are passed over."""
        while True:
            event = self._browser.events.get(timeout=DEADLINE_SECONDS)
            if event["method"] == method:
                found: dict[str, Any] = event["params"]
                return found

    def complaints(self) -> list[str]:
        """What the console told since the last call: exceptions, violations, failed loads."""
        found = []
        while not self._browser.events.empty():
            event = self._browser.events.get()
            params = event["params"]
            match event["method"]:
                case "Log.entryAdded":
                    found.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
                case "Runtime.exceptionThrown":
                    found.append(str(params["exceptionDetails"]))
                case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning"):
                    found.append(str(params["args"]))
        return found

    def close(self) -> None:
        """Close the tab and forget its storage."""
        self._browser.command("Target.disposeBrowserContext", browserContextId=self._context)

    def _middle(self, selector: str) -> tuple[float, float]:
        box = self.run(
            f"(() => {{ const node = document.querySelector({json.dumps(selector)});"
            " node.scrollIntoView({block: 'center'});"
            " const {x, y, width, height} = node.getBoundingClientRect();"
            " return [x + width / 2, y + height / 2]; })()"
        )
        return box[0], box[1]


@contextmanager
def browsing(program: str, profile: Path) -> Iterator[Browser]:
    """A browser that is ended in the end. Raises BrowserError when it does not start."""
    browser = Browser(program, profile)
    try:
        yield browser
    finally:
        browser.close()
