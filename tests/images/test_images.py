"""What the image installs, what the chart and docker-compose.yml tell its processes, and what they open to the world."""

from __future__ import annotations

import configparser
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from api.app import create_app
from domain.settings import Settings, load

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "healthmed"
OF_THE_CHART = {"API_WORKERS", "FLOWER", "HEARTBEAT_FILE", "METRICS_PORT"}  # what templates/ set, each for its process
OF_A_MACHINE = {"BOOKING_WORKERS", "LOCAL_STACK", "PORT"}
SECRET = {
    "DATABASE_URL",
    "DATABASE_REPLICA_URL",
    "DATABASE_MIGRATION_URL",
    "BROKER_URL",
    "CACHE_URL",
    "JWT_KEYS",
    "DATA_KEYS",
    "HASH_KEY",
    "FLOWER_BASIC_AUTH",
}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "docker-compose.yml").read_text()))


@pytest.fixture(scope="module")
def secrets() -> dict[str, str]:
    printed = subprocess.run(["sh", CHART / "secrets.sh", ""], capture_output=True, text=True, check=True, timeout=30).stdout
    return dict(line.split("=", 1) for line in printed.splitlines())


def locked(file: str) -> dict[str, tuple[str, frozenset[str]]]:
    """Each package of a lock: its version, and the hashes that it may have."""
    entries = re.split(r"\n(?=[a-z0-9])", (ROOT / file).read_text(), flags=re.IGNORECASE)
    found = (re.match(r"([\w.-]+)(?:\[[\w,-]+\])?==(\S+)", entry) for entry in entries)
    hashes = (frozenset(re.findall(r"sha256:[0-9a-f]{64}", entry)) for entry in entries)
    return {name[1]: (name[2], these) for name, these in zip(found, hashes, strict=True) if name}


def test_the_image_installs_what_was_tested_and_nothing_that_tests() -> None:
    image, tested = locked(".ci/image.lock"), locked("requirements.lock")
    assert image.items() <= tested.items()
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = {
        re.match(r"[\w.-]+", line)[0].lower()
        for block in config["options.extras_require"].values()
        for line in block.split("\n")
        if line
    }  # type: ignore[index]
    assert not extras & image.keys()
    for line in filter(None, config["options"]["install_requires"].split("\n")):
        name = re.match(r"[\w.-]+", line)
        assert name and re.sub(r"[-_.]+", "-", name[0]).lower() in image


def test_the_image_runs_as_nobody_in_particular() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert re.search(r"^USER 10001:10001$", dockerfile, flags=re.MULTILINE)
    assert dockerfile.rstrip().endswith("FROM healthmed"), "what is built by default holds no demonstration"
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored and not {"!tests", "!.git"} & set(ignored)


def test_new_secrets_satisfy_the_settings_and_are_never_the_same(secrets: dict[str, str]) -> None:
    settings = load({**secrets, "FLOWER": "on"})
    assert not settings.local_stack
    assert secrets.keys() >= SECRET
    again = subprocess.run(["sh", CHART / "secrets.sh", ""], capture_output=True, text=True, check=True, timeout=30).stdout
    assert not set(secrets.values()) & set(again.replace("\n", "=").split("="))


def test_the_chart_takes_every_setting_and_no_other() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    taken = schema["properties"]["settings"]["properties"].keys()
    source = (ROOT / "domain" / "settings.py").read_text()
    known = set(re.findall(r'read\.(?!wrong|strong)\w+\(\s*"([A-Z_]+)"', source))
    assert taken == known - SECRET - OF_THE_CHART - OF_A_MACHINE


@pytest.mark.parametrize("cluster", ["kind", "small"])
def test_the_settings_of_a_values_file_are_sound(cluster: str, secrets: dict[str, str]) -> None:
    both = [yaml.safe_load((CHART / name).read_text())["settings"] for name in ("values.yaml", f"values-{cluster}.yaml")]
    load({**secrets, **both[0], **both[1]})


def test_the_settings_of_the_containers_are_sound(compose: dict[str, Any], secrets: dict[str, str]) -> None:
    given = {name: re.sub(r"\$\{\w+:-(\w+)\}", r"\1", value) for name, value in compose["x-settings"].items()}
    settings = load({**secrets, **given})
    assert settings.proxy_hops == 1
    assert not settings.local_stack


def test_every_route_but_the_operators_own_is_where_the_load_balancers_lead(settings: Settings) -> None:
    app = create_app(settings)
    app.extensions["healthmed"].close()
    outside = {rule.rule for rule in app.url_map.iter_rules() if not rule.rule.startswith("/api/")}
    assert outside == {"/healthz", "/readyz", "/metrics"}
    assert (
        "http-request return status 404 unless { path_beg /api/ } || { path /healthz }"
        in (ROOT / "local" / "compose" / "haproxy.cfg").read_text()
    )


def test_containers_are_published_on_this_machine_only(compose: dict[str, Any]) -> None:
    published = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert len(published) >= 5
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_no_password_stands_in_the_file() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    assert not re.search(r"(PASSWORD|AUTH|KEYS?|SECRET)\w*[:=]\s*\S+", re.sub(r"GF_\w+: .*", "", text))


def test_the_system_in_containers_is_whole_and_confined(compose: dict[str, Any]) -> None:
    services = compose["services"]
    ours = {"api-1", "api-2", "booking", "notifications", "relay", "flower", "migration"}
    assert services.keys() >= ours | {"postgres", "replica", "broker", "cache", "mail", "balancer", "prometheus", "grafana"}
    assert len({services[name]["image"] for name in ours}) == 1
    for name in ours:
        assert services[name]["read_only"] is True
        assert services[name]["cap_drop"] == ["ALL"]
        assert services[name]["security_opt"] == ["no-new-privileges:true"]
        needed = services[name].get("depends_on", {})
        assert name == "migration" or needed["migration"] == {"condition": "service_completed_successfully"}
    assert services["migration"]["depends_on"]["postgres"] == {"condition": "service_healthy"}


def test_the_chart_and_the_containers_are_of_the_same_servers(compose: dict[str, Any]) -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    for name in ("postgres", "broker", "cache"):
        assert values[name]["image"] == compose["services"][name]["image"]
    assert values["demonstration"]["mailImage"] == compose["services"]["mail"]["image"]
