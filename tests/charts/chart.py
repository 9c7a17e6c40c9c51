"""The Helm chart, rendered by Helm's own library as for each kind of cluster; `python -m tests.charts.chart kind` prints it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

import helm_python
import yaml

CHART: Final = Path(__file__).resolve().parents[2] / "charts" / "healthmed"
RELEASE: Final = "healthmed"
CLUSTERS: Final = ("aws", "small", "kind")

# What the infrastructure would answer, in the form that it has.
OUTPUTS: Final = {
    "ImageRepository": "123456789012.dkr.ecr.sa-east-1.amazonaws.com/healthmed",
    "PublicHost": "agenda.example.org",
    "Region": "sa-east-1",
    "SecretName": "arn:aws:secretsmanager:sa-east-1:123456789012:secret:healthmed-a1b2c3",
    "SecretsRoleArn": "arn:aws:iam::123456789012:role/healthmed-secrets",
    "CertificateArn": "arn:aws:acm:sa-east-1:123456789012:certificate/0a1b2c3d",
    "FirewallArn": "arn:aws:wafv2:sa-east-1:123456789012:regional/webacl/healthmed/0a1b2c3d",
    "PublicSubnetCidrs": "10.0.0.0/24, 10.0.1.0/24",
    "DatabaseSubnetCidrs": "10.0.20.0/24, 10.0.21.0/24",
}

Manifest = dict[str, Any]


def values(cluster: str) -> Manifest:
    """A values file as it stands, but for the places that the outputs of the infrastructure fill."""
    text = (CHART / f"values-{cluster}.yaml").read_text()
    for name, output in OUTPUTS.items():
        text = text.replace(f"<{name}>", output)
    return dict(yaml.safe_load(text))


def render(given: Manifest, release: str = RELEASE) -> list[Manifest]:
    """Every object that the chart makes of these values. Raises helm_python.HelmError, whose message says why not."""
    with helm_python.Chart.load(str(CHART)) as chart:
        files = chart.render(given, name=release, namespace=release)
    return [each for name, text in files.items() if not name.endswith(".txt") for each in yaml.safe_load_all(text) if each]


def notes(given: Manifest) -> str:
    """What is told to whoever installed it."""
    with helm_python.Chart.load(str(CHART)) as chart:
        files: dict[str, str] = chart.render(given, name=RELEASE, namespace=RELEASE)
    return next(text for name, text in files.items() if name.endswith("NOTES.txt"))


def pods(manifests: list[Manifest]) -> dict[str, Manifest]:
    """The pods of Deployments, StatefulSets and Jobs, by the component that they are: labels and spec."""
    workloads = (each for each in manifests if each["kind"] in ("Deployment", "StatefulSet", "Job"))
    templates = (each["spec"]["template"] for each in workloads)
    return {each["metadata"]["labels"]["app.kubernetes.io/component"]: each for each in templates}


def containers(pod: Manifest) -> list[Manifest]:
    """All containers of a pod, those that come first included."""
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


if __name__ == "__main__":
    print(yaml.safe_dump_all(render(values(sys.argv[1]))))
