"""`make chart-lint`: what the chart makes of each values file is what the design asks for, and what it can't mean is refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import yaml

from tests.charts.chart import CHART, CLUSTERS, RELEASE, Manifest, containers, notes, pods, render, values

ROOT = CHART.parents[1]
OURS = {"api", "booking", "notifications", "relay", "flower"}
KUBERNETES = ("1.29", "1.37")
NOT_KUBERNETES_OWN = {
    "ScaledObject",
    "ExternalSecret",
    "SecretStore",
    "PodMonitor",
    "PrometheusRule",
}  # it has no schemas for these
SECRET = re.compile(r"PASSWORD|_URL$|_KEYS?$|_AUTH$|SECRET|TOKEN")
SEEN_BY_ALL = {"PUBLIC_URL", "SMTP_URL"}
ACCEPTED = {
    "CKV_K8S_9": "workers and the relay answer nobody, so there is nothing that they could be ready for",
    "CKV_K8S_15": "deployments name digests or versions; Always would keep pods from starting while the registry is away",
    "CKV_K8S_35": "settings come from the environment (domain/settings.py); the pods mount no other way to read them",
    "CKV_K8S_40": "999 is the user of the official images of PostgreSQL and Valkey, to whom their folders belong",
    "CKV_K8S_43": "the pipeline deploys by digest (image.digest); a values file can't know it",
}


@pytest.fixture(scope="module", params=CLUSTERS)
def cluster(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def manifests(cluster: str) -> list[Manifest]:
    return render(values(cluster))


def of_kind(manifests: list[Manifest], kind: str) -> dict[str, Manifest]:
    return {each["metadata"]["name"].removeprefix(f"{RELEASE}-"): each for each in manifests if each["kind"] == kind}


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_knows_every_field(manifests: list[Manifest], version: str) -> None:
    for each in manifests:
        if each["kind"] not in NOT_KUBERNETES_OWN:
            kubernetes_validate.validate(each, version, strict=True)


def test_a_misspelt_field_would_be_found(manifests: list[Manifest]) -> None:
    broken = deepcopy(of_kind(manifests, "Deployment")["api"])
    broken["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, KUBERNETES[0], strict=True)


def test_checkov_finds_nothing_but_what_is_accepted(cluster: str, manifests: list[Manifest], tmp_path: Path) -> None:
    file = tmp_path / "rendered.yaml"
    file.write_text(yaml.safe_dump_all(manifests))
    checkov = [Path(sys.executable).with_name("checkov"), "--framework", "kubernetes", "--compact", "--quiet", "--skip-download"]
    ended = subprocess.run(
        [*checkov, "--output", "json", "--file", file], capture_output=True, text=True, check=False, timeout=240
    )
    found = json.loads(ended.stdout)
    assert found["summary"]["parsing_errors"] == 0
    assert found["summary"]["passed"] > 400
    failed = {f"{each['check_id']} {each['check_name']}: {each['resource']}" for each in found["results"]["failed_checks"]}
    assert {each for each in failed if each.split()[0] not in ACCEPTED} == set()


def test_every_process_of_the_design_is_a_deployment_of_its_own(manifests: list[Manifest]) -> None:
    deployments = of_kind(manifests, "Deployment")
    assert set(deployments) >= OURS
    run = {name: " ".join(deployments[name]["spec"]["template"]["spec"]["containers"][0]["command"]) for name in OURS}
    assert run["api"] == "gunicorn -c api/gunicorn.conf.py api.wsgi:app"
    for queue in ("booking", "notifications"):
        assert f"-Q {queue} " in run[queue]
        assert "-P prefork" in run[queue]
    assert run["relay"] == "python -m workers.relay"
    assert run["flower"].startswith("python -m workers.flower ")


def test_one_image_runs_everything_of_ours(manifests: list[Manifest]) -> None:
    every = pods(manifests)
    images = {container["image"] for name in (*OURS, "migration") for container in containers(every[name])}
    assert len(images) == 1
    for pod in every.values():
        for container in containers(pod):
            assert re.search(r":(?!latest$)[\w.-]+$|@sha256:", container["image"]), container["image"]


def test_every_container_is_confined(manifests: list[Manifest]) -> None:
    for name, pod in pods(manifests).items():
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["serviceAccountName"] not in ("", "default")
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        assert {next(iter(each.keys() - {"name"})) for each in spec["volumes"]} <= {"emptyDir", "configMap"}
        for container in containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name
            assert container["resources"]["limits"].keys() == container["resources"]["requests"].keys() == {"cpu", "memory"}


def test_service_accounts_exist_and_hold_no_token(manifests: list[Manifest]) -> None:
    accounts = {each["metadata"]["name"]: each for each in manifests if each["kind"] == "ServiceAccount"}
    assert {pod["spec"]["serviceAccountName"] for pod in pods(manifests).values()} <= accounts.keys()
    assert all(each["automountServiceAccountToken"] is False for each in accounts.values())
    assert not {"Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"} & {each["kind"] for each in manifests}


def test_nothing_secret_stands_in_a_manifest(manifests: list[Manifest]) -> None:
    assert "Secret" not in {each["kind"] for each in manifests}
    for each in of_kind(manifests, "ConfigMap").values():
        assert not {name for name in each["data"] if SECRET.search(name)} - SEEN_BY_ALL
    for pod in pods(manifests).values():
        for container in containers(pod):
            for variable in container.get("env", []):
                assert ("valueFrom" in variable) == bool(SECRET.search(variable["name"])), variable["name"]


def test_each_process_is_given_the_secrets_that_it_needs(manifests: list[Manifest]) -> None:
    holders: dict[str, set[str]] = {}
    for name, pod in pods(manifests).items():
        for container in containers(pod):
            for variable in container.get("env", []):
                if "valueFrom" in variable:
                    holders.setdefault(variable["name"], set()).add(name)
    assert holders["DATABASE_MIGRATION_URL"] == {"migration"}
    assert holders["FLOWER_BASIC_AUTH"] == {"flower"}
    assert holders.get("SMTP_URL", set()) <= {"notifications"}
    assert holders.get("DATABASE_REPLICA_URL", set()) <= {"api"}
    assert all(holders.get(name, set()) <= {"postgres"} for name in ("POSTGRES_PASSWORD", "OWNER_PASSWORD", "APP_PASSWORD"))


def test_no_process_is_killed_for_what_it_depends_on(manifests: list[Manifest]) -> None:
    for name, pod in pods(manifests).items():
        if pod["spec"].get("restartPolicy") == "OnFailure":
            continue
        container = pod["spec"]["containers"][0]
        probe = container["livenessProbe"]
        if name == "api":
            assert probe["httpGet"]["path"] == "/healthz"
        elif name in ("booking", "notifications", "relay"):
            heartbeat = next(each["value"] for each in container["env"] if each["name"] == "HEARTBEAT_FILE")
            assert heartbeat in probe["exec"]["command"][-1]
        else:
            assert "tcpSocket" in probe
        assert probe.get("failureThreshold", 3) >= 3


def test_readiness_leaves_time_for_a_frozen_database(manifests: list[Manifest]) -> None:
    probe = pods(manifests)["api"]["spec"]["containers"][0]["readinessProbe"]
    assert probe["httpGet"]["path"] in ("/readyz", "/healthz")
    assert probe["timeoutSeconds"] > 5


def test_every_process_may_finish_what_it_has_begun(manifests: list[Manifest]) -> None:
    every = pods(manifests)
    api = every["api"]["spec"]
    graceful = re.search(r"^graceful_timeout = (\d+)", (ROOT / "api" / "gunicorn.conf.py").read_text(), flags=re.MULTILINE)
    hard = re.search(r'"task_time_limit": (\d+)', (ROOT / "workers" / "app.py").read_text())
    assert graceful and hard
    pause = int(api["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert api["terminationGracePeriodSeconds"] > pause + int(graceful[1])
    for name in ("booking", "notifications"):
        assert every[name]["spec"]["terminationGracePeriodSeconds"] > int(hard[1])


def test_nothing_starts_before_the_schema_is_there(manifests: list[Manifest]) -> None:
    every = pods(manifests)
    for name in OURS:
        assert every[name]["spec"]["initContainers"][0]["command"] == ["python", "-m", "domain.migrations", "wait"]
    assert every["migration"]["spec"]["containers"][0]["command"] == ["python", "-m", "domain.migrations"]


def test_the_migration_runs_before_an_upgrade_where_the_database_is_there_already(
    cluster: str, manifests: list[Manifest]
) -> None:
    job = next(each for each in manifests if each["kind"] == "Job" and "migration" in each["metadata"]["name"])
    hook = job["metadata"].get("annotations", {}).get("helm.sh/hook")
    assert hook == ("pre-install,pre-upgrade" if cluster == "aws" else None)
    assert job["spec"]["activeDeadlineSeconds"] and job["spec"]["backoffLimit"]


def test_what_scales_has_no_number_of_its_own(cluster: str, manifests: list[Manifest]) -> None:
    deployments = of_kind(manifests, "Deployment")
    scaled = of_kind(manifests, "HorizontalPodAutoscaler") | of_kind(manifests, "ScaledObject")
    assert all(("replicas" in each["spec"]) == (name not in scaled) for name, each in deployments.items())
    expected = {"aws": {"api", "booking", "notifications"}, "small": {"api"}, "kind": set()}
    assert set(scaled) == expected[cluster]


def test_workers_grow_with_the_backlog_and_by_cpu_beside_it() -> None:
    scaled = of_kind(render(values("aws")), "ScaledObject")
    assert set(scaled) == {"booking", "notifications"}
    source = (ROOT / "domain" / "metrics.py").read_text()
    for name, each in scaled.items():
        assert each["spec"]["scaleTargetRef"] == {"name": f"{RELEASE}-{name}"}
        by_backlog, by_cpu = each["spec"]["triggers"]
        assert by_backlog["type"] == "prometheus"
        metric = re.search(r"healthmed_\w+", by_backlog["metadata"]["query"])
        assert metric and f'"{metric[0]}"' in source
        assert by_cpu["type"] == "cpu"
        assert each["spec"]["fallback"]["replicas"] >= 1
    without = values("aws")
    without["booking"]["autoscaling"]["keda"] = False
    assert "booking" in of_kind(render(without), "HorizontalPodAutoscaler")


def test_one_machine_may_be_emptied_at_a_time(cluster: str, manifests: list[Manifest]) -> None:
    budgets = of_kind(manifests, "PodDisruptionBudget")
    expected = {"aws": {"api", "booking", "notifications", "relay"}, "small": {"api", "booking", "relay"}, "kind": set()}
    assert set(budgets) == expected[cluster]
    assert all(each["spec"]["maxUnavailable"] == 1 for each in budgets.values())


def test_pods_of_a_kind_stand_apart(manifests: list[Manifest]) -> None:
    every = pods(manifests)
    for name in OURS:
        keys = [each["topologyKey"] for each in every[name]["spec"]["topologySpreadConstraints"]]
        assert keys == ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]
        for each in every[name]["spec"]["topologySpreadConstraints"]:
            assert each["labelSelector"]["matchLabels"].items() <= every[name]["metadata"]["labels"].items()


def test_the_world_reaches_the_api_and_nothing_else(manifests: list[Manifest]) -> None:
    for each in of_kind(manifests, "Ingress").values():
        for rule in each["spec"]["rules"]:
            assert [path["path"] for path in rule["http"]["paths"]] == ["/api"]
            assert {path["backend"]["service"]["name"] for path in rule["http"]["paths"]} == {f"{RELEASE}-api"}
    for each in of_kind(manifests, "Service").values():
        assert each["spec"].get("type", "ClusterIP") == "ClusterIP"


def test_outside_of_a_laptop_everything_is_encrypted_on_its_way_in() -> None:
    for cluster in ("aws", "small"):
        ingress = next(each for each in render(values(cluster)) if each["kind"] == "Ingress")
        assert ingress["spec"]["tls"][0]["hosts"] == [ingress["spec"]["rules"][0]["host"]]
    assert ingress["spec"]["tls"][0]["secretName"]
    alb = next(each for each in render(values("aws")) if each["kind"] == "Ingress")["metadata"]["annotations"]
    assert alb["alb.ingress.kubernetes.io/ssl-redirect"] == "443"


def test_services_find_pods_and_ports(manifests: list[Manifest]) -> None:
    every = pods(manifests)
    for service in of_kind(manifests, "Service").values():
        found = [pod for pod in every.values() if service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()]
        assert len(found) == 1
        ports = {port["name"] for container in found[0]["spec"]["containers"] for port in container.get("ports", [])}
        assert {each["targetPort"] for each in service["spec"]["ports"]} <= ports


def test_nothing_reaches_anything_unless_a_policy_says_so(manifests: list[Manifest]) -> None:
    policies = of_kind(manifests, "NetworkPolicy")
    every = {name: pod["metadata"]["labels"] for name, pod in pods(manifests).items()}
    nothing = policies["nothing"]["spec"]
    assert nothing["policyTypes"] == ["Ingress", "Egress"] and not {"ingress", "egress"} & nothing.keys()
    assert all(matches(nothing["podSelector"], labels) for labels in every.values())
    open_to_some = [each["spec"]["podSelector"] for each in policies.values() if each["spec"].get("ingress")]
    reached = {name for name, labels in every.items() if any(matches(selector, labels) for selector in open_to_some)}
    assert reached == {"api", "booking", "notifications", "relay"} | ({"postgres", "broker", "cache", "mail"} & every.keys())
    names = policies["names"]["spec"]["egress"]
    assert [{port["port"] for port in each["ports"]} for each in names] == [{53}]
    clients = {name for name, labels in every.items() if matches(policies["servers"]["spec"]["podSelector"], labels)}
    assert clients == every.keys() - {"postgres", "broker", "cache", "mail"}
    assert policies["servers"]["spec"]["egress"], "nobody could reach Postgres"
    for each in policies["servers"]["spec"]["egress"] + policies["mail"]["spec"].get("egress", []):
        assert each["to"], "an empty list is everybody"


def matches(selector: Manifest, labels: dict[str, str]) -> bool:
    """Whether Kubernetes would take a pod with these labels for one of the selector's."""
    wanted = selector.get("matchLabels", {}).items() <= labels.items()
    return wanted and all(labels.get(each["key"]) in each["values"] for each in selector.get("matchExpressions", []))


def test_figures_are_scraped_under_the_names_that_the_alerts_use() -> None:
    monitors = of_kind(render(values("aws")), "PodMonitor")
    assert set(monitors) == {"http", "metrics"}
    for each in monitors.values():
        assert each["spec"]["podMetricsEndpoints"][0]["relabelings"][0]["replacement"] == "healthmed-$1"
    rules = next(each for each in render(values("aws")) if each["kind"] == "PrometheusRule")
    assert rules["spec"] == yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())


def test_settings_reach_every_process(cluster: str, manifests: list[Manifest]) -> None:
    settings = of_kind(manifests, "ConfigMap")["settings"]["data"]
    assert settings["PUBLIC_URL"] == values(cluster)["settings"]["PUBLIC_URL"]
    every = pods(manifests)
    for name in OURS:
        assert every[name]["spec"]["containers"][0]["envFrom"] == [{"configMapRef": {"name": f"{RELEASE}-settings"}}]


def test_changed_settings_bring_new_pods() -> None:
    before = pods(render(values("kind")))["api"]["metadata"]["annotations"]
    changed = values("kind")
    changed["settings"]["LOG_LEVEL"] = "WARNING"
    assert pods(render(changed))["api"]["metadata"]["annotations"] != before


def test_notes_tell_what_to_do_next(cluster: str) -> None:
    told = notes(values(cluster))
    assert "create-staff" in told
    assert ("secrets.sh" in told) == (cluster != "aws")
    assert ("externalsecret" in told) == (cluster == "aws")


MISTAKES: dict[str, tuple[str, dict[str, Any], str]] = {
    "no image": ("kind", {"image": {"repository": ""}}, "/image/repository"),
    "no address": ("small", {"settings": {"PUBLIC_URL": ""}}, "/settings/PUBLIC_URL"),
    "an unknown setting": ("small", {"settings": {"PUBLIC_ULR": "x"}}, "PUBLIC_ULR"),
    "a secret among the settings": ("small", {"settings": {"JWT_KEYS": "first=c2VjcmV0"}}, "JWT_KEYS"),
    "a mail server with its password": ("kind", {"settings": {"SMTP_URL": "smtp://me:secret@mail"}}, "/settings/SMTP_URL"),
    "a bare on": ("kind", {"settings": {"PUBLIC_DOCS": True}}, "/settings/PUBLIC_DOCS"),
    "an unknown value": ("kind", {"replicas": 3}, "replicas"),
    "no limits": ("kind", {"api": {"resources": {"limits": None}}}, "limits"),
    "cores without a unit": ("kind", {"api": {"resources": {"limits": {"cpu": 2}}}}, "/api/resources/limits/cpu"),
    "no replica": ("small", {"api": {"replicas": 0}}, "/api/replicas"),
    "a half-filled file for AWS": (
        "aws",
        {"secrets": {"external": {"roleArn": "<SecretsRoleArn>"}}},
        "/secrets/external/roleArn",
    ),
    "a placeholder in an annotation": ("aws", {"ingress": {"annotations": {"a": "<CertificateArn>"}}}, "/ingress/annotations/a"),
    "no range of addresses": ("aws", {"networkPolicy": {"ingressCidrs": ["everybody"]}}, "/networkPolicy/ingressCidrs"),
    "another address than the Ingress": ("small", {"ingress": {"host": "other.example.org"}}, "must lead to ingress.host"),
    "mails that lead past TLS": ("small", {"settings": {"PUBLIC_URL": "http://agenda.example.org"}}, "begin it with https://"),
    "no mail server": ("small", {"addresses": {"smtp": False}}, "no mail server"),
    "two mail servers": ("kind", {"addresses": {"smtp": True}}, "keep one"),
    "a database out of reach": ("aws", {"networkPolicy": {"egress": {"database": ...}}}, "no pod may reach it"),
    "a load balancer kept out": ("small", {"networkPolicy": {"ingressNamespace": ""}}, "no load balancer may reach the API"),
    "most below least": ("small", {"api": {"autoscaling": {"min": 5, "max": 2}}}, "is less than min"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_refused_with_its_place(mistake: str) -> None:
    cluster, wrong, said = MISTAKES[mistake]
    with pytest.raises(helm_python.HelmError, match=re.escape(said)):
        render(merged(values(cluster), wrong))


def merged(under: Any, over: Any) -> Any:
    """`under` with what `over` says; an ellipsis takes away."""
    if not (isinstance(under, dict) and isinstance(over, dict)):
        return over
    both = under | {name: merged(under.get(name), value) for name, value in over.items()}
    return {name: value for name, value in both.items() if value is not ...}


def test_another_release_is_found_by_its_own_name() -> None:
    every = render(values("kind"), release="clinic")
    assert all(each["metadata"]["name"] == "clinic" or each["metadata"]["name"].startswith("clinic-") for each in every)
    assert not [each for each in every if each["metadata"].get("namespace", "clinic") != "clinic"]


def test_helm_itself_finds_nothing_wrong(cluster: str) -> None:
    found = helm_python.lint(str(CHART), values(cluster))
    assert [each for each in found["messages"] if each["severity"] > 1] == []
