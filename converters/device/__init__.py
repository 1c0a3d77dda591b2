"""Exports for phones: TFLite files, what quantizing them costs, and the folder that an app takes."""
