"""The facts of one context of an XBRL filing, short enough for a prompt."""

import re
import xml.etree.ElementTree as ET
from functools import lru_cache
from pathlib import Path

from finlora.errors import ConfigError

MAX_VALUE_CHARS = 100
US_GAAP = "us-gaap"


def filing_facts(file: Path, context_id: str) -> str:
    """`<us-gaap:Name>value</>` for every short US GAAP fact of a context, without spaces."""
    facts = []
    for element in _filing(file).iter():
        if element.get("contextRef") != context_id or US_GAAP not in element.tag:
            continue
        name = element.tag.rpartition("}")[2]
        value = (element.text or "")[:MAX_VALUE_CHARS]
        if "TextBlock" in name or "style=" in value:
            continue
        facts.append(f"<{US_GAAP}:{name}>{value}</>")
    return re.sub(r"\s+", "", "".join(facts))


@lru_cache(maxsize=4)
def _filing(file: Path) -> ET.Element:
    # Inline filings are listed under a name that their extracted instance does not have.
    found = next((f for f in (file, Path(str(file).replace("_htm", ""))) if f.is_file()), None)
    if found is None:
        raise ConfigError(f"there is no filing {file}")
    try:
        return ET.parse(found).getroot()
    except ET.ParseError as error:
        raise ConfigError(f"{found} is not XML: {error}") from error
