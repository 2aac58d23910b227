from dataclasses import replace

from finlora.datasets.rows import Row
from finlora.evaluation.tweet_labels import SWAPPED, are_swapped, corrected
from finlora.prompts import sentiment_template

TEMPLATE = sentiment_template("tweet", ("negative", "neutral", "positive"))


def tweets() -> list[Row]:
    """As many of each kind, and with good news as often, as in the official rows."""
    texts = {
        "positive": ["$AB jumps on results", "CD upgraded to buy", "EF opens a plant", "GH wins"],
        "neutral": [f"Agenda of day {i}" for i in range(9)] + ["IJ raises a question"],
        "negative": ["KL misses", "MN warns"],
    }
    return [
        Row(TEMPLATE.render(f"{text} #{i}"), label)
        for i in range(12)
        for label, found in texts.items()
        for text in found
    ]


def swapped(rows: list[Row]) -> list[Row]:
    return [replace(row, target=SWAPPED.get(row.target, row.target)) for row in rows]


def test_official_labels_stay() -> None:
    rows, note = corrected(tweets())
    assert rows == tweets()
    assert note is None


def test_swapped_labels_are_put_right_and_told() -> None:
    rows, note = corrected(swapped(tweets()))
    assert rows == tweets()
    assert note is not None
    assert "168 of 192 rows" in note


def test_a_few_rows_prove_nothing() -> None:
    assert not are_swapped(swapped(tweets())[:16])
