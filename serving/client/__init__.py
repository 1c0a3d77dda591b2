"""Clients of `tfsd serve` and of TensorFlow Serving, for threads and for asyncio."""
