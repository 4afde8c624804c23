"""Makes the check that a forward pass of the checkpoint gives the engine's log-probs.

It proves everything at once: tokens, images, resizing, normalisation, positions, weights, bans and the record. It needs
torch and transformers, so it is made only with `--forward`.
"""

from functools import partial
from typing import TYPE_CHECKING

import anyio.to_thread

from rollout.config.model_directory import BUILTIN_MODELS, written_model_path
from rollout.doctor.engines.forward.conversation import PlayedConversation, play_conversation
from rollout.doctor.engines.forward.precision import EnginePrecision, checkpoint_dtype, fetch_precision
from rollout.doctor.engines.forward.verdict import ForwardVerdict, Measurement
from rollout.doctor.engines.under_test import CheckNotMade, EngineUnderTest, NothingToCheck
from rollout.errors import ConfigurationError
from rollout.images import ImagePolicy
from rollout.images.processors import import_trainer_extra

if TYPE_CHECKING:
    from rollout.doctor.engines.forward.network import CheckpointNetwork


class ForwardCheck:
    """The check of a forward pass, for all engines of a configuration. The checkpoint is loaded once for all of them.

    Args:
        image_policy: where the images of the conversation are stored.
    """

    def __init__(self, image_policy: ImagePolicy) -> None:
        self._image_policy = image_policy
        self._network: CheckpointNetwork | None = None

    async def check(self, engine: EngineUnderTest) -> str:
        """Check that a forward pass of the checkpoint gives the engine's log-probs; return the finding."""
        model_path = written_model_path(engine.config.model.path)
        if model_path in BUILTIN_MODELS:
            raise NothingToCheck(f"{model_path} has no weights, so there is no forward pass to compare with")
        try:
            for module in ("torch", "transformers"):
                import_trainer_extra(module)
        except ConfigurationError as error:
            raise CheckNotMade(str(error)) from None
        precision = await fetch_precision(engine)
        played = await play_conversation(engine, self._image_policy)
        dtype = precision.dtype or checkpoint_dtype(engine.config.model.path)
        measurement = await anyio.to_thread.run_sync(
            partial(self._measure, engine, precision, played, dtype), abandon_on_cancel=True
        )
        images = f"{played.images} new images" if played.images else "text"
        return ForwardVerdict(
            measurement, precision, dtype, played.versions, str(model_path), f"{played.turns} turns with {images}"
        ).finding()

    def _measure(
        self, engine: EngineUnderTest, precision: EnginePrecision, played: PlayedConversation, dtype: str
    ) -> Measurement:
        from rollout.doctor.engines.forward.measuring import measure
        from rollout.doctor.engines.forward.network import CheckpointNetwork

        geometry, checkpoint = engine.adapter.geometry, engine.config.model.path
        if self._network is None or self._network.dtype != dtype:
            self._network = None  # frees the memory first
            self._network = CheckpointNetwork(checkpoint, dtype=dtype, has_images=geometry is not None)
        return measure(
            self._network,
            played,
            checkpoint=checkpoint,
            family=geometry.family if geometry else None,
            logprobs_mode=precision.logprobs_mode,
        )
