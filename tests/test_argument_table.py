"""An argument is added by one row of the table: every interface has it, and what is left is the code that uses it."""

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tfsd
from tfsd.arguments.checks import KINDS
from tfsd.arguments.document import texts
from tfsd.arguments.table import ARGUMENTS, DEVICE, GRAPH, PYTHON, arguments_of, columns
from tfsd.cli.generate import OPTIONS

ROOT = Path(__file__).parents[1]
ROW = """
    tint: Annotated[
        float | Sequence[float],
        Argument(
            kind="real", column="float32", per_image=True, default=0.5, low=0, high=1, flags=("--tint",),
            other_names={"diffusers": "warmth"}, help="how warm the colours are",
        ),
    ]
"""
# Runs first: `tfsd.arguments.table` is its own source with one row more.
ADDED = f"""
import importlib.util, json, sys
from pathlib import Path

source = Path({str(ROOT / "tfsd/arguments/table.py")!r})
text = source.read_text(encoding="utf-8").replace("    sampler: Annotated[", {ROW!r} + "    sampler: Annotated[", 1)
spec = importlib.util.spec_from_file_location("tfsd.arguments.table", source)
table = importlib.util.module_from_spec(spec)
sys.modules["tfsd.arguments.table"] = table
exec(compile(text, str(source), "exec"), table.__dict__)
found = {{}}
"""


def with_row(script: str, folder) -> dict:
    """Returns `found` of a script that runs with the row of `tint` in the table."""
    program = ADDED + script + "\nprint(json.dumps(found))"
    env = os.environ | {"PYTHONPATH": str(ROOT), "TOY": str(folder)}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_argument_that_is_added_to_the_table_is_in_python_the_client_the_command_line_show_and_recipes(toy_folder):
    found = with_row(
        """
import inspect, os, tfsd
from tfsd.cli import build_parser
from tfsd.cli.request_options import given_arguments
from tfsd.cli.show import command
from tfsd.converters.saved_model.signatures import _function
from tfsd.device import DeviceBundle
from tfsd.images.files import foreign_recipe, infotext, parse_infotext
from tfsd.serving.client.requests import ModelInputs, filled, predict_requests, request_columns, model_spec

for function in (tfsd.text_to_image, tfsd.StableDiffusion.generate_image, DeviceBundle.text_to_image, tfsd.Client.text_to_png):
    found[function.__qualname__] = [inspect.signature(function).parameters["tint"].default, "how warm" in function.__doc__]

model = tfsd.load(os.environ["TOY"], jit_compile=False)
images = model.text_to_image("a", 2, num_steps=1, tint=[0.25, 1], seed=1)
found["recipes"] = [recipe["tint"] for recipe in images.recipes]
found["errors"] = []
for options in ({"tint": 2}, {"tint": "x"}, {"tint": [1, 1]}, {"warmth": 1}):
    try:
        model.text_to_image("a", **options)
    except (TypeError, ValueError) as error:
        found["errors"].append(str(error))

given = request_columns(tfsd.Client.text_to_png, "a", 2, 1, {"tint": 0.25, "num_steps": 1, "sampler": "ddim"})
given |= {"guidance_scale": [1.0] * 2, "height": [32] * 2, "width": [32] * 2}
(request,) = predict_requests(filled(given, ModelInputs(frozenset(), {})), model_spec("toy", None), 8)
found["sent"] = list(request.inputs["tint"].float_val)
older = ModelInputs(frozenset(given) - {"tint"}, {})
found["left out of an older export"] = "tint" not in filled(given | {"tint": [0.5, 0.5]}, older)

parser = build_parser(["generate"])
arguments = [parser.parse_args(["generate", "a", *flags]) for flags in (["--tint=1"], [])]
found["parsed"] = [given_arguments(one, "python")["tint"] for one in arguments]
found["shown"] = [command({"prompt": "a", "tint": value}) for value in (0.25, 0.5)]
text = infotext(images.recipes[0])
found["infotext"] = [text.split("Tint: ")[1].split(",")[0], foreign_recipe(parse_infotext(text)).recipe["tint"]]
""",
        toy_folder,
    )
    places = ("text_to_image", "StableDiffusion.generate_image", "StepLoop.text_to_image", "Client.text_to_png")
    assert {name: found[name] for name in places} == dict.fromkeys(places, [0.5, True])
    assert found["recipes"] == [0.25, 1.0]
    range_, type_, count, other = found["errors"]
    assert (range_, type_) == ("tint must be from 0 to 1; got 2.", "tint must be a number; got 'x'.")
    assert "tint must be one for all" in count and "unexpected keyword argument 'warmth'. Did you mean 'tint'?" in other
    assert found["sent"] == [0.25, 0.25] and found["left out of an older export"]
    assert found["parsed"] == [1.0, 0.5] and found["shown"] == ["tfsd generate a --tint=0.25", "tfsd generate a"]
    assert found["infotext"] == ["0.25", 0.25]


@pytest.mark.slow
def test_argument_that_is_added_to_the_table_is_in_exports_and_their_rest_and_grpc_columns(toy_folder, tmp_path):
    found = with_row(
        f"""
import os, tfsd
from tfsd.serving.server.engine import Engine
from tfsd.serving.wire.errors import ServerError
from tfsd.serving.wire.json import arrays_of, read_body

path = tfsd.export_saved_model(os.environ["TOY"], {str(tmp_path / "export")!r}, max_steps=2, xla=False)
engine = Engine(path)
signature = engine.signatures["text_to_png"]
found["inputs"] = {{name: sorted(engine.signatures[name].inputs) for name in ("text_to_png", "text_to_image", "denoise")}}
bodies = [{{"instances": [{{"prompt": "a", "tint": 0.25}}]}}]
bodies += [{{"inputs": {{"prompt": ["a"]}}}}, {{"inputs": {{"prompt": ["a"], "tint": [2]}}}}]
arrays = [arrays_of(read_body(json.dumps(body).encode()), signature)[0] for body in bodies]
found["columns"] = [array["tint"].tolist() for array in arrays]
found["prepared"] = [len(engine.prepare(one)) for one in arrays[:2]]
try:
    engine.prepare(arrays[2])
except ServerError as error:
    found["error"] = [error.code, error.message]
""",
        toy_folder,
    )
    assert all("tint" in names for names in found["inputs"].values()) and found["columns"] == [[0.25], [0.5], [2.0]]
    assert found["prepared"] == [1, 1]
    assert found["error"][0] == "INVALID_ARGUMENT" and "tint must be from 0 to 1; got" in found["error"][1]


def test_rows_are_complete():
    for name, row in ARGUMENTS.items():
        assert row.kind in KINDS and row.help and set(row.targets) <= {PYTHON, GRAPH, DEVICE}, name
        assert not row.flags or row.flag in OPTIONS, name
        assert row.column or GRAPH not in row.targets, name


def test_functions_show_the_arguments_of_their_target():
    from tfsd.device import DeviceBundle

    for function, target in (
        (tfsd.text_to_image, PYTHON),
        (tfsd.StableDiffusion.text_to_image, PYTHON),
        (DeviceBundle.text_to_image, DEVICE),
        (tfsd.Client.text_to_image, GRAPH),
        (tfsd.AsyncClient.text_to_png, GRAPH),
    ):
        shown = {name for name in inspect.signature(function).parameters if name in ARGUMENTS}
        assert shown == set(arguments_of(target)) and all(f"- `{name}`: " in function.__doc__ for name in shown)


def test_graph_inputs_are_those_of_exports_made_before():
    assert columns() == {
        "prompt": "string",
        "negative_prompt": "string",
        "seed": "int64",
        "guidance_scale": "float32",
        "num_steps": "int32",
        "index": "int32",
        "sampler": "string",
        "height": "int32",
        "width": "int32",
    }


def test_files_for_the_page_and_the_apps_are_those_of_the_table():
    """`python -m tfsd.arguments.document` writes them."""
    for name, text in texts().items():
        assert (ROOT / name).read_text(encoding="utf-8") == text, name


@pytest.mark.parametrize(
    "file, pattern",
    [
        ("android/tfsd/src/main/kotlin/dev/tfsd/StableDiffusion.kt", r"MAX_GUIDANCE = (\d+)"),
        ("ios/Sources/TFSD/StableDiffusion.swift", r"highestGuidance: Float = (\d+)"),
    ],
)
def test_apps_have_the_limits_of_the_table(file, pattern):
    (high,) = re.findall(pattern, (ROOT / "mobile" / file).read_text(encoding="utf-8"))
    assert int(high) == ARGUMENTS["guidance_scale"].high
