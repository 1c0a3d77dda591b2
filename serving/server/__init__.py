"""The server of `tfsd serve`."""
