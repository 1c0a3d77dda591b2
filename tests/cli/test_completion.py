"""What the shells' scripts complete; bash runs its own."""

import shutil
import subprocess

import pytest

from tfsd.cli import COMMANDS

BASH = shutil.which("bash")


@pytest.fixture
def complete(run, tmp_path):
    """Returns what bash offers for the last of some words, with the script that the command prints."""
    status, script, _ = run("completion", "bash")
    assert status == 0
    (tmp_path / "tfsd.bash").write_text(script)

    def complete(*words: str) -> list[str]:
        quoted = " ".join(f"'{word}'" for word in ("tfsd", *words))
        state = f"COMP_WORDS=({quoted}); COMP_CWORD={len(words)}"
        lines = f"source {tmp_path}/tfsd.bash; {state}; _tfsd; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        done = subprocess.run([BASH, "-c", lines], capture_output=True, text=True, check=True)
        assert done.stderr == ""
        return done.stdout.split()

    return complete


@pytest.mark.parametrize(
    "words, offered",
    [
        (["mod"], ["models"]),
        (["show", "--js"], ["--json"]),
        (["generate", "a cat", "--sampler", "dpmpp_2m_s"], ["dpmpp_2m_sde", "dpmpp_2m_sde_karras"]),
        (["a cat", "--dtype", "=", "bf"], ["bfloat16"]),
        (["a cat", "--neg"], ["--negative", "--negative-prompt"]),
        (["export", "tf"], ["tflite"]),
        (["export", "tflite", "--quantize", "int8"], ["int8-weights", "int8"]),
        (["completion", ""], ["bash", "zsh", "fish", "-h", "--help", "--debug"]),
        (["help", "ver"], ["verify"]),
        (["models", "--out"], []),
    ],
    ids=" ".join,
)
def test_bash_completes_commands_options_and_values(words, offered, complete):
    assert complete(*words) == offered


def test_bash_offers_every_command(complete):
    assert {*COMMANDS, "help", "version", "--negative", "--version"} <= set(complete(""))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_script_is_accepted_by_its_shell_and_knows_all_commands(shell, run, tmp_path):
    status, script, err = run("completion", shell)
    assert (status, err) == (0, "")
    assert all(name in script for name in COMMANDS) and "euler_ancestral" in script
    if shutil.which(shell):
        (tmp_path / "script").write_text(script)
        done = subprocess.run([shell, "-n", str(tmp_path / "script")], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


def test_unknown_shell_is_wrong_usage(run):
    assert run("completion", "tcsh")[0] == 2
