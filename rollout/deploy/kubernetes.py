"""Writes a plan as manifests for Kubernetes: a Job for the launch, and an indexed Job of workers for each environment.

All pods mount the volume of the claim `rollout-runs` at the `run.directory` of the configurations. Passwords and API
keys come from the Secret `rollout`, if it exists. A pod that is evicted or preempted does not count as a failure. Each
worker may fail `worker.restarts` times.
"""

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from rollout.config.load import load_config
from rollout.deploy.plan import CannotRender, Plan, WorkerGroup

_CONFIG_DIRECTORY = "/etc/rollout"
_VOLUME_CLAIM_NAME, _SECRET_NAME = "rollout-runs", "rollout"
_METRICS_PORT = 9464
_IMAGE_GROUP = 10001
"""The group of the user in our Dockerfile. This user is not root, so Kubernetes gives the group access to the runs."""
_MAX_HOST_NAME_LENGTH = 63
"""The limit of Kubernetes in characters. A worker's host name is the name of its Job and the number of the worker."""
_METRICS_OVERRIDES = ("metrics.host=0.0.0.0", f"metrics.port={_METRICS_PORT}")
_Manifest = dict[str, Any]


def render(plan: Plan, image: str) -> dict[str, str]:
    """Return the contents of all files, by file name. The user must apply the files in the order of their names.

    Raises:
        CannotRender: a path is relative to its configuration file, or a name is not valid in Kubernetes.
    """
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,40}[a-z0-9])?", plan.name):
        raise CannotRender(
            f"{plan.name!r} is not a valid name in Kubernetes. The last part of --render becomes this name; use only "
            "lower-case letters, digits and dashes."
        )
    _require_unique_names(plan)
    for group in plan.worker_groups:
        _require_absolute_paths(group, plan.overrides)
    manifests_by_file = {
        "1-launch.yaml": [_config_map(plan), _job(_object_name(plan, "launch"), plan, _launch_job_spec(plan, image))]
    }
    for group in plan.worker_groups:
        manifests_by_file[f"2-workers-{group.name}.yaml"] = [_workers_job(plan, group, image)]
    return {name: _dump_manifests(manifests) for name, manifests in manifests_by_file.items()}


def _require_unique_names(plan: Plan) -> None:
    """Raise CannotRender if a Job's name is not valid, or is the name of another Job, which it would replace."""
    used_names = [_object_name(plan, "launch")]
    for group in plan.worker_groups:
        name = _worker_group_name(plan, group)
        if name in used_names or name.endswith("-") or len(f"{name}-{group.worker_count}") > _MAX_HOST_NAME_LENGTH:
            raise CannotRender(
                f"{group.config_path}: the run.name {group.name!r} becomes the Job name {name!r}, which is too long, "
                "empty, or already used by another Job. Choose a shorter run.name whose letters and digits differ from "
                "those of the other names and from 'launch'."
            )
        used_names.append(name)


def _require_absolute_paths(group: WorkerGroup, overrides: Sequence[str]) -> None:
    """Raise CannotRender if a path is relative to the configuration file, which pods have in another directory."""
    with tempfile.TemporaryDirectory() as other_directory:
        moved_file = Path(other_directory, group.config_path.name)
        moved_file.write_text(group.config_path.read_text("utf-8"), "utf-8")
        moved_config = load_config(moved_file, overrides)
    for key, original_value, moved_value in (
        ("run.directory", group.config.run.directory, moved_config.run.directory),
        ("model.path", group.config.model.path, moved_config.model.path),
        ("images.allow", group.config.images.allow, moved_config.images.allow),
    ):
        if original_value != moved_value:
            raise CannotRender(
                f"{group.config_path}: {key} is relative to this file, but pods have this file in another directory. "
                "Write the absolute path that is valid in the pods."
            )


def _config_map(plan: Plan) -> _Manifest:
    file_contents = {group.config_path.name: group.config_path.read_text("utf-8") for group in plan.worker_groups}
    if len(file_contents) < len(plan.worker_groups):
        raise CannotRender("two configurations have the same file name. Rename one of the files.")
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(_object_name(plan, "configs"), plan),
        "data": file_contents,
    }


def _launch_job_spec(plan: Plan, image: str) -> _Manifest:
    config_paths = [f"{_CONFIG_DIRECTORY}/{group.config_path.name}" for group in plan.worker_groups]
    command = ["rollout", "launch", *config_paths, "--workers", "0", "--run", str(plan.run_directory)]
    grace = max(group.grace_seconds for group in plan.worker_groups)
    return {"backoffLimit": 8, "template": _pod_template(plan, image, command, plan.memory_mb, grace)}


def _workers_job(plan: Plan, group: WorkerGroup, image: str) -> _Manifest:
    command = ["rollout", "worker", f"{_CONFIG_DIRECTORY}/{group.config_path.name}", "--run", str(plan.run_directory)]
    spec = {
        "completionMode": "Indexed",
        "completions": group.worker_count,
        "parallelism": group.worker_count,
        "backoffLimitPerIndex": group.config.worker.restarts,
        "maxFailedIndexes": group.worker_count,
        "template": _pod_template(plan, image, command, group.memory_mb, group.grace_seconds),
    }
    return _job(_worker_group_name(plan, group), plan, spec)


def _job(name: str, plan: Plan, spec: _Manifest) -> _Manifest:
    ignore_disruptions = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": _metadata(name, plan),
        "spec": {"podFailurePolicy": {"rules": [ignore_disruptions]}, **spec},
    }


def _pod_template(plan: Plan, image: str, command: Sequence[str], memory_mb: int, grace: int) -> _Manifest:
    override_options = [
        argument for override in (*plan.overrides, *_METRICS_OVERRIDES) for argument in ("--set", override)
    ]
    container = {
        "name": "rollout",
        "image": image,
        "command": [*command, *override_options],
        "envFrom": [{"secretRef": {"name": _SECRET_NAME, "optional": True}}],
        "ports": [{"name": "metrics", "containerPort": _METRICS_PORT}],
        # The imports may take minutes on a new node, so the pod gets more time to start. After that, Kubernetes
        # restarts the pod only if its event loop is blocked.
        "startupProbe": _probe("/healthz", period=10, failures=30),
        "readinessProbe": _probe("/readyz", period=10, failures=1),
        "livenessProbe": _probe("/healthz", period=10, failures=6),
        "resources": {
            "requests": {"cpu": "1", "memory": f"{memory_mb}Mi"},
            "limits": {"memory": f"{2 * memory_mb}Mi"},
        },
        "securityContext": {"allowPrivilegeEscalation": False},
        "volumeMounts": [
            {"name": "runs", "mountPath": str(plan.run_directory.parent)},
            {"name": "configs", "mountPath": _CONFIG_DIRECTORY, "readOnly": True},
        ],
    }
    return {
        "metadata": {
            "labels": _labels(plan),
            "annotations": {"prometheus.io/scrape": "true", "prometheus.io/port": str(_METRICS_PORT)},
        },
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": grace,
            "automountServiceAccountToken": False,
            "securityContext": {"fsGroup": _IMAGE_GROUP, "fsGroupChangePolicy": "OnRootMismatch"},
            "containers": [container],
            "volumes": [
                {"name": "runs", "persistentVolumeClaim": {"claimName": _VOLUME_CLAIM_NAME}},
                {"name": "configs", "configMap": {"name": _object_name(plan, "configs")}},
            ],
        },
    }


def _probe(path: str, *, period: int, failures: int) -> _Manifest:
    return {
        "httpGet": {"path": path, "port": "metrics"},
        "periodSeconds": period,
        "failureThreshold": failures,
        "timeoutSeconds": 5,
    }


def _object_name(plan: Plan, part: str) -> str:
    return f"{plan.name}-{part}"


def _worker_group_name(plan: Plan, group: WorkerGroup) -> str:
    return _object_name(plan, re.sub(r"[^a-z0-9-]+", "-", group.name.lower()).strip("-"))


def _metadata(name: str, plan: Plan) -> _Manifest:
    return {"name": name, "labels": _labels(plan)}


def _labels(plan: Plan) -> dict[str, str]:
    return {"app.kubernetes.io/name": "rollout", "app.kubernetes.io/instance": plan.name}


class _ManifestDumper(yaml.SafeDumper):
    """Writes YAML without anchors, because manifests rarely have them, and strings of several lines as blocks."""

    def ignore_aliases(self, data: Any) -> bool:
        """Return True, so that a repeated value is written again and not as a reference."""
        return True


def _represent_text(dumper: _ManifestDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_ManifestDumper.add_representer(str, _represent_text)


def _dump_manifests(manifests: Sequence[_Manifest]) -> str:
    return yaml.dump_all(manifests, Dumper=_ManifestDumper, sort_keys=False, allow_unicode=True, width=120)
