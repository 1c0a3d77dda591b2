"""What both sides of the network know: messages, tensors, JSON, errors."""
