"""A loaded export computes in chunks what its signatures compute in one call, and says what is wrong in one sentence."""

import gc
import json
import shutil

import numpy as np
import pytest
import tensorflow as tf
from signatures import called
from tensorflow.python.eager import context

from tfsd.converters.saved_model.export import export_saved_model
from tfsd.errors import CheckpointError
from tfsd.serving.server.engine import Engine
from tfsd.serving.wire.errors import ServerError


@pytest.fixture(scope="module")
def engine(toy_export):
    return Engine(toy_export / "toy" / "1")


def inputs(engine, **changed) -> dict:
    kinds = {"seed": "int64", "guidance_scale": "float32", "sampler": object, "prompt": object, "negative_prompt": object}
    given = {"prompt": [b"a red star"]} | changed
    return engine.defaults() | {name: np.array(value, kinds.get(name, "int32")) for name, value in given.items()}


def test_chunks_give_the_bytes_of_the_signature(engine):
    assert_chunks_give_the_bytes(engine, 4)


@pytest.mark.slow
def test_chunks_compiled_by_xla_give_the_bytes_of_the_signature(toy_folder, tmp_path):
    engine = Engine(export_saved_model(toy_folder, tmp_path, batch_sizes=(1,), max_steps=10))
    for chunk in (1, 4, 9):
        assert_chunks_give_the_bytes(engine, chunk)


def assert_chunks_give_the_bytes(engine, chunk: int):
    asked = inputs(engine, seed=[5], num_steps=[7], sampler=[b"euler_ancestral"])
    job = engine.start(engine.prepare(asked))
    while job.done < job.steps:
        job.advance(chunk)
    assert job.done == 7
    assert engine.png(job.results()[0]) == called(engine.folder, "text_to_png", asked)["png_bytes"][0]


def of_rows(engine, signature, given, chunk=1) -> dict:
    """What the server answers for a signature: every row a job, computed in chunks."""
    answers = []
    for row in engine.split(signature, given):
        job = engine.start([row])
        while job.done < job.steps:
            job.advance(chunk)
        answers += job.results()
    return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}


def test_rows_of_encode_denoise_and_decode_give_the_bytes_of_the_signatures(engine):
    prompts = {"prompt": np.array([b"a red star", b"a star"], object)}
    encoded = engine.run("encode", prompts)
    numbers = {key: value for key, value in inputs(engine).items() if not key.endswith("prompt")}
    numbers |= {"seed": np.array([3, 4], "int64"), "num_steps": np.array([7], "int32"), "sampler": np.array([b"ddpm"], object)}
    contexts = {
        "context": encoded["context"],
        "negative_context": engine.run("encode", {"prompt": np.array([b""], object)})["context"],
    }
    denoised = called(engine.folder, "denoise", contexts | numbers)
    for signature, given, whole in (
        ("encode", prompts, encoded),
        ("denoise", contexts | numbers, denoised),
        ("decode", denoised, engine.run("decode", denoised)),
    ):
        made = of_rows(engine, signature, given, chunk=3)
        assert set(made) == set(whole)
        for name in whole:
            np.testing.assert_array_equal(made[name], whole[name], err_msg=f"{signature}: {name}")
    assert [row.steps for row in engine.split("denoise", contexts | numbers)] == [7, 7]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"context": np.full((1, 77, 16), np.nan, "float32")}, "context must hold finite numbers"),
        ({"num_steps": np.array([0], "int32")}, "num_steps must be from 1 to 10; got 0"),
        ({"seed": np.arange(3)}, "a request must be for 1 to 2 images; got 3"),
    ],
)
def test_what_denoise_refuses_is_said_as_by_its_signature(change, message, engine):
    context = np.zeros((1, 77, 16), "float32")
    given = {key: value for key, value in inputs(engine).items() if not key.endswith("prompt")}
    with pytest.raises(ServerError) as error:
        engine.split("denoise", given | {"context": context, "negative_context": context} | change)
    assert error.value.code == "INVALID_ARGUMENT" and message in error.value.message


def test_rows_know_their_steps_size_and_cut_tokens(engine):
    prompts = {"prompt": [b"a star " * 60, b"red"], "negative_prompt": [b"a", b"a star " * 61]}
    rows = engine.prepare(inputs(engine, **prompts, num_steps=[3, 4], sampler=[b"PLMS", b"ddim"]))
    assert [(row.steps, row.size, row.truncated) for row in rows] == [(4, (32, 32), (45, 0)), (4, (32, 32), (0, 47))]


def test_failed_check_is_one_sentence_with_what_came(engine):
    with pytest.raises(ServerError) as error:
        engine.prepare(inputs(engine, num_steps=[0]))
    assert (error.value.code, error.value.message) == ("INVALID_ARGUMENT", "num_steps must be from 1 to 10; got 0")


@pytest.mark.parametrize("sent", [b"\xff\xfe", b"are NaN or infinite in float32"])
def test_a_sampler_of_any_bytes_is_the_callers_error(sent, engine):
    with pytest.raises(ServerError) as error:
        engine.prepare(inputs(engine, sampler=[sent]))
    assert error.value.code == "INVALID_ARGUMENT" and error.value.message.startswith("sampler must be one of ddim")
    with pytest.raises(ServerError) as error:
        engine.prepare(inputs(engine, sampler=[b"x] [y"]))
    assert error.value.message.startswith("sampler must be one of ddim, ") and error.value.message.endswith("; got x y")


def with_format(toy_export, tmp_path, number: int):
    folder = shutil.copytree(toy_export / "toy" / "1", tmp_path / "1")
    path = folder / "assets.extra/manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": number}))
    return folder


@pytest.mark.parametrize("number, advice", [(1, "Export the model again"), (2, "Export the model again"), (4, "Update tfsd, or")])
def test_export_of_another_format_is_refused(number, advice, toy_export, tmp_path):
    with pytest.raises(CheckpointError, match=f"manifest.json has format {number}; this tfsd needs 3. {advice}"):
        Engine(with_format(toy_export, tmp_path, number))


@pytest.mark.parametrize("name", ["saved_model.pb", "variables/variables.data-00000-of-00001", "assets/clip_merges.txt"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "missing"])
def test_damaged_file_is_named(name, damage, toy_export, tmp_path):
    folder = shutil.copytree(toy_export / "toy" / "1", tmp_path / "1")
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "missing":
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(data if damage == "flipped" else data[: len(data) // 2])
    with pytest.raises(
        CheckpointError, match=name if name != "saved_model.pb" or damage != "missing" else "not a version of an export"
    ):
        Engine(folder)


def test_manifest_cannot_point_outside(toy_export, tmp_path):
    folder = shutil.copytree(toy_export / "toy" / "1", tmp_path / "1")
    manifest = folder / "assets.extra/manifest.json"
    manifest.write_text(manifest.read_text().replace('"saved_model.pb"', '"../../secret"'))
    with pytest.raises(CheckpointError, match="outside of the folder"):
        Engine(folder)


def test_folder_must_be_named_by_a_version(toy_export, tmp_path):
    with pytest.raises(CheckpointError, match="named by its version"):
        Engine(shutil.copytree(toy_export / "toy" / "1", tmp_path / "latest"))


def test_an_engine_holds_the_functions_that_it_calls_and_no_others(engine):
    assert set(engine.model.signatures) == {"encode", "decode"} < set(engine.signatures)
    before = set(context.context().list_function_names())
    again = Engine(engine.folder)
    added = " ".join(set(context.context().list_function_names()) - before)
    assert "_prepare_" in added and "signature_wrapper_encode" in added and again.prepare(inputs(again))
    assert not any(name in added for name in ("text_to_png", "text_to_image", "denoise", "traced_save"))


def test_loading_makes_no_class_as_tensorflow_would_keep_it(engine):
    before = set(tuple.__subclasses__())
    Engine(engine.folder)
    assert set(tuple.__subclasses__()) <= before


def test_without_links_an_engine_loads_all(engine, monkeypatch):
    def refused(*_):
        raise OSError("no links here")

    monkeypatch.setattr("os.symlink", refused)
    assert set(engine.signatures) <= {*Engine(engine.folder).model.signatures}


def test_tables_of_an_engine_go_with_it_and_with_no_other(toy_export, engine):
    def tables(engine) -> list:
        found = tf.train.TrackableView(engine.model).descendants()
        return [it.resource_handle for it in found if isinstance(it, tf.saved_model.experimental.TrackableResource)]

    gone = Engine(engine.folder)
    handles = tables(gone)
    assert len(handles) >= 2 and all(tf.raw_ops.LookupTableSizeV2(table_handle=handle) > 0 for handle in handles)
    del gone
    gc.collect()
    for handle in handles:
        with pytest.raises(tf.errors.NotFoundError):
            tf.raw_ops.LookupTableSizeV2(table_handle=handle)
    assert all(tf.raw_ops.LookupTableSizeV2(table_handle=handle) > 0 for handle in tables(engine))
    assert engine.prepare(inputs(engine))
