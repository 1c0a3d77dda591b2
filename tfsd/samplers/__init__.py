"""Samplers: schedules of noise, plans of steps, and the one step that applies them."""
