"""What the differences between the log-probs of an engine and a checkpoint prove."""

from dataclasses import replace

import pytest

from rollout.doctor.engines.forward.precision import EnginePrecision
from rollout.doctor.engines.forward.verdict import Difference, ForwardVerdict, Measurement
from rollout.doctor.engines.under_test import CheckFailed, CheckNotMade

FLOAT32 = EnginePrecision("float32", None, "processed_logprobs")
EQUAL = Difference(32, 3e-6, 5e-7)
RESIZED = Difference(64, 7e-4, 1e-4)
WRONG = Difference(64, 0.9, 0.2)
GOOD = Measurement(
    text=EQUAL,
    by_backend={"pil": RESIZED, "torchvision": replace(EQUAL, tokens=64)},
    default_backend="torchvision",
    mistakes={"image_mean [0.5, 0.5, 0.5]": WRONG},
)


def finding(
    measurement: Measurement, *, engine: EnginePrecision = FLOAT32, dtype: str = "float32", version: str = "default"
) -> str:
    return ForwardVerdict(measurement, engine, dtype, (version,), "models/vl", "3 turns with 2 new images").finding()


def failure(measurement: Measurement, version: str = "default") -> CheckFailed:
    with pytest.raises(CheckFailed) as caught:
        finding(measurement, version=version)
    return caught.value


def test_equal_log_probs_name_the_backend_and_both_differences() -> None:
    text = finding(GOOD)
    assert "96 sampled tokens of 3 turns with 2 new images: they differ by at most 3e-06" in text
    assert "resized with pil: at most 7e-04" in text
    assert 'Materializer.from_pretrained(checkpoint, backend="torchvision") (the default here)' in text


def test_a_backend_that_is_not_the_default_is_named_without_this_remark() -> None:
    text = finding(replace(GOOD, by_backend={"pil": EQUAL, "torchvision": RESIZED}))
    assert text.splitlines()[4] == 'so train with Materializer.from_pretrained(checkpoint, backend="pil")'


def test_no_backend_is_named_if_rounding_hides_the_difference() -> None:
    alike = replace(GOOD, by_backend={"pil": Difference(64, 0.2, 0.011), "torchvision": Difference(64, 0.2, 0.01)})
    text = finding(alike, engine=EnginePrecision("bfloat16"), dtype="bfloat16")
    assert "the line `pixels` names the engine's" in text


def test_the_tolerance_and_its_reason_are_stated() -> None:
    assert "allowed: at most 1e-04, 2e-05 on average, because the engine computes in float32" in finding(GOOD)


@pytest.mark.parametrize("largest", [1.01e-4, float("nan")])
def test_a_difference_above_the_tolerance_is_never_equal(largest: float) -> None:
    beyond = replace(GOOD, by_backend={"torchvision": Difference(64, largest, largest / 10)})
    assert "pixels, positions or the weights of the vision tower differ" in str(failure(beyond))


def test_log_probs_that_are_not_finite_are_never_equal() -> None:
    beyond = replace(GOOD, text=replace(EQUAL, invalid_tokens=1))
    assert "1 of 33 log-probs are not finite" in str(failure(beyond))


def test_a_difference_before_the_first_image_is_one_of_weights() -> None:
    found = failure(replace(GOOD, text=WRONG, by_backend={"pil": WRONG, "torchvision": WRONG}))
    assert "other weights than this checkpoint" in str(found)
    assert found.fix is not None
    assert "set model.path to the checkpoint that it serves" in found.fix


def test_a_normalisation_that_fits_is_named() -> None:
    found = failure(replace(GOOD, by_backend={"pil": WRONG}, mistakes={"image_mean [0.5, 0.5, 0.5]": EQUAL}))
    assert "With image_mean [0.5, 0.5, 0.5], they would differ by at most 3e-06" in str(found)
    assert found.fix is not None
    assert "preprocessor_config.json" in found.fix


def test_a_normalisation_that_fits_better_is_found_within_the_tolerance_of_bfloat16() -> None:
    coarse = replace(
        GOOD, by_backend={"pil": Difference(64, 0.5, 0.04)}, mistakes={"image_mean [0.5]": Difference(64, 0.1, 0.005)}
    )
    with pytest.raises(CheckFailed, match="normalises pixels with these constants"):
        finding(coarse, engine=EnginePrecision("bfloat16"), dtype="bfloat16")


def test_a_backend_that_is_missing_is_to_be_installed() -> None:
    only_pil = replace(GOOD, by_backend={"pil": RESIZED}, unavailable_backends={"torchvision": "it is not installed"})
    found = failure(only_pil)
    assert found.fix is not None
    assert found.fix.startswith("install torchvision")


def test_pushed_weights_are_not_blamed() -> None:
    with pytest.raises(CheckNotMade, match="pushed version step-7"):
        finding(replace(GOOD, text=WRONG), version="step-7")


def test_pushed_weights_that_are_those_of_the_checkpoint_pass() -> None:
    assert "they differ by at most 3e-06" in finding(GOOD, version="step-7")


def test_quantised_weights_are_not_blamed() -> None:
    with pytest.raises(CheckNotMade, match="quantises its weights \\(fp8\\)"):
        finding(replace(GOOD, text=WRONG), engine=EnginePrecision("float32", "fp8"))


def test_an_engine_of_an_unknown_type_may_compute_in_bfloat16() -> None:
    with pytest.raises(CheckNotMade, match="does not say its type"):
        finding(replace(GOOD, text=Difference(32, 0.1, 0.01)), engine=EnginePrecision())


def test_log_probs_that_hardly_depend_on_images_prove_nothing() -> None:
    blind = replace(GOOD, mistakes={"image_mean [0.5, 0.5, 0.5]": Difference(64, 9e-5, 1.9e-5)})
    with pytest.raises(CheckNotMade, match="hardly depend on the images"):
        finding(blind)


def test_logits_in_the_place_of_log_probs_are_found() -> None:
    assert "raw_logits" in str(failure(replace(GOOD, text=WRONG, logprobs_mode="raw_logits")))


@pytest.mark.parametrize(
    ("mode", "advice"), [("processed_logprobs", "batch.without_banned(logits)"), ("raw_logprobs", "leave the logits")]
)
def test_what_the_trainer_does_about_bans_is_said(mode: str, advice: str) -> None:
    assert advice in finding(replace(GOOD, logprobs_mode=mode))


def test_a_ban_that_no_log_prob_shows_is_not_judged() -> None:
    assert "changes no log-prob measurably" in finding(GOOD, engine=EnginePrecision("float32"))


def test_a_model_without_images_is_compared_on_text() -> None:
    text = finding(replace(GOOD, by_backend={}, mistakes={"each log-prob one token too late": WRONG}))
    assert "32 sampled tokens" in text
    assert "takes no images, so only text was played" in text


def test_no_library_that_resizes_is_no_finding() -> None:
    with pytest.raises(CheckNotMade, match="pil: transformers is missing"):
        finding(Measurement(unavailable_backends={"pil": "transformers is missing"}))
