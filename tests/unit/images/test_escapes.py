"""No message can make a file outside the allowed directories be read or named."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

from rollout.images import AssetError, ImageError, ImagePolicy, prepare_images, read_asset


@pytest.fixture(params=["offload", "inline"])
def policy(request: pytest.FixtureRequest, tmp_path: Path) -> ImagePolicy:
    mode: Literal["offload", "inline"] = request.param
    (tmp_path / "allowed" / "inner").mkdir(parents=True)
    return ImagePolicy(mode=mode, directory=tmp_path / "run" / "images", allow=(tmp_path / "allowed",))


@pytest.fixture
def secret(tmp_path: Path, encode: Any) -> Path:
    """A valid image outside the allowed directories."""
    path = tmp_path / "secret.png"
    path.write_bytes(encode())
    return path


@pytest.fixture
def refuse(policy: ImagePolicy, messages_with: Any, secret: Path) -> Callable[[str, str], None]:
    """`refuse(url, reason)`: assert that this URL is refused for this reason, and that nothing changes."""

    def check(url: str, reason: str) -> None:
        messages = messages_with(url)
        with pytest.raises(ImageError, match=reason) as caught:
            prepare_images(messages, policy)
        assert messages == messages_with(url)
        assert list(policy.directory.iterdir()) == []
        assert len(str(caught.value)) < 600

    return check


OUTSIDE = "outside the run's image directory"


def test_dot_dot_is_refused(policy: ImagePolicy, refuse: Any) -> None:
    refuse(f"file://{policy.allow[0]}/../secret.png", "must not contain the components")


def test_dot_dot_that_ends_inside_is_refused(policy: ImagePolicy, refuse: Any, secret: Path) -> None:
    (policy.allow[0] / "a.png").write_bytes(secret.read_bytes())
    refuse(f"file://{policy.allow[0]}/inner/../a.png", "must not contain the components")


def test_an_absolute_path_is_refused(secret: Path, refuse: Any) -> None:
    refuse(secret.as_uri(), OUTSIDE)
    refuse("file:///etc/passwd", OUTSIDE)


def test_a_neighbour_whose_name_begins_with_the_allowed_name_is_refused(
    policy: ImagePolicy, refuse: Any, secret: Path
) -> None:
    neighbour = Path(f"{policy.allow[0]}-not")
    neighbour.mkdir()
    (neighbour / "a.png").write_bytes(secret.read_bytes())
    refuse((neighbour / "a.png").as_uri(), OUTSIDE)


def test_a_percent_encoded_dot_dot_is_refused(policy: ImagePolicy, refuse: Any) -> None:
    refuse(f"file://{policy.allow[0]}/%2e%2e/secret.png", "must not contain the components")
    refuse(f"file://{policy.allow[0]}/..%2Fsecret.png", "must not contain the components")


def test_a_twice_encoded_dot_dot_is_an_ordinary_name(policy: ImagePolicy, refuse: Any) -> None:
    refuse(f"file://{policy.allow[0]}/%252e%252e/secret.png", "cannot be read")


def test_percent_encoding_that_is_not_utf_8_is_refused(policy: ImagePolicy, refuse: Any) -> None:
    refuse(f"file://{policy.allow[0]}/%ff.png", "UTF-8")


@pytest.mark.parametrize("host", ["host", "localhost", "127.0.0.1", "..", "."])
def test_a_url_with_a_host_is_refused(host: str, secret: Path, refuse: Any) -> None:
    refuse(f"file://{host}{secret}", "no host")


@pytest.mark.parametrize("tail", ["?x", "#x", "?", "#"])
def test_a_query_or_a_fragment_is_refused(tail: str, secret: Path, refuse: Any) -> None:
    refuse(secret.as_uri() + tail, "must not have a query or a fragment")


def test_another_number_of_slashes_is_refused(secret: Path, refuse: Any) -> None:
    refuse(f"file:/{secret}"[:6] + str(secret)[1:], "scheme file:")
    refuse(f"file:///{secret}", OUTSIDE)


def test_a_symlinked_file_is_refused(policy: ImagePolicy, refuse: Any, secret: Path) -> None:
    link = policy.allow[0] / "a.png"
    link.symlink_to(secret)
    refuse(link.as_uri(), OUTSIDE)


def test_a_symlinked_directory_is_refused(policy: ImagePolicy, refuse: Any, secret: Path) -> None:
    (policy.allow[0] / "away").symlink_to(secret.parent)
    refuse((policy.allow[0] / "away" / "secret.png").as_uri(), OUTSIDE)


def test_a_link_that_leads_to_itself_is_refused(policy: ImagePolicy, refuse: Any) -> None:
    (policy.allow[0] / "loop.png").symlink_to("loop.png")
    refuse((policy.allow[0] / "loop.png").as_uri(), "cannot be read")


def swap_after_the_check(monkeypatch: pytest.MonkeyPatch, swap: Callable[[], None]) -> None:
    """Call `swap` when the path is resolved and not open yet."""
    resolve = os.path.realpath

    def resolve_then_swap(path: Any, **options: Any) -> Any:
        resolved = resolve(path, **options)
        if str(path).endswith("a.png"):
            swap()
        return resolved

    monkeypatch.setattr(os.path, "realpath", resolve_then_swap)


def test_a_file_swapped_for_a_link_between_check_and_opening_is_refused(
    policy: ImagePolicy, refuse: Any, secret: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = policy.allow[0] / "a.png"
    path.write_bytes(secret.read_bytes())

    def swap() -> None:
        path.unlink()
        path.symlink_to(secret)

    swap_after_the_check(monkeypatch, swap)
    refuse(path.as_uri(), "symbolic link")


def test_a_directory_swapped_for_a_link_between_check_and_opening_is_refused(
    policy: ImagePolicy, refuse: Any, secret: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    inner = policy.allow[0] / "inner"
    (inner / "a.png").write_bytes(secret.read_bytes())
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "a.png").write_bytes(secret.read_bytes())

    def swap() -> None:
        inner.rename(tmp_path / "moved")
        inner.symlink_to(elsewhere)

    swap_after_the_check(monkeypatch, swap)
    refuse((inner / "a.png").as_uri(), "symbolic link")


def test_another_name_of_an_allowed_directory_in_proc_is_refused(
    policy: ImagePolicy, refuse: Any, secret: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (policy.allow[0] / "a.png").write_bytes(secret.read_bytes())
    monkeypatch.chdir(policy.allow[0])
    refuse("file:///proc/self/cwd/a.png", OUTSIDE)
    refuse(f"file:///proc/self/root{policy.allow[0]}/a.png", OUTSIDE)


def test_an_open_file_in_proc_is_refused(refuse: Any, secret: Path) -> None:
    with secret.open("rb") as file:
        refuse(f"file:///proc/self/fd/{file.fileno()}", OUTSIDE)
    refuse("file:///proc/self/environ", OUTSIDE)


def test_a_nul_byte_is_refused(policy: ImagePolicy, refuse: Any) -> None:
    refuse(f"file://{policy.allow[0]}/a.png\0.jpg", "NUL")
    refuse(f"file://{policy.allow[0]}/a.png%00.jpg", "NUL")


def test_a_name_of_5000_characters_is_refused(policy: ImagePolicy, refuse: Any) -> None:
    refuse(f"file://{policy.allow[0]}/{'a' * 5000}.png", "cannot be read")
    refuse(f"file:///{'a' * 5000}.png", OUTSIDE)


def test_a_directory_a_pipe_and_a_missing_file_are_refused(policy: ImagePolicy, refuse: Any) -> None:
    os.mkfifo(policy.allow[0] / "pipe.png")
    refuse((policy.allow[0] / "pipe.png").as_uri(), "not a regular file")
    refuse((policy.allow[0] / "inner").as_uri(), "not a regular file")
    refuse((policy.allow[0] / "missing.png").as_uri(), "No such file")
    refuse(policy.allow[0].as_uri(), OUTSIDE)
    refuse(policy.allow[0].as_uri() + "/", "cannot be read|not a regular file|outside")


def test_a_device_in_an_allowed_directory_is_refused(messages_with: Any, tmp_path: Path) -> None:
    policy = ImagePolicy(mode="offload", directory=tmp_path, allow=(Path("/dev"),))
    with pytest.raises(ImageError, match="not a regular file"):
        prepare_images(messages_with("file:///dev/zero"), policy)


def test_a_file_that_is_too_large_is_not_read(policy: ImagePolicy, messages_with: Any) -> None:
    path = policy.allow[0] / "large.png"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ImageError, match="max_bytes"):
        prepare_images(messages_with(path.as_uri()), policy)


def test_a_link_that_stays_inside_is_followed(policy: ImagePolicy, messages_with: Any, secret: Path) -> None:
    (policy.allow[0] / "inner" / "blob").write_bytes(secret.read_bytes())
    (policy.allow[0] / "a.png").symlink_to("inner/blob")
    [image] = prepare_images(messages_with((policy.allow[0] / "a.png").as_uri()), policy).images
    assert image.asset.url.startswith(policy.directory.as_uri())


def test_an_allowed_directory_may_be_a_link(messages_with: Any, secret: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.png").write_bytes(secret.read_bytes())
    (tmp_path / "alias").symlink_to("real")
    policy = ImagePolicy(mode="offload", directory=tmp_path / "images", allow=(tmp_path / "alias",))
    for name in ("alias", "real"):
        assert prepare_images(messages_with((tmp_path / name / "a.png").as_uri()), policy).images


@pytest.mark.parametrize(
    "name", ["../secret.png", "/etc/passwd", "..", ".", "", "a.png", "0" * 64, "0" * 64 + ".svg", "0" * 64 + ".png\n"]
)
def test_only_a_sha256_with_an_extension_names_an_asset(name: str, secret: Path) -> None:
    with pytest.raises(AssetError, match="not a sha256"):
        read_asset(secret.parent, name)
