"""The probe images, and the summary of a comparison of pixels."""

from rollout.doctor.engines.pixel_comparison import PixelComparison, PixelDifference, probe_images
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


def test_the_eight_orientations_have_different_pixels() -> None:
    oriented = [load_pixels(probe.data).tobytes() for probe in probe_images() if probe.name.startswith("orientation")]
    assert len(set(oriented)) == 8


def test_a_backend_without_differences_matches() -> None:
    comparison = PixelComparison((difference("pil", differing=3), difference("torchvision")), {})
    assert comparison.matching_backend == "torchvision"
    assert comparison.summary().splitlines() == [
        "the engine and torchvision make the same patches of 1 probe images: 8-bit values before normalisation, equal "
        "bit for bit",
        "the normalisation and what the network makes of it were not compared; --forward compares them",
        "pil makes other patches of odd. The largest difference is 3 of 255, in odd, where 3 of 100 values differ",
    ]


def test_a_backend_with_one_different_probe_does_not_match() -> None:
    comparison = PixelComparison(
        (difference("pil"), difference("pil", "RGBA", 1)), {"torchvision": "it is not installed"}
    )
    assert comparison.matching_backend is None
    assert comparison.summary().splitlines() == [
        "pil makes other patches of RGBA. The largest difference is 1 of 255, in RGBA, where 1 of 100 values differ",
        "torchvision was not compared: it is not installed",
    ]


def test_no_backend_matches_if_none_was_compared() -> None:
    assert PixelComparison((), {"pil": "it is not installed"}).matching_backend is None
