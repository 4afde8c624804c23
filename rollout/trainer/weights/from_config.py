"""Makes a publisher's settings from the configurations of a run, for trainers and for `rollout policy`.

config = load_config(Path("codeword.yaml"))
with PolicyPublisher(publisher_settings([config], Path("runs/codeword-7"))) as publisher:
    ...
"""

from collections.abc import Sequence
from pathlib import Path

from rollout.config.load import Config
from rollout.engine.from_config import api_key_from_config
from rollout.errors import ConfigurationError
from rollout.paths import resolve_path
from rollout.rundir.directory import RunDirectory
from rollout.rundir.queues import RunQueues
from rollout.trainer.weights.publisher import PublisherSettings


def publisher_settings(configs: Sequence[Config], run_path: Path | str) -> PublisherSettings:
    """Return the settings for one policy that plays all of these environments.

    The weights are in the directory `policy` of the run.

    Raises:
        ConfigurationError: the configurations contain no URL of an engine, or its API key is not set.
    """
    run_directory, first_config = RunDirectory(resolve_path(Path(run_path))), configs[0]
    engines = tuple(dict.fromkeys(url for config in configs for url in config.engine.urls))
    if not engines:
        raise ConfigurationError(
            f"{first_config.file_name}: engine.urls is empty. To publish weights, start an engine with `rollout serve` "
            "and add its URL to engine.urls. An engine that a run starts has no known URL."
        )
    checkpoint = first_config.model.path
    return PublisherSettings(
        engines=engines,
        weights=run_directory.weights_path,
        controls={config.run.name: RunQueues(config, run_directory).control for config in configs},
        on_update=first_config.policy.on_update,
        timeout=first_config.policy.update_timeout,
        api_key=api_key_from_config(first_config),
        reference=checkpoint if any(checkpoint.glob("*.safetensors")) else None,
    )
