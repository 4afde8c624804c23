"""`zmq://`: one handle serves the hub, which keeps the records, and the other handles have links to that hub."""
