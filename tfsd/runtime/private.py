"""The private names of other packages that this one uses, each checked when it is used.

Such names may change with any release. `setup.py` bounds their versions; where another one is installed all the same and a
name has changed, the error says which version is there and which was tested.
"""

import importlib
import inspect
from importlib import metadata
from typing import Any, NamedTuple


class VersionError(ImportError):
    """An installed package lacks a private name that this one uses."""


class Private(NamedTuple):
    """A private name: its package, the version in which it was tested, and the parameters that are passed to it."""

    package: str
    tested: str
    parameters: tuple[str, ...] = ()


_CONVERTER = "tensorflow.lite.python.lite:TFLiteSavedModelConverterV2"
_QUANTIZER = "ai_edge_quantizer"
PRIVATE = {  # "module:name" -> what is assumed of it
    _CONVERTER: Private("tensorflow", "2.21.0", ("saved_model_dir", "saved_model_tags", "saved_model_exported_names")),
    f"{_CONVERTER}._convert_from_saved_model": Private("tensorflow", "2.21.0", ("self", "graph_def")),
    "tensorflow.python.saved_model.loader_impl:parse_saved_model": Private("tensorflow", "2.21.0", ("export_dir",)),
    "huggingface_hub.file_download:http_get": Private(
        "huggingface_hub", "2.4.0", ("url", "temp_file", "resume_size", "headers", "expected_size", "displayed_filename")
    ),
    "huggingface_hub.utils:build_hf_headers": Private("huggingface_hub", "2.4.0", ("token", "library_name")),
    "ai_edge_litert:schema_py_generated": Private("ai-edge-litert", "2.3.0"),
    f"{_QUANTIZER}:qtyping": Private("ai-edge-quantizer", "0.10.0"),
    f"{_QUANTIZER}:recipe": Private("ai-edge-quantizer", "0.10.0"),
    f"{_QUANTIZER}.algorithm_manager:AlgorithmName": Private("ai-edge-quantizer", "0.10.0"),
    f"{_QUANTIZER}.calibrator:CalibrationMode": Private("ai-edge-quantizer", "0.10.0"),
    f"{_QUANTIZER}.algorithms.uniform_quantize:uniform_quantize_tensor": Private("ai-edge-quantizer", "0.10.0"),
    f"{_QUANTIZER}.algorithms.uniform_quantize.uniform_quantize_tensor:uniform_quantize": Private(
        "ai-edge-quantizer", "0.10.0", ("tensor_data", "quantization_params", "is_blockwise_quant")
    ),
    f"{_QUANTIZER}.utils.tfl_interpreter_utils:get_tensor_data": Private(
        "ai-edge-quantizer", "0.10.0", ("tflite_interpreter", "tensor_detail")
    ),
}


def private(name: str):
    """Returns what a key of `PRIVATE` names.

    Raises: `VersionError` if the installed version has no such name, or it takes other parameters; `ImportError` as Python
    does if the package is not installed.
    """
    assumed = PRIVATE[name]
    module, _, attributes = name.partition(":")
    installed = _installed(assumed.package)
    try:
        found: Any = importlib.import_module(module)
        for attribute in attributes.split("."):
            submodule = f"{found.__name__}.{attribute}" if inspect.ismodule(found) else ""
            if submodule and not hasattr(found, attribute):
                importlib.import_module(submodule)
            found = getattr(found, attribute)
        missing = set(assumed.parameters) - set(inspect.signature(found).parameters) if assumed.parameters else set()
    except (ImportError, AttributeError) as error:
        if installed is None:
            raise
        raise _changed(assumed, installed, f"no {attributes} in {module}") from error
    if missing:
        raise _changed(assumed, installed, f"no parameter {', '.join(sorted(missing))} of {attributes} in {module}")
    return found


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _changed(assumed: Private, installed: str | None, what: str) -> VersionError:
    package = assumed.package
    return VersionError(
        f"{package} {installed} has {what}; this package was tested with {package} {assumed.tested}. "
        f'pip install "{package}=={assumed.tested}"'
    )
