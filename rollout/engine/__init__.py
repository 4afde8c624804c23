"""Talks to engines: sends the turns of rollouts, and loads a trainer's new weights.

client.py          sends turns: retries, deadlines, typed errors
transport.py       how requests reach an engine; over aiohttp, over httpx, or from a function in a test
protocol.py        the request and the answer of a turn
routing.py         which of several engines gets a request
weight_updates.py  new weights for a running engine
"""
