"""SavedModels: what they draw is what Python draws, in the session that TensorFlow Serving runs as well as loaded by Python."""

import json
import shutil
import threading
import warnings

import numpy as np
import pytest
import tensorflow as tf
from exports import ServingSession, asks_for_xla, pixels, request

from tfsd.api import load
from tfsd.converters.saved_model.export import export_saved_model
from tfsd.converters.saved_model.verify_export import MANIFEST, ExportError, OutdatedExportWarning, verify
from tfsd.images.encoding import encode_png
from tfsd.storage.folders import own_files

SIZES = [(32, 32), (16, 48)]


@pytest.fixture(scope="module")
def model(toy_folder):
    """The model of the export. XLA compiles every signature and size for itself: see test_saved_model_variants.py."""
    return load(toy_folder, jit_compile=False)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    return export_saved_model(model, tmp_path_factory.mktemp("out"), sizes=SIZES, batch_sizes=(1, 2, 4), max_steps=8)


@pytest.fixture(scope="module")
def session(folder):
    with ServingSession(folder) as session:
        yield session


def drawn(model, prompt, **options) -> bytes:
    """The PNG file that Python makes."""
    return encode_png(np.asarray(model.text_to_image(prompt, **options))).numpy()[0]


CASES = [
    {"prompt": "a red star", "seed": 7},
    {"prompt": "red", "negative_prompt": "a star", "seed": -1, "num_steps": 5, "sampler": "Euler a"},
    {"prompt": "", "seed": 2**62, "index": 3, "num_steps": 1, "sampler": "lms_karras", "guidance_scale": 0.0},
    {"prompt": "a star " * 60, "seed": 1, "num_steps": 8, "sampler": "pndm", "height": 16, "width": 48},
]


@pytest.mark.filterwarnings("ignore::tfsd.text.PromptTruncationWarning")
@pytest.mark.parametrize("case", CASES, ids=["defaults", "ancestral", "extremes", "size"])
def test_session_draws_the_bytes_that_python_draws(case, session, model):
    answer = session("text_to_png", request(**case))
    assert answer["png_bytes"][0] == drawn(model, **case)


@pytest.mark.slow  # compiles all anew, as `verify` below does
def test_loaded_signature_draws_the_bytes_that_python_draws(folder, model):
    loaded = tf.saved_model.load(str(folder))
    given = request(prompt="a red star", negative_prompt="", seed=7, index=0, guidance_scale=2.0, num_steps=3, sampler="ddim",
                    height=32, width=32)  # fmt: skip
    answer = loaded.signatures["text_to_png"](**{name: tf.constant(value) for name, value in given.items()})
    assert answer["png_bytes"].numpy()[0] == drawn(model, "a red star", seed=7)


def test_a_request_without_a_signature_means_text_to_png(session):
    """TensorFlow Serving looks for `serving_default` then; it must add neither weights nor a program."""
    library = session.meta.graph_def.library.function
    wrappers = [one for one in library if one.signature.name.startswith("__inference_signature_wrapper_text_to_png")]
    called = {node.attr["f"].func.name for one in wrappers for node in one.node_def if node.op.endswith("PartitionedCall")}
    assert len(wrappers) == 2 and len(called) == 1
    both = [session.meta.signature_def[name] for name in ("serving_default", "text_to_png")]
    assert both[0].defaults == both[1].defaults and set(both[0].inputs) == set(both[1].inputs)


@pytest.mark.slow
def test_pictures_are_those_of_the_files(session):
    given = request(prompt=["a red star", "red"], seed=[3, 4])
    files, images = session("text_to_png", given)["png_bytes"], session("text_to_image", given)["images"]
    assert images.shape == (2, 32, 32, 3) and images.dtype == np.uint8
    for file, image in zip(files, images):
        np.testing.assert_array_equal(pixels(file), image)


STRANGERS = [
    {"prompt": "a red star", "seed": 7, "num_steps": 3, "sampler": "dpm++ 2M", "height": 32, "width": 32},
    {"prompt": "red", "seed": 1, "num_steps": 8, "sampler": "ddpm", "height": 16, "width": 48},
    {"prompt": "a", "seed": 7, "num_steps": 1, "sampler": "euler", "height": 32, "width": 32},
    {"prompt": "a red star", "seed": 7, "num_steps": 6, "sampler": "lms", "height": 32, "width": 32},
]


@pytest.fixture(scope="module")
def alone(session):
    return [session("text_to_png", request(**one))["png_bytes"][0] for one in STRANGERS]


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 0, 2)])
def test_strangers_in_a_batch_change_no_byte(order, session, alone):
    rows = [request(**STRANGERS[i]) for i in order]
    batch = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    assert session("text_to_png", batch)["png_bytes"].tolist() == [alone[i] for i in order]


@pytest.mark.slow
def test_batches_made_by_tensorflows_own_scheduler_change_no_byte(folder, alone):
    """The scheduler of TF Serving's --enable_batching, as an operation: requests of several threads meet in one call."""
    loaded, sizes = tf.saved_model.load(str(folder)), []
    names = list(STRANGERS[0])
    rest = {"negative_prompt": b"", "index": 0, "guidance_scale": 2.0}

    @tf.nondifferentiable_batch_function(num_batch_threads=1, max_batch_size=4, batch_timeout_micros=2_000_000)
    def batched(*rows):
        tf.py_function(lambda count: sizes.append(int(count)), [tf.shape(rows[0])[0]], [])
        others = {name: tf.fill(tf.shape(rows[0]), value) for name, value in rest.items()}
        return loaded.signatures["text_to_png"](**dict(zip(names, rows)), **others)["png_bytes"]

    kinds = [tf.TensorSpec([None], tf.as_dtype(value.dtype)) for value in request(**STRANGERS[0]).values()]
    one = tf.function(lambda *row: batched(*row), input_signature=kinds, autograph=False)
    answers = [None] * len(STRANGERS)

    def ask(i):
        answers[i] = one(*(tf.constant(request(**STRANGERS[i])[name]) for name in names)).numpy()[0]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(STRANGERS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(sizes) > 1, "no two requests met in a batch"
    assert answers == alone


@pytest.mark.slow  # the served export's are compared in tests/serving/test_serve_command.py
def test_split_signatures_make_the_same_picture(session, model):
    contexts = [session("encode", request(prompt=text))["context"] for text in ("a red star", "")]
    np.testing.assert_allclose(contexts[0], model.encode_text("a red star"), rtol=0, atol=1e-5)
    given = dict(zip(("context", "negative_context"), contexts)) | request(seed=7)
    del given["prompt"]
    latents = session("denoise", given)["latents"]
    assert latents.shape == (1, 4, 4, 4)
    answer, whole = session("decode", {"latents": latents}), session("text_to_image", request(prompt="a red star", seed=7))
    assert np.abs(answer["images"].astype(int) - whole["images"]).max() <= 1  # other programs add in another order
    np.testing.assert_array_equal(pixels(answer["png_bytes"][0]), answer["images"][0])


def test_truncated_tokens_are_counted(session):
    answer = session("encode", request(prompt=["a star " * 60, "a star"]))
    assert answer["truncated_tokens"].tolist() == [45, 0]


@pytest.mark.parametrize("signature", ["text_to_png", "text_to_image"])
def test_truncated_tokens_of_negative_prompts_are_counted_apart(signature, session):
    answer = session(signature, request(prompt="a star " * 60, negative_prompt=["", "a star " * 61], num_steps=1))
    assert answer["truncated_tokens"].tolist() == [45, 45]
    assert answer["truncated_negative_tokens"].tolist() == [0, 47]


def test_one_row_counts_for_all(session):
    both = session("text_to_png", request(prompt="a red star", seed=[3, 4]))["png_bytes"]
    second = session("text_to_png", request(prompt="a red star", seed=4))["png_bytes"][0]
    assert len(both) == 2 and both[1] == second


@pytest.mark.parametrize(
    "numbers", [{"num_steps": [1, 2]}, {"sampler": ["ddim", "euler"]}, {"index": [0, 1]}], ids=lambda one: next(iter(one))
)
def test_an_argument_may_have_a_row_for_each_picture_while_all_others_have_one(numbers, session):
    (name, values), common = *numbers.items(), {"prompt": "a red star", "seed": 3, "num_steps": 1}
    both = session("text_to_png", request(**(common | numbers)))["png_bytes"]
    apart = [session("text_to_png", request(**(common | {name: value})))["png_bytes"][0] for value in values]
    assert list(both) == apart and apart[0] != apart[1]


REFUSED = [
    ({"num_steps": 0}, "num_steps must be from 1 to 8; got"),
    ({"num_steps": 9}, "num_steps must be from 1 to 8; got"),
    ({"num_steps": [3, -2], "prompt": ["a", "b"]}, "num_steps must be from 1 to 8; got"),
    ({"guidance_scale": float("nan")}, "guidance_scale must be from 0 to 100; got"),
    ({"guidance_scale": -0.5}, "guidance_scale must be from 0 to 100; got"),
    ({"sampler": "DDIN"}, "sampler must be one of ddim"),
    ({"height": 16}, "height and width must be one of 32 x 32, 16 x 48; got"),
    ({"width": 2**31 - 1}, "height and width must be one of"),
    ({"index": -1}, "index must be from 0 to"),
    ({"prompt": "x" * 4097}, "prompt must be at most 4096 bytes of UTF-8; got"),
    ({"negative_prompt": "x" * 10**7}, "negative_prompt must be at most 4096 bytes"),
    ({"prompt": []}, "prompt must have one row for all images"),
    ({"prompt": ["a"] * 5}, "a request must be for 1 to 4 images; got"),
    ({"prompt": ["a"] * 100_000}, "a request must be for 1 to 4 images; got"),
    ({"prompt": ["a"] * 3, "seed": [1, 2]}, "seed must have one row for all images or one for each; got"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[message[:20] for _, message in REFUSED])
def test_request_out_of_range_is_an_invalid_argument(change, message, session):
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        session("text_to_png", request(**({"prompt": "a"} | change)))
    assert message in error.value.message


@pytest.mark.parametrize("shape", [(1, 4, 4, 3), (1, 8, 8, 4), (9, 4, 4, 4)])
def test_latents_of_another_shape_are_refused(shape, session):
    with pytest.raises((tf.errors.InvalidArgumentError, ValueError)):
        session("decode", {"latents": np.zeros(shape, "float32")})


def test_infinite_latents_are_refused(session):
    with pytest.raises(tf.errors.InvalidArgumentError, match="latents must hold finite numbers"):
        session("decode", {"latents": np.full((1, 4, 4, 4), np.inf, "float32")})


def test_images_of_two_sizes_do_not_fit_in_a_tensor(session):
    with pytest.raises(tf.errors.InvalidArgumentError, match="must be the same for all images"):
        session("text_to_image", request(prompt=["a", "b"], height=[32, 16], width=[32, 48]))


def test_an_export_without_xla_does_not_ask_for_it(folder):
    assert not asks_for_xla(folder)


def test_weights_are_variables_and_stored_once(folder, model):
    stored = {name: shape for name, shape in tf.train.list_variables(str(folder / "variables/variables")) if "weights" in name}
    values = sum(int(np.prod(shape)) for shape in stored.values())
    assert values == sum(int(np.prod(v.shape)) for v in model.pipeline.tracked)


def asked_size(inputs: dict):
    if "latents" in inputs:
        return tuple(8 * side for side in inputs["latents"].shape[1:3])
    return (int(inputs["height"][0]), int(inputs["width"][0])) if "height" in inputs else None


def test_warmup_asks_every_signature_for_every_shape(folder, session):
    from tensorflow_serving.apis import prediction_log_pb2

    seen = set()
    for record in tf.data.TFRecordDataset(str(folder / "assets.extra/tf_serving_warmup_requests")):
        asked = prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request
        name, inputs = asked.model_spec.signature_name, {key: tf.make_ndarray(value) for key, value in asked.inputs.items()}
        assert asked.model_spec.name == "toy" and set(inputs) == set(session.meta.signature_def[name].inputs)
        (rows,) = {len(value) for value in inputs.values()}  # TF Serving's batching wants as many of each
        seen.add((name, rows, asked_size(inputs)))
        if rows == 1 and name != "serving_default":  # which is text_to_png under another name
            session(name, inputs)
    drawing = ("text_to_png", "text_to_image", "denoise", "decode")
    wanted = {(name, batch, size) for name in drawing for batch in (1, 2, 4) for size in SIZES}
    assert seen == wanted | {("encode", batch, None) for batch in (1, 2, 4)} | {("serving_default", 1, SIZES[0])}


# -- the folder --------------------------------------------------------------------------------------------------------


def test_manifest_says_what_is_served(folder, model):
    manifest = json.loads((folder / MANIFEST).read_text())
    assert (manifest["name"], manifest["version"], manifest["sizes"]) == ("toy", 1, [list(size) for size in SIZES])
    assert manifest["kept_tokens"] == list(model.spec.text[0].kept_tokens) == [320, 736, 1565]
    assert manifest["weights"] == model.identity["weights"] and manifest["reference"]["same_bytes_as_python"] is True
    listed = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert set(manifest["files"]) == listed - {"assets.extra/manifest.json"}
    assert set(own_files(folder, "saved_model")) == listed


@pytest.mark.slow
def test_verify_draws_the_reference_picture_again(folder):
    assert verify(folder) == (True, 0.0)


@pytest.mark.parametrize("number", [1, 2])
def test_verify_warns_of_an_export_that_the_server_refuses(number, folder, tmp_path):
    """As an error, the warning comes before the image is made."""
    copy = shutil.copytree(folder, tmp_path / "1")
    (copy / MANIFEST).write_text(json.dumps(json.loads((copy / MANIFEST).read_text()) | {"format": number}))
    text = rf"toy, version 1, was made by an older tfsd \(format {number}\): `tfsd serve` refuses it"
    with warnings.catch_warnings(), pytest.raises(OutdatedExportWarning, match=text) as warned:
        warnings.simplefilter("error", OutdatedExportWarning)
        verify(copy)
    assert ("never frees its memory" in str(warned.value)) == (number == 1)


@pytest.mark.slow
def test_export_that_draws_another_picture_is_found_out(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "1")
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["reference"]["inputs"]["seed"] += 1
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ExportError, match="makes another image than when it was exported: levels differ by up to"):
        verify(copy)
