"""Stable Diffusion, deployed with TensorFlow."""
