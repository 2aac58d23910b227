"""A completions server that writes down what it is asked; `python recording_server.py PORT FILE`.

It refuses `guided_choice`, as a server does that does not know the field. With END_AFTER_REQUESTS
in its environment it ends so.
"""

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any

END_CODE = 3
METRICS = """# TYPE finlora_adapter_load_seconds histogram
finlora_adapter_load_seconds_bucket{le="+Inf",tier="ram"} 2
finlora_adapter_load_seconds_count{tier="ram"} 2
finlora_adapter_load_seconds_sum{tier="ram"} 0.5
"""


class Handler(BaseHTTPRequestHandler):
    """Answers with as many tokens as were asked for; one prompt token in four was cached."""

    protocol_version = "HTTP/1.1"
    record = Path("requests.jsonl")
    numbers = count(1)
    last: int | None = None  # the number of the request that ends the server

    def do_GET(self) -> None:
        self._answer(200, METRICS.encode() if self.path == "/metrics" else b"{}")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if "guided_choice" in body:
            self._answer(400, b'{"error": "unknown field: guided_choice"}')
            return
        if next(self.numbers) == self.last:
            os._exit(END_CODE)
        with self.record.open("a") as file:
            file.write(json.dumps(body) + "\n")
        usage = {
            "prompt_tokens": 8,
            "completion_tokens": body["max_tokens"],
            "prompt_tokens_details": {"cached_tokens": 2},
        }
        self._answer(200, json.dumps({"choices": [{"text": "x"}], "usage": usage}).encode())

    def log_message(self, *_: Any) -> None:
        """Nothing."""

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    Handler.record = Path(sys.argv[2])
    if "END_AFTER_REQUESTS" in os.environ:
        Handler.last = int(os.environ["END_AFTER_REQUESTS"])
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
