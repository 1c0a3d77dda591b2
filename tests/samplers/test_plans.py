import numpy as np
import pytest
import tensorflow as tf

from tfsd.samplers.names import ALIASES, COMMUNITY_NAMES
from tfsd.samplers.plans import LENGTHS, SAMPLERS, build_plan, find_sampler, fitting_samplers
from tfsd.samplers.rows import ROW_SIZE
from tfsd.samplers.schedule import NoiseSchedule, as_image, as_noise
from tfsd.samplers.step import empty_history, step, unpack
from tfsd.specs import VPSpec

SPEC = VPSpec()
FRESH_NOISE = ("ddpm", "euler_ancestral", "dpmpp_2m_sde", "dpmpp_2m_sde_karras")  # these draw noise at every step
FRESH_NOISE += ("kdpm2_ancestral", "kdpm2_ancestral_karras", "lcm")  # and these at the end of every step but the last
END_ABOVE = ("deis", "deis_karras", "tcd")  # at the level of timestep 0
TWO_CALLS = ("heun", "heun_karras", "kdpm2", "kdpm2_karras", "kdpm2_ancestral", "kdpm2_ancestral_karras")
KEEP_LEVELS = [(name, prediction) for name in SAMPLERS if name not in FRESH_NOISE for prediction in SAMPLERS[name].predictions]
KEEP_LEVELS.remove(("pndm", "v"))  # it mixes outputs of several levels, as diffusers does; v differs between them
IMAGE, NOISE = 0.7, -1.3
EXACT = 2e-5  # float32, and a v or sample is turned into noise by a division by sigma, 0.03 at the end


def output_of(prediction: str, alpha: float, sigma: float) -> float:
    """What a model that knows `IMAGE` and `NOISE` returns, by the definition of each prediction."""
    return {"epsilon": NOISE, "v": alpha * NOISE - sigma * IMAGE, "sample": IMAGE}[prediction]


def run_exact_model(spec: VPSpec, plan):
    """Yields the latents before each step, and after the last one, if the model is always right."""
    _, alpha, sigma = map(float, plan.rows[0, :3])
    latents = tf.fill((1, 1, 1, 1), alpha * IMAGE + sigma * NOISE)
    history = empty_history(latents)
    for packed in plan.rows[: plan.count]:
        yield float(latents[0, 0, 0, 0])
        output = tf.fill((1, 1, 1, 1), output_of(spec.prediction, float(packed[1]), float(packed[2])))
        latents, history = step(unpack(tf.constant(packed)), latents, history, output, tf.zeros_like(latents))
    yield float(latents[0, 0, 0, 0])


@pytest.mark.parametrize("start", [0, 2])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 7, 20])
@pytest.mark.parametrize("spacing", ["leading", "kerascv"])
@pytest.mark.parametrize(("sampler", "prediction"), KEEP_LEVELS)
def test_exact_model_keeps_latents_at_the_level_of_every_row(sampler, spacing, prediction, num_steps, start):
    start = min(start, num_steps - 1)
    spec = VPSpec(prediction=prediction, spacing=spacing, steps_offset=0, final_alpha_one=True)
    plan = build_plan(spec, sampler, num_steps, start)
    expected = plan.rows[: plan.count + 1, 1] * IMAGE + plan.rows[: plan.count + 1, 2] * NOISE
    if sampler in END_ABOVE:
        alpha, sigma = NoiseSchedule(spec).marginals(0)
        expected[-1] = alpha * IMAGE + sigma * NOISE
    np.testing.assert_allclose(list(run_exact_model(spec, plan)), expected, rtol=0, atol=EXACT)


@pytest.mark.parametrize(("sampler", "eta"), [("ddpm", 0.0), ("euler_ancestral", 0.0), ("ddim", 0.3), ("ddim", 1.0)])
@pytest.mark.parametrize("prediction", ["epsilon", "v", "sample"])
def test_fresh_noise_fills_up_to_the_next_level(sampler, eta, prediction):
    spec = VPSpec(prediction=prediction, steps_offset=0, final_alpha_one=True)
    plan = build_plan(spec, sampler, 10, eta=eta)
    for row, after in zip(plan.rows[: plan.count], plan.rows[1:]):
        _, alpha, sigma, from_latents, from_output, keep, mix, *_, fresh = row.astype(np.float64)
        latents = np.array([alpha, sigma])  # as amounts of image and of noise
        output = {"epsilon": [0, 1], "v": [-sigma, alpha], "sample": [1, 0]}[prediction]
        image, noise = keep * latents + mix * (from_latents * latents + from_output * np.array(output))
        np.testing.assert_allclose([image, np.hypot(noise, fresh)], after[1:3], atol=EXACT)
        assert fresh > 0 or after[2] == 0


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_plan_has_one_of_two_shapes_and_ends_in_a_clean_level(sampler):
    for num_steps in (1, 50, 64, 65, 126, 128, 250, 998):
        plan = build_plan(SPEC, sampler, num_steps)
        assert plan.rows.shape == (LENGTHS[plan.count >= LENGTHS[0]], ROW_SIZE) and plan.rows.dtype == np.float32
        calls = 2 * num_steps - 1 if sampler in TWO_CALLS else num_steps
        assert plan.count == calls + (sampler == "pndm" and num_steps > 1)
        assert (plan.rows[plan.count :] == [0, 1, 0, 0, 0, 1] + [0] * 6).all()  # latents rest there
        assert np.isfinite(plan.rows).all()


@pytest.mark.parametrize("sampler", TWO_CALLS)
def test_samplers_that_call_twice_start_with_a_whole_step(sampler):
    whole, late = build_plan(SPEC, sampler, 20), build_plan(SPEC, sampler, 20, start=8)
    assert late.count == 23
    np.testing.assert_array_equal(late.rows[:24], whole.rows[16:40])
    assert not late.rows[::2, 7:11].any() and not late.rows[:, 8:11].any()  # nothing older than the step's own first call


@pytest.mark.parametrize(
    ("num_steps", "expected"),
    [(1, [999]), (4, [999, 759, 499, 259]), (50, list(range(999, 0, -20))), (100, list(range(999, 0, -10)))],
)
@pytest.mark.parametrize("sampler", ["lcm", "tcd"])
def test_distilled_models_are_called_at_the_timesteps_of_their_distillation(sampler, num_steps, expected):
    """diffusers refuses more steps than the distillation had, which are spread over all timesteps here."""
    assert build_plan(SPEC, sampler, num_steps).timesteps.tolist() == expected


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "euler", "euler_ancestral"])
def test_single_step_samplers_with_a_start_are_slices(sampler):
    whole, late = build_plan(SPEC, sampler, 20), build_plan(SPEC, sampler, 20, start=8)
    assert late.count == 12
    np.testing.assert_array_equal(late.rows[:13], whole.rows[8:21])


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        ("ddim", [376, 251, 126, 1]),
        ("lms", [376, 251, 126, 1]),
        ("euler", [376, 251, 126, 1]),
        ("euler_ancestral", [376, 251, 126, 1]),
        ("dpmpp_2m_karras", [299, 90, 12, 0]),
        ("pndm", [376, 251, 251, 126, 1]),  # diffusers: 501, 376, 251, 126, 1, out of step with its latents
    ],
)
def test_start_leaves_the_timesteps_of_diffusers_image_to_image(sampler, expected):
    """As diffusers 0.42.1 runs image to image with 8 steps and strength 0.6."""
    assert build_plan(SPEC, sampler, 8, start=4).timesteps.tolist() == expected


@pytest.mark.parametrize("sampler", ["pndm", "lms", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_2s", "dpmpp_3m", "unipc", "deis"])
def test_multistep_samplers_with_a_start_mix_nothing_older(sampler):
    late = build_plan(SPEC, sampler, 20, start=8)
    assert late.rows[0, 6] != 0 and not late.rows[0, 7:11].any()
    assert not late.rows[1, 8:11].any()


def test_single_step_on_whole_range_spacings_starts_from_pure_noise():
    for spacing in ("kerascv", "linspace", "trailing"):
        assert NoiseSchedule(VPSpec(spacing=spacing)).spaced_timesteps(1).tolist() == [999]


def test_a_thousand_steps_visit_every_timestep():
    plan = build_plan(VPSpec(steps_offset=0), "ddpm", 1000)
    np.testing.assert_array_equal(plan.timesteps, np.arange(1000)[::-1])


@pytest.mark.parametrize(("alias", "sampler"), ALIASES.items())
def test_alias_is_its_sampler(alias, sampler):
    assert find_sampler(alias) == sampler
    np.testing.assert_array_equal(build_plan(SPEC, alias, 7).rows, build_plan(SPEC, sampler, 7).rows)


@pytest.mark.parametrize(
    ("name", "sampler"),
    [
        ("DPM++ 2M Karras", "dpmpp_2m_karras"),
        ("DPM++ 2M", "dpmpp_2m"),
        ("dpm++ 2m karras", "dpmpp_2m_karras"),
        ("Euler a", "euler_ancestral"),
        ("EULER A", "euler_ancestral"),
        ("Euler", "euler"),
        ("Euler Karras", "euler_karras"),
        ("DDIM", "ddim"),
        ("DDPM", "ddpm"),
        ("LMS", "lms"),
        ("LMS Karras", "lms_karras"),
        ("PLMS", "pndm"),
        ("k_LMS", "lms"),
        ("ddimscheduler", "ddim"),
        ("EulerAncestralDiscreteScheduler", "euler_ancestral"),
        ("Heun", "heun"),
        ("UniPC", "unipc"),
        ("DPM++ 2M SDE Karras", "dpmpp_2m_sde_karras"),
        ("DPM2", "kdpm2"),
        ("DPM2 a Karras", "kdpm2_ancestral_karras"),
        ("LCM", "lcm"),
        ("KDPM2AncestralDiscreteScheduler", "kdpm2_ancestral"),
    ],
)
def test_names_of_other_programs_are_known_in_any_case(name, sampler):
    assert find_sampler(name) == sampler


def test_every_sampler_has_one_name_in_the_community():
    assert COMMUNITY_NAMES.keys() == SAMPLERS.keys()
    assert {name: find_sampler(name) for name in COMMUNITY_NAMES.values()} == {name: key for key, name in COMMUNITY_NAMES.items()}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("eulr", 10), ValueError, r"sampler must be one of ddim, .*got 'eulr'\. Did you mean 'euler'\?"),
        (("DPM++ 2M Karas", 10), ValueError, r"Did you mean 'DPM\+\+ 2M Karras'\?"),
        (("qqq", 10), ValueError, r"got 'qqq'\.$"),
        ((None, 10), ValueError, r"sampler must be one of"),
        (("ddim", 0), ValueError, r"num_steps must be from 1 to 1000; got 0"),
        (("ddim", 1001), ValueError, r"num_steps must be from 1 to 1000; got 1001"),
        (("ddim", 10.0), TypeError, r"num_steps must be a whole number; got 10\.0"),
        (("ddim", True), TypeError, r"num_steps must be a whole number; got True"),
        (("ddim", "10"), TypeError, r"num_steps must be a whole number; got '10'"),
        (("ddim", 10, 10), ValueError, r"start must be from 0 to 9; got 10"),
        (("ddim", 10, -1), ValueError, r"start must be from 0 to 9; got -1"),
        (("ddim", 10, 0, 1.5), ValueError, r"eta must be from 0 to 1; got 1\.5"),
        (("ddim", 10, 0, float("nan")), ValueError, r"eta must be from 0 to 1; got nan"),
        (("ddim", 10, 0, "1"), TypeError, r"eta must be a number; got '1'"),
        (("pndm", 10, 0, 0.5), ValueError, r"eta must be 0 for the sampler 'pndm'; got 0\.5\. Use ddim"),
        (("ddim", 1000), ValueError, r"num_steps must be smaller: 1000 steps with 'leading' spacing and steps_offset 1"),
        ((["ddim"] * 10**6, 10), ValueError, r"got \['ddim', .{,80}\.$"),
        (("dpmpp_2m", 1000), ValueError, r"num_steps must be smaller: 1000 steps"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        build_plan(SPEC, *arguments)


def test_samplers_that_do_not_serve_a_prediction_are_refused_and_those_that_do_are_listed():
    """PNDM has no prediction "sample" in diffusers, nor do Heun and DPM-Solver-2."""
    spec = VPSpec(prediction="sample")
    with pytest.raises(ValueError) as error:
        build_plan(spec, "PLMS", 10)
    served = ("ddim", "ddpm", "lms", "lms_karras", "euler", "euler_karras", "euler_ancestral", "dpmpp_2m", "dpmpp_2m_karras")
    others = ", ".join(served)
    assert str(error.value) == f"sampler must be one of {others} for models whose prediction is 'sample'; got 'pndm'."
    assert fitting_samplers(spec) == list(served) and fitting_samplers(SPEC) == list(SAMPLERS)


def test_models_of_zero_snr_are_sampled_by_what_can_start_from_noise_alone():
    """In diffusers PNDM, LMS, Heun and DPM-Solver-2 have no rescale_betas_zero_snr; of the other two no such run was recorded."""
    spec = VPSpec(prediction="v", spacing="trailing", zero_snr=True)
    assert fitting_samplers(spec) == ["ddim", "ddpm", "euler", "euler_karras", "euler_ancestral", "dpmpp_2m", "dpmpp_2m_karras"]
    with pytest.raises(ValueError, match="whose prediction is 'v' and whose noise has zero SNR at its end; got 'pndm'"):
        build_plan(spec, "pndm", 10)
    for sampler in fitting_samplers(spec):
        for steps in (1, 2, 20, 1000):
            rows = build_plan(spec, sampler, steps).rows
            # Nothing large is subtracted from something large.
            assert np.isfinite(rows).all() and np.abs(rows[:, 3:]).max() < 4.2, sampler


@pytest.mark.parametrize("of", [as_image, as_noise])
@pytest.mark.parametrize("prediction", ["velocity", "v_prediction", None])
def test_unknown_predictions_are_refused(of, prediction):
    with pytest.raises(ValueError, match="prediction must be 'epsilon', 'v', 'sample' or 'flow'; got"):
        of(prediction, 0.8, 0.6)


def test_numpy_integers_are_whole_numbers():
    assert build_plan(SPEC, "ddim", np.int64(5), np.int32(1)).count == 4


def test_fewer_trained_steps_limit_num_steps():
    with pytest.raises(ValueError, match="num_steps must be from 1 to 100; got 101"):
        build_plan(VPSpec(train_steps=100), "ddim", 101)


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
def test_changing_sampler_and_num_steps_does_not_retrace(jit):
    def sample(rows, count, latents):
        def body(i, latents, history):
            row = unpack(rows[i])
            noise = tf.fill(tf.shape(latents), 0.1)
            return i + 1, *step(row, latents, history, 0.3 * latents + 0.1 * tf.sin(row.timestep), noise)

        return tf.while_loop(lambda i, *_: i < count, body, (0, latents, empty_history(latents)))[1]

    compiled = tf.function(sample, jit_compile=jit)
    latents = tf.reshape(tf.linspace(-2.0, 2.0, 64), (1, 4, 4, 4))
    results = []
    for sampler, num_steps in (("ddim", 4), ("pndm", 9), ("lms_karras", 20), ("euler_ancestral", 3), ("dpmpp_2m", 31)):
        plan = build_plan(SPEC, sampler, num_steps)
        arguments = tf.constant(plan.rows), tf.constant(plan.count), latents
        results.append(compiled(*arguments))
        np.testing.assert_allclose(results[-1], sample(*arguments), rtol=0, atol=1e-5)
    assert compiled.experimental_get_tracing_count() == 1
    assert len({result.numpy().tobytes() for result in results}) == len(results)


@pytest.mark.parametrize("shape", [(ROW_SIZE,), (1, ROW_SIZE), (3, ROW_SIZE)], ids=str)
def test_rows_have_the_dimensions_of_latents_as_gpus_of_phones_need(shape):
    packed = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    row = unpack(tf.constant(packed))
    numbers = np.stack([*row[:6], *row.mix, row.noise])
    assert numbers.shape == (ROW_SIZE, packed.size // ROW_SIZE, 1, 1, 1)
    np.testing.assert_array_equal(numbers[:, :, 0, 0, 0].T.reshape(shape), packed)


def test_step_converts_to_tflite_builtins_and_agrees():
    def flat(row, latents, history, output, noise):
        moved, history = step(unpack(row), latents, tf.split(history, 5), output, noise)
        return {"latents": moved, "history": tf.concat(history, 0)}

    shape = tf.TensorSpec([2, 4, 4, 4], tf.float32)
    specs = tf.TensorSpec([ROW_SIZE], tf.float32), shape, tf.TensorSpec([10, 4, 4, 4], tf.float32), shape, shape
    concrete = tf.function(flat, input_signature=specs).get_concrete_function()
    content = tf.lite.TFLiteConverter.from_concrete_functions([concrete], tf.Module()).convert()
    runner = tf.lite.Interpreter(model_content=content).get_signature_runner()
    random = np.random.default_rng(0)
    arguments = {spec.name: random.standard_normal(spec.shape, np.float32) for spec in concrete.structured_input_signature[0]}
    for name, expected in flat(**arguments).items():
        np.testing.assert_allclose(runner(**arguments)[name], expected, rtol=0, atol=1e-5)
