"""Counts the messages that a hub or a handle refuses, and logs the first refused message of each sender."""

from __future__ import annotations

import logging

log = logging.getLogger(__name__)

_MAX_PEERS = 1000


class Refusals:
    """Counts and logs the messages that one hub or handle refuses."""

    def __init__(self, receiver: str) -> None:
        self.count = 0
        self.last_problem = ""
        self._receiver = receiver
        self._known_peers: set[tuple[str, type[Exception]]] = set()

    def add(self, peer: str, problem: Exception, advice: str) -> None:
        """Count a refused message. Log it if it is the first message of this sender with this kind of problem."""
        self.count += 1
        self.last_problem = str(problem)
        key = peer, type(problem)
        if key not in self._known_peers and len(self._known_peers) < _MAX_PEERS:
            self._known_peers.add(key)
            log.warning("%s: refused a message from %s: %s; %s", self._receiver, peer, problem, advice)
