"""What infra/kubernetes says, as far as it can be shown without a cluster.

Only checked: every object against the strict schema of its kind, and that what the objects name is there. No cluster
was at hand. Run elsewhere: the script that a pod's end waits for (watch/test_ship), the edge and the health check.
"""

import re
from collections.abc import Iterator
from typing import Any

import kubernetes_validate
import pytest
import yaml

from architecture.tree import ROOT
from meterhouse.settings import Settings

FOLDER = ROOT / "infra" / "kubernetes"
VERSIONS = ("1.29", "1.33", "1.37")
DOCKERFILE = (ROOT / "infra" / "Dockerfile").read_text()


def read_objects() -> list[dict[str, Any]]:
    return [found for path in sorted(FOLDER.glob("*.yaml")) for found in yaml.safe_load_all(path.read_text())]


OBJECTS = {f"{found['kind']}/{found['metadata']['name']}": found for found in read_objects()}
GATEWAY = OBJECTS["StatefulSet/meterhouse"]["spec"]
PODS = [GATEWAY["template"], OBJECTS["Job/meterhouse-migrate"]["spec"]["template"]]


def containers() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for pod in PODS:
        for container in pod["spec"]["containers"]:
            yield pod["spec"], container


@pytest.mark.parametrize("name", OBJECTS)
def test_an_object_is_one_of_its_kind(name: str) -> None:
    for version in VERSIONS:
        kubernetes_validate.validate(OBJECTS[name], version, strict=True)


def test_everything_that_is_needed_is_there() -> None:
    kinds = {name.split("/")[0] for name in OBJECTS}
    assert kinds == {
        *(
            "StatefulSet",
            "Service",
            "HorizontalPodAutoscaler",
            "PodDisruptionBudget",
            "Job",
            "ConfigMap",
            "NetworkPolicy",
        )
    }
    assert GATEWAY["serviceName"] in {name.split("/")[1] for name in OBJECTS if name.startswith("Service/")}


def test_what_selects_pods_finds_those_of_the_gateway() -> None:
    labels = GATEWAY["template"]["metadata"]["labels"].items()
    assert GATEWAY["selector"]["matchLabels"].items() <= labels
    for name, found in OBJECTS.items():
        if name.startswith("Service/"):
            assert found["spec"]["selector"].items() <= labels
    assert OBJECTS["PodDisruptionBudget/meterhouse"]["spec"]["selector"]["matchLabels"].items() <= labels
    assert OBJECTS["NetworkPolicy/meterhouse"]["spec"]["podSelector"]["matchLabels"].items() <= labels
    target = OBJECTS["HorizontalPodAutoscaler/meterhouse"]["spec"]["scaleTargetRef"]
    assert f"{target['kind']}/{target['name']}" in OBJECTS


def test_settings_that_are_named_exist_and_hosts_are_as_many_as_may_be() -> None:
    data = OBJECTS["ConfigMap/meterhouse"]["data"]
    known = {f"METERHOUSE_{name.upper()}" for name in Settings.model_fields}
    assert {name for name in data if name.startswith("METERHOUSE_")} <= known
    assert int(data["METERHOUSE_HOSTS"]) == OBJECTS["HorizontalPodAutoscaler/meterhouse"]["spec"]["maxReplicas"]
    for _, container in containers():
        references = [source["configMapRef"]["name"] for source in container["envFrom"] if "configMapRef" in source]
        assert all(f"ConfigMap/{name}" in OBJECTS for name in references)


def test_nothing_has_rights_and_every_place_that_is_written_is_a_volume() -> None:
    for pod, container in containers():
        closed = container["securityContext"]
        assert closed["readOnlyRootFilesystem"] is True
        assert closed["allowPrivilegeEscalation"] is False
        assert closed["capabilities"] == {"drop": ["ALL"]}
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert closed.get("runAsUser", pod["securityContext"].get("runAsUser"))
        volumes = {volume["name"] for volume in pod["volumes"]} | {
            claim["metadata"]["name"] for claim in GATEWAY["volumeClaimTemplates"]
        }
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}


def test_a_pod_has_the_time_that_its_end_takes() -> None:
    gateway, edge = GATEWAY["template"]["spec"]["containers"]
    ship_seconds = int(gateway["lifecycle"]["preStop"]["exec"]["command"][-1])
    shutdown_seconds = int(OBJECTS["ConfigMap/meterhouse"]["data"]["METERHOUSE_SHUTDOWN_SECONDS"])
    # A worker that is told to stop is killed after twice that and 15 s (serve.graceful_seconds).
    assert GATEWAY["template"]["spec"]["terminationGracePeriodSeconds"] >= ship_seconds + 2 * shutdown_seconds + 15
    assert int(edge["lifecycle"]["preStop"]["exec"]["command"][-1]) > ship_seconds


def test_the_programs_and_images_are_those_of_the_dockerfile() -> None:
    for _, container in containers():
        stage = {"meterhouse": "gateway", "meterhouse-edge": "edge"}[container["image"]]
        assert re.search(rf"^FROM .* AS {stage}$", DOCKERFILE, re.MULTILINE)
    build = (ROOT / "infra" / "build").read_text()
    text = (FOLDER / "gateway.yaml").read_text()
    for script in set(re.findall(r"/opt/meterhouse/(infra/stack/\w+\.py)", text)):
        assert (ROOT / script).exists()
        assert script in build
