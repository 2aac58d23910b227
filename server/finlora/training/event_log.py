"""Everything a run tells, one JSON object a line, for whoever reads it by program."""

import json
import time
from pathlib import Path
from typing import Any


class EventLog:
    """Appends to a file, line by line. What cannot be written is given up: the run goes on."""

    def __init__(self, file: Path, *, resume: bool = False) -> None:
        self.file = file
        self._broken = False
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            if not resume:
                file.unlink(missing_ok=True)
        except OSError:
            self._broken = True

    def write(self, event: str, fields: dict[str, Any]) -> None:
        """One event; `time` is seconds since 1970."""
        if self._broken:
            return
        line = json.dumps({"event": event, "time": round(time.time(), 3), **fields}, default=str)
        try:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError:
            self._broken = True
