"""The probes of pixel parity, and what is made of a comparison."""

from rollout.doctor.pixels import PixelComparison, PixelDifference, probe_images
from rollout.images import load_pixels


def difference(backend: str, probe: str = "odd", differing: int = 0) -> PixelDifference:
    return PixelDifference(probe, backend, 100, differing, min(differing, 255))  # type: ignore[arg-type]


def test_every_probe_is_an_image_that_the_trainer_loads() -> None:
    sizes = {probe.name: load_pixels(probe.data).size for probe in probe_images()}
    assert sizes["odd"] == (333, 517)
    assert [sizes[f"orientation {orientation}"] for orientation in (1, 3, 6, 8)] == [
        (150, 97),
        (150, 97),
        (97, 150),
        (97, 150),
    ]
    assert {"RGBA", "palette", "transparent palette", "grey", "enlarged", "shrunk", "thin"} < sizes.keys()


def test_orientations_are_eight_different_pictures() -> None:
    oriented = [load_pixels(probe.data).tobytes() for probe in probe_images() if probe.name.startswith("orientation")]
    assert len(set(oriented)) == 8


def test_the_backend_without_any_difference_is_proven() -> None:
    parity = PixelComparison((difference("pil", differing=3), difference("torchvision")), {})
    assert parity.matching_backend == "torchvision"
    assert parity.summary().splitlines() == [
        "the engine and torchvision give the same pixels, bit for bit",
        "pil gives other pixels for odd. The largest difference is 3 of 255, in odd, where 3 of 100 values differ",
    ]


def test_one_differing_probe_disproves_a_backend() -> None:
    parity = PixelComparison((difference("pil"), difference("pil", "RGBA", 1)), {"torchvision": "it is not installed"})
    assert parity.matching_backend is None
    assert parity.summary().splitlines() == [
        "pil gives other pixels for RGBA. The largest difference is 1 of 255, in RGBA, where 1 of 100 values differ",
        "torchvision was not compared: it is not installed",
    ]


def test_where_nothing_was_compared_nothing_is_proven() -> None:
    assert PixelComparison((), {"pil": "it is not installed"}).matching_backend is None
