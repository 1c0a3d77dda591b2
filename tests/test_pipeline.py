"""The pipeline as one graph, with a model of random weights; that its numbers are right is checked in tests/parity."""

import dataclasses
import gc
import logging
import weakref
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf

from tfsd import models
from tfsd.api import load
from tfsd.models.clip import TextEncoder
from tfsd.noise import normal_noise
from tfsd.pipeline import Pipeline, SamplingInputs
from tfsd.samplers.plans import SAMPLERS, build_plan
from tfsd.samplers.step import empty_history, step, unpack
from tfsd.specs import SpecError
from tfsd.storage.model_folders import save_model

SIZE = 32
TRAJECTORY = 2e-5  # of the largest latent: the same sums in another order, over up to eight steps
CHANGED = 1e-3  # of all values may round to the next level when sums change their order


class Request(NamedTuple):
    """What the pictures of a test are made from."""

    tokens: tf.Tensor  # [B, L]
    negative_tokens: tf.Tensor  # [B, L]
    inputs: SamplingInputs
    count: int  # rows of the plan


def request_of(spec, prompts, *, sampler="ddim", steps=3, seeds=(7,), indices=(0,), guidance=3.0, eta=0.0) -> Request:
    """A request for made-up prompts: each is the number from which its tokens are drawn, 0 is the empty one."""
    plan, batch = build_plan(spec.schedule, sampler, steps, eta=eta), len(prompts)
    tokens = np.full((batch, spec.text[0].length), spec.text[0].end_token, "int32")
    tokens[:, 0] = spec.text[0].start_token
    for row, prompt in zip(tokens, prompts):
        if prompt:
            row[1:9] = np.random.default_rng(prompt).integers(0, spec.text[0].start_token, 8)
    negative = np.full_like(tokens, spec.text[0].end_token)
    negative[:, 0] = spec.text[0].start_token
    inputs = SamplingInputs(
        plan=tf.constant(np.repeat(plan.rows[None], batch, axis=0)),
        init_scale=tf.fill([batch], np.float32(plan.init_scale)),
        seeds=tf.constant(seeds, tf.int32),
        indices=tf.constant(indices, tf.int32),
        guidance=tf.constant(np.broadcast_to(guidance, batch), tf.float32),
    )
    return Request(tf.constant(tokens), tf.constant(negative), inputs, plan.count)


def unet_inputs(rows: int):
    """Latents [1, h, w, c] and contexts [rows, L, W]."""
    random = np.random.default_rng(1)
    shapes = (1, 16, 16, 4), (rows, 77, 16)
    return [tf.constant(random.normal(size=shape), tf.float32) for shape in shapes]


def generate(pipeline, request, *, chunk=1000, noise=None, contexts=None):
    """Images and last latents, made in chunks of so many steps; `contexts`: negative and positive ones, not of the tokens."""
    halves = contexts or [pipeline.encode(tokens) for tokens in (request.negative_tokens, request.tokens)]
    state = pipeline.begin(request.inputs, *halves, pipeline.latent_shape(SIZE, SIZE), noise)
    for first in range(0, request.count, chunk):
        last = min(first + chunk, request.count)
        state = pipeline.advance(request.inputs, state, tf.constant(first), tf.constant(last))
    images, finite = pipeline.finish(state.latents)
    assert finite.numpy().all()
    return images.numpy(), state.latents.numpy()


def traces(pipeline) -> int:
    """How often any of the programs was traced."""
    return sum(program.experimental_get_tracing_count() for program in pipeline.programs.values())


def assert_same_pictures(images, expected):
    difference = np.abs(images.astype(int) - expected)
    assert difference.max() <= 1
    assert np.mean(difference > 0) <= CHANGED


@pytest.fixture(scope="module", params=[False, True], ids=["graph", "xla"])
def pipeline(request, random_model):
    return Pipeline(*random_model) if request.param else request.getfixturevalue("plain")


@pytest.fixture(scope="module", params=[False, pytest.param(True, marks=pytest.mark.slow)], ids=["graph", "xla"])
def either(request, random_model):
    """As `pipeline`, with XLA in the slow run alone: for tests whose shapes XLA would compile for them alone."""
    return Pipeline(*random_model) if request.param else request.getfixturevalue("plain")


@pytest.fixture(scope="module")
def plain(random_model):
    """Not compiled by XLA: for tests in which it makes no difference."""
    return Pipeline(*random_model, jit_compile=False)


# -- one graph ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sampler", "eta"), [("pndm", 0.0), ("ddim", 1.0), ("euler_ancestral", 0.0), ("dpmpp_2m_karras", 0.0)])
def test_one_graph_equals_the_stages_step_by_step(sampler, eta, pipeline):
    request, functions = request_of(pipeline.spec, [1], sampler=sampler, steps=4, eta=eta), pipeline.functions
    inputs, denoiser = request.inputs, functions.parts.denoiser
    latents = inputs.init_scale[:, None, None, None] * normal_noise(inputs.seeds, inputs.indices, 0, (16, 16, 4))
    history = empty_history(latents)
    context = functions.parts.text_encoder(tf.concat([request.negative_tokens, request.tokens], axis=0))
    prepared = denoiser.prepare({"context": context})
    for i in range(request.count):
        output = functions.guided(latents, denoiser.timestep_features(inputs.plan[:, i, 0]), prepared, inputs.guidance)
        noise = normal_noise(inputs.seeds, inputs.indices, i + 1, (16, 16, 4))
        latents, history = step(unpack(inputs.plan[:, i]), latents, history, output, noise)
    images, made = generate(pipeline, request)
    np.testing.assert_allclose(made, latents, rtol=0, atol=TRAJECTORY * np.abs(latents).max())
    assert_same_pictures(images, functions.finish(latents)[0].numpy())


def test_each_picture_of_a_batch_may_have_its_own_plan(either):
    long, short = (request_of(either.spec, [1], sampler=s, steps=n) for s, n in (("dpmpp_2m", 5), ("euler_ancestral", 2)))
    both = tf.nest.map_structure(lambda *rows: tf.concat(rows, axis=0), long[:3], short[:3])
    images, latents = generate(either, Request(*both, count=max(long.count, short.count)))
    for i, alone in enumerate((long, short)):
        expected = generate(either, alone)
        np.testing.assert_allclose(latents[i], expected[1][0], rtol=0, atol=TRAJECTORY * np.abs(expected[1]).max())
        assert_same_pictures(images[i : i + 1], expected[0])


@pytest.mark.parametrize("chunk", [1, 2, 4])
def test_chunks_of_steps_give_the_same_bytes(chunk, pipeline):
    request = request_of(pipeline.spec, [1], sampler="euler_ancestral", steps=5)
    whole, chunked = generate(pipeline, request), generate(pipeline, request, chunk=chunk)
    np.testing.assert_array_equal(chunked[1], whole[1])
    np.testing.assert_array_equal(chunked[0], whole[0])


def weaker(spec) -> dict:
    """Parts of a spec with other random weights; none is zero."""
    parts, random = models.build(spec), np.random.default_rng(5)
    for variable in (variable for part in parts.values() for variable in part.variables):
        variable.assign(0.05 * random.normal(size=variable.shape) + (variable.name == "gamma"))
    return parts


def references(pipeline) -> list[weakref.ref]:
    """Weak references to all variables and to their handles, which hold the memory."""
    return [weakref.ref(one) for value in pipeline.tracked for one in (value, value.handle)]


def test_models_of_one_spec_share_what_xla_compiles(random_model):
    spec, parts = random_model
    spec = dataclasses.replace(spec, schedule=dataclasses.replace(spec.schedule, beta_end=0.013))  # nobody compiled it before
    gone = Pipeline(spec, weaker(spec))
    request = request_of(spec, [1], steps=2)
    other = generate(gone, request)[1]
    before = traces(gone)
    alive = references(gone)
    del gone
    gc.collect()
    assert not any(reference() is not None for reference in alive)  # though the program was traced with its networks
    mine = Pipeline(dataclasses.replace(spec, name="other", default_steps=3), parts)
    drawn = generate(mine, request)[1]
    assert np.abs(drawn - other).max() > 0.01
    np.testing.assert_array_equal(generate(Pipeline(spec, weaker(spec)), request)[1], other)
    np.testing.assert_array_equal(generate(mine, request)[1], drawn)
    assert traces(mine) == before == 4


def test_the_first_model_of_a_spec_builds_no_networks_but_its_own(random_model):
    def networks() -> int:
        return sum(type(one) is TextEncoder for one in gc.get_objects())

    spec, parts = random_model
    before = networks()
    pipeline = Pipeline(dataclasses.replace(spec, schedule=dataclasses.replace(spec.schedule, beta_end=0.014)), parts)
    pipeline.encode(request_of(spec, [1]).tokens)
    assert networks() == before


def encode_in_a_graph(spec, tokens) -> list[weakref.ref]:
    """Encodes as an export does, in a graph around the pipeline; returns references to the variables of a model that has gone."""
    encoder = {"text_encoder": models.build(spec, parts=("text_encoder",))["text_encoder"]}
    pipeline = Pipeline(spec, encoder)
    before = traces(pipeline)
    outer = tf.function(lambda given: pipeline.encode(given)["context"], autograph=False)
    given, expected = outer(tokens).numpy(), encoder["text_encoder"](tokens).numpy()
    np.testing.assert_allclose(given, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert traces(pipeline) == before  # of what models share
    return references(pipeline)


def test_a_graph_around_a_model_shares_nothing_with_that_around_another(random_model):
    spec, _ = random_model
    tokens = request_of(spec, [1]).tokens
    for _ in range(2):
        alive = encode_in_a_graph(spec, tokens)
        gc.collect()
        assert not any(reference() is not None for reference in alive)


def test_parts_that_are_not_those_of_the_spec_are_refused(random_model):
    spec, parts = random_model
    with pytest.raises(ValueError, match="text_encoder was built with vocabulary 100; the spec 'random' has 200"):
        Pipeline(dataclasses.replace(spec, text=(dataclasses.replace(spec.text[0], vocabulary=200),)), parts)
    # Other heads have weights of the same shapes.
    with pytest.raises(ValueError, match=r"denoiser was built with heads \(2, 4\); the spec 'random' has \(4, 2\)"):
        Pipeline(dataclasses.replace(spec, denoiser=dataclasses.replace(spec.denoiser, heads=(4, 2))), parts)


def test_a_second_text_encoder_is_refused_and_not_ignored(random_model, tmp_path):
    spec, parts = random_model
    spec = dataclasses.replace(spec, text=spec.text * 2)
    with pytest.raises(SpecError, match="'random' has 2 text encoders; images can be made with one"):
        Pipeline(spec, parts | {"text_encoder_2": parts["text_encoder"]})
    folder = save_model(tmp_path / "two", spec, models.build(spec))
    with pytest.raises(SpecError, match="2 text encoders"):
        load(folder)


def test_no_argument_of_a_request_makes_it_trace_again(pipeline):
    generate(pipeline, request_of(pipeline.spec, [1]))
    before = traces(pipeline)
    for steps, sampler in enumerate(SAMPLERS, 1):
        request = request_of(pipeline.spec, [steps], sampler=sampler, steps=steps, seeds=(steps,), guidance=float(steps))
        generate(pipeline, request, chunk=steps)
    assert traces(pipeline) == before


def test_steps_from_5_to_50_are_one_trace_and_one_program(pipeline):
    before = traces(pipeline)
    asked = [{"sampler": name, "steps": n} for name in SAMPLERS for n in (1, 5, 20, 50)]
    shapes = {request_of(pipeline.spec, [1], **one).inputs.plan.shape for one in asked}
    assert len(shapes) == 1
    for steps in (5, 50):
        generate(pipeline, request_of(pipeline.spec, [1], sampler="pndm", steps=steps))
    assert traces(pipeline) - before <= 4


def test_the_length_of_a_plan_changes_no_byte(either):
    """An export's plans are as long as its limit, and draw what Python's draw."""
    request = request_of(either.spec, [1], sampler="pndm", steps=6)
    images, latents = generate(either, request)
    plan = request.inputs.plan
    for other in (plan[:, :7], tf.concat([plan] + [plan[:, -1:]] * 300, axis=1)):
        same = generate(either, request._replace(inputs=request.inputs._replace(plan=other)))
        np.testing.assert_array_equal(same[1], latents)
        np.testing.assert_array_equal(same[0], images)


@pytest.fixture
def told():
    """What TensorFlow logs meanwhile."""
    records, logger = [], tf.get_logger()
    handler, level = logging.Handler(), logger.level
    handler.emit = lambda record: records.append(record.getMessage())
    logger.addHandler(handler)
    logger.setLevel("WARNING")
    yield records
    logger.removeHandler(handler)
    logger.setLevel(level)


def test_many_batches_bring_no_warning_of_tensorflow(random_model, told):
    """TensorFlow warns of a function of which five of the last ten calls were traced."""
    for _ in range(2):  # also of the second model in a process
        pipeline = Pipeline(*random_model, jit_compile=False)
        for batch in range(1, 8):
            pipeline.encode(tf.zeros((batch, pipeline.spec.text[0].length), tf.int32))
        assert pipeline.programs["encode"].experimental_get_tracing_count() == 7
    assert not [line for line in told if "retracing" in line]
    shapes = tf.function(pipeline.functions.encode, autograph=False)
    for batch in range(1, 8):
        shapes(tf.zeros((batch, pipeline.spec.text[0].length), tf.int32))
    assert [line for line in told if "retracing" in line], "TensorFlow gives no such warning: this test shows nothing"


@pytest.mark.slow
def test_another_batch_is_one_more_trace_of_each_program(plain):
    generate(plain, request_of(plain.spec, [1], steps=1))
    before = traces(plain)
    for seed in (1, 2):
        generate(plain, request_of(plain.spec, [1, 2, 3, 4], seeds=(seed,) * 4, indices=(0, 1, 2, 3), steps=1))
    assert traces(plain) == before + 4


# -- rows of a batch ---------------------------------------------------------------------------------------------------


def test_a_picture_is_the_same_alone_and_in_a_batch(either):
    """Up to a level in few values: kernels sum in another order for another number of rows."""
    prompts, seeds, indices, guidance = (1, 2, 3), (7, 7, 9), (0, 4, 1), (2.0, 3.0, 4.0)
    options = {"sampler": "euler_ancestral", "steps": 3}
    batch, _ = generate(either, request_of(either.spec, prompts, seeds=seeds, indices=indices, guidance=guidance, **options))
    for i in range(3):
        row = {"seeds": seeds[i : i + 1], "indices": indices[i : i + 1], "guidance": guidance[i]}
        alone, _ = generate(either, request_of(either.spec, prompts[i : i + 1], **row, **options))
        assert_same_pictures(alone, batch[i : i + 1])


@pytest.mark.parametrize(
    "change", [{"prompts": [2]}, {"seeds": (8,)}, {"indices": (1,)}, {"guidance": 5.0}, {"steps": 4}], ids=str
)
def test_everything_that_a_request_says_changes_the_picture(change, plain):
    options = {"prompts": [1], "seeds": (7,)}
    before, _ = generate(plain, request_of(plain.spec, **options))
    after, _ = generate(plain, request_of(plain.spec, **(options | change)))
    assert np.abs(before.astype(int) - after).mean() > 1


def test_negative_tokens_change_the_picture(plain):
    request = request_of(plain.spec, [1])
    other = request._replace(negative_tokens=request_of(plain.spec, [5]).tokens)
    assert np.abs(generate(plain, request)[0].astype(int) - generate(plain, other)[0]).mean() > 1


# -- guidance ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scale", "half"), [(0.0, 0), (1.0, 1)])
def test_guidance_0_ignores_the_prompt_and_1_the_negative_prompt(scale, half, plain):
    latents, context = unet_inputs(2)
    denoiser = plain.functions.parts.denoiser
    prepared, features = denoiser.prepare({"context": context}), denoiser.timestep_features(tf.constant([250.0]))
    guided = plain.functions.guided(latents, features, prepared, tf.constant([scale]))
    alone = denoiser(latents, tf.constant([250.0]), context[half : half + 1])
    np.testing.assert_allclose(guided, alone, rtol=0, atol=1e-5)


def test_every_row_has_its_own_guidance(plain):
    latents, context = unet_inputs(2)
    latents, context = tf.repeat(latents, 2, axis=0), tf.repeat(context, 2, axis=0)
    functions, denoiser = plain.functions, plain.functions.parts.denoiser
    prepared, features = denoiser.prepare({"context": context}), denoiser.timestep_features(tf.constant([250.0, 250.0]))
    unconditional, conditional = functions.guided(latents, features, prepared, tf.constant([0.0, 1.0]))
    mixed = functions.guided(latents, features, prepared, tf.constant([-2.0, 7.5]))
    expected = [unconditional + scale * (conditional - unconditional) for scale in (-2.0, 7.5)]
    np.testing.assert_allclose(mixed, expected, rtol=0, atol=1e-4)


# -- a caller's own start ----------------------------------------------------------------------------------------------


def test_given_noise_takes_the_place_of_the_seed(pipeline):
    request = request_of(pipeline.spec, [1], seeds=(7,))
    own = normal_noise([7], [0], 0, (16, 16, 4))
    other_seed = request._replace(inputs=request.inputs._replace(seeds=tf.constant([99])))
    images, _ = generate(pipeline, other_seed, noise=own)
    assert_same_pictures(images, generate(pipeline, request)[0])


def test_given_contexts_take_the_place_of_the_tokens(pipeline):
    request = request_of(pipeline.spec, [1])
    contexts = [pipeline.encode(tokens) for tokens in (request.negative_tokens, request.tokens)]
    other_tokens = request._replace(tokens=request.tokens * 0, negative_tokens=request.tokens * 0)
    images, _ = generate(pipeline, other_tokens, contexts=contexts)
    assert_same_pictures(images, generate(pipeline, request)[0])


def test_noise_starts_scaled_where_the_plan_says_so(random_model):
    spec, parts = random_model
    spec = dataclasses.replace(spec, schedule=dataclasses.replace(spec.schedule, spacing="linspace"))
    pipeline = Pipeline(spec, parts, jit_compile=False)
    request = request_of(spec, [1], sampler="euler")
    inputs, context = request.inputs, pipeline.encode(request.tokens)
    assert 0.99 < inputs.init_scale[0] < 0.9999
    expected = inputs.init_scale[0] * normal_noise(inputs.seeds, inputs.indices, 0, (16, 16, 4))
    np.testing.assert_array_equal(pipeline.begin(inputs, context, context, (16, 16, 4)).latents, expected)


# -- images ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rounding", "rounded"), [("nearest", np.round), ("truncate", np.floor)])
def test_images_are_rounded_as_the_spec_says(rounding, rounded, random_model):
    spec, parts = random_model
    pipeline = Pipeline(dataclasses.replace(spec, rounding=rounding), parts, jit_compile=False)
    latents = normal_noise([1, 2], [0, 0], 0, (16, 16, 4))
    levels = np.clip((pipeline.functions.decode_float(latents).numpy().astype("float64") + 1) / 2 * 255, 0, 255)
    images, finite = (value.numpy() for value in pipeline.finish(latents))
    assert finite.all()
    assert images.dtype == np.uint8 and images.shape == (2, SIZE, SIZE, 3)
    assert 0 in images and 255 in images and len(np.unique(images)) > 200  # clipped on both sides, and full of levels
    assert np.mean(images != rounded(levels)) <= CHANGED  # computed in float32 there, in float64 here


# -- precision and weights ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["graph", "xla"])
def test_bfloat16_stays_near_float32(jit_compile, random_model, plain):
    """8 bits of mantissa, over three guided steps whose errors add up; a wrong picture would be off by 100 levels."""
    spec, exact = random_model
    parts = models.build(spec, dtype="bfloat16", parts=("text_encoder", "denoiser"))
    for name, part in parts.items():
        for own, given in zip(part.variables, exact[name].variables, strict=True):
            own.assign(given)
    pipeline = Pipeline(spec, parts | {"decoder": exact["decoder"]}, jit_compile=jit_compile)
    request = request_of(spec, [1])
    (images, latents), (expected, expected_latents) = generate(pipeline, request), generate(plain, request)
    assert latents.dtype == np.float32
    error = np.sqrt(np.mean((latents - expected_latents) ** 2) / np.mean(expected_latents**2))
    assert 1e-5 < error < 0.05
    assert np.abs(images.astype(int) - expected).mean() < 10


def test_every_variable_is_tracked_once(plain):
    variables = [id(v) for v in plain.variables]
    assert len(variables) == len(set(variables)) == sum(len(part.variables) for part in vars(plain.functions.parts).values())


def test_no_kernel_joins_a_convolution_and_an_addition(toy_folder):
    """oneDNN's kernel of both is not safe to run in two threads; TensorFlow's own record of what it runs shows it."""
    from tensorflow.python.eager import context

    from tfsd.api import load

    model = load(toy_folder, jit_compile=False)
    context.enable_graph_collection()
    try:
        model.text_to_image("a red star", seed=1, num_steps=1)
        run = context.export_run_metadata()
    finally:
        context.disable_graph_collection()
    graphs = [graph.post_optimization_graph for graph in run.function_graphs]
    nodes = [node for graph in graphs for part in _nodes(graph) for node in part]
    joined = [list(node.attr["fused_ops"].list.s) for node in nodes if node.op.endswith("FusedConv2D")]
    assert len(joined) > 10 and all(b"Add" not in operations for operations in joined)


def _nodes(graph):
    return [graph.node, *(function.node_def for function in graph.library.function)]
