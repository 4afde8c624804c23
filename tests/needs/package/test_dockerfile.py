"""The images of the Dockerfile: a worker and a trainer that run the installed wheel.

If a Docker daemon answers, it builds both targets. PIP_EXTRA_INDEX_URL may name an index with torch for CPU.

Otherwise, the steps of the Dockerfile run stage by stage in bare roots. debootstrap makes the first root from Debian's
packages, as root. The gigabytes of torch are not downloaded: `uv pip compile` resolves the packages of the trainer, and
they are not installed. So only a daemon builds the real image of the trainer.
"""

import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.needs.package.bare_image import ImageBuilder
from tests.needs.package.bare_root import make_debian, mounted_memory
from tests.needs.package.build_context import copy_context
from tests.needs.package.docker_image import DockerImage, docker_daemon_answers
from tests.needs.package.dockerfile import Dockerfile, parse
from tests.needs.package.host_access import find_host_access, pip_settings
from tests.needs.package.image import Image

HADOLINT, UV = (Path(sys.executable).with_name(name) for name in ("hadolint", "uv"))
START_TIMEOUT = 60
ENVIRONMENT = """\
import time
from pathlib import Path

import anyio

from rollout import Environment, Score
from rollout.environments.color_codeword import ColorCodeword

BEGUN = Path(__file__).with_name("begun")


class Codeword(ColorCodeword):
    pass


class Endless(Environment):
    async def run(self, task, model):
        BEGUN.touch()
        await anyio.sleep(3600)
        return Score(reward=0.0)


def __getattr__(name):  # a module that takes long to import
    if name == "Slow":
        BEGUN.touch()
        time.sleep(3600)
    raise AttributeError(name)
"""
CONFIG = """\
environment: {class: "mine:CLASS"}
tasks: {count: 2, group_size: 2}
model: {name: tiny, path: model, renderer: qwen3-vl}
engine: {sampling: {temperature: 0}}
worker: {grace: 1}
run: {name: mine, directory: runs}
"""


@dataclass(frozen=True, slots=True)
class Images:
    """The images under test."""

    worker: Image
    trainer: Image
    trainer_packages: str
    """The packages of the trainer, as name==version, installed or only resolved."""


@pytest.fixture(scope="session")
def dockerfile(repository: Path) -> Dockerfile:
    return parse((repository / "Dockerfile").read_text())


@pytest.fixture(scope="session")
def context(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    context = tmp_path_factory.mktemp("context")
    copy_context(repository, context)
    return context


@pytest.fixture(scope="session")
def images(
    repository: Path, dockerfile: Dockerfile, context: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Images]:
    access = find_host_access()
    with ExitStack() as stack:
        if docker_daemon_answers():
            indexes = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL")
            arguments = {key: access.variables[key] for key in indexes if "http" in access.variables.get(key, "")}
            built = {}
            for target in ("worker", "trainer"):
                built[target] = DockerImage.build(repository, target, arguments)
                stack.callback(built[target].remove)
            packages = built["trainer"].run("-m", "pip", "list", "--format=freeze", entrypoint="python").stdout
            yield Images(built["worker"], built["trainer"], packages)
        else:
            roots = tmp_path_factory.mktemp("roots")
            stack.enter_context(mounted_memory(roots))
            match = re.fullmatch(r"debian:(\w+)-slim", dockerfile.arguments["BASE"] or "")
            assert match, "a bare root is made of debian:SUITE-slim"
            make_debian(roots / "debian", match[1], access)
            builder = ImageBuilder(
                dockerfile,
                base=roots / "debian",
                context=context,
                roots=roots,
                access=access,
                not_run={"trainer-packages"},
            )
            resolved = resolve_trainer_packages(dockerfile, builder.build("worker-packages").root)
            yield Images(builder.build("worker"), builder.build("trainer"), resolved)


def resolve_trainer_packages(dockerfile: Dockerfile, root: Path) -> str:
    """Return what the RUN of trainer-packages would install, for the Python and the wheel of this root."""
    (run,) = (i.arguments for i in dockerfile.stages["trainer-packages"].instructions if i.keyword == "RUN")
    extras = re.search(r"\[[\w,]+\]", run)
    (wheel,), (python,) = (root / "wheels").glob("*.whl"), (root / "opt/rollout/lib").glob("python3.*")
    assert extras
    assert UV.exists(), f"pip install uv, in the environment of {sys.executable}"
    where = pip_settings()
    options = [
        *("--python-version", python.name.removeprefix("python"), "--no-python-downloads", "--no-cache"),
        *("--constraints", str(root / "source/constraints.txt"), "--index-strategy", "unsafe-best-match"),
        *(("--index-url", where["PIP_INDEX_URL"]) if "PIP_INDEX_URL" in where else ()),
        *(word for url in where.get("PIP_EXTRA_INDEX_URL", "").split() for word in ("--extra-index-url", url)),
        *(word for place in where.get("PIP_FIND_LINKS", "").split() for word in ("--find-links", place)),
    ]
    resolved = subprocess.run(
        [UV, "pip", "compile", *options, "-"],
        input=f"rollout-rl{extras[0]} @ {wheel.as_uri()}",
        capture_output=True,
        text=True,
        check=False,
        timeout=START_TIMEOUT,
    )
    assert resolved.returncode == 0, resolved.stderr
    return resolved.stdout


@pytest.fixture
def shared(tmp_path: Path, tiny_model: Path) -> Path:
    """A user's directory with an environment, which another user of a container may write to."""
    directory = tmp_path / "mine"
    shutil.copytree(tiny_model, directory / "model")
    (directory / "mine.py").write_text(ENVIRONMENT)
    directory.chmod(0o777)
    return directory


@pytest.fixture
def write_config(shared: Path) -> Callable[[str], None]:
    """Writes mine.yaml for a class of mine.py."""

    def write(class_name: str) -> None:
        (shared / "mine.yaml").write_text(CONFIG.replace("CLASS", class_name))

    return write


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, "the container did not start"
        time.sleep(0.02)


def test_hadolint_finds_nothing(repository: Path) -> None:
    assert HADOLINT.exists(), "pip install --group package"
    checked = subprocess.run(
        [HADOLINT, repository / "Dockerfile"], capture_output=True, text=True, check=False, timeout=60
    )
    assert (checked.returncode, checked.stdout) == (0, "")


def test_the_build_context_has_only_files_that_are_copied(context: Path, dockerfile: Dockerfile) -> None:
    copied = [
        word.rstrip("/")
        for stage in dockerfile.stages.values()
        for instruction in stage.instructions
        if instruction.keyword == "COPY" and "from" not in instruction.flags
        for word in instruction.words()[:-1]
    ]
    top = sorted(path.name for path in context.iterdir())
    assert top == sorted(path.name for pattern in copied for path in context.glob(pattern))


def test_every_stage_has_one_base_with_a_fixed_version(dockerfile: Dockerfile) -> None:
    bases = {stage.base for stage in dockerfile.stages.values()} - set(dockerfile.stages)
    assert bases == {"${BASE}"}
    assert re.fullmatch(r"[a-z]+:[\w.-]+", dockerfile.arguments["BASE"] or "")
    assert "latest" not in (dockerfile.arguments["BASE"] or "")


@pytest.mark.parametrize("target", ["worker", "trainer"])
def test_both_images_start_the_version_of_this_checkout(images: Images, repository: Path, target: str) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    image: Image = getattr(images, target)
    assert image.run("--version").stdout == f"rollout {project['version']}\n"


def test_an_image_contains_the_wheel_and_no_source(images: Images) -> None:
    found = images.worker.run("-c", "import rollout; print(rollout.__file__)", entrypoint="python").stdout
    assert re.fullmatch(r"/opt/rollout/lib/python3\.\d+/site-packages/rollout/__init__\.py\n", found)
    listed = images.worker.run("-c", "ls -d /source /wheels; true", entrypoint="sh").stdout
    assert listed == ""


def test_the_user_of_an_image_is_not_root_and_cannot_change_rollout(images: Images) -> None:
    done = images.worker.run("-c", "id -u; test -w /opt/rollout/bin || echo safe", entrypoint="sh")
    assert done.stdout == "10001\nsafe\n"


def test_an_image_keeps_no_caches(images: Images) -> None:
    directories = "/root/.cache /home/*/.cache /var/lib/apt/lists /var/cache/apt/archives /var/log"
    done = images.worker.run("-c", f"find {directories} -type f -size +0 2>&-; true", entrypoint="sh", user="0:0")
    assert done.stdout == ""


def test_a_worker_has_the_clients_of_queues_and_no_torch(images: Images) -> None:
    listed = images.worker.run("-m", "pip", "list", "--format=freeze", entrypoint="python").stdout
    names = {line.partition("==")[0] for line in listed.splitlines()}
    assert {"redis", "pyzmq"} <= names
    assert not {"torch", "transformers"} & names


@pytest.mark.parametrize("package", ["torch", "transformers", "pyarrow"])
def test_a_trainer_has_the_packages_for_training(images: Images, package: str) -> None:
    assert re.search(rf"^{package}==\d", images.trainer_packages, re.MULTILINE)


@pytest.mark.parametrize("user", [None, "4321:4321"], ids=["the image's user", "a user without an entry"])
def test_a_mounted_environment_is_played(
    images: Images, shared: Path, write_config: Callable[[str], None], user: str | None
) -> None:
    write_config("Codeword")
    done = images.worker.run("run", "mine.yaml", user=user, shared=shared)
    assert done.returncode == 0, done.stderr
    assert "4 of 4  (4 ok)" in done.stdout


@pytest.mark.parametrize(
    ("command", "exit_code"), [("run mine.yaml", 130), ("launch mine.yaml --workers 1", 0)], ids=["run", "launch"]
)
def test_sigterm_to_process_1_ends_a_run_or_launch(
    images: Images, shared: Path, write_config: Callable[[str], None], command: str, exit_code: int
) -> None:
    write_config("Endless")
    with images.worker.start(*command.split(), shared=shared) as started:
        wait_until(lambda: (shared / "begun").exists() or started.ended())
        code, printed = started.terminate()
    assert code == exit_code, printed


def test_sigterm_to_process_1_drains_a_worker(
    images: Images, shared: Path, write_config: Callable[[str], None]
) -> None:
    write_config("Endless")

    def log() -> str:
        return "".join(path.read_text() for path in (shared / "runs").rglob("*.jsonl"))

    with images.worker.start("worker", "mine.yaml", shared=shared) as started:
        wait_until(lambda: "worker ready" in log() or started.ended())
        code, printed = started.terminate()
    assert code == 0, printed
    assert "worker drains" in log()


def test_sigterm_to_process_1_ends_a_command_that_is_starting(
    images: Images, shared: Path, write_config: Callable[[str], None]
) -> None:
    write_config("Slow")
    with images.worker.start("run", "mine.yaml", shared=shared) as started:
        wait_until(lambda: (shared / "begun").exists() or started.ended())
        code, printed = started.terminate()
    assert code == 143, printed
