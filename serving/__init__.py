"""Exports served over the network: the server, its client, and what TensorFlow Serving needs to serve them."""
