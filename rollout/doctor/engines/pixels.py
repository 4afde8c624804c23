"""Checks that the trainer and the engine make the same patches of images, as 8-bit values before normalisation."""

from renderers_adapter.creation import load_processor_config
from rollout.doctor.engines.own_engine import is_own_engine
from rollout.doctor.engines.pixel_comparison import NormalisedPatches, PixelComparison, compare_pixels
from rollout.doctor.engines.under_test import CheckFailed, CheckNotMade, EngineUnderTest, NothingToCheck
from rollout.engine.errors import EngineNotFound

_SAME_PROCESSOR = (
    "take preprocessor_config.json (or processor_config.json) of the checkpoint that the engine serves; if it is the "
    "same, install the same versions of transformers and torchvision for the trainer and the engine"
)


async def check_pixels(engine: EngineUnderTest) -> str:
    """Check that a backend of the trainer makes the same patches as the engine; return the finding."""
    geometry = engine.adapter.geometry
    if geometry is None:
        raise NothingToCheck("this model takes no images")
    if await is_own_engine(engine):
        raise NothingToCheck("this engine renders nothing; if it has weights, --forward compares its log-probs")
    processor_config = load_processor_config(engine.config.model.path)
    model = engine.client.model
    try:
        comparison = await compare_pixels(
            engine.transport, engine.url, model=model, config=processor_config, family=geometry.family
        )
    except EngineNotFound:
        raise CheckNotMade("this server has no render route") from None
    except NormalisedPatches as error:
        raise CheckNotMade(str(error)) from None
    if not comparison.differences:
        reason, *_ = comparison.unavailable_backends.values()
        raise CheckNotMade(f"{reason.rstrip('.')}, or run the check on the trainer's machine")
    if comparison.matching_backend is None:
        raise CheckFailed(comparison.summary(), find_fix(comparison))
    return comparison.summary()


def find_fix(comparison: PixelComparison) -> str:
    """Return what corrects patches that no backend makes."""
    for backend, reason in comparison.unavailable_backends.items():
        return f"{backend} may make the patches of the engine, but it cannot be used here: {reason}"
    return _SAME_PROCESSOR
