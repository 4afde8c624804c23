"""A plan as manifests for Kubernetes: a Job that feeds, an indexed Job of workers for each environment.

They share a volume, the claim `rollout-runs`, mounted where the configurations say that runs lie. What only the cluster
may know, such as REDIS_PASSWORD or the engines' API key, comes from the Secret `rollout`, if there is one. A pod that
is evicted or preempted does not count as a failure; each worker may fail as often as `worker.restarts` says.
"""

import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from rollout.config.load import load_config
from rollout.deploy.plan import CannotRender, Crew, Plan

_CONFIGS = "/etc/rollout"
_CLAIM, _SECRET = "rollout-runs", "rollout"
_PORT = 9464
_LONGEST_HOST_NAME = 63
"""A worker's host is called as its Job is, with the worker's number."""
_SERVED = ("metrics.host=0.0.0.0", f"metrics.port={_PORT}")
_Object = dict[str, Any]


def render(plan: Plan, image: str) -> dict[str, str]:
    """The files, by their names; to be applied in their order.

    Raises:
        CannotRender: a path would be another one in a pod, or a name of the run cannot name an object.
    """
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,40}[a-z0-9])?", plan.name):
        raise CannotRender(
            f"{plan.name!r} cannot name objects in Kubernetes: use lower-case letters, digits and dashes "
            "for the last part of --render."
        )
    _require_names(plan)
    for crew in plan.crews:
        _require_absolute(crew, plan.overrides)
    files = {"1-launch.yaml": [_configs(plan), _job(_named(plan, "launch"), plan, _launch(plan, image))]}
    for crew in plan.crews:
        files[f"2-workers-{crew.name}.yaml"] = [_workers(plan, crew, image)]
    return {name: _dump(objects) for name, objects in files.items()}


def _require_names(plan: Plan) -> None:
    """Of two Jobs with one name the second would replace the first."""
    taken = [_named(plan, "launch")]
    for crew in plan.crews:
        name = _crew_name(plan, crew)
        if name in taken or name.endswith("-") or len(f"{name}-{crew.workers}") > _LONGEST_HOST_NAME:
            raise CannotRender(
                f"{crew.file}: run.name {crew.name!r} would make a Job of the name {name!r}, which is taken, too long "
                "or none. Choose a run.name that differs from the others, and from launch, in its letters and digits."
            )
        taken.append(name)


def _require_absolute(crew: Crew, overrides: Sequence[str]) -> None:
    """In a pod the file lies elsewhere, so that nothing in it may be relative to where it lies."""
    with tempfile.TemporaryDirectory() as elsewhere:
        moved = Path(elsewhere, crew.file.name)
        moved.write_text(crew.file.read_text("utf-8"), "utf-8")
        there = load_config(moved, overrides)
    for key, here, then in (
        ("run.directory", crew.config.run.directory, there.run.directory),
        ("model.path", crew.config.model.path, there.model.path),
        ("images.allow", crew.config.images.allow, there.images.allow),
    ):
        if here != then:
            raise CannotRender(
                f"{crew.file}: {key} is relative to the file, which lies elsewhere in a pod. Give the path that it "
                "has in the pods."
            )


def _configs(plan: Plan) -> _Object:
    texts = {crew.file.name: crew.file.read_text("utf-8") for crew in plan.crews}
    if len(texts) < len(plan.crews):
        raise CannotRender("two configurations have the same file name; give each a name of its own.")
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(_named(plan, "configs"), plan),
        "data": texts,
    }


def _launch(plan: Plan, image: str) -> _Object:
    files = [f"{_CONFIGS}/{crew.file.name}" for crew in plan.crews]
    command = ["rollout", "launch", *files, "--workers", "0", "--run", str(plan.directory)]
    grace = max(crew.grace for crew in plan.crews)
    return {"backoffLimit": 8, "template": _pod(plan, image, command, plan.memory_mb, grace)}


def _workers(plan: Plan, crew: Crew, image: str) -> _Object:
    command = ["rollout", "worker", f"{_CONFIGS}/{crew.file.name}", "--run", str(plan.directory)]
    spec = {
        "completionMode": "Indexed",
        "completions": crew.workers,
        "parallelism": crew.workers,
        "backoffLimitPerIndex": crew.config.worker.restarts,
        "maxFailedIndexes": crew.workers,
        "template": _pod(plan, image, command, crew.memory_mb, crew.grace),
    }
    return _job(_crew_name(plan, crew), plan, spec)


def _job(name: str, plan: Plan, spec: _Object) -> _Object:
    disrupted = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": _metadata(name, plan),
        "spec": {"podFailurePolicy": {"rules": [disrupted]}, **spec},
    }


def _pod(plan: Plan, image: str, command: Sequence[str], memory_mb: int, grace: int) -> _Object:
    told = [part for override in (*plan.overrides, *_SERVED) for part in ("--set", override)]
    container = {
        "name": "rollout",
        "image": image,
        "command": [*command, *told],
        "envFrom": [{"secretRef": {"name": _SECRET, "optional": True}}],
        "ports": [{"name": "metrics", "containerPort": _PORT}],
        # On a cold node imports alone take minutes; after that, only a loop that stands still is a reason to end it.
        "startupProbe": _probe("/healthz", period=10, failures=30),
        "readinessProbe": _probe("/readyz", period=10, failures=1),
        "livenessProbe": _probe("/healthz", period=10, failures=6),
        "resources": {
            "requests": {"cpu": "1", "memory": f"{memory_mb}Mi"},
            "limits": {"memory": f"{2 * memory_mb}Mi"},
        },
        "securityContext": {"allowPrivilegeEscalation": False},
        "volumeMounts": [
            {"name": "runs", "mountPath": str(plan.directory.parent)},
            {"name": "configs", "mountPath": _CONFIGS, "readOnly": True},
        ],
    }
    return {
        "metadata": {
            "labels": _labels(plan),
            "annotations": {"prometheus.io/scrape": "true", "prometheus.io/port": str(_PORT)},
        },
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": grace,
            "automountServiceAccountToken": False,
            "containers": [container],
            "volumes": [
                {"name": "runs", "persistentVolumeClaim": {"claimName": _CLAIM}},
                {"name": "configs", "configMap": {"name": _named(plan, "configs")}},
            ],
        },
    }


def _probe(path: str, *, period: int, failures: int) -> _Object:
    return {
        "httpGet": {"path": path, "port": "metrics"},
        "periodSeconds": period,
        "failureThreshold": failures,
        "timeoutSeconds": 5,
    }


def _named(plan: Plan, part: str) -> str:
    return f"{plan.name}-{part}"


def _crew_name(plan: Plan, crew: Crew) -> str:
    return _named(plan, re.sub(r"[^a-z0-9-]+", "-", crew.name.lower()).strip("-"))


def _metadata(name: str, plan: Plan) -> _Object:
    return {"name": name, "labels": _labels(plan)}


def _labels(plan: Plan) -> dict[str, str]:
    return {"app.kubernetes.io/name": "rollout", "app.kubernetes.io/instance": plan.name}


class _Dumper(yaml.SafeDumper):
    """Without anchors, which nobody reads in manifests, and with files as the text that they are."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def _dump(objects: Sequence[_Object]) -> str:
    return "---\n".join(_texts(objects))


def _texts(objects: Sequence[_Object]) -> Iterator[str]:
    for found in objects:
        yield yaml.dump(found, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
