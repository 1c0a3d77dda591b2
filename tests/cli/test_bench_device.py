"""`tfsd bench device`, as a user types it."""

import json

import pytest
from command_line import made, one_line

from tfsd.cli import build_parser, main


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["device"], "give a bundle DIR, or --full-size. `tfsd export tflite` makes bundles"),
        (["device", "bundle", "--full-size"], "give a bundle DIR or --full-size, not both"),
        (["device", "bundle", "--sizes", "256"], "--sizes requires --full-size; a bundle has its own"),
        (["device", "bundle", "--quantize", "dynamic"], "--quantize requires --full-size"),
        (["device", "bundle", "--parts", "decoder"], "--parts requires --full-size"),
        (["device", "--full-size", "--sizes", "32"], "--sizes must be a whole number from 64 to 2048; got '32'"),
        (["device", "--full-size", "--sizes", "100"], "--sizes must be a multiple of 8; got 100. Use 96 or 104"),
        (["device", "--full-size", "--quantize", "int3"], "--quantize must be one of none, float16"),
        (["device", "--full-size", "--parts", "vae"], "--parts must be one of text_encoder, denoiser, decoder; got 'vae'"),
        (["device", "bundle", "--threads", "0"], "--threads must be a whole number from 1"),
        (["device", "bundle", "--runs", "none"], "--runs must be a whole number from 1"),
        (["device", "bundle", "--json", "nowhere/file.json"], "--json must be a file in a folder that is there"),
        (["device", "bundle", "--json", "toy"], "--json must be a file in a folder that is there"),
        (["--size", "512", "device", "bundle"], "--size must stand behind `device`"),
        (["--json", "device", "bundle"], "--json must stand behind `device`"),
        (["phone"], "must be one of device; got 'phone'"),
    ],
)
def test_wrong_usage_is_one_line_and_exits_2(argv, message, place, run):
    status, out, err = run("bench", *argv)
    assert (status, out) == (2, "") and one_line(err) and message in err
    assert made(place) == []


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nothing"], "nothing is not a device bundle: it has no manifest.json"),
        (["toy"], "is not the manifest of a device bundle"),
        (["--full-size", "--model", "sd-9"], "There is no model 'sd-9'"),
    ],
)
def test_what_is_not_there_is_one_line(argv, message, place, run):
    status, out, err = run("bench", "device", *argv)
    assert (status, out) == (1, "") and one_line(err) and message in err


def test_help_tells_what_is_measured_and_shows_examples(capsys):
    with pytest.raises(SystemExit) as end:
        main(["bench", "device", "--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0 and "usage: tfsd bench device" in text
    assert all(words in text for words in ("median", "--full-size", "examples:", "tfsd bench device bundle"))


def test_options_of_bench_keep_their_defaults():
    args = build_parser().parse_args(["bench", "--dtype", "float32", "--json"])
    assert (args.model, args.size, args.batch, args.steps, args.dtype) == ("sd-1.4", 256, 1, 5, ["float32"])
    assert args.json is True and args.jit == "both"
    assert args.run.__name__ == "bench"


@pytest.mark.slow
def test_bundle_is_benched_and_written_as_json(place, run):
    assert run("export", "tflite", "--model", "toy", "--out", "bundle", "--max-steps", "2", "--quiet")[0] == 0
    status, out, err = run("bench", "device", "bundle", "--runs", "2", "--threads", "1", "--json", "found.json")
    assert status == 0, err
    lines = out.splitlines()
    assert lines[0].split()[:3] == ["part", "signature", "file"] and len(lines) == 6
    found = json.loads((place / "found.json").read_text())
    assert [line.split()[1] for line in lines[1:]] == [one["signature"] for one in found["signatures"]]
    assert all(one["ratio"] > 0 for one in found["signatures"])  # the model toy is beside the bundle
    assert "denoiser.step on LiteRT" in err
