"""Messages, tensors, JSON and errors, for clients and servers."""
