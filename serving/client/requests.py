"""A client's requests and answers: checked arguments, PredictRequests, and images with recipes."""

import io
import math
import struct
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError
from PIL import Image

from tfsd import __version__
from tfsd.arguments.checks import checked, prompts_of
from tfsd.arguments.options import require_known
from tfsd.arguments.table import ARGUMENTS, GRAPH, Seeds, Texts, columns
from tfsd.batch import evenly
from tfsd.errors import printable, shown
from tfsd.images import Images
from tfsd.images.recipes import per_image
from tfsd.serving.wire import protos
from tfsd.serving.wire.errors import WARNING_KEY, ServerError

_MAX_WARNING = 4096  # bytes
INPUTS = columns()  # input -> its kind of tensor; output likewise
# Kind -> (number, field of the values, numpy's name).
_KINDS = {
    "float32": (1, "float_val", "<f4"),
    "int32": (3, "int_val", "<i4"),
    "string": (7, "string_val", None),
    "int64": (9, "int64_val", "<i8"),
}
Columns = dict[str, Any]  # list or None: input -> one value per image; None stands for the model's default


class ModelInputs(NamedTuple):
    """The names of a signature's inputs, empty if the server does not list them, and their defaults."""

    names: frozenset[str]
    defaults: dict[str, Any]


class Answer(NamedTuple):
    """The answer to one RPC: PNG files, how many tokens of each prompt were cut off, the model's version, a warning."""

    pngs: list[bytes]
    truncated: list[tuple[int, int]]  # of the prompt and of the negative prompt
    version: int
    warning: str = ""


def request_columns(
    method: Callable[..., Any], prompt: Texts, batch_size: int, seed: Seeds, options: Mapping[str, Any]
) -> Columns:
    """Returns the inputs for the arguments of a client's method. The server checks what depends on the model.

    Raises: `TypeError`, `ValueError` naming the argument.
    """
    require_known(method, options)
    prompts = prompts_of(prompt, batch_size)
    values = {"prompt": prompts} | checked(seed, options, len(prompts), GRAPH, {})
    for name, value in values.items():
        if ARGUMENTS[name].kind == "text":
            _require_unicode(name, value)
    rows = {name: values[name] for name in INPUTS}
    return {name: value if value is None or isinstance(value, list) else [value] * len(prompts) for name, value in rows.items()}


def _require_unicode(name: str, texts: list[str]) -> None:
    for text in texts:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            half = f"U+{ord(text[error.start]):04X}"
            raise ValueError(f"{name} must be Unicode text; got half a surrogate pair, {half}. Remove it.") from None


def filled(given: Columns, model: ModelInputs) -> Columns:
    """Returns the inputs with the model's defaults for those that were not given.

    Defaults are sent, although servers would add them: the recipe is then right even if another version of the model has
    replaced this one, and servers without defaults get all inputs. Arguments that an older export does not have are omitted
    if they have their default value.

    Raises: `ValueError` naming an argument for which the model has no default, or that it does not have.
    """
    full: Columns = {}
    batch = len(given["prompt"])
    for name, values in given.items():
        if model.names and name not in model.names:
            if values is not None and any(value != ARGUMENTS[name].default for value in values):
                raise ValueError(f"{name} must be left out: the server's model has no such input. Export it again.")
        elif values is None and name not in model.defaults:
            raise ValueError(f"{name} must be given: the server's model has no default for it.")
        else:
            full[name] = [model.defaults[name]] * batch if values is None else values
    return full


def model_spec(name: str, version: int | str | None, signature: str = "") -> Any:
    """Returns the `ModelSpec` of a model; `version` is a number, or a label such as "stable"."""
    spec = protos.ModelSpec(name=name, signature_name=signature)
    if isinstance(version, str):
        spec.version_label = version
    elif version is not None:
        spec.version.value = version
    return spec


def predict_requests(given: Columns, spec: Any, max_batch: int) -> list[Any]:
    """Returns the PredictRequests for all images, each with at most `max_batch` rows.

    They have no output filter, since older exports may lack an output that this client reads.
    """
    requests = []
    for part in evenly(len(given["prompt"]), max_batch):  # so that they take similar times
        request = protos.PredictRequest(model_spec=spec)
        for name, values in given.items():
            request.inputs[name].CopyFrom(tensor_of(values[part.start : part.stop], INPUTS[name]))
        requests.append(request)
    return requests


def row_count(request: Any) -> int:
    """Returns the number of images that a PredictRequest asks for."""
    size: int = request.inputs["prompt"].tensor_shape.dim[0].size
    return size


def tensor_of(values: Sequence[Any], kind: str) -> Any:
    """Returns the TensorProto [B] of one value per row; `kind` is a key such as "int64"."""
    number, field, _ = _KINDS[kind]
    tensor = protos.TensorProto(dtype=number)
    tensor.tensor_shape.dim.add(size=len(values))
    getattr(tensor, field).extend(value.encode("utf-8") if isinstance(value, str) else value for value in values)
    return tensor


def values_of(tensor: Any, count: int, kind: str) -> list[Any]:
    """Returns the `count` values of a TensorProto, as content or as a field; floats are rounded to the shortest equal number.

    Raises: `ServerError` INTERNAL for another type or number of values.
    """
    number, field, numpy_name = _KINDS[kind]
    size = math.prod(dim.size for dim in tensor.tensor_shape.dim)
    if tensor.dtype != number or size != count:
        raise ServerError("INTERNAL", f"The server sent type {tensor.dtype} and {size} values for {count} of {kind}.")
    if tensor.tensor_content and numpy_name and len(tensor.tensor_content) == count * int(numpy_name[-1]):
        values = np.frombuffer(tensor.tensor_content, numpy_name).tolist()
    else:
        values = list(getattr(tensor, field))
        values += values[-1:] * (count - len(values))  # TensorFlow writes equal values at the end only once
    if len(values) != count:
        raise ServerError("INTERNAL", f"The server sent {len(values)} values for {count} of {kind}.")
    return [float(str(np.float32(value))) for value in values] if kind == "float32" else values


def inputs_of(response: Any, name: str, signature: str) -> ModelInputs:
    """Returns the inputs of a model and their defaults, from the answer to GetModelMetadata.

    Raises: `ServerError` FAILED_PRECONDITION if the model has no such signature or it makes no images, INTERNAL for a damaged
    answer.
    """
    found = parsed(protos.SignatureDefMap, response.metadata["signature_def"].value).signature_def
    if signature not in found:
        others = ", ".join(sorted(found)) or "none"
        message = f"The model {shown(name)} has no signature {shown(signature)} but {others}."
        raise ServerError("FAILED_PRECONDITION", f"{message} Was it made by `tfsd export saved_model`?")
    outputs = found[signature].outputs
    if outputs and "png_bytes" not in outputs:
        message = f"The signature {shown(signature)} of the model {shown(name)} has no output png_bytes. Use text_to_png."
        raise ServerError("FAILED_PRECONDITION", message)
    tensors = found[signature].defaults
    values = {one: values_of(tensor, 1, INPUTS[one])[0] for one, tensor in tensors.items() if one in INPUTS}
    texts = {one: value.decode("utf-8", "replace") for one, value in values.items() if isinstance(value, bytes)}
    return ModelInputs(frozenset(found[signature].inputs), values | texts)


def parsed(kind: Any, data: bytes) -> Any:
    """Parses a message. Raises: `ServerError` INTERNAL if it is damaged."""
    try:
        return kind.FromString(data)
    except (DecodeError, UnicodeDecodeError):
        raise ServerError("INTERNAL", "The server sent an answer that cannot be read.") from None


def answer_of(data: bytes, rows: int, headers: Iterable[tuple[str, str | bytes]] = ()) -> Answer:
    """Parses a PredictResponse. Raises: `ServerError` INTERNAL unless it has `rows` images."""
    response = parsed(protos.PredictResponse, data)
    for name in ("png_bytes", "truncated_tokens"):
        if name not in response.outputs:
            raise ServerError("INTERNAL", f"The server's answer has no {name} but {', '.join(response.outputs) or 'nothing'}.")
    pngs = values_of(response.outputs["png_bytes"], rows, "string")
    truncated = values_of(response.outputs["truncated_tokens"], rows, "int32")
    negative = [0] * rows  # exports of format 1 do not count them
    if "truncated_negative_tokens" in response.outputs:
        negative = values_of(response.outputs["truncated_negative_tokens"], rows, "int32")
    warning = dict(headers or ()).get(WARNING_KEY, b"")
    warning = printable(warning[:_MAX_WARNING].decode("utf-8", "replace")) if isinstance(warning, bytes) else ""
    return Answer(pngs, list(zip(truncated, negative)), response.model_spec.version.value, warning)


def images_of(given: Columns, answers: Iterable[Answer], model: str) -> Images:
    """Returns the images of all answers, with recipes that make them again.

    Raises: `ServerError` INTERNAL for a file that is not an image of the requested size.
    """
    answers = list(answers)
    pngs = [png for answer in answers for png in answer.pngs]
    pixels = np.stack([_pixels(*row) for row in zip(pngs, given["height"], given["width"])])
    versions = [answer.version for answer in answers for _ in answer.pngs]
    more = [{"model": model, "model_version": version, "tfsd": __version__} for version in versions]
    return Images(pixels, [own | own_model for own, own_model in zip(per_image(given), more)])


def _pixels(png: bytes, height: int, width: int) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            found = f"{image.mode} {image.height} x {image.width}"
            if (
                found == f"RGB {height} x {width}"
            ):  # checked before the pixels are decompressed, as a small file can have very many
                return np.asarray(image)
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:  # PIL's, for damaged files
        raise ServerError("INTERNAL", f"The server sent an image that cannot be read ({error}).") from error
    raise ServerError("INTERNAL", f"The server sent an image that is {found}, not RGB {height} x {width}.")


def warn_of_truncation(given: Columns, answers: Iterable[Answer], stacklevel: int) -> None:
    """Warns, once per prompt, about text that the model did not read, and about words that it was not trained on."""
    _warn_of_words(answers, stacklevel + 1)
    counts = list(zip(*(pair for answer in answers for pair in answer.truncated)))
    cut = {(name, text): n for name, many in zip(("prompt", "negative_prompt"), counts) for text, n in zip(given[name], many)}
    if not any(cut.values()):
        return
    from tfsd.text import PromptTruncationWarning  # imported late, as it takes as long as the rest of the client

    for (name, text), count in cut.items():
        if count:
            of = f"{name} {shown(text, 60)}"
            message = f"{of} is too long: the model did not read its last {count} tokens. `tfsd tokens` shows which."
            warnings.warn(message, PromptTruncationWarning, stacklevel=stacklevel + 1)


def _warn_of_words(answers: Iterable[Answer], stacklevel: int) -> None:
    messages = dict.fromkeys(answer.warning for answer in answers if answer.warning)
    if messages:
        from tfsd.text import UnknownWordsWarning  # imported late, as above

        for message in messages:
            warnings.warn(message, UnknownWordsWarning, stacklevel=stacklevel + 1)
