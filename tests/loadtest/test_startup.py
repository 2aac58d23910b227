from prometheus_client import CollectorRegistry, Gauge, generate_latest

from loadtest.peers.startup import memory_parts


def test_memory_is_read_by_part_from_the_exposition() -> None:
    registry = CollectorRegistry()
    gauge = Gauge("finlora_memory_bytes", "Bytes held", ["part"], registry=registry)
    gauge.labels("kv_cache").set(2**30)
    gauge.labels("base_quantized").set(58_000_000)
    Gauge("finlora_requests_running", "Others", registry=registry).set(3)
    parts = memory_parts(generate_latest(registry).decode())
    assert parts == {"kv_cache": 2**30, "base_quantized": 58_000_000}
