"""`tfsd serve` as a process that tests may ask, kill and start again."""

import re
from pathlib import Path
from types import SimpleNamespace

from patience import LONG
from tensorflow_serving.apis import get_model_status_pb2
from test_rest import Client as Rest
from test_rpc import Client as Rpc
from test_serve_command import request

from tfsd.serving.load_test.own_server import own_server

OPTIONS = ("--max-message-mb", "16", "--max-body-mb", "16", "--poll-seconds", "0.2")


class Served:
    """`tfsd serve` as a process, with a folder of models of its own; `restart` serves on the same ports again."""

    def __init__(self, folder: Path):
        self.folder, self._options = folder, OPTIONS
        self.start()

    def start(self):
        self._running = own_server(self.folder, self._options)
        self.own = self._running.__enter__()
        grpc_port, rest_port = (int(address.rpartition(":")[2]) for address in (self.own.address, self.own.rest))
        self._options = (*OPTIONS, "--grpc-port", str(grpc_port), "--rest-port", str(rest_port))
        ports = SimpleNamespace(grpc_port=grpc_port, rest_port=rest_port)
        self.rpc, self.rest = Rpc(ports), Rest(ports)

    def end(self):
        self._running.__exit__(None, None, None)

    def draw(self, timeout: float = 60, **inputs) -> bytes:
        inputs = {"prompt": "a red star"} | inputs
        return self.rpc.prediction.Predict(request(inputs), timeout=timeout).outputs["png_bytes"].string_val[0]

    def gauge(self, name: str, **labels) -> float:
        """A number of the server's own counts."""
        wanted = "".join(f'{key}="{value}"' for key, value in labels.items())
        found = re.search(rf"^{name}(?:\{{{wanted}\}})? (\S+)$", self.rest.ask("GET", "/metrics").body.decode(), re.MULTILINE)
        return float(found[1])

    def idle(self) -> bool:
        return self.gauge("tfsd_queue_rows") == self.gauge("tfsd_running_rows") == 0

    def status(self, version: int):
        wanted = get_model_status_pb2.GetModelStatusRequest()
        wanted.model_spec.name = "toy"
        found = self.rpc.models.GetModelStatus(wanted, timeout=LONG).model_version_status
        return next((one for one in found if one.version == version), None)
