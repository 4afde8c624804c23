"""Checks the engines of a configuration: whether each serves this model, and sees what we send.

checking.py        makes all checks of each engine in order
under_test.py      an engine that is checked, and the exceptions by which a check ends without a finding
probe_requests.py  requests with new images
serving.py         the checks of the server: model, weights, endpoint, images
tokenizer.py       the check that both sides have the same tokenizer
pixels.py          the check that the trainer sees the same pixels as the engine
forward/           the check that a forward pass of the checkpoint gives the engine's log-probs
"""
