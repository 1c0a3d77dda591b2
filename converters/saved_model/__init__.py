"""Export for TensorFlow Serving: a SavedModel from prompt to PNG."""
