"""What schedulers are told: as it was agreed on, valid by their own schemas, and refused where it could not work."""

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
    """The files of the plan, with this machine's path as any other would have them."""

    def read() -> dict[str, str]:
        files = (tmp_path / "run7").iterdir()
        return {path.name: path.read_text().replace(str(tmp_path), "/shared") for path in files}

    return read


def load_manifests(texts: dict[str, str]) -> list[dict[str, Any]]:
    return [found for _, text in sorted(texts.items()) for found in yaml.safe_load_all(text)]


@pytest.mark.parametrize(("on", "arguments"), [("slurm", SLURM), ("k8s", K8S)])
def test_what_is_rendered_is_what_was_agreed_on(
    render: Render, rendered: Callable[[], dict[str, str]], on: str, arguments: tuple[str, ...]
) -> None:
    result = render(*arguments, "--set", "engine.sampling.max_tokens=64")
    assert result.returncode == 0, result.stderr
    assert rendered() == {path.name: path.read_text() for path in (GOLDEN / on).iterdir()}


def test_pods_read_the_configurations_as_they_are(
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


def test_manifests_are_valid_by_the_schemas_of_kubernetes(
    render: Render, rendered: Callable[[], dict[str, str]]
) -> None:
    assert render(*K8S).returncode == 0
    found = load_manifests(rendered())
    assert [entry["kind"] for entry in found] == ["ConfigMap", "Job", "Job", "Job"]
    for entry in found:
        kubernetes_validate.validate(entry, kubernetes_validate.latest_version(), strict=True)


def test_pods_have_time_to_drain_probes_and_what_they_need(
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
        assert container["resources"]["requests"] == {
            "cpu": "1",
            "memory": container["resources"]["requests"]["memory"],
        }
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
        ((*SLURM, "--set", "engine.urls=['http://127.0.0.1:8000']"), "engine.urls has http://127.0.0.1:8000"),
        ((*SLURM, "--set", "run.name=same"), "two configurations have the run.name 'same'"),
    ],
)
def test_what_could_not_work_is_refused_by_name(
    render: Render, tmp_path: Path, arguments: tuple[str, ...], complaint: str
) -> None:
    result = render(*arguments)
    assert result.returncode == 2
    assert complaint in " ".join(result.stderr.split())
    assert not (tmp_path / "run7").exists()


def test_the_files_of_a_scheduler_are_for_their_owner_alone(render: Render, tmp_path: Path) -> None:
    result = render(*SLURM, "--set", "queue.url=redis://me:s3cret@redis/0")
    assert (result.returncode, result.stdout.count("s3cret"), result.stderr.count("s3cret")) == (0, 0, 0)
    assert result.stderr.startswith("rollout: a password in plain text: --set queue.url: queue.url.")
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "run7").iterdir()}
    assert set(modes.values()) == {0o700}
    assert render(*K8S).returncode == 0
    assert (tmp_path / "run7" / "1-launch.yaml").stat().st_mode & 0o777 == 0o600


def test_a_variable_in_an_override_stays_one_for_a_scheduler(
    render: Render, rendered: Callable[[], dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUEUE_PASSWORD", "s3cret")
    result = render(*SLURM, "--set", "queue.url=redis://me:${QUEUE_PASSWORD}@redis/0")
    assert (result.returncode, result.stderr) == (0, "")
    assert "--set 'queue.url=redis://me:${QUEUE_PASSWORD}@redis/0'" in rendered()["launch.sbatch"]
    assert "s3cret" not in "".join(rendered().values())


def test_an_image_is_for_pods_alone(configs: list[Path]) -> None:
    result = run_cli("launch", str(configs[0]), "--image", "x")
    assert result.returncode == 2
    assert "--on k8s need --render DIR" in result.stderr


def test_a_path_that_would_be_another_one_in_a_pod_is_refused(configs: list[Path], tmp_path: Path) -> None:
    configs[0].write_text(configs[0].read_text().replace(f"{tmp_path}/runs", "runs"))
    result = run_cli("launch", str(configs[0]), *K8S, "--render", str(tmp_path / "run7"))
    assert result.returncode == 2
    assert "run.directory is relative to this file" in result.stderr


@pytest.mark.parametrize(
    ("name", "refused"), [("sums-2", "Sums_2"), ("launch", "launch"), ("__", "__"), ("x" * 60, "x" * 60)]
)
def test_an_environment_whose_job_would_have_no_name_of_its_own_is_refused(
    render: Render, configs: list[Path], name: str, refused: str
) -> None:
    configs[0].write_text(configs[0].read_text().replace("name: codeword", f"name: {name}"))
    result = render(*K8S)
    assert result.returncode == 2
    assert f"run.name {refused!r} gives the Job name" in result.stderr


def test_a_name_that_kubernetes_does_not_take_is_refused(configs: list[Path], tmp_path: Path) -> None:
    result = run_cli("launch", str(configs[0]), *K8S, "--render", str(tmp_path / "Run_7"))
    assert result.returncode == 2
    assert "is not a valid name in Kubernetes" in result.stderr
