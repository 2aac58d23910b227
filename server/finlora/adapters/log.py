"""log.jsonl of a registry: who changed what, and when. Appended under the registry's lock."""

import getpass
import json
import os
import socket
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from finlora.adapters.files import append_line

LOG_FILE = "log.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One line of the log."""

    time: str
    who: str
    action: str
    name: str
    variant: str | None = None
    digest: str | None = None
    detail: str | None = None


class ChangeLog:
    """Appends to and reads the log of one registry."""

    def __init__(self, root: Path, who: str | None = None) -> None:
        self.path = root / LOG_FILE
        self._who = who

    def append(
        self,
        action: str,
        name: str,
        *,
        variant: str | None = None,
        digest: str | None = None,
        detail: str | None = None,
    ) -> None:
        """Write one change durably."""
        change = Change(
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            who=self._who or current_user(),
            action=action,
            name=name,
            variant=variant,
            digest=digest,
            detail=detail,
        )
        facts = {key: value for key, value in asdict(change).items() if value is not None}
        append_line(self.path, json.dumps(facts).encode())

    def read(self) -> list[Change]:
        """Every change, oldest first; a line that a crash cut short is left out."""
        if not self.path.exists():
            return []
        changes = []
        for line in self.path.read_text("utf-8", "replace").splitlines():
            try:
                changes.append(Change(**json.loads(line)))
            except (ValueError, TypeError):
                continue
        return changes


def current_user() -> str:
    """user@host; the number of the user where it has no name, as in many containers."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = f"uid{os.getuid()}"
    return f"{user}@{socket.gethostname()}"
