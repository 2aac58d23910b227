"""The parser of every command: wrong usage is one sentence that names the way out."""

import argparse
from typing import NoReturn

WRONG_USAGE = 2


class Parser(argparse.ArgumentParser):
    """argparse without the wall of options in front of an error."""

    def error(self, message: str) -> NoReturn:
        """End the process with the sentence."""
        self.exit(
            WRONG_USAGE, f"{self.prog}: {message}; `{self.prog} --help` shows what there is\n"
        )
