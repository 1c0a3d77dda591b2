"""Running an export as TensorFlow Serving does: a session over its signatures, without Python's functions."""

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

PROMPT = "a red star above a blue house"


class ServingSession:
    """A SavedModel in a session of TensorFlow 1, which is what TF Serving's Predict runs. Call: signature, inputs -> outputs."""

    def __init__(self, folder):
        self._session = tf.compat.v1.Session(graph=tf.Graph())
        with self._session.graph.as_default():
            self.meta = tf.compat.v1.saved_model.load(self._session, ["serve"], str(folder))

    def __call__(self, signature: str, inputs: dict) -> dict:
        """Returns the outputs; inputs that are missing get the defaults of the signature, as in Predict."""
        definition = self.meta.signature_def[signature]
        given = {name: tf.make_ndarray(value) for name, value in definition.defaults.items()} | inputs
        feeds = {definition.inputs[name].name: value for name, value in given.items()}
        fetches = {name: tensor.name for name, tensor in definition.outputs.items()}
        return self._session.run(fetches, feeds)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._session.close()


def request(prompt=PROMPT, **numbers) -> dict:
    """Returns inputs of a request, a list or one value each; `rows` says how often all are repeated."""
    kinds = {"seed": "int64", "guidance_scale": "float32", "sampler": object, "prompt": object, "negative_prompt": object}
    values = {"prompt": prompt} | numbers
    rows = {name: value if isinstance(value, list) else [value] for name, value in values.items()}
    encoded = {name: [v.encode() if isinstance(v, str) else v for v in row] for name, row in rows.items()}
    return {name: np.array(row, kinds.get(name, "int32")) for name, row in encoded.items()}


def asks_for_xla(folder) -> bool:
    """Returns whether a function of an export must be compiled."""
    model = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    return any(function.attr["_XlaMustCompile"].b for function in model.meta_graphs[0].graph_def.library.function)


def pixels(file: bytes) -> np.ndarray:
    """Returns the picture uint8 [H, W, 3] in a PNG file."""
    return tf.io.decode_png(file).numpy()
