"""Serving over the network; empty until the server is part of the package."""
