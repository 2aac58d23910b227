from pathlib import Path

import pytest

MOVES = ("fell", "rose", "held")


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few hundred different sentences."""
    file = tmp_path_factory.mktemp("text") / "sentences.txt"
    sentences = (
        f"Profit of company {i} rose by {i * 7 % 13} percent; demand {MOVES[i % 3]} in quarter "
        f"{i % 4}."
        for i in range(200)
    )
    file.write_text("\n\n".join(sentences), "utf-8")
    return file
