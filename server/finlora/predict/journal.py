"""How far an output file is, beside it, so that an interrupted run goes on where it ended."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finlora.adapters.files import sync_folder
from finlora.errors import ConfigError

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Mark:
    """What of the output is durable."""

    num_rows: int = 0
    num_bad: int = 0  # of them
    num_bytes: int = 0  # of a text file
    num_parts: int = 0  # of a Parquet file


class Journal:
    """The file `<output>.progress`; it goes when the output is complete."""

    def __init__(self, output: Path) -> None:
        self._output = output
        self._path = output.with_name(f"{output.name}.progress")

    def exists(self) -> bool:
        """Whether the output was left unfinished."""
        return self._path.exists()

    def check_free(self) -> None:
        """Raises ConfigError when the output is there and was not left unfinished."""
        if self._output.exists() and not self.exists():
            raise ConfigError(f"{self._output} exists; --overwrite replaces it")

    def resume(self, task: dict[str, Any]) -> Mark:
        """Where the same task was left; the beginning when it never began.

        Raises ConfigError when the output was begun by another task.
        """
        if not self._path.exists():
            return Mark()
        try:
            known = json.loads(self._path.read_bytes())
            mark, before = Mark(**known["mark"]), dict(known["task"])
            if known["format_version"] != FORMAT_VERSION:
                raise ValueError("another format")
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{self._path} cannot be read; --overwrite begins {self._output} anew"
            ) from error
        changed = [key for key in task | before if task.get(key) != before.get(key)]
        if changed:
            raise ConfigError(
                f"{self._output} was begun with another {', '.join(changed)}; "
                "--overwrite begins it anew"
            )
        return mark

    def save(self, task: dict[str, Any], mark: Mark) -> None:
        """Note what is durable, durably."""
        aside = self._path.with_name(f"{self._path.name}.new")
        content = {"format_version": FORMAT_VERSION, "task": task, "mark": asdict(mark)}
        with aside.open("w", encoding="utf-8") as file:
            json.dump(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, self._path)
        sync_folder(self._path.parent)

    def remove(self) -> None:
        """The output is complete, or begins anew."""
        self._path.unlink(missing_ok=True)
