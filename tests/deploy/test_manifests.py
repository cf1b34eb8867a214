"""deployment.yaml and deploy/*.yaml: valid, and nothing in them that nobody reads."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest
import yaml
from deployment_names import assert_read

from hunyuan.requests import MAX_IMAGES
from hunyuan.serving.pixel_file import PIXEL_BYTES
from hunyuan.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = ("deploy/kubernetes-model.yaml", "deploy/kubernetes.yaml")
CHECKPOINT_GB, QUANTIZED_GB = 170, 52  # docs/weights.md
MARGIN_S = 30  # service.py's TIMEOUT_MARGIN_S


@pytest.fixture(scope="module")
def objects() -> dict[str, dict[str, Any]]:
    """By kind, of both files."""
    texts = [(ROOT / name).read_text() for name in MANIFESTS]
    found = [o for text in texts for o in yaml.safe_load_all(text)]
    assert len({o["kind"] for o in found}) == len(found)
    return {o["kind"]: o for o in found}


@pytest.fixture(scope="module")
def pod(objects: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return objects["Deployment"]["spec"]["template"]["spec"]


@pytest.fixture(scope="module")
def job(objects: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return objects["Job"]["spec"]["template"]["spec"]


@pytest.fixture(scope="module")
def cloud() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "deployment.yaml").read_text())


@pytest.mark.parametrize("name", MANIFESTS)
@pytest.mark.slow
def test_kubernetes_manifest_is_valid(name: str) -> None:
    command = [
        str(Path(sys.executable).parent / "kubernetes-validate"),
        "--strict",
        str(ROOT / name),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_probes_and_ports(objects: dict[str, dict[str, Any]], pod: dict[str, Any]) -> None:
    container = pod["containers"][0]
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "http"}
    assert container["livenessProbe"]["httpGet"] == {"path": "/livez", "port": "http"}
    assert container["ports"] == [{"name": "http", "containerPort": 8000}]
    assert objects["Service"]["spec"]["ports"][0]["targetPort"] == "http"


def test_the_pod_is_locked_down(pod: dict[str, Any]) -> None:
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] == 1034
    container = pod["containers"][0]["securityContext"]
    assert container["readOnlyRootFilesystem"]
    assert not container["allowPrivilegeEscalation"]
    mounts = {mount["mountPath"]: mount for mount in pod["containers"][0]["volumeMounts"]}
    assert mounts["/models"]["readOnly"]
    assert mounts["/keys"]["readOnly"]
    assert set(mounts) == {"/models", "/keys", "/cache", "/jobs", "/dev/shm"}
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_no_variables_come_from_services(pod: dict[str, Any], job: dict[str, Any]) -> None:
    assert pod["enableServiceLinks"] is False
    assert job["enableServiceLinks"] is False


def test_there_is_time_to_finish_an_edit(pod: dict[str, Any]) -> None:
    waits = int(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    timeout = float(variables(pod["containers"][0]["env"])["HUNYUAN_REQUEST_TIMEOUT_S"])
    assert pod["terminationGracePeriodSeconds"] >= waits + timeout + MARGIN_S


def test_names_agree(objects: dict[str, dict[str, Any]]) -> None:
    selector = objects["Deployment"]["spec"]["selector"]["matchLabels"]
    assert selector == objects["Service"]["spec"]["selector"]
    assert selector == objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"]
    assert selector == objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    scaled = objects["HorizontalPodAutoscaler"]["spec"]
    assert scaled["scaleTargetRef"]["name"] == objects["Deployment"]["metadata"]["name"]
    claim = objects["Deployment"]["spec"]["template"]["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"]
    assert claim == objects["PersistentVolumeClaim"]["metadata"]["name"]


def test_the_job_fills_the_claim_that_the_deployment_reads(
    objects: dict[str, dict[str, Any]], pod: dict[str, Any], job: dict[str, Any]
) -> None:
    claim = objects["PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    size = claim["spec"]["resources"]["requests"]["storage"]
    assert int(size.removesuffix("Gi")) * 2**30 > (CHECKPOINT_GB + QUANTIZED_GB) * 1e9
    for spec, read_only in ((job, False), (pod, True)):
        (volume,) = (v["persistentVolumeClaim"] for v in spec["volumes"] if "persistentVolumeClaim" in v)
        assert volume["claimName"] == claim["metadata"]["name"]
        (mount,) = (m for m in spec["containers"][0]["volumeMounts"] if m["name"] == "models")
        assert bool(volume.get("readOnly")) == bool(mount.get("readOnly")) == read_only
        assert mount["mountPath"] == "/models"
    assert job["securityContext"] | {} == pod["securityContext"]
    assert job["containers"][0]["securityContext"] == pod["containers"][0]["securityContext"]


def test_every_file_names_the_same_image(pod: dict[str, Any], job: dict[str, Any]) -> None:
    image = pod["containers"][0]["image"]
    assert job["containers"][0]["image"] == image
    assert image.partition(":")[2] not in ("", "latest")
    assert f"--image-tag {image}" in (ROOT / "docs/deployment.md").read_text()
    assert f"--image-tag {image}" in (ROOT / "README.md").read_text()


def test_the_autoscaler_s_metric_exists(objects: dict[str, dict[str, Any]]) -> None:
    metric = objects["HorizontalPodAutoscaler"]["spec"]["metrics"][0]["pods"]["metric"]["name"]
    assert f'"{metric}"' in (ROOT / "hunyuan/serving/metrics.py").read_text()


def variables(entries: list[dict[str, str]]) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in entries}


def moved(path: str) -> str:
    """The file that stands for the Secret's."""
    return path.replace("/keys/api_keys.txt", str(ROOT / "tests/data/api_keys.txt"))


def test_the_keys_come_from_the_secret_that_the_document_makes(pod: dict[str, Any]) -> None:
    (secret,) = (volume["secret"] for volume in pod["volumes"] if "secret" in volume)
    file = variables(pod["containers"][0]["env"])["HUNYUAN_API_KEYS_FILE"]
    made = f"kubectl create secret generic {secret['secretName']} --from-file={Path(file).name}"
    assert made in (ROOT / "docs/deployment.md").read_text()
    assert not secret.get("optional")  # without it everybody could call
    assert secret["defaultMode"] == 0o440  # its group is the pod's fsGroup


def test_variables_are_read_and_valid(
    pod: dict[str, Any], cloud: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = variables(yaml.safe_load((ROOT / "bentofile.yaml").read_text())["envs"])
    for given in (variables(pod["containers"][0]["env"]), variables(cloud["envs"])):
        assert_read(given)
        assert given["MODEL_ID"] == image["MODEL_ID"] + "-4bit"
        for name, value in (image | given).items():
            if name.startswith("HUNYUAN_"):
                monkeypatch.setenv(name, moved(value))
        assert Settings().request_timeout_s == float(given["HUNYUAN_REQUEST_TIMEOUT_S"])


@pytest.mark.filterwarnings("ignore:The `__get_pydantic_core_schema__` method:DeprecationWarning")
def test_every_key_of_deployment_yaml_is_bentocloud_s(cloud: dict[str, Any]) -> None:
    """BentoML takes unknown keys in silence."""
    from _bentoml_sdk.service.config import TrafficSchema
    from bentoml._internal.cloud.schemas.modelschemas import DeploymentServiceConfig
    from bentoml._internal.cloud.schemas.schemasv2 import DeploymentConfigSchema

    top = {field.name for field in attrs.fields(DeploymentConfigSchema)} | {"name", "bento"}
    assert cloud.keys() <= top
    ((name, service),) = cloud["services"].items()
    assert f'NAME = "{name}"' in (ROOT / "service.py").read_text()
    assert_known(service, DeploymentServiceConfig)
    traffic = service["config_overrides"]["traffic"]
    assert service["config_overrides"].keys() == {"traffic"}
    assert traffic.keys() <= TrafficSchema.__annotations__.keys()
    assert traffic["timeout"] == float(variables(cloud["envs"])["HUNYUAN_REQUEST_TIMEOUT_S"]) + MARGIN_S


def assert_known(values: dict[str, Any], schema: type) -> None:
    fields = {field.name: str(field.type) for field in attrs.fields(schema)}
    assert values.keys() <= fields.keys(), f"{schema.__name__} has no {sorted(values.keys() - fields.keys())}"
    module = sys.modules[schema.__module__]
    for key, value in values.items():
        inner = re.search(r"\.(\w+)\]$", fields[key])
        if isinstance(value, dict) and inner and hasattr(module, inner[1]):
            assert_known(value, getattr(module, inner[1]))


def test_the_memory_of_decoded_pictures_is_told_and_fits(pod: dict[str, Any]) -> None:
    """What tests/test_openai_faults.py sees to: three pictures for each place of the queue, and no more."""
    settings = Settings()
    pictures = (settings.queue_size + 1) * MAX_IMAGES
    gib = pictures * settings.max_pixels * PIXEL_BYTES / 2**30
    text = " ".join((ROOT / "docs/deployment.md").read_text().split())
    assert f"{pictures} of {settings.max_pixels // 10**6} million pixels are {gib:.1f} GiB" in text
    limit = pod["containers"][0]["resources"]["limits"]["memory"]
    model_and_cache, decoding, uploads = 1.8 + 0.4 + 2, 2 * 1.8, 0.7  # measured; the same paragraph
    assert model_and_cache + decoding + uploads + gib < float(limit.removesuffix("Gi"))
