"""What the server itself counted: two scrapes of /metrics and the growth between them."""

from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Scrape:
    """Every sample of an exposition."""

    samples: Mapping[tuple[str, Labels], float]

    def total(self, name: str, **labels: str) -> float:
        """Sum over the samples of that name that carry the labels; 0 without any."""
        wanted = frozenset(labels.items())
        return sum(v for (n, have), v in self.samples.items() if n == name and wanted <= have)

    def limit(self, setting: str) -> int | None:
        """A setting of the server; None: it does not tell."""
        value = self.samples.get(("finlora_limit", frozenset({("setting", setting)})))
        return None if value is None else int(value)

    def facts(self) -> dict[str, dict[str, str]]:
        """What it says of itself: versions, its base, the settings that bound its work."""
        infos = {"build": "finlora_build_info", "model": "finlora_model_info"}
        found = {
            what: dict(labels)
            for what, name in infos.items()
            for (series, labels) in self.samples
            if series == name
        }
        limits = {
            dict(labels)["setting"]: f"{value:g}"
            for (series, labels), value in self.samples.items()
            if series == "finlora_limit"
        }
        return {**found, "limits": limits}


def scrape(exposition: str) -> Scrape:
    """Read the text format."""
    families = text_string_to_metric_families(exposition)
    samples = (sample for family in families for sample in family.samples)
    return Scrape({(s.name, frozenset(s.labels.items())): s.value for s in samples})


@dataclass(frozen=True, slots=True)
class ServerGrowth:
    """What a server did between two scrapes; all traffic counts, whoever sent it."""

    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    loads_into_ram: int
    loads_into_slots: int
    evictions_from_slots: int
    load_failures: int
    preemptions: int
    rejections: int
    cpu_seconds: float
    resident_bytes_before: int
    resident_bytes_after: int

    @property
    def hit_rate(self) -> float | None:
        """Share of the prompt tokens that came from the prefix cache; None: there were none."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else None


def growth(before: Scrape, after: Scrape) -> ServerGrowth:
    """The difference of two scrapes of one process."""

    def grown(name: str, **labels: str) -> int:
        return round(after.total(name, **labels) - before.total(name, **labels))

    cpu = "process_cpu_seconds_total"
    return ServerGrowth(
        prompt_tokens=grown("finlora_prompt_tokens_total"),
        cached_tokens=grown("finlora_prompt_tokens_cached_total"),
        output_tokens=grown("finlora_output_tokens_total"),
        loads_into_ram=grown("finlora_adapter_loads_total", tier="ram"),
        loads_into_slots=grown("finlora_adapter_loads_total", tier="slot"),
        evictions_from_slots=grown("finlora_adapter_evictions_total", tier="slot"),
        load_failures=grown("finlora_adapter_load_failures_total"),
        preemptions=grown("finlora_preemptions_total"),
        rejections=grown("finlora_requests_rejected_total"),
        cpu_seconds=after.total(cpu) - before.total(cpu),
        resident_bytes_before=round(before.total("process_resident_memory_bytes")),
        resident_bytes_after=round(after.total("process_resident_memory_bytes")),
    )
