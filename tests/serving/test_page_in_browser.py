"""The page in a real browser, against our server and against a stand-in for TF Serving: `pytest -m browser`."""

import contextlib
import hashlib
import io
import json
import shlex
import time
import urllib.request
from urllib.parse import parse_qs, urlencode

import numpy as np
import patience
import pytest
from browser import chromium, fill, local, make, page_files, recipe, serving, shell_words, shown, step, values, wide
from patience import until
from PIL import Image
from stand_in import Engine, Job, held, picture
from tf_serving import TFServing

from tfsd.cli import main
from tfsd.cli.show import command
from tfsd.samplers.plans import SAMPLERS
from tfsd.serving.server.models import Models, load_engine
from tfsd.serving.server.server import Server, ServerOptions, running
from tfsd.serving.server.words import Words

pytestmark = pytest.mark.browser
SEED_MAX, SEED_MIN = 2**63 - 1, -(2**63)
LONG = "a red star " * 40  # the stand-in counts a token cut off for every hundred bytes
NASTY = 'it\'s "$(touch x)" `y` \\ <img src=x onerror=alert(1)> ü 猫 %s\n-- --seed=9\t&;*'
SETTINGS = {
    "prompt": "a red star",
    "negative_prompt": "blue",
    "seed": str(SEED_MIN + 5),
    "index": "3",
    "num_steps": "7",
    "guidance_scale": "1.5",
    "sampler": "euler",
    "height": "16",
    "width": "8",
}


class SlowJob(Job):
    def advance(self, steps):
        time.sleep(0.02 * steps)
        super().advance(steps)


class Model(Engine):
    """The stand-in engine with a manifest as exports have them, and with time to watch it."""

    def __init__(self, version: int = 1):
        super().__init__()
        self.version = version
        self.manifest = {
            "format": 1,
            "name": "toy",
            "version": version,
            "dtype": "float32",
            "xla": True,
            "sizes": [[8, 8], [16, 8]],
            "max_steps": 50,
            "samplers": ["ddim", "euler"],
            "defaults": {"num_steps": 4, "guidance_scale": 2.5, "sampler": "ddim", "height": 8, "width": 8},
            "model": "toy",
            "weights": "0123456789ab",
            "licence": "Apache-2.0",
            "licence_url": "https://www.apache.org/licenses/LICENSE-2.0",
            "use_restrictions": "None but the licence's.",
        }

    def start(self, rows):
        self.jobs += 1
        return SlowJob(self, rows)


def publish(folder, version: int, name: str = "toy"):
    """Makes what looks like an exported version from outside."""
    path = folder / name / str(version)
    path.mkdir(parents=True)
    (path / "saved_model.pb").touch()


@contextlib.contextmanager
def serve(folder, load, **options):
    """Runs our server; yields its address."""
    server = Server(Models(folder, load=load, poll_seconds=0.05), ServerOptions(grpc_port=0, rest_port=0, **options))
    with running(server):
        yield f"http://127.0.0.1:{server.rest_port}"


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def engine():
    return Model()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    publish(folder, 1)
    return folder


@pytest.fixture(scope="module")
def address(engine, folder):
    with serve(folder, lambda path: engine) as address:
        yield address


@pytest.fixture
def visit(browser, address):
    """Opens an address in a fresh session and waits for the form; fails for errors in scripts and for foreign requests."""
    contexts, wrong = [], []

    def visit(where: str = "", *, at: str = address, width: int = 1200, **options):
        context = browser.new_context(viewport={"width": width, "height": 800}, **options)
        context.set_default_timeout(1000 * patience.LONG)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text) if "Content Security" in message.text else None)
        page.on("request", lambda request: wrong.append(request.url) if not local(request.url) else None)
        page.goto(f"{at}/{where}")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert not wrong


def test_export_makes_its_reference_picture_and_the_command_makes_it_too(visit, toy_export, toy_folder, tmp_path, monkeypatch):
    """A link with the inputs of the manifest's reference picture gives the bytes whose hash the manifest has."""
    reference = json.loads((toy_export / "toy/1/assets.extra/manifest.json").read_text())["reference"]
    inputs = {name: value[0] if isinstance(value, list) else value for name, value in reference["inputs"].items()}
    with serve(toy_export, load_engine) as address:
        page = visit("#" + urlencode(inputs), at=address)
        make(page)
        data = shown(page)
    assert hashlib.sha256(data).hexdigest() == reference["png_sha256"]
    words = [word.decode() for word in shell_words(page.locator("#command").text_content())[:-1]]
    monkeypatch.chdir(toy_folder.parent)
    assert main([*words[1:], "--out", str(tmp_path / "x.png"), "--quiet"]) == 0
    served, local = (np.asarray(Image.open(file)).astype(int) for file in (io.BytesIO(data), tmp_path / "x.png"))
    assert np.abs(served - local).max() <= 1  # batches of other sizes round to the other side at times


def test_enter_makes_the_picture_that_the_api_makes(visit, tmp_path):
    page = visit()
    fill(page, prompt="a red star", seed="77", num_steps="5")
    page.press("#prompt", "Enter")
    page.wait_for_selector("#figure", state="visible")
    assert page.locator("#picture").evaluate("image => image.naturalWidth") == 8
    with page.expect_download() as download:
        page.click("#download")
    download.value.save_as(tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes() == picture(77)
    assert download.value.suggested_filename == "a-red-star-77-0.png"


def test_every_setting_reaches_recipe_link_and_command(visit):
    page = visit()
    given = {name: value for name, value in SETTINGS.items() if name not in ("height", "width")}
    make(page, **given, size="8x16")
    made = recipe(page)
    assert {name: str(made[name]) for name in SETTINGS} == SETTINGS
    assert made["weights"] == "0123456789ab" and made["served"] == {"name": "toy", "version": "1"}
    link = page.locator("#link").get_attribute("href")
    told = {name: value for name, [value] in parse_qs(link.removeprefix("#")).items()}
    assert told == SETTINGS | {"model": "toy", "version": "1"}
    assert page.evaluate("location.hash") == link
    words = shlex.split(page.locator("#command").text_content())
    assert words[:3] == ["tfsd", "generate", "a red star"] and f"--seed={SEED_MIN + 5}" in words and "--steps=7" in words


def test_link_fills_the_form_and_runs_nothing(visit, engine):
    before = engine.jobs
    page = visit("#" + urlencode(SETTINGS))
    page.wait_for_selector("#sampler option", state="attached")
    expected = {name: value for name, value in SETTINGS.items() if name not in ("height", "width")} | {"size": "8x16"}
    page.wait_for_timeout(500)
    assert values(page) == expected
    assert page.locator("#keep").is_checked()
    assert engine.jobs == before and page.locator("#figure").is_hidden()
    page.evaluate("location.hash = '#prompt=another'")
    until(lambda: page.locator("#prompt").input_value() == "another")
    assert page.locator("#num-steps").input_value() == "4"


def test_link_with_what_the_model_lacks_tells_what_is_used(visit):
    page = visit("#" + urlencode(SETTINGS | {"sampler": "restart", "height": "512", "version": "9", "index": "x"}))
    page.wait_for_selector("#notice:not(:empty)")
    notice = page.locator("#notice").inner_text()
    assert "sampler restart" in notice and "8x512" in notice and "version 9" in notice and "index" in notice
    assert page.locator("#sampler").input_value() == "ddim"


@pytest.mark.parametrize("seed", [SEED_MAX, SEED_MIN, 2**53 + 1, -1])
def test_seeds_keep_all_their_digits(seed, visit):
    page = visit()
    with page.expect_request("**/*:predict") as sent:
        make(page, seed=str(seed))
    assert f'"seed": [{seed}]' in sent.value.post_data
    assert recipe(page)["seed"] == seed
    assert shown(page) == picture(seed)


@pytest.mark.parametrize("seed", [str(SEED_MAX + 1), str(SEED_MIN - 1), "1.5", "x", "0x10", "1e3"])
def test_seed_that_is_no_int64_is_refused_in_the_form(seed, visit, engine):
    before, page = engine.jobs, visit()
    fill(page, seed=seed)
    page.click("#generate")
    assert "whole number" in page.locator("#seed").evaluate("field => field.validationMessage")
    assert engine.jobs == before


def test_seed_is_drawn_anew_unless_it_is_kept(visit):
    page = visit()
    make(page, prompt="a")
    first = page.locator("#seed").input_value()
    make(page)
    second = page.locator("#seed").input_value()
    assert first != second and 0 <= int(first) < 2**31 - 2
    page.check("#keep")
    make(page)
    assert page.locator("#seed").input_value() == second
    page.uncheck("#keep")
    page.click("#dice")
    drawn = page.locator("#seed").input_value()
    make(page)
    assert recipe(page)["seed"] == int(drawn) != int(second)
    page.uncheck("#keep")
    make(page, seed="5")
    assert recipe(page)["seed"] == 5


def number(address: str, name: str) -> float:
    """Returns one of the server's own counts."""
    with urllib.request.urlopen(f"{address}/metrics") as page:
        return next(float(line.rpartition(" ")[2]) for line in page.read().decode().splitlines() if line.startswith(name))


def test_progress_moves_and_cancel_stops_the_model(visit, engine, address):
    page, cancelled = visit(), number(address, 'tfsd_rejected_total{reason="cancelled"}')
    with held(engine):
        fill(page, prompt="a star", num_steps="50")
        page.click("#generate")
        until(lambda: page.locator("#progress-text").text_content() == "Step 0 of 50")
        assert page.locator("#announcement").text_content() == "Working on the image."
        page.press("#prompt", "Enter")  # a second one has to wait for the first
        before = engine.steps
        page.keyboard.press("Escape")
        page.wait_for_selector("#progress-area", state="hidden")
        assert page.locator("#notice").inner_text() == "Cancelled."
        assert page.locator("#figure").is_hidden()
        until(lambda: number(address, 'tfsd_rejected_total{reason="cancelled"}') == cancelled + 1)
    until(lambda: number(address, "tfsd_running_rows") == 0)
    assert engine.steps - before <= 10  # the chunk of steps that was under way
    make(page)
    assert page.locator("#figure").is_visible() and page.locator("#notice").inner_text() == ""


def test_pages_of_other_sites_reach_the_model_only_where_they_are_allowed(browser, engine, folder):
    ask = """async ([address, type]) => {
        const body = JSON.stringify({ signature_name: "text_to_png", inputs: { prompt: ["x"] } });
        try {
            const options = { method: "POST", body, headers: { "Content-Type": type } };
            return (await fetch(`${address}/v1/models/toy:predict`, options)).status;
        } catch (error) { return String(error); }
    }"""
    blind = "at => fetch(`${at}/v1/models/toy:predict`, {method: 'POST', mode: 'no-cors', body: '{}'}).catch(String)"
    with page_files() as site, browser.new_context() as context:
        page = context.new_page()
        page.goto(f"{site}/icon.svg")
        with serve(folder, lambda path: engine) as address:
            before = engine.jobs
            for kind in ("application/json", "text/plain"):
                assert "Failed to fetch" in page.evaluate(ask, [address, kind])
            assert "Failed to fetch" in page.evaluate(blind, address)  # sent, and not even its failure can be seen
            assert engine.jobs == before
        with serve(folder, lambda path: engine, cors_origins=(site,)) as address:
            assert page.evaluate(ask, [address, "application/json"]) == 200 and engine.jobs == before + 1
            assert page.evaluate(ask, [address, "text/plain"]) == 415 and engine.jobs == before + 1


def test_words_that_the_model_never_learned_are_told(visit, engine, monkeypatch):
    monkeypatch.setattr(engine, "words", Words((320, 736, 1565)))  # a, red, star
    page = visit()
    make(page, prompt="a red <b>dog</b> \u732b")
    told = page.locator("#notice").inner_text()
    assert "'dog'" in told and "'\u732b'" in told and "It knows these objects: star." in told
    make(page, prompt="a red star")
    assert page.locator("#notice").inner_text() == ""


def test_message_of_the_server_is_shown(visit):
    page = visit()
    make(page, prompt="a" * 5000)
    assert page.locator("#error").inner_text() == (
        "The server refuses these settings: prompt must have at most 4096 bytes; got 5000."
    )
    make(page, prompt="a")
    assert page.locator("#error").is_hidden()


def test_lost_server_is_told(visit, engine, folder):
    with serve(folder, lambda path: engine) as address:
        page = visit(at=address)
        fill(page, prompt="a")
    page.click("#generate")
    page.wait_for_selector("#error:not(:empty)")
    assert page.locator("#error").inner_text().startswith("The server cannot be reached.")


def test_tokens_cut_off_are_told(visit):
    page = visit()
    make(page, prompt=LONG)
    assert page.locator("#notice").inner_text() == "The prompt is longer than the model reads: its last 4 tokens were cut off."


def test_history_brings_back_picture_and_settings(visit):
    page = visit()
    make(page, prompt="first", seed="1", num_steps="3")
    make(page, prompt="second", seed="2", num_steps="9", sampler="euler")
    assert page.locator("#thumbnails img").count() == 2
    page.locator("#thumbnails button").nth(1).click()
    assert shown(page) == picture(1)
    assert (values(page)["prompt"], values(page)["num_steps"], values(page)["sampler"]) == ("first", "3", "ddim")
    assert page.locator("#thumbnails [aria-current] img").get_attribute("alt").startswith("first; seed 1")
    page.reload()
    page.wait_for_selector("#thumbnails img")
    assert page.locator("#thumbnails img").count() == 2
    page.wait_for_selector("#figure", state="visible")
    assert shown(page) == picture(1) and values(page)["prompt"] == "first"
    page.click("#clear-history")
    page.reload()
    assert page.locator("#history").is_hidden()


def test_history_drops_the_oldest_pictures_where_storage_is_full(visit):
    page = visit()
    page.evaluate("sessionStorage.setItem('other', 'x'.repeat(5 * 2**20 - 6000))")
    for seed in range(12):
        make(page, prompt="a", seed=str(seed))
    assert page.locator("#thumbnails img").count() == 12
    page.reload()
    page.wait_for_selector("#thumbnails img")
    kept = page.locator("#thumbnails img").evaluate_all("images => images.map(image => image.alt)")
    assert 1 <= len(kept) < 12 and kept[0] == "a; seed 11, index 0"


def test_texts_of_others_stay_texts(visit):
    page = visit("#" + urlencode({"prompt": NASTY, "seed": "1"}))
    make(page)
    assert recipe(page)["prompt"] == NASTY
    assert page.locator("img").count() == 2  # the picture and its thumbnail


@pytest.mark.parametrize("prompt", [NASTY, "-x", "", "show", "a", "it''s", "~ #1 !x"])
def test_command_has_the_words_of_tfsd_show(prompt, visit):
    given = {"prompt": prompt, "negative_prompt": "-n 'b'", "seed": SEED_MAX, "index": 2, "num_steps": 3, "guidance_scale": 2.5}
    given |= {"sampler": "ddim", "height": 8, "width": 16, "model": "toy", "dtype": "bfloat16", "jit_compile": False}
    text = json.dumps(given | {"seed": 0})
    page = visit()
    ours = page.evaluate(
        f"async (text) => (await import('./recipe.js')).commandOf({{...JSON.parse(text), seed: {SEED_MAX}n}})", text
    )
    assert "\n" not in ours
    assert shell_words(ours) == shell_words(command(given))


def test_token_is_asked_for_and_kept(visit, engine, folder):
    with serve(folder, lambda path: engine, token="secret") as address:
        page = visit(at=address)
        for token in ("wrong", "secret"):
            page.wait_for_selector("#token-dialog[open]")
            page.fill("#token", token)
            page.keyboard.press("Enter")
        make(page, prompt="a", seed="5")
        assert shown(page) == picture(5)
        page.reload()
        make(page, prompt="a", seed="6")
        assert shown(page) == picture(6)
        page = visit(at=address)
        page.wait_for_selector("#token-dialog[open]")
        page.keyboard.press("Escape")
        page.wait_for_selector("#error:not(:empty)")
        assert "token" in page.locator("#error").inner_text()


def test_phone_has_no_sideways_scrolling(visit):
    page = visit(width=360, is_mobile=True, has_touch=True)
    fill(page)
    assert wide(page) <= 360
    make(page, prompt="a" * 300, negative_prompt="b" * 300, seed=str(SEED_MIN))
    page.locator("details summary").evaluate_all("all => all.forEach(one => one.click())")
    assert wide(page) <= 360
    make(page, prompt="a" * 5000)
    assert wide(page) <= 360


def test_keyboard_alone_does_everything(visit, engine):
    page = visit()
    fill(page)
    until(lambda: page.evaluate("document.activeElement.id") == "prompt")
    page.keyboard.type("a star")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("above")
    reached = [step(page) for _ in range(9)]
    assert reached == ["negative-prompt", "seed", "dice", "index", "keep", "num-steps", "guidance-scale", "sampler", "size"]
    assert step(page) == "generate"
    with held(engine):
        page.keyboard.press("Enter")
        page.wait_for_selector("#progress-area", state="visible")
        assert step(page) == "cancel"
        page.keyboard.press("Enter")
        page.wait_for_selector("#progress-area", state="hidden")
    assert page.evaluate("document.activeElement.id") == "generate"
    page.keyboard.press("Enter")
    page.wait_for_selector("#figure", state="visible")
    assert recipe(page)["prompt"] == "a star\nabove"
    assert [step(page) for _ in range(3)] == ["download", "link", "copy-link"]


def test_dark_scheme_is_dark(visit):
    def background(scheme):
        colour = visit(color_scheme=scheme).evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(int(part) for part in colour.removeprefix("rgb(").rstrip(")").split(","))

    assert background("dark") < 150 and background("light") > 600


def test_tf_serving_is_used_through_its_own_api(visit):
    TFServing.received, TFServing.headers_received = [], []
    with serving(TFServing) as far, page_files() as near:
        page = visit("?" + urlencode({"server": far, "model": "tiny"}), at=near)
        fill(page)
        found = values(page)
        assert (found["num_steps"], found["guidance_scale"], found["sampler"], found["size"]) == ("9", "7.1", "euler", "96x64")
        assert page.locator("#sampler option").all_text_contents() == list(SAMPLERS)
        make(page, prompt="a red star", seed=str(SEED_MAX))
        assert Image.open(io.BytesIO(shown(page))).size == (96, 64)
        assert f"[{SEED_MAX}]" in TFServing.received[0]
        assert not {name.lower() for name in TFServing.headers_received[0]} & {"x-request-id", "authorization"}
        make(page, sampler="pndm")
        assert page.locator("#error").inner_text() == "The server refuses these settings: sampler pndm is not for this test"
        assert page.locator("#link").evaluate("link => link.href").startswith(f"{near}/?server=")


def test_foreign_server_that_the_policy_forbids_is_explained(browser, address):
    with serving(TFServing) as far:
        page = browser.new_page()
        page.goto(f"{address}/?{urlencode({'server': far})}")
        page.wait_for_selector("#error:not(:empty)", timeout=1000 * patience.LONG)
        message = page.locator("#error").inner_text()
        page.close()
    assert far in message and "--rest_api_enable_cors_support" in message and "Content-Security-Policy" in message


def test_token_of_one_server_is_not_sent_to_another(visit):
    TFServing.received, TFServing.headers_received = [], []
    with serving(TFServing) as far, page_files() as near:
        page = visit(at=near)
        page.evaluate("sessionStorage.setItem(`tfsd-token ${location.origin}`, 'secret')")
        page.goto(f"{near}/?{urlencode({'server': far})}")
        make(page, prompt="a", seed="1")
        assert len(TFServing.received) == 1
        assert "secret" not in str(TFServing.headers_received)


def test_version_that_went_while_the_page_was_open_is_explained(visit, tmp_path):
    publish(tmp_path, 1)
    with serve(tmp_path, lambda path: Model(int(path.name))) as address:
        page = visit(at=address)
        make(page, prompt="a star", seed="3")
        publish(tmp_path, 2)
        until(lambda: json.loads(urllib.request.urlopen(f"{address}/config.json").read())["models"][0]["version"] == 2)
        make(page, num_steps="6")
        assert page.locator("#error").inner_text() == "Version 1 of toy is no longer served. Version 2 is chosen: generate again."
        assert (values(page)["prompt"], values(page)["num_steps"]) == ("a star", "6")
        make(page)
        assert page.locator("#error").is_hidden() and recipe(page)["served"]["version"] == "2"


def test_other_model_brings_its_own_settings_and_licence(visit, tmp_path):
    for name in ("toy", "big"):
        publish(tmp_path, 1, name)

    def load(path):
        model = Model()
        if path.parent.name == "big":
            model.name = model.manifest["name"] = "big"
            model.manifest |= {"sizes": [[64, 64]], "licence": "Big", "samplers": ["euler"], "licence_url": "javascript:alert(1)"}
            model.manifest["defaults"] = {"num_steps": 9, "guidance_scale": 7.5, "sampler": "euler", "height": 64, "width": 64}
        return model

    with serve(tmp_path, load) as address:
        page = visit("#" + urlencode({"model": "toy", "num_steps": 3}), at=address)
        fill(page, prompt="a star")
        assert values(page)["size"] == "8x8" and page.locator("#licence a").get_attribute("href").startswith("https://www.apache")
        page.select_option("#model", label="big")
        assert page.locator("#licence").inner_text() == "Licence of the model: Big. None but the licence's."
        assert page.locator("#licence a").get_attribute("href") is None
        make(page)
        made = recipe(page)
        assert (made["num_steps"], made["guidance_scale"], made["sampler"], made["width"]) == (9, 7.5, "euler", 64)
        assert made["prompt"] == "a star" and made["served"]["name"] == "big"
