"""What a fleet tells of itself while it works: counters and gauges for Prometheus, and whether a process is well.

catalogue.py      every metric there is; docs/metrics.md is held against it
worker.py         what one worker measures
totals.py         samples of several workers, summed
launch.py         the workers of a launch, what their rollouts came to, and the state of the queues
queues.py         how full a queue is, and since when nobody heard of it
loop_monitor.py   whether an event loop turns
export.py         all of this for one process, from its start to its end
server.py         /metrics, /healthz and /readyz

The trainer's side is `rollout.trainer.metrics`.
"""
