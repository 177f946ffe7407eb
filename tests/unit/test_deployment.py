"""What is deployed keeps its hardened settings: image, compose file, Kubernetes manifests, alerts and workflows."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from portal.s3.routes import READY_PATH
from tests.support.tree import ROOT, SETTINGS, load, read

MANIFESTS = sorted((ROOT / "deploy" / "kubernetes").glob("*.yaml"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


# Image and compose


def instructions(name: str) -> list[tuple[str, str]]:
    joined = re.sub(r"\\\n\s*", " ", re.sub(r"^#.*\n", "", read(name), flags=re.MULTILINE))
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


def test_dockerfile_keeps_its_promises() -> None:
    lines = instructions("Dockerfile")
    bases = [value.split()[0] for word, value in lines if word == "FROM"]
    stages = {value.split()[2] for word, value in lines if word == "FROM"}
    assert len(bases) >= 3
    assert all(base in stages or re.fullmatch(r"python:3\.12\.\d+-slim-\w+", base) for base in bases)
    last = lines[max(index for index, (word, _) in enumerate(lines) if word == "FROM") :]
    assert [value for word, value in last if word == "USER"] == ["65532:65532"]
    assert [value for word, value in last if word == "EXPOSE"] == ["8080 9000 9090"]
    assert [value for word, value in last if word == "HEALTHCHECK"] == [
        '--interval=30s --timeout=5s --start-period=10s --retries=3 CMD ["python", "-m", "portal", "health"]'
    ]
    assert any(word == "RUN" and "chmod -R 555 /app" in value for word, value in last)
    label = " ".join(value for word, value in last if word == "LABEL")
    for key in ("title", "description", "version", "created", "revision", "source"):
        assert f"org.opencontainers.image.{key}=" in label
    assert {value.split("=")[0] for word, value in last if word == "ARG"} == {"VERSION", "CREATED", "REVISION", "SOURCE"}
    for word, value in lines:
        if word == "RUN" and "pip install" in value:
            assert "--require-hashes" in value
            assert "--no-cache" in value


def test_image_gets_the_program_and_nothing_else() -> None:
    assert read(".dockerignore").splitlines()[1] == "*"
    wanted = {line.removeprefix("!").split("/")[0] for line in read(".dockerignore").splitlines() if line.startswith("!")}
    sources = {value.split()[0].split("/")[0] for word, value in instructions("Dockerfile") if word == "COPY" and not value.startswith("--from")}
    assert sources <= wanted
    assert ".env" in read(".dockerignore").splitlines()
    ignored = subprocess.run(
        ["git", "check-ignore", ".env", "deploy/.env", "static/vendor/htmx.min.js"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert len(ignored.stdout.splitlines()) == 3


def test_compose_is_hardened() -> None:
    compose = load("compose.yaml")
    for name, service in compose["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["user"].split(":")[0] not in {"0", "root"}, name
        assert service["deploy"]["resources"]["limits"], name
        assert "privileged" not in service, name
        assert service["tmpfs"], name
        if name not in {"init", "web", "s3", "worker", "scheduler"}:
            assert re.fullmatch(r"[a-z]+:\d+\.\d+(\.\d+)?[\w.-]*", service["image"]), name
    for name in ("web", "s3", "worker", "scheduler"):
        assert compose["services"][name]["user"] == "65532:65532"
        assert compose["services"][name]["deploy"]["resources"]["limits"] == {"cpus": "2.0", "memory": "4G"}
        assert compose["services"][name]["deploy"]["resources"]["reservations"] == {"cpus": "1.0", "memory": "2G"}
    assert all(port.startswith("127.0.0.1:") for service in compose["services"].values() for port in service.get("ports", []))
    assert compose["networks"]["data"] == compose["networks"]["bus"] == {"internal": True}
    assert re.match(r"postgres:15\.", compose["services"]["postgres"]["image"])
    assert re.match(r"redis:7\.", compose["services"]["redis"]["image"])


def test_compose_asks_only_for_what_its_example_names() -> None:
    asked = set(re.findall(r"\$\{([A-Z_]+)", read("compose.yaml")))
    named = set(re.findall(r"^([A-Z_]+)=", read("deploy/env.example"), re.MULTILINE))
    assert asked - named <= {"ENGINE_COMPUTE"}
    assert named <= asked
    for name in re.findall(r"^([A-Z_]*(?:PASSWORD|SECRET_KEY))=(.*)$", read("deploy/env.example"), re.MULTILINE):
        assert name[1] == "", "an example holds no secret"


@pytest.mark.parametrize("name", ["init", "web", "s3", "worker", "scheduler"])
def test_compose_sets_only_settings_that_exist(name: str) -> None:
    assert set(load("compose.yaml")["services"][name]["environment"]) <= SETTINGS


# Kubernetes


def documents() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in MANIFESTS:
        for document in yaml.safe_load_all(path.read_text()):
            yield path.name, document


def pods() -> dict[str, dict[str, Any]]:
    return {
        document["metadata"]["name"]: document["spec"]["template"]["spec"] for _, document in documents() if document["kind"] in {"Deployment", "Job"}
    }


def test_manifests_are_all_listed_and_complete() -> None:
    listed = set(load("deploy/kubernetes/kustomization.yaml")["resources"])
    assert listed == {path.name for path in MANIFESTS} - {"kustomization.yaml"}
    kinds = {document["kind"] for _, document in documents()}
    assert kinds >= {
        "Deployment",
        "Service",
        "ConfigMap",
        "Secret",
        "HorizontalPodAutoscaler",
        "PodDisruptionBudget",
        "NetworkPolicy",
        "PeerAuthentication",
    }
    assert all(document["apiVersion"] and document.get("metadata", {"name": 1})["name"] for _, document in documents())


@pytest.mark.parametrize("name", sorted(pods()))
def test_pods_are_hardened(name: str) -> None:
    pod = pods()[name]
    security = pod["securityContext"]
    assert (security["runAsNonRoot"], security["runAsUser"], security["runAsGroup"]) == (True, 65532, 65532)
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "privileged": False,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["requests"]
        assert container["resources"]["limits"]
        assert ":latest" not in container["image"]
        by_reference = {entry["name"] for entry in container["env"] if "valueFrom" in entry}
        assert by_reference >= {"DATABASE_URL", "SECRET_KEY"}
        assert by_reference <= SETTINGS


def test_web_has_the_probes_and_resources_of_the_standard() -> None:
    (web,) = pods()["atonix-portal-web"]["containers"]
    assert web["livenessProbe"] == {
        "httpGet": {"path": "/health", "port": 8080},
        "initialDelaySeconds": 30, "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 3,
    }  # fmt: skip
    assert web["readinessProbe"] == {
        "httpGet": {"path": "/ready", "port": 8080},
        "initialDelaySeconds": 10, "periodSeconds": 5, "timeoutSeconds": 3, "failureThreshold": 2,
    }  # fmt: skip
    assert web["resources"] == {"requests": {"cpu": "250m", "memory": "256Mi"}, "limits": {"cpu": "1000m", "memory": "512Mi"}}
    (s3,) = pods()["atonix-portal-s3"]["containers"]
    assert s3["readinessProbe"]["httpGet"] == {"path": READY_PATH, "port": 9000}
    assert s3["livenessProbe"]["tcpSocket"] == {"port": 9000}
    assert READY_PATH in str(load("compose.yaml")["services"]["s3"]["healthcheck"]["test"])
    (worker,) = pods()["atonix-portal-worker"]["containers"]
    assert worker["resources"] == {"requests": {"cpu": "200m", "memory": "256Mi"}, "limits": {"cpu": "800m", "memory": "512Mi"}}


def test_configuration_names_exist_and_secrets_are_empty() -> None:
    found = {document["kind"]: document for _, document in documents() if document["kind"] in {"ConfigMap", "Secret"}}
    assert set(found["ConfigMap"]["data"]) <= SETTINGS
    assert set(found["Secret"]["stringData"]) <= SETTINGS
    assert not set(found["ConfigMap"]["data"]) & set(found["Secret"]["stringData"])
    assert set(found["Secret"]["stringData"].values()) == {""}


def test_network_policy_opens_only_what_is_needed() -> None:
    policies = {document["metadata"]["name"]: document["spec"] for _, document in documents() if document["kind"] == "NetworkPolicy"}
    assert policies["atonix-portal"]["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in policies["atonix-portal"]
    incoming = {port["port"] for rule in policies["atonix-portal-web"]["ingress"] for port in rule["ports"]}
    assert incoming == {8080, 9090}
    assert {port["port"] for rule in policies["atonix-portal-s3"]["ingress"] for port in rule["ports"]} == {9000}
    assert all(rule["from"] for name in ("web", "s3") for rule in policies[f"atonix-portal-{name}"]["ingress"])
    (outside,) = policies["atonix-portal-worker"]["egress"]
    assert "169.254.0.0/16" in outside["to"][0]["ipBlock"]["except"]


def test_mesh_is_strict_and_tls_is_modern() -> None:
    found = {document["kind"]: document["spec"] for _, document in documents() if document["kind"] in {"PeerAuthentication", "Gateway"}}
    assert found["PeerAuthentication"]["mtls"] == {"mode": "STRICT"}
    secured = [server["tls"] for server in found["Gateway"]["servers"] if server["port"]["protocol"] == "HTTPS"]
    assert {each["minProtocolVersion"] for each in secured} == {"TLSV1_2"}
    assert {each["credentialName"] for each in secured} == {"atonix-portal-tls", "atonix-portal-s3-tls"}


# Observation


def test_observability_names_what_the_portal_serves() -> None:
    page = load("config/observability.yaml")
    code = read("portal/http/probes.py") + read("portal/http/exporter.py")
    for name in page["metrics"]["names"]:
        assert f'"{name}"' in code, name
    for key in ("recording_rules", "alerts", "scrape"):
        assert (ROOT / page["metrics"][key]).is_file()


def test_alerts_use_series_that_exist() -> None:
    served = set(load("config/observability.yaml")["metrics"]["names"]) | {"up", "http_request_duration_seconds_bucket"}
    recorded = {rule["record"] for group in load("deploy/prometheus/rules.yaml")["groups"] for rule in group["rules"]}
    assert recorded >= {"request_count", "error_rate", "response_time_p50", "response_time_p95", "response_time_p99"}
    alerts = {rule["alert"]: rule for group in load("deploy/prometheus/alerts.yaml")["groups"] for rule in group["rules"]}
    assert alerts["SlowResponses"]["expr"] == "response_time_p95 > 2"
    assert alerts["VerySlowResponses"]["expr"] == "response_time_p99 > 1"
    assert alerts["HighErrorRate"]["expr"] == "error_rate > 0.05"
    for rule in alerts.values():
        assert rule["annotations"]["action"]
        series = set(re.findall(r"\b([a-z_][a-z0-9_]*)\s*(?:\{|\[|>|==)", re.sub(r"\{[^}]*}", "{", rule["expr"])))
        assert series <= served | recorded, rule["alert"]


# Workflows


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_follow_the_standard(path: Path) -> None:
    text, workflow = path.read_text(), yaml.safe_load(path.read_text())
    # YAML reads the key `on` as true.
    assert ".version" in workflow[True]["push"]["paths"]
    assert workflow["concurrency"] == {"group": "${{ github.workflow }}-${{ github.ref }}", "cancel-in-progress": True}
    assert "tr -d '[:space:]' < .version" in text
    assert "version=0.0.0" in text
    if "build-push-action" in text:
        assert "date +%s%N | cut -b1-13" in text
        assert "severity: HIGH,CRITICAL" in text
    assert not re.search(r"uses: \S+@(main|master|latest)\b", text)


@pytest.mark.parametrize(
    ("ref", "changed", "tags"),
    [
        ("refs/heads/main", "no", ["main-1763700000000-20261120"]),
        ("refs/heads/main", "yes", ["main-1763700000000-20261120", "v1.2.3-beta"]),
        ("refs/heads/develop", "yes", ["develop-1763700000000-20261120", "v1.2.3-alpha"]),
        ("refs/tags/v1.2.3", "no", ["1.2.3", "v1.2.3", "latest"]),
    ],
)
def test_image_tag(ref: str, changed: str, tags: list[str]) -> None:
    command = [str(ROOT / "deploy/checks/image-tags.sh"), ref, "1.2.3", "1763700000000", "20261120", changed]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.split() == tags


def test_image_tag_refuses_a_tag_of_another_version() -> None:
    command = [str(ROOT / "deploy/checks/image-tags.sh"), "refs/tags/v9.9.9", "1.2.3", "1", "2", "no"]
    answer = subprocess.run(command, check=False, capture_output=True, text=True)
    assert answer.returncode == 1
    assert "does not fit .version" in answer.stderr


def test_the_build_server_runs_checks_and_tests() -> None:
    lines = read(".ci/run").splitlines()
    assert any(line.startswith("make check") for line in lines)
    assert any(line.startswith("make test") for line in lines)
    assert "set -euo pipefail" in lines
    assert (ROOT / ".ci/run").stat().st_mode & 0o111
