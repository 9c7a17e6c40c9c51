"""`make chart-test`: the pods of the laptop's values run under podman, pass their probes, and carry the demonstration.

podman has pods, ConfigMaps, Secrets and volumes, but no Deployments of several pods, Jobs, Services, Ingress or policies. So each
workload's template is played as one pod, named as its Service is, which is how the others find it. The templates stay as they
are, but for what podman does in a way of its own (`as_podman_has_it`).
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).resolve().parents[2]
RELEASE: Final = "healthmed"
SERVERS, BEFORE, SELDOM = ("postgres", "broker", "cache", "mail"), ("migration",), ("demonstration",)
READY_SECONDS: Final = 120.0
PLAY_SECONDS: Final = 120.0

Manifest = dict[str, Any]


class Wrong(Exception):
    """Something is not as it should be; the message is one line that says what."""


class Cluster:
    """What of a cluster podman can be: a network with names, and pods on it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.network = f"healthmed-chart-{secrets.token_hex(3)}"
        self._played = folder / "pods.yaml"

    def play(self, manifests: list[Manifest]) -> None:
        """Make everything in its order. It returns when what comes before a pod's own containers has ended well."""
        self._played.write_text(yaml.safe_dump_all(manifests))
        podman("network", "create", self.network)
        secret = self._folder / "secret.json"
        secret.write_text(json.dumps(new_secret()))
        podman("secret", "create", RELEASE, secret)
        podman("kube", "play", "--network", self.network, self._played, seconds=PLAY_SECONDS)

    def take_down(self) -> None:
        """Remove all that was made, data included."""
        for name in reversed(self._names("Pod")):
            podman("pod", "rm", "--force", "--ignore", "--time", "5", name)
        for name in podman("volume", "ls", "--quiet", "--filter", f"name=^{RELEASE}-").split():
            podman("volume", "rm", "--force", name, check=False)
        podman("secret", "rm", RELEASE, check=False)
        podman("network", "rm", "--force", self.network, check=False)

    def address(self, pod: str) -> str:
        """The pod's own address, which this machine reaches too."""
        infra = json.loads(podman("pod", "inspect", pod))["InfraContainerID"]
        networks = json.loads(podman("container", "inspect", infra))[0]["NetworkSettings"]["Networks"]
        return str(networks[self.network]["IPAddress"])

    def _names(self, kind: str) -> list[str]:
        if not self._played.exists():
            return []
        return [each["metadata"]["name"] for each in yaml.safe_load_all(self._played.read_text()) if each["kind"] == kind]


def podman(*arguments: str | Path, check: bool = True, seconds: float = 60.0) -> str:
    """What podman prints. Raises Wrong with what it complains of."""
    ended = subprocess.run(["podman", *arguments], capture_output=True, text=True, check=False, timeout=seconds)
    if check and ended.returncode != 0:
        raise Wrong(f"podman {' '.join(map(str, arguments[:3]))}: {ended.stderr.strip()[-2000:]}")
    return ended.stdout + (ended.stderr if arguments[0] == "logs" else "")


def rendered() -> list[Manifest]:
    """The chart with the values of a laptop."""
    python = ROOT / ".venv-chart" / "bin" / "python"
    printed = subprocess.run([python, "-m", "tests.charts.chart", "kind"], cwd=ROOT, capture_output=True, check=True).stdout
    return [each for each in yaml.safe_load_all(printed) if each]


def new_secret() -> dict[str, str]:
    """What the Secret holds that the chart refers to, as its script makes it, and as a Secret holds it: in base64."""
    script = ROOT / "charts" / "healthmed" / "secrets.sh"
    printed = subprocess.run(["sh", script, f"{RELEASE}-"], capture_output=True, text=True, check=True).stdout
    given = (line.split("=", 1) for line in printed.splitlines())
    return {name: base64.b64encode(value.encode()).decode() for name, value in given}


def as_pods(manifests: list[Manifest]) -> list[Manifest]:
    """Each workload as one pod, servers first, then what the others wait for."""
    workloads = [each for each in manifests if each["kind"] in ("Deployment", "StatefulSet", "Job")]
    order = [*SERVERS, *BEFORE, *SELDOM]
    workloads.sort(key=lambda each: order.index(component(each)) if component(each) in order else len(order))
    made: list[Manifest] = []
    for each in workloads:
        if each["spec"].get("replicas", 1) != 1:
            raise Wrong(f"{each['metadata']['name']}: the laptop's values must ask for one pod of each kind")
        template = each["spec"]["template"]
        for claim in each["spec"].get("volumeClaimTemplates", []):
            name = f"{each['metadata']['name']}-{claim['metadata']['name']}"
            made.append({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": claim["spec"]})
            template["spec"]["volumes"].append({"name": claim["metadata"]["name"], "persistentVolumeClaim": {"claimName": name}})
        metadata = {"name": each["metadata"]["name"], "labels": template["metadata"]["labels"]}
        made.append(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": metadata,
                "spec": as_podman_has_it(template["spec"], metadata["name"]),
            }
        )
    return made


def as_podman_has_it(spec: Manifest, pod: str) -> Manifest:
    """A pod's spec so that podman 4.3 runs it as a cluster would.

    Probes would be made with a curl inside of the container: they are asked from here instead, as a kubelet would. Ports would be
    opened on this machine. Volumes of one name would be one volume in all pods. Where everything is always restarted, so is what
    comes first and has ended.
    """
    left_out = ("startupProbe", "livenessProbe", "readinessProbe", "ports")
    played = {
        **spec,
        "restartPolicy": "OnFailure",
        "volumes": [{**each, "name": f"{pod}-{each['name']}"} for each in spec["volumes"]],
    }
    for kind in ("initContainers", "containers"):
        played[kind] = [
            {name: it for name, it in each.items() if name not in left_out}
            | {"volumeMounts": [{**mount, "name": f"{pod}-{mount['name']}"} for mount in each["volumeMounts"]]}
            for each in spec.get(kind, [])
        ]
    return played


def component(manifest: Manifest) -> str:
    return str(manifest["metadata"]["labels"]["app.kubernetes.io/component"])


def probes(manifests: list[Manifest]) -> Iterator[tuple[str, str, str, Manifest, Manifest]]:
    """Each probe of each pod that goes on: pod, container, which probe, the probe, and the container's ports by name."""
    for each in manifests:
        if each["kind"] in ("Deployment", "StatefulSet"):
            for container in each["spec"]["template"]["spec"]["containers"]:
                ports = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
                for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                    if kind in container:
                        yield each["metadata"]["name"], container["name"], kind, container[kind], ports


def passes(cluster: Cluster, pod: str, container: str, probe: Manifest, ports: Manifest) -> bool:
    """Whether the probe passes, asked once as a kubelet would."""
    seconds = probe.get("timeoutSeconds", 1)
    try:
        if "exec" in probe:
            command = ["podman", "exec", f"{pod}-{container}", *probe["exec"]["command"]]
            return subprocess.run(command, capture_output=True, check=False, timeout=seconds + 5).returncode == 0
        if "tcpSocket" in probe:
            socket.create_connection((cluster.address(pod), ports[probe["tcpSocket"]["port"]]), timeout=seconds).close()
            return True
        return get(cluster.address(pod), ports[probe["httpGet"]["port"]], probe["httpGet"]["path"], seconds)[0] == 200
    except (OSError, http.client.HTTPException, subprocess.TimeoutExpired):
        return False


def get(host: str, port: int, path: str, seconds: float = 5) -> tuple[int, str]:
    """The status and the body of one answer."""
    connection = http.client.HTTPConnection(host, port, timeout=seconds)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def wait_for(what: str, holds: Callable[[], bool]) -> None:
    """Raises Wrong if it does not come to hold in time."""
    deadline = time.monotonic() + READY_SECONDS
    while not holds():
        if time.monotonic() > deadline:
            raise Wrong(f"{what}: not within {READY_SECONDS:.0f} seconds")
        time.sleep(0.5)


def check_confinement(pods: list[str]) -> None:
    """What the manifests ask for holds in the running containers."""
    for pod in pods:
        container = f"{pod}-{pod.removeprefix(f'{RELEASE}-')}"
        told = podman("exec", container, "sh", "-c", "id -u; cat /proc/1/status; touch /srv/mark /usr/mark 2>&1 || true")
        status = dict(line.split(":\t") for line in told.splitlines() if ":\t" in line)
        if told.splitlines()[0] == "0" or int(status["CapEff"], 16) != 0 or status["NoNewPrivs"] != "1":
            raise Wrong(f"{pod} may do more than it should: {status['CapEff']} {status['NoNewPrivs']}")
        if told.count("Read-only file system") != 2:
            raise Wrong(f"{pod} can write to its root: {told[-200:]}")


def check_end(manifests: list[Manifest]) -> None:
    """Each of our processes ends by itself, well, and before it would be killed."""
    for each in manifests:
        if each["kind"] == "Deployment" and component(each) not in SERVERS:
            pod, grace = each["metadata"]["name"], each["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
            began = time.monotonic()
            container = f"{pod}-{component(each)}"
            podman("stop", "--time", str(grace), container, seconds=grace + 30)
            code = json.loads(podman("container", "inspect", container))[0]["State"]["ExitCode"]
            print(f"  {pod} ended with {code} after {time.monotonic() - began:.1f} of {grace} s")
            if code not in (0, 143) or time.monotonic() - began > grace:
                raise Wrong(f"{pod} did not end in order: {code}")


@contextmanager
def a_cluster() -> Iterator[tuple[Cluster, Path]]:
    """A network and a folder, gone afterwards with all that was played; what pods said is shown if anything went wrong."""
    with tempfile.TemporaryDirectory(prefix="healthmed-chart-") as name:
        cluster = Cluster(Path(name))
        try:
            yield cluster, Path(name)
        except BaseException:
            print(podman("ps", "--all", "--filter", f"network={cluster.network}", check=False), file=sys.stderr)
            for each in podman("ps", "--all", "--format", "{{.Names}}", "--filter", f"name={RELEASE}-", check=False).split():
                print(f"── {each}\n{podman('logs', '--tail', '5', each, check=False)}", file=sys.stderr)
            raise
        finally:
            cluster.take_down()


def run() -> None:
    """Play the pods and go the demonstration's way. Raises Wrong."""
    manifests = rendered()
    taken = {each["metadata"]["name"] for each in manifests} & set(podman("pod", "ls", "--format", "{{.Name}}").split())
    if taken:
        raise Wrong(f"there are pods of these names already: {', '.join(sorted(taken))}")
    asked = list(probes(manifests))
    with a_cluster() as (cluster, folder):
        began = time.monotonic()
        cluster.play([*(each for each in manifests if each["kind"] == "ConfigMap"), *as_pods(manifests)])
        for pod, container, kind, probe, ports in asked:
            wait_for(f"{kind} of {pod}", lambda: passes(cluster, pod, container, probe, ports))  # noqa: B023 (called at once)
        played = len({each[0] for each in asked})
        print(f"{len(asked)} probes of {played} pods pass {time.monotonic() - began:.0f} s after the start.")
        seed = f"{RELEASE}-demonstration-demonstration"
        wait_for("the demonstration's people", lambda: '"patients"' in podman("logs", seed, check=False))
        people = next(line for line in podman("logs", seed).splitlines() if line.startswith('{"staff"'))
        base = f"http://{cluster.address(f'{RELEASE}-api')}:8000"
        (folder / "demo.json").write_text(json.dumps({"base_url": base, **json.loads(people)}))
        demo = subprocess.run(
            ["make", "--no-print-directory", "demo"],
            cwd=ROOT,
            env={**os.environ, "STATE_DIR": str(folder)},
            capture_output=True,
            text=True,
            check=False,
        )
        if demo.returncode != 0:
            raise Wrong(f"the demonstration failed: {demo.stdout[-1500:]}{demo.stderr[-500:]}")
        print(demo.stdout.splitlines()[-1])
        check_confinement([f"{RELEASE}-{each}" for each in ("api", "booking", "notifications", "relay", "flower")])
        if get(cluster.address(f"{RELEASE}-flower"), 5555, "/workers")[0] != 401:
            raise Wrong("Flower shows itself to whoever has no password")
        for worker in ("booking", "notifications", "relay"):
            if "healthmed_" not in get(cluster.address(f"{RELEASE}-{worker}"), 9100, "/metrics")[1]:
                raise Wrong(f"{worker} tells no figures")
        check_end(manifests)
    print("The chart's pods run as they are rendered.")


def main() -> int:
    """The exit code is 1 for what isn't as it should be."""
    settings = subprocess.run(
        ["sh", "-c", ". tests/images/engine.sh && echo $CONTAINERS_CONF"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    os.environ["CONTAINERS_CONF"] = settings.stdout.strip()
    try:
        run()
    except Wrong as error:
        print(f"✗ {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
