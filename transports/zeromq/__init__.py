"""`zmq://`: a socket on an event loop, the hub that one handle serves, and the links of the other handles."""
