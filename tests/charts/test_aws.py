"""What AWS provides and what the chart asks for are the same things."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

TEMPLATE = Path("charts/aws/healthmed.yaml")
VALUES = Path("charts/healthmed/values-aws.yaml")


class Loader(yaml.SafeLoader):
    """Reads CloudFormation's own tags as what stands behind them."""


def _plain(loader: Loader, _: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return loader.construct_scalar(node)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return loader.construct_mapping(node, deep=True)


Loader.add_multi_constructor("!", _plain)


def template() -> dict[str, Any]:
    return dict(yaml.load(TEMPLATE.read_text(), Loader))


def test_every_blank_of_the_values_is_an_output_of_the_stack() -> None:
    blanks = set(re.findall(r"<(\w+)>", VALUES.read_text()))
    assert blanks
    assert blanks <= template()["Outputs"].keys()


def test_the_secret_holds_what_the_chart_gives_its_pods() -> None:
    held = json.loads(re.sub(r"\{\{.*?\}\}", "x", template()["Resources"]["Secrets"]["Properties"]["SecretString"][0]))
    made = set(re.findall(r"^(\w+)=", Path("charts/healthmed/secrets.sh").read_text(), re.MULTILINE))
    servers = {name for name in made if name.endswith("_PASSWORD")}  # of the chart's own, which AWS stands in for
    assert held.keys() >= {name for name in made - servers if name.isupper()}
    assert held["DATABASE_URL"].endswith("sslrootcert=/etc/healthmed/ca/database.pem") or "${Tls}" in held["DATABASE_URL"]


def test_the_cache_has_no_failover_and_the_broker_has() -> None:
    resources = template()["Resources"]
    broker, cache = (resources[name]["Properties"] for name in ("Broker", "Cache"))
    assert (cache["NumCacheClusters"], cache["AutomaticFailoverEnabled"], cache["MultiAZEnabled"]) == (1, False, False)
    assert (broker["NumCacheClusters"], broker["AutomaticFailoverEnabled"], broker["MultiAZEnabled"]) == (2, True, True)
    assert resources["BrokerSettings"]["Properties"]["Properties"] == {"maxmemory-policy": "noeviction"}
    assert resources["CacheSettings"]["Properties"]["Properties"] == {"maxmemory-policy": "allkeys-lru"}


def test_what_can_not_be_made_again_outlives_the_stack() -> None:
    kept = {name for name, each in template()["Resources"].items() if each.get("DeletionPolicy") in ("Retain", "Snapshot")}
    assert kept >= {"Key", "DataKey", "HashKey", "Secrets", "Database", "Vault", "ContainerLogs"}


def test_no_password_stands_in_the_template() -> None:
    text = TEMPLATE.read_text()
    assert not re.search(r"(?i)(password|authtoken|secretstring): *[\"']?[^!\s{\"'>|-]", text.replace("PasswordLength", ""))
