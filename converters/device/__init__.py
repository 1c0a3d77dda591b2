"""Exports for phones: bundles of TFLite files, their quantization, and benchmarks."""
