"""What the processes of a run report while they work: counters and gauges for Prometheus, and their health.

catalogue.py      every metric there is; a test compares docs/metrics.md with it
worker.py         what one worker measures
outcomes.py       how rollouts ended
launch.py         the workers of a launch
queues.py         how full a queue is, and for how long it has not answered
loop_monitor.py   whether an event loop turns
export.py         all of this for one process, from its start to its end
server.py         /metrics, /healthz and /readyz

The trainer's side is `rollout.trainer.metrics`.
"""
