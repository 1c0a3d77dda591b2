"""What is said of a quantized export: its numbers against closed forms, and the page that shows them."""

import html.parser
import math
import re
import types

import numpy as np
import pytest

from tfsd.converters.device import quality
from tfsd.converters.device.adherence import can_be_judged
from tfsd.converters.device.quality import compare_images, compare_parts, relative_error
from tfsd.converters.device.report_page import write_sheet
from tfsd.specs import PRESETS
from tfsd.training.recipe import tiny_spec

EXACT = 1e-4  # of PSNR in dB and of SSIM: TensorFlow computes both in float32
SIDE = 16
MEANT = "<script>alert(1)</script> \"red\" & 'blue' \u202eeht \ud800\x00"


def flat(value: int, count: int = 1) -> np.ndarray:
    return np.full((count, SIDE, SIDE, 3), value, np.uint8)


@pytest.fixture(scope="module")
def noisy():
    return np.random.default_rng(0).integers(0, 200, (2, SIDE, SIDE, 3), np.uint8)


def test_equal_pictures_are_perfect(noisy):
    for one in compare_images(noisy, noisy, ["a", "b"]):
        assert one["ssim"] == pytest.approx(1, abs=EXACT) and one["psnr"] == quality.BEST_PSNR
        assert one["largest_difference"] == 0 and one["differing"] == 0


@pytest.mark.parametrize("offset", [1, 10, 55])
def test_psnr_of_an_offset_is_its_closed_form(offset, noisy):
    for ours, theirs in ((noisy + np.uint8(offset), noisy), (noisy, noisy + np.uint8(offset))):
        (first, second) = compare_images(ours, theirs, ["a", "b"])
        assert first["psnr"] == pytest.approx(20 * math.log10(255 / offset), abs=EXACT)
        assert first["largest_difference"] == second["largest_difference"] == offset and first["differing"] == 1


@pytest.mark.parametrize(("ours", "theirs"), [(0, 255), (100, 110), (200, 40)])
def test_ssim_of_flat_pictures_is_its_closed_form(ours, theirs):
    """Wang et al. 2004, equation 6 alone: without variance the others are 1."""
    (found,) = compare_images(flat(ours), flat(theirs), [""])
    constant = (0.01 * 255) ** 2
    expected = (2 * ours * theirs + constant) / (ours**2 + theirs**2 + constant)
    assert found["ssim"] == pytest.approx(expected, abs=EXACT)


def test_ssim_sees_lost_structure_where_psnr_is_equal(noisy):
    """The same mean square error as an offset that leaves the structure alone."""
    checks = (np.indices((SIDE, SIDE)).sum(0) % 2 * 2 - 1)[None, ..., None] * 20
    smooth = np.broadcast_to(np.arange(SIDE)[:, None, None] * 4 + 80, (1, SIDE, SIDE, 3)).astype(np.uint8)
    (offset,), (torn,) = (compare_images((smooth + by).astype(np.uint8), smooth, [""]) for by in (20, checks))
    assert offset["psnr"] == pytest.approx(torn["psnr"], abs=EXACT)
    assert torn["ssim"] < 0.5 < offset["ssim"]


@pytest.mark.parametrize(
    ("ours", "prompts", "words"),
    [
        (flat(1, 2), [""], "must both be uint8"),
        (flat(1).astype(float), [""], "must both be"),
        (flat(1), ["", ""], "one per image"),
    ],
)
def test_pictures_that_do_not_fit_are_refused(ours, prompts, words):
    with pytest.raises(ValueError, match=words):
        compare_images(ours, flat(1), prompts)


def test_errors_that_are_no_numbers_are_the_worst():
    assert relative_error(0, 0) == 0
    assert relative_error(4, 16) == 0.5
    assert {relative_error(1, 0), relative_error(math.nan, 1), relative_error(math.inf, 1)} == {quality.WORST}


def test_names_of_tensors_become_paths_of_layers():
    tensors = ["denoiser_1/up0_1/norm1_1/moments/mean", "denoiser_1/conv_in_1/BiasAdd;denoiser_1/x_1/y", "key_3/Tensordot/MatMul"]
    tensors += ["key_5/Tensordot/MatMul", "arith.constant3", "denoiser_1/add_2", "clip_by_value/Minimum"]
    named = quality._layers(tensors, "denoiser")
    assert list(named.values()) == ["up0/norm1", "conv_in", "key_3", "key_5"]


class Net:
    """Three dense layers, the second of which can be damaged, and one whose values float16 cannot hold."""

    def __init__(self, damage: float = 0.0):
        random = np.random.default_rng(3)
        self.kernels = [random.normal(size=(8, 8)).astype(np.float32) for _ in range(3)]
        self.kernels[1] = self.kernels[1] + random.normal(0, damage, (8, 8)).astype(np.float32) if damage else self.kernels[1]

    def file(self, path):
        import tensorflow as tf

        module = tf.Module()
        module.kernels = [tf.Variable(kernel) for kernel in self.kernels]

        def call(x):
            for i, kernel in enumerate(module.kernels):
                with tf.name_scope(f"dense{i}_1"):
                    x = tf.nn.relu(tf.matmul(x, kernel))
            with tf.name_scope("norm_1"):
                return {"y": tf.sqrt(1.0 + tf.square(1e3 * x))}

        signature = tf.function(call, input_signature=[tf.TensorSpec([4, 8], tf.float32, name="x")])
        tf.saved_model.save(module, str(path.with_suffix("")), signatures={"run": signature})
        path.write_bytes(tf.lite.TFLiteConverter.from_saved_model(str(path.with_suffix("")), signature_keys=["run"]).convert())
        return path


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nets")
    inputs = [{"x": np.random.default_rng(i).normal(size=(4, 8)).astype(np.float32)} for i in range(6)]
    return Net().file(folder / "right.tflite"), Net(0.3).file(folder / "damaged.tflite"), {"net": inputs}


def test_a_file_compared_with_itself_has_no_errors(nets):
    found = compare_parts({"net": nets[0]}, {"net": nets[0]}, nets[2])["net"]
    assert found["relative_error"] == 0 and found["outputs"] == {"y": 0} and found["inputs"] == 6
    assert found["layers"] and not any(layer["relative_error"] for layer in found["layers"])


def test_the_damaged_layer_and_those_behind_it_are_found(nets):
    found = compare_parts({"net": nets[0]}, {"net": nets[1]}, nets[2])["net"]
    errors = {layer["layer"]: layer["relative_error"] for layer in found["layers"]}
    assert errors["dense0"] == 0 and errors["dense1"] > 0.1 and errors["dense2"] > 0.05
    assert list(errors.values()) == sorted(errors.values(), reverse=True)
    assert found["relative_error"] == found["outputs"]["y"] > 0.05


def test_relative_errors_are_those_of_numpy(nets):
    found = compare_parts({"net": nets[0]}, {"net": nets[1]}, nets[2])["net"]
    results = []
    for net in (Net(), Net(0.3)):
        x = np.concatenate([one["x"] for one in nets[2]["net"]])
        for kernel in net.kernels:
            x = np.maximum(x @ kernel, 0)
        results.append(np.sqrt(1 + np.square(1e3 * x)))
    expected = np.sqrt(np.sum(np.square(results[1] - results[0])) / np.sum(np.square(results[0])))
    assert found["relative_error"] == pytest.approx(expected, rel=1e-4)  # float32 products in another order


def test_values_that_float16_cannot_hold_are_named(nets):
    found = compare_parts({"net": nets[0]}, {"net": nets[0]}, nets[2])["net"]
    assert set(found["over_half"]) == {"norm"} and found["under_half"] == {}
    assert found["largest_activation"] == found["over_half"]["norm"] > quality.LARGEST_HALF


def test_layers_that_need_too_much_memory_are_left_out(nets, monkeypatch):
    monkeypatch.setattr(quality, "_HELD", 100)
    found = compare_parts({"net": nets[0]}, {"net": nets[1]}, nets[2])["net"]
    assert found["layers"] == [] and "GB at once" in found["layers_left_out"] and found["relative_error"] > 0.05


def example(ours, theirs, prompts) -> dict:
    layers = [{"layer": "a/b", "shape": [1], "relative_error": 0.02, "largest_activation": 3.0}]
    part = {
        "relative_error": 0.01,
        "outputs": {"context": 0.01},
        "inputs": 2,
        "bytes": {"float32": 4_000_000, "quantized": 10**6},
    }
    part |= {"layers": layers, "largest_activation": 1e5, "over_half": {"<em>": 1e5}, "under_half": {}}
    share = {"count": 96, "before": 0.9, "after": 0.89, "lost": 2, "gained": 1, "difference": -1.0, "margin": 3.5}
    report = {"model": "tiny", "quantize": "int8", "seed": 1, "num_steps": 10, "sampler": "ddim", "guidance_scale": 3.0}
    report |= {"pictures": compare_images(ours, theirs, prompts), "parts": {"text_encoder": part}}
    report |= {"adherence": {"seed": 0, "num_steps": 10, "kinds": {"one": share}, "all": share}, "size": [SIDE, SIDE]}
    gate = {"what": "worst PSNR", "found": "48.1 dB", "limit": "at least 20 dB", "passed": True}
    return report | {"gates": [gate], "bytes": 1_500_000}


class Page(html.parser.HTMLParser):
    """Collects what a page holds."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.links, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "srcset", "action", "data", "poster")]
        assert not [name for name, _ in attributes if name.startswith("on")]
        if tag not in ("meta", "img", "wbr", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def page(noisy, tmp_path):
    report = example(noisy + np.uint8(1), noisy, [MEANT, "a red star"])
    return write_sheet(tmp_path, report, noisy + np.uint8(1), noisy).read_text(encoding="utf-8")


def test_the_page_needs_nothing_else(page):
    found = Page(page)
    assert len(found.links) == 6 and all(link.startswith("data:image/png;base64,") for link in found.links)
    assert not {"script", "link", "iframe", "object", "form"} & set(found.tags) and not found.open
    assert not re.search(r"https?:|@import|url\(", page)


def test_the_page_shows_prompts_as_text(page):
    assert "<script" not in page and "<em>" not in page and "&lt;em&gt; 100,000" in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &#34;red&#34; &amp; &#39;blue&#39;" in page
    assert not {"\u202e", "\x00"} & set(page)


def test_the_page_says_whether_the_gate_was_passed(page, noisy, tmp_path):
    assert "Gate passed" in page and "48.1 dB" in page and "90.0 %" in page and "4.5 MB in float32: 3.0 times smaller" in page
    report = example(noisy, noisy, ["", ""])
    report["gates"][0]["passed"] = False
    assert "Gate failed" in write_sheet(tmp_path, report, noisy, noisy).read_text(encoding="utf-8")


def test_the_same_report_gives_the_same_page(page, noisy, tmp_path):
    again = write_sheet(tmp_path, example(noisy + np.uint8(1), noisy, [MEANT, "a red star"]), noisy + np.uint8(1), noisy)
    assert again.read_text(encoding="utf-8") == page


def test_a_report_without_parts_or_adherence_is_shown_as_well(noisy, tmp_path):
    left_out = ("parts", "adherence", "gates", "size", "bytes")
    report = {key: value for key, value in example(noisy, noisy, ["a", "b"]).items() if key not in left_out}
    text = write_sheet(tmp_path, report, noisy, noisy).read_text(encoding="utf-8")
    assert "Worst SSIM" in text and "Worst layers" not in text and "Gate" not in text


def test_large_pictures_are_shown_reduced(tmp_path):
    large = np.zeros((1, 640, 640, 3), np.uint8)
    report = example(large, large, ["a"])
    assert "1/2 of their size" in write_sheet(tmp_path, report, large, large).read_text(encoding="utf-8")


def painter(*missing: int):
    """Draws what a prompt says, by the renderer that the checker knows; but empty pictures of the prompts with these numbers."""
    from tfsd.training import scenes
    from tfsd.training.drawing import background, render

    drawn = {}
    for kind in ("one", "two"):
        rng = np.random.default_rng([0, scenes.KINDS.index(kind)])
        for _ in range(10):
            scene = scenes.evaluation_scene(rng, kind)
            drawn[scene.caption] = render(scene)
    empty = background("night", 128).round().astype(np.uint8)

    def text_to_image(prompts, *, seed, index, num_steps):
        assert (seed, num_steps) == (0, 7)
        return np.stack([empty if index + i in missing else drawn[prompt] for i, prompt in enumerate(prompts)])

    return types.SimpleNamespace(text_to_image=text_to_image)


def test_adherence_counts_the_prompts_that_are_lost_and_gained():
    from tfsd.converters.device.adherence import measure_adherence

    found = measure_adherence(painter(2, 5, 6), painter(9), 10, 0, num_steps=7)
    assert {kind: one["count"] for kind, one in found["kinds"].items()} == {"one": 10, "two": 10}
    both = found["all"]
    assert (both["count"], both["lost"], both["gained"], both["difference"]) == (20, 6, 2, -20.0)
    assert (both["before"], both["after"]) == (0.9, 0.7)
    assert both["margin"] == pytest.approx(196 * math.sqrt((8 - 4**2 / 20) / 20**2))  # Newcombe 1998, method 1


@pytest.mark.slow
def test_adherence_of_a_bundle_at_float32_is_that_of_python(tmp_path):
    from tfsd.api import load
    from tfsd.converters.device.adherence import measure_adherence
    from tfsd.converters.device.export import export_tflite
    from tfsd.device import DeviceBundle

    bundle = DeviceBundle(export_tflite("tiny", tmp_path / "bundle"))
    found = measure_adherence(bundle, load("tiny", jit_compile=False), 16)["all"]
    assert found["lost"] == found["gained"] == 0 and found["before"] > 0.7


def test_only_pictures_of_the_scenes_in_their_own_size_are_judged():
    tiny = tiny_spec()
    assert can_be_judged(tiny, [128, 128])
    assert not can_be_judged(tiny, [64, 64]) and not can_be_judged(PRESETS["sd-1.4"], [512, 512])
