"""The kustomize base renders, fits KubeRay's schemas, and names only what the project has."""

import copy
import gzip
import importlib
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import nvcim
from nvcim.errors import ConfigError
from serving.config import AppSettings, load_serve_config, parse_serve_config

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "k8s" / "base"
SCHEMAS = ROOT.parent / "shared" / "kuberay"
KINDS = {"Namespace", "PersistentVolumeClaim", "RayCluster", "RayJob", "RayService"}
IMAGE = f"nvcim:{nvcim.__version__}"

Manifest = dict[str, Any]


@pytest.fixture(scope="module")
def manifests() -> list[Manifest]:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed, so the kustomization cannot be rendered")
    done = subprocess.run(["kubectl", "kustomize", str(BASE)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def the(manifests: list[Manifest], kind: str) -> Manifest:
    """The only manifest of a kind."""
    found = [manifest for manifest in manifests if manifest["kind"] == kind]
    assert len(found) == 1
    return found[0]


def cluster_specs(manifests: list[Manifest]) -> Iterator[Manifest]:
    """The Ray cluster of every kind that has one."""
    yield the(manifests, "RayCluster")["spec"]
    yield the(manifests, "RayJob")["spec"]["rayClusterSpec"]
    yield the(manifests, "RayService")["spec"]["rayClusterConfig"]


def pods(manifests: list[Manifest]) -> list[Manifest]:
    """Every pod spec: heads, workers, and the job's submitter."""
    found = [the(manifests, "RayJob")["spec"]["submitterPodTemplate"]["spec"]]
    for cluster in cluster_specs(manifests):
        found.append(cluster["headGroupSpec"]["template"]["spec"])
        found += [group["template"]["spec"] for group in cluster["workerGroupSpecs"]]
    return found


def containers(manifests: list[Manifest]) -> list[Manifest]:
    return [container for pod in pods(manifests) for container in pod["containers"]]


def strict(schema: Any) -> Any:
    """A copy of an OpenAPI schema in which every object with listed properties refuses others."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: strict(value) for key, value in schema.items()}
    keeps_unknown = schema.get("x-kubernetes-preserve-unknown-fields", False)
    if (
        isinstance(schema.get("properties"), dict)
        and "additionalProperties" not in schema
        and not keeps_unknown
    ):
        result["additionalProperties"] = False
    return result


def kuberay_validator(kind: str) -> jsonschema.Draft202012Validator:
    file = SCHEMAS / f"{kind}.v1.json.gz"
    if not file.is_file():
        pytest.skip(f"KubeRay's schemas are not at hand (looked for {file.name} in ../shared/kuberay)")
    schema = json.loads(gzip.decompress(file.read_bytes()))["openAPIV3Schema"]
    return jsonschema.Draft202012Validator(strict(schema))


def docker_lines(instruction: str, stages: slice = slice(-1, None)) -> list[str]:
    """Arguments of an instruction in stages of the Dockerfile, the last one unless said; continued lines joined."""
    whole = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    text = "\n".join(whole.split("\nFROM ")[stages])
    return re.findall(rf"^{instruction}\s+(.+)$", text, flags=re.MULTILINE)


def test_only_known_kinds_in_one_namespace(manifests: list[Manifest]) -> None:
    assert {manifest["kind"] for manifest in manifests} == KINDS
    namespace = the(manifests, "Namespace")["metadata"]["name"]
    for manifest in manifests:
        group = "ray.io/v1" if manifest["kind"].startswith("Ray") else "v1"
        assert manifest["apiVersion"] == group
        assert re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", manifest["metadata"]["name"])
        if manifest["kind"] != "Namespace":
            assert manifest["metadata"]["namespace"] == namespace


def test_volume_claim_is_shared_and_sized(manifests: list[Manifest]) -> None:
    spec = the(manifests, "PersistentVolumeClaim")["spec"]
    assert set(spec) == {"accessModes", "resources"}
    assert spec["accessModes"] == ["ReadWriteMany"]
    assert re.fullmatch(r"\d+(Gi|Ti)", spec["resources"]["requests"]["storage"])


@pytest.mark.parametrize("kind", ["RayCluster", "RayJob", "RayService"])
def test_kind_fits_kuberays_schema(manifests: list[Manifest], kind: str) -> None:
    problems = [
        f"{e.json_path}: {e.message}" for e in kuberay_validator(kind).iter_errors(the(manifests, kind))
    ]
    assert problems == []


@pytest.mark.parametrize(
    ("kind", "path", "key"),
    [
        ("RayCluster", ("spec",), "rayVerison"),
        ("RayCluster", ("spec", "authOptions"), "secret"),
        ("RayJob", ("spec",), "backOffLimit"),
        (
            "RayJob",
            ("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "containers", 0),
            "resource",
        ),
        ("RayService", ("spec",), "serveConfig"),
    ],
)
def test_misspelt_key_does_not_fit(manifests: list[Manifest], kind: str, path: tuple, key: str) -> None:
    manifest = copy.deepcopy(the(manifests, kind))
    place = manifest
    for step in path:
        place = place[step]
    place[key] = "x"
    assert any(key in error.message for error in kuberay_validator(kind).iter_errors(manifest))


def test_every_container_runs_the_projects_image(manifests: list[Manifest]) -> None:
    assert {container["image"] for container in containers(manifests)} == {IMAGE}
    (labels,) = docker_lines("LABEL")
    assert 'image.title="nvcim"' in labels
    assert f'image.version="{nvcim.__version__}"' in labels
    assert f"docker build --tag {IMAGE} ." in (ROOT / "Dockerfile").read_text()


def test_every_container_is_bounded_and_unprivileged(manifests: list[Manifest]) -> None:
    (user,) = docker_lines("USER")
    for pod in pods(manifests):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == int(user) > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
    for container in containers(manifests):
        resources = container["resources"]
        assert set(resources["requests"]) == set(resources["limits"]) == {"cpu", "memory"}
        assert resources["requests"]["memory"] == resources["limits"]["memory"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }


def test_every_cluster_asks_for_a_token_and_has_the_images_ray(manifests: list[Manifest]) -> None:
    (pinned,) = re.findall(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    for cluster in cluster_specs(manifests):
        assert cluster["rayVersion"] == pinned
        assert cluster["authOptions"]["mode"] == "token"
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    # The token itself is made by whoever applies the base, and never stands in a file.
    secret = the(manifests, "RayCluster")["spec"]["authOptions"]["secretName"]
    assert f"create secret generic {secret}" in (BASE / "kustomization.yaml").read_text()
    assert not any(manifest["kind"] == "Secret" for manifest in manifests)


def test_every_mounted_volume_exists(manifests: list[Manifest]) -> None:
    claims = {m["metadata"]["name"] for m in manifests if m["kind"] == "PersistentVolumeClaim"}
    (workdir,) = docker_lines("WORKDIR")
    for pod in pods(manifests):
        volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
        for container in pod["containers"]:
            assert container["workingDir"] == workdir
            assert {mount["name"] for mount in container.get("volumeMounts", [])} <= set(volumes)
        for volume in volumes.values():
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in claims


def test_jobs_entry_point_and_config_exist(manifests: list[Manifest]) -> None:
    python, dash_m, module, *arguments = shlex.split(the(manifests, "RayJob")["spec"]["entrypoint"])
    assert (python, dash_m) == ("python", "-m")
    assert importlib.util.find_spec(module) is not None
    assert arguments[0] == "--config"
    assert (ROOT / arguments[1]).is_file()
    help_text = subprocess.run(
        [sys.executable, "-m", module, "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        check=True,
    ).stdout
    assert arguments[0] in help_text


def test_serve_config_is_the_projects_own(manifests: list[Manifest]) -> None:
    service = the(manifests, "RayService")["spec"]
    content = yaml.safe_load(service["serveConfigV2"])
    deployed = parse_serve_config(content, "serveConfigV2")
    local = load_serve_config()
    assert deployed.applications == local.applications  # options, arguments, import path
    assert deployed.http_options.model_copy(update={"host": local.http_options.host}) == local.http_options
    for app in deployed.applications:
        module, attribute = app.import_path.split(":")
        assert callable(getattr(importlib.import_module(module), attribute))
        mounts = {m["mountPath"] for c in containers(manifests) for m in c.get("volumeMounts", [])}
        (workdir,) = docker_lines("WORKDIR")
        assert str(Path(workdir) / AppSettings(**app.args).run.parent) in mounts


def test_serve_config_with_a_misspelt_key_is_refused(manifests: list[Manifest]) -> None:
    content = yaml.safe_load(the(manifests, "RayService")["spec"]["serveConfigV2"])
    content["applications"][0]["deployments"][0]["max_ongoing_request"] = 3
    with pytest.raises(ConfigError, match=r"max_ongoing_request'.*did you mean 'max_ongoing_requests'"):
        parse_serve_config(content, "serveConfigV2")


def test_ports_agree(manifests: list[Manifest]) -> None:
    service = the(manifests, "RayService")["spec"]
    port = yaml.safe_load(service["serveConfigV2"])["http_options"]["port"]
    assert docker_lines("EXPOSE") == [str(port)]
    for group in service["rayClusterConfig"]["workerGroupSpecs"]:
        ports = {p["name"]: p["containerPort"] for p in group["template"]["spec"]["containers"][0]["ports"]}
        assert ports["serve"] == port
    for container in containers(manifests):
        numbers = [p["containerPort"] for p in container.get("ports", [])]
        assert len(numbers) == len(set(numbers))


def test_dockerfile_copies_what_exists_and_is_not_ignored() -> None:
    copied = [source for line in docker_lines("COPY", slice(None)) for source in line.split()[:-1]]
    assert {"platform", "jobs", "serving", "constraints.txt", "pyproject.toml", "setup.py"} <= set(copied)
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert allowed == set(copied)
    for source in copied:
        assert (ROOT / source).exists()
    assert any("--constraint constraints.txt" in line for line in docker_lines("RUN"))
