"""The files for schedulers: their content, their validity, and what is refused."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.unit.cli.in_process import run_cli

Render = Callable[..., "subprocess.CompletedProcess[str]"]
SHELLCHECK = Path(sys.executable).with_name("shellcheck")
GOLDEN = Path(__file__).parent / "golden"
K8S = ("--on", "k8s", "--image", "registry.example/rollout:1", "--workers", "64")
SLURM = ("--on", "slurm", "--workers", "64")


@pytest.fixture
def rendered(tmp_path: Path) -> Callable[[], dict[str, str]]:
    """Return a function that reads the written files and replaces the temporary path by `/shared`."""

    def read() -> dict[str, str]:
        files = (tmp_path / "run7").iterdir()
        return {path.name: path.read_text().replace(str(tmp_path), "/shared") for path in files}

    return read


def load_manifests(texts: dict[str, str]) -> list[dict[str, Any]]:
    return [found for _, text in sorted(texts.items()) for found in yaml.safe_load_all(text)]


@pytest.mark.parametrize(("on", "arguments"), [("slurm", SLURM), ("k8s", K8S)])
def test_the_files_are_the_expected_ones(
    render: Render, rendered: Callable[[], dict[str, str]], on: str, arguments: tuple[str, ...]
) -> None:
    result = render(*arguments, "--set", "engine.sampling.max_tokens=64")
    assert result.returncode == 0, result.stderr
    assert rendered() == {path.name: path.read_text() for path in (GOLDEN / on).iterdir()}


def test_the_config_map_has_the_configurations_that_pods_read(
    render: Render, rendered: Callable[[], dict[str, str]], configs: list[Path]
) -> None:
    assert render(*K8S).returncode == 0
    (found,) = (entry for entry in load_manifests(rendered()) if entry["kind"] == "ConfigMap")
    assert [yaml.safe_load(text)["run"]["name"] for text in found["data"].values()] == [f.stem for f in configs]
    for job in (entry for entry in load_manifests(rendered()) if entry["kind"] == "Job"):
        (container,) = job["spec"]["template"]["spec"]["containers"]
        named = [Path(word).name for word in container["command"] if word.startswith("/etc/rollout/")]
        assert named
        assert set(named) <= set(found["data"])


def test_manifests_fit_the_schemas_of_kubernetes(render: Render, rendered: Callable[[], dict[str, str]]) -> None:
    assert render(*K8S).returncode == 0
    found = load_manifests(rendered())
    assert [entry["kind"] for entry in found] == ["ConfigMap", "Job", "Job", "Job"]
    for entry in found:
        kubernetes_validate.validate(entry, kubernetes_validate.latest_version(), strict=True)


def test_pods_have_a_grace_period_probes_resources_and_retries(
    render: Render, rendered: Callable[[], dict[str, str]]
) -> None:
    assert render(*K8S).returncode == 0
    jobs = [entry for entry in load_manifests(rendered()) if entry["kind"] == "Job"]
    for job in jobs:
        pod = job["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert pod["terminationGracePeriodSeconds"] == 90 + 15
        assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "metrics"}
        assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "metrics"}
        requests = container["resources"]["requests"]
        assert (requests.keys(), requests["cpu"]) == ({"cpu", "memory"}, "1")
    assert [job["spec"].get("parallelism") for job in jobs] == [None, 64, 64]
    assert [job["spec"].get("backoffLimitPerIndex") for job in jobs] == [None, 20, 20]


def test_scripts_pass_shellcheck(render: Render, tmp_path: Path) -> None:
    assert render(*SLURM, "--set", "run.name=it's $HOME").returncode == 2
    assert render(*SLURM, "--set", "model.name=it's mine").returncode == 0
    scripts = sorted((tmp_path / "run7").iterdir())
    assert [path.name for path in scripts] == [
        "launch.sbatch",
        "submit.sh",
        "workers-Sums_2.sbatch",
        "workers-codeword.sbatch",
    ]
    checked = subprocess.run([SHELLCHECK, "--enable=all", *scripts], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--on", "slurm", "--workers", "0"), "--workers (for each"),
        (("--on", "k8s"), "--on k8s needs --image"),
        ((*SLURM, "--image", "x"), "without --on k8s, leave out --image"),
        ((), "--render needs one of them"),
        ((*SLURM, "--run", "other"), "prepares a new run"),
        ((*SLURM, "--resume", "other"), "prepares a new run"),
        (
            (*SLURM, "--set", "queue.tasks=redis://127.0.0.1/0"),
            "queue.tasks is redis://127.0.0.1/0, which other machines",
        ),
        (
            (*SLURM, "--set", "queue.tasks=redis://me:secret@localhost/0"),
            "queue.tasks is redis://me:***@localhost/0, which",
        ),
        ((*SLURM, "--set", "queue.url=memory://x"), "queue.url is memory://x, which other machines cannot reach"),
        ((*SLURM, "--set", "engine.urls=['http://127.0.0.1:8000']"), "engine.urls contains http://127.0.0.1:8000"),
        ((*SLURM, "--set", "run.name=same"), "two configurations have the run.name 'same'"),
    ],
)
def test_a_launch_that_cannot_work_there_is_refused(
    render: Render, tmp_path: Path, arguments: tuple[str, ...], complaint: str
) -> None:
    result = render(*arguments)
    assert result.returncode == 2
    assert complaint in " ".join(result.stderr.split())
    assert not (tmp_path / "run7").exists()


def test_only_the_owner_can_read_the_files(render: Render, tmp_path: Path) -> None:
    result = render(*SLURM, "--set", "queue.url=redis://me:s3cret@redis/0")
    assert (result.returncode, result.stdout.count("s3cret"), result.stderr.count("s3cret")) == (0, 0, 0)
    assert result.stderr.startswith("rollout: a password in plain text: --set queue.url: queue.url.")
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "run7").iterdir()}
    assert set(modes.values()) == {0o700}
    assert render(*K8S).returncode == 0
    assert (tmp_path / "run7" / "1-launch.yaml").stat().st_mode & 0o777 == 0o600


def test_the_files_have_the_variable_of_an_override_and_not_its_value(
    render: Render, rendered: Callable[[], dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUEUE_PASSWORD", "s3cret")
    result = render(*SLURM, "--set", "queue.url=redis://me:${QUEUE_PASSWORD}@redis/0")
    assert (result.returncode, result.stderr) == (0, "")
    assert "--set 'queue.url=redis://me:${QUEUE_PASSWORD}@redis/0'" in rendered()["launch.sbatch"]
    assert "s3cret" not in "".join(rendered().values())


def refusal(config: Path, *arguments: str) -> str:
    result = run_cli("launch", str(config), *arguments)
    assert result.returncode == 2
    return result.stderr


def test_an_image_without_render_is_refused(configs: list[Path]) -> None:
    assert "--on k8s need --render DIR" in refusal(configs[0], "--image", "x")


def test_a_relative_path_is_refused_because_a_pod_has_another_directory(configs: list[Path], tmp_path: Path) -> None:
    configs[0].write_text(configs[0].read_text().replace(f"{tmp_path}/runs", "runs"))
    message = refusal(configs[0], *K8S, "--render", str(tmp_path / "run7"))
    assert "run.directory is relative to this file" in message


@pytest.mark.parametrize(
    ("name", "refused"), [("sums-2", "Sums_2"), ("launch", "launch"), ("__", "__"), ("x" * 60, "x" * 60)]
)
def test_an_environment_whose_name_makes_no_unique_job_name_is_refused(
    render: Render, configs: list[Path], name: str, refused: str
) -> None:
    configs[0].write_text(configs[0].read_text().replace("name: codeword", f"name: {name}"))
    result = render(*K8S)
    assert result.returncode == 2
    assert f"run.name {refused!r} becomes the Job name" in result.stderr


def test_a_name_that_kubernetes_does_not_accept_is_refused(configs: list[Path], tmp_path: Path) -> None:
    message = refusal(configs[0], *K8S, "--render", str(tmp_path / "Run_7"))
    assert "is not a valid name in Kubernetes" in message
