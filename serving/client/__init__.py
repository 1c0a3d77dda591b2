"""Clients of the embedded server and of TensorFlow Serving, for threads and for coroutines."""
