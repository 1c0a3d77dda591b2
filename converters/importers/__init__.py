"""Readers of other packages' weights and configurations, one file a format."""
