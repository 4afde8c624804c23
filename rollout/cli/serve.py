"""`rollout serve embedded`: the scripted engine as a server of its own."""

import sys

from rollout.serving.engine import EmbeddedSettings
from rollout.serving.server import serve


def serve_embedded(settings: EmbeddedSettings, *, port: int) -> None:
    def announce(url: str) -> None:
        sys.stdout.write(
            f"serving {settings.model_name} by the script {settings.policy} at {url}; no neural network is inside\n"
            f"in the YAML:  engine: {{urls: [{url}]}}\n"
        )
        sys.stdout.flush()

    serve(settings, port=port, announce=announce)
