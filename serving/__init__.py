"""Exports served over the network: the server, its client, and what TensorFlow Serving needs to serve them."""

from tfsd.runtime.startup import quiet_imports

quiet_imports()
