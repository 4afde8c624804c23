"""What `zmq://` is made of: a socket on an event loop, the hub that one handle serves, and the link of the others."""
