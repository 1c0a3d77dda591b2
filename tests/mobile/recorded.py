"""A bundle that keeps what its networks are given and give."""

import contextlib
from pathlib import Path

from tfsd.device import DeviceBundle, fitted


class Recorded(DeviceBundle):
    """A bundle that keeps the inputs and outputs of its networks, as they are called."""

    def __init__(self, folder: Path, accelerator: str = "cpu"):
        super().__init__(folder, accelerator=accelerator)
        self.calls: list[dict] = []

    @contextlib.contextmanager
    def part(self, name: str):
        with super().part(name) as run_part:

            def kept(signature: str, **given):
                outputs = run_part(signature, **given)
                inputs = fitted(given, self.manifest["parts"][name]["signatures"][signature]["inputs"])
                if name != "sampling":
                    self.calls.append({"part": name, "signature": signature, "inputs": inputs, "outputs": outputs})
                return outputs

            yield kept
