"""`redis://`: a queue in Redis Streams, with scripts that run inside the server."""
