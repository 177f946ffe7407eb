"""What the service standards ask of the files around the code: they agree with each other, name their sources and hold no secret."""

import importlib.util
import json
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import jsonschema
import pytest

from tests.support.tree import ROOT, SETTINGS, VERSION, load, read, tracked

FIXED = ["flask", "htmx-flask", "flask-login", "flask-sqlalchemy", "alembic", "authlib", "wtforms", "prometheus-flask-exporter", "playwright"]


def secrets_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("secrets_script", ROOT / "deploy" / "checks" / "secrets.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


# Version


def test_version_is_semantic_and_the_same_everywhere() -> None:
    assert re.fullmatch(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)", VERSION)
    assert f"ARG VERSION={VERSION}\n" in read("Dockerfile")
    assert load("atonix.yaml")["metadata"]["version"] == VERSION
    assert load("deploy/kubernetes/kustomization.yaml")["images"] == [{"name": "atonix-portal", "newTag": VERSION}]
    assert f"PORTAL_IMAGE=atonix-portal:{VERSION}\n" in read("deploy/env.example")
    assert f"${{PORTAL_IMAGE:-atonix-portal:{VERSION}}}" in read("compose.yaml")


def test_the_changelog_tells_each_thing_once() -> None:
    unreleased = read("CHANGELOG.md").split("\n## ")[1]
    told = re.findall(r"^- ([^:.\n]{1,60}):", unreleased, re.MULTILINE)
    assert told
    assert len(set(told)) == len(told), sorted(each for each in set(told) if told.count(each) > 1)


def test_changelog_begins_with_this_version() -> None:
    heads = re.findall(r"^## \[(.+?)\]", read("CHANGELOG.md"), re.MULTILINE)
    assert heads[:1] == [VERSION] or heads[:2] == ["Unreleased", VERSION]


# atonix.yaml


def test_atonix_yaml_fits_its_schema() -> None:
    schema = json.loads(read("config/atonix.schema.json"))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(load("atonix.yaml"), schema)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("kind",), "Deployment"),
        (("metadata", "version"), "1.0"),
        (("metadata", "name"), "Atonix Portal"),
        (("service", "replicas"), 0),
        (("service", "runtime"), "vm"),
        (("resources", "memory"), "lots"),
        (("service", "ports"), [{"name": "http", "port": 70000}]),
        (("health", "liveness"), "health"),
        (("surprise",), 1),
    ],
)
def test_atonix_schema_refuses(path: tuple[str, ...], value: object) -> None:
    document = load("atonix.yaml")
    spot = document
    for key in path[:-1]:
        spot = spot[key]
    spot[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, json.loads(read("config/atonix.schema.json")))


def test_atonix_yaml_says_what_the_standard_fixes() -> None:
    document = load("atonix.yaml")
    assert document["service"]["replicas"] >= 2
    assert document["resources"] == {"cpu": "500m", "memory": "512Mi"}
    assert (document["health"]["liveness"], document["health"]["readiness"]) == ("/health", "/ready")
    assert {entry["key"] for entry in document["env"]} <= SETTINGS


# Requirements


def pins(name: str) -> dict[str, list[str]]:
    """Package → its lines of pin and hashes."""
    found: dict[str, list[str]] = {}
    for block in re.split(r"\n(?=\S)", read(name)):
        if match := re.match(r"([A-Za-z0-9._-]+)(?:\[[^]]*])?==", block):
            found.setdefault(match[1].lower(), []).append(block)
        else:
            assert block.startswith("#") or not block.strip(), f"{name}: not pinned: {block.splitlines()[0]}"
    return found


@pytest.mark.parametrize(
    "name", ["requirements.txt", "requirements-dev.txt", "requirements-engine.txt", "deploy/setup/tools.txt", "deploy/setup/build.txt"]
)
def test_requirements_are_pinned_and_hashed(name: str) -> None:
    found = pins(name)
    assert found
    for package, blocks in found.items():
        for block in blocks:
            assert "--hash=sha256:" in block, f"{name}: {package} has no hash"


def test_fixed_packages_are_pinned_exactly_once() -> None:
    runtime, dev = pins("requirements.txt"), pins("requirements-dev.txt")
    for package in FIXED:
        versions = {block.split()[0].split("==")[1] for block in runtime.get(package, []) + dev.get(package, [])}
        assert len(versions) == 1, f"{package}: {versions or 'missing'}"
        assert len(runtime.get(package, [])) <= 1


def test_set_up_uses_the_versions_that_developers_use() -> None:
    dev = pins("requirements-dev.txt")
    for package, blocks in pins("deploy/setup/tools.txt").items():
        if package in dev:
            assert blocks[0].split()[0] == dev[package][0].split()[0]


def test_every_direct_dependency_is_explained() -> None:
    page = read("docs/dependencies.md").lower()
    names = re.findall(
        r"^([A-Za-z0-9._-]+)(?:\[[^]]*])?$",
        "\n".join(read(name) for name in ("requirements.in", "requirements-dev.in", "requirements-engine.in")),
        re.MULTILINE,
    )
    package = json.loads(read("static/package.json"))
    names += [*package["dependencies"], *package["devDependencies"]]
    assert len(names) > 40
    assert [name for name in names if f"`{name.lower()}`" not in page] == []


def test_browser_files_are_pinned_exactly_and_locked() -> None:
    package, lock = json.loads(read("static/package.json")), json.loads(read("static/package-lock.json"))
    for name, version in {**package["dependencies"], **package["devDependencies"]}.items():
        assert re.fullmatch(r"\d+\.\d+\.\d+", version), f"{name} is not pinned"
        assert lock["packages"][f"node_modules/{name}"]["version"] == version
    for path, entry in lock["packages"].items():
        assert "resolved" not in entry, "the lock file must not name a registry"
        assert path == "" or entry["integrity"].startswith("sha512-")
    assert "axe-core" not in package["dependencies"]


def test_vendor_list_copies_only_what_is_locked() -> None:
    packages = json.loads(read("static/package.json"))["dependencies"]
    lines = [line.split() for line in read("deploy/setup/vendor.txt").splitlines() if line.strip() and not line.startswith("#")]
    copied = {"/".join(source.split("/")[: 2 if source.startswith("@") else 1]) for source, _ in lines}
    assert copied == set(packages)
    assert len({target for _, target in lines}) == len(lines)


# The tree


def test_no_secret_is_tracked() -> None:
    assert secrets_script().scan(tracked()) == []


@pytest.mark.parametrize(
    "planted",
    [
        "AKIA" + "ABCDEFGHIJKLMNOP",
        "-----BEGIN " + "PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC",
        "postgresql://portal:" + "hunter2hunter2@db/portal",
        "token = '" + "a1b2c3d4e5f6a7b8c9d0e1f2'",
        "atonix_" + "Zm9vYmFyYmF6cXV4Zm9vYmFy",
        "ghp_" + "a" * 36,
    ],
)
def test_a_planted_secret_is_found(planted: str) -> None:
    assert len(list(secrets_script().find("some/file", f"first line\n{planted}\n"))) >= 1


@pytest.mark.parametrize(
    "harmless", ["password = os.environ['PASSWORD']", "postgresql://portal:${POSTGRES_PASSWORD}@db/portal", "secret: ''", "token_length = 48"]
)
def test_what_only_looks_like_a_secret_is_left_alone(harmless: str) -> None:
    assert list(secrets_script().find("some/file", harmless)) == []


def test_no_file_names_a_registry_or_a_workplace() -> None:
    # Put together here, so that this file does not name them either.
    hosts = [
        "files.pythonhosted" + ".org",
        "pypi" + ".org",
        "registry.npm" + "js",
        "registry.yarn" + "pkg",
        "deb.debian" + ".org",
        "ghcr" + ".io",
        "docker" + ".io",
        "quay" + ".io",
    ]
    places = ["/work" + "/shared", ".." + "/shared", ".lib" + "rary/", "/work" + "/main"]
    found = []
    for name in tracked():
        text = (ROOT / name).read_bytes().decode(errors="ignore")
        found += [f"{name}: {word}" for word in [*hosts, *places] if word in text]
    assert found == []


def test_third_party_browser_files_are_not_committed() -> None:
    assert [name for name in tracked() if name.startswith("static/vendor/") or "node_modules" in name] == []


def test_project_metadata_agrees_with_the_set_up() -> None:
    project = tomllib.loads(read("pyproject.toml"))["project"]
    assert project["requires-python"] == ">=3.11"
    assert "sys.version_info < (3, 11)" in read("deploy/setup/python.sh")


# Documents


@pytest.mark.parametrize("path", sorted([*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")]), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text()):
        if "://" not in target and not target.startswith("mailto:"):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


@pytest.mark.parametrize("name", ["docs/operations.md", "docs/security.md", "docs/architecture.md", "docs/adding-a-resource-type.md"])
def test_guides_carry_the_header_of_the_template(name: str) -> None:
    head = read(name)[:800]
    for field in ("Document type", "Status", "Version", "Last updated", "Author", "Review cycle"):
        assert f"**{field}:**" in head, field
    assert f"**Version:** {VERSION}" in head
