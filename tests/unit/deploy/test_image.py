"""The image of the Dockerfile fits the manifests for Kubernetes."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.needs.package.dockerfile import Dockerfile, parse

TARGETS = ("worker", "trainer")


@pytest.fixture
def dockerfile(repository: Path) -> Dockerfile:
    return parse((repository / "Dockerfile").read_text())


@pytest.fixture
def pods(render: Callable[..., "subprocess.CompletedProcess[str]"], tmp_path: Path) -> list[dict[str, Any]]:
    """Return the pods of a launch and of two groups of workers."""
    assert render("--on", "k8s", "--image", "rollout-worker", "--workers", "2").returncode == 0
    manifests = [found for path in (tmp_path / "run7").iterdir() for found in yaml.safe_load_all(path.read_text())]
    return [found["spec"]["template"]["spec"] for found in manifests if found["kind"] == "Job"]


def last(dockerfile: Dockerfile, target: str, keyword: str) -> str:
    """Return the arguments of the last instruction with this keyword in a stage and the stages below it."""
    stages = dockerfile.lineage(target)
    return [found.arguments for stage in stages for found in stage.instructions if found.keyword == keyword][-1]


@pytest.mark.parametrize("target", TARGETS)
def test_pods_call_the_entrypoint_of_the_image(dockerfile: Dockerfile, pods: list[dict[str, Any]], target: str) -> None:
    entrypoints = [i for stage in dockerfile.lineage(target) for i in stage.instructions if i.keyword == "ENTRYPOINT"]
    assert {pod["containers"][0]["command"][0] for pod in pods} == set(entrypoints[-1].exec_form()) == {"rollout"}
    assert last(dockerfile, target, "ENV").startswith("PATH=/opt/rollout/bin:$PATH")


@pytest.mark.parametrize("target", TARGETS)
def test_pods_give_their_volume_to_the_group_of_the_image(
    dockerfile: Dockerfile, pods: list[dict[str, Any]], target: str
) -> None:
    user, _, group = last(dockerfile, target, "USER").partition(":")
    assert user.isdigit()
    assert user != "0"
    assert {str(pod["securityContext"]["fsGroup"]) for pod in pods} == {group}


def test_pods_do_not_set_a_user(pods: list[dict[str, Any]]) -> None:
    contexts = [
        context for pod in pods for context in (pod["securityContext"], pod["containers"][0]["securityContext"])
    ]
    assert not any("runAsUser" in context for context in contexts)


@pytest.mark.parametrize("target", TARGETS)
def test_no_mount_of_the_pods_hides_a_directory_of_the_image(
    dockerfile: Dockerfile, pods: list[dict[str, Any]], target: str
) -> None:
    stages = dockerfile.lineage(target)
    copied = [i.words()[-1] for stage in stages for i in stage.instructions if i.keyword == "COPY"]
    used = {Path(path) for path in (*copied, last(dockerfile, target, "WORKDIR"))}
    for mount in (mount["mountPath"] for pod in pods for mount in pod["containers"][0]["volumeMounts"]):
        assert not any(path.is_relative_to(mount) for path in used)
