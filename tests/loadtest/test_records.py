import json
import math

import pytest

from loadtest.records import to_json


def test_what_json_has_no_word_for_is_null() -> None:
    record = {"a": [1, math.nan, (math.inf, 2.5)], "b": {"c": -math.inf, "d": "nan"}, "e": True}
    read = json.loads(to_json(record), parse_constant=pytest.fail)
    assert read == {"a": [1, None, [None, 2.5]], "b": {"c": None, "d": "nan"}, "e": True}
    assert to_json(record, indent=1).endswith("\n}\n")
