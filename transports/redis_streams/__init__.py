"""`redis://`: the scripts that run inside the server, the connection to it, and the consumers of a partition."""
