"""`rollout serve embedded`: the scripted engine as a server of its own."""

from pathlib import Path

from rollout.serving import serve


def serve_embedded(
    model: Path,
    *,
    name: str,
    port: int,
    allow: tuple[Path, ...],
    policy: str,
    max_model_len: int,
    latency_ms: float,
) -> None:
    serve(
        model,
        model=name,
        port=port,
        allowed_directories=allow,
        policy=policy,
        max_model_len=max_model_len,
        latency_ms=latency_ms,
    )
