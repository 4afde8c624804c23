"""What a fleet tells of itself while it works: counters and gauges for Prometheus, and whether a process is well.

catalogue.py   every metric there is; docs/metrics.md is held against it
worker.py      what one worker measures
launch.py      the workers of a launch summed, what their rollouts came to, and the state of the queues
queues.py      how full a queue is, and since when nobody heard of it
pulse.py       whether an event loop turns
server.py      /metrics, /healthz and /readyz

The trainer's side is `rollout.trainer.metrics`.
"""
