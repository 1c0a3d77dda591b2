"""A stand-in for TF Serving, which cannot be installed from a registry, as the page meets it."""

import base64
import io
import json
import re

from browser import Quiet
from PIL import Image


class TFServing(Quiet):
    """What the page meets at a TF Serving that has one model, `tiny`, version 7, with CORS support enabled.

    Source: `http_rest_api_util.cc` and `json_tensor.cc` of tensorflow/serving: paths, CORS headers (on API paths alone, and
    no header but Content-Type allowed), defaults as TensorProtos in protobuf's JSON, JSON types demanded of inputs.
    """

    PATH = re.compile(r"/v1/models/tiny(/versions/7)?(:predict|/metadata)?")
    TYPES = {
        **dict.fromkeys(("prompt", "negative_prompt", "sampler"), str),
        **dict.fromkeys(("seed", "index", "num_steps", "height", "width"), int),
        "guidance_scale": (int, float),
    }
    received: list[str]  # bodies of predict calls
    headers_received: list[dict]

    def do_GET(self):
        if self.PATH.fullmatch(self.path) and self.path.endswith("/metadata"):
            return self.answer(200, metadata())
        return self.refuse()

    def do_OPTIONS(self):
        return self.answer(200, {}) if self.PATH.fullmatch(self.path) else self.refuse()

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if not (self.PATH.fullmatch(self.path) and self.path.endswith(":predict")):
            return self.refuse()
        self.received.append(body)
        self.headers_received.append(dict(self.headers))
        request = json.loads(body)
        inputs = request["inputs"]
        if request["signature_name"] != "text_to_png" or set(inputs) != set(self.TYPES):
            return self.answer(400, {"error": "Wrong signature, or inputs missing or unknown."})
        for name, kinds in self.TYPES.items():
            if len(inputs[name]) != 1 or not isinstance(inputs[name][0], kinds):
                return self.answer(400, {"error": f"JSON Value: {inputs[name]} is not of expected type."})
        if inputs["sampler"] == ["pndm"]:
            return self.answer(400, {"error": "sampler pndm is not for this test"})
        return self.answer(
            200, {"outputs": {"png_bytes": [{"b64": base64.b64encode(png(inputs)).decode()}], "truncated_tokens": [0]}}
        )

    def refuse(self):
        self.send_error(404)  # no CORS headers: a page of another origin cannot even see the status

    def answer(self, status: int, value: dict):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Access-Control-Allow-Origin", "*")
        self.send_header("Access-Control-Allow-Methods", "POST, GET")
        self.send_header("Access-Control-Allow-Headers", "Content-Type")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def png(inputs: dict) -> bytes:
    """Returns a picture of the size asked for, in a colour made of the seed."""
    file = io.BytesIO()
    colour = tuple((inputs["seed"][0] % 2**24).to_bytes(3, "big"))
    Image.new("RGB", (inputs["width"][0], inputs["height"][0]), colour).save(file, "PNG")
    return file.getvalue()


def metadata() -> dict:
    """Returns the answer of `/metadata`, with defaults in the three forms that a TensorProto of one element can have."""
    shape = {"dim": [{"size": "1", "name": ""}], "unknown_rank": False}
    content = base64.b64encode((9).to_bytes(4, "little")).decode()
    defaults = {
        "num_steps": {"dtype": "DT_INT32", "tensor_shape": shape, "tensor_content": content, "int_val": []},
        "guidance_scale": {"dtype": "DT_FLOAT", "tensor_shape": shape, "tensor_content": "", "float_val": [7.1]},
        "sampler": {"dtype": "DT_STRING", "tensor_shape": shape, "string_val": [base64.b64encode(b"euler").decode()]},
        "height": {"dtype": "DT_INT32", "tensor_shape": shape, "tensor_content": "", "int_val": [64]},
        "width": {"dtype": "DT_INT32", "tensor_shape": shape, "tensor_content": "", "int_val": [96]},
    }
    signature = {"inputs": {}, "outputs": {}, "method_name": "tensorflow/serving/predict", "defaults": defaults}
    spec = {"name": "tiny", "signature_name": "", "version": "7"}
    return {"model_spec": spec, "metadata": {"signature_def": {"signature_def": {"text_to_png": signature}}}}
