"""What the compose file promises: pinned images, health checks, nothing open to other machines."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

FILE = Path(__file__).parents[2] / "deploy" / "compose.yaml"
COMPOSE: dict[str, Any] = yaml.safe_load(FILE.read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]

each_service = pytest.mark.parametrize("name", SERVICES)


@each_service
def test_an_image_of_others_is_pinned(name: str) -> None:
    service = SERVICES[name]
    assert "build" in service or re.search(r":v?\d+\.\d+\.\d+$", service["image"])


@each_service
def test_a_service_is_watched_and_comes_back(name: str) -> None:
    assert SERVICES[name]["healthcheck"]["test"][0] == "CMD"
    assert SERVICES[name]["restart"] == "unless-stopped"


@each_service
def test_ports_are_open_to_this_machine_only(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name]["ports"])


@each_service
def test_volumes_are_declared_and_files_exist(name: str) -> None:
    for volume in SERVICES[name]["volumes"]:
        source = volume.split(":")[0]
        if source.startswith("."):
            assert (FILE.parent / source).exists()
            assert volume.endswith(":ro")
        else:
            assert source in COMPOSE["volumes"]


def test_services_find_each_other_by_name() -> None:
    scrape = yaml.safe_load((FILE.parent / "prometheus" / "prometheus.yml").read_text("utf-8"))
    (target,) = scrape["scrape_configs"][0]["static_configs"][0]["targets"]
    assert target.split(":")[0] in SERVICES
    sources = FILE.parent / "grafana" / "provisioning" / "datasources" / "prometheus.yml"
    assert "http://prometheus:9090" in sources.read_text("utf-8")
    assert "prometheus" in SERVICES
