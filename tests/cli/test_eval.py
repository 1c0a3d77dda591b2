import json
import os
from pathlib import Path

import numpy as np
import pytest
from command_line import one_line
from PIL import Image


@pytest.mark.slow
def test_report_outlives_a_sheet_that_fails(place, run, monkeypatch):
    """The folder vanishes while the pictures are made."""
    from tfsd.training import checker

    Path("sheets").mkdir()
    accuracy = checker.accuracy
    monkeypatch.setattr(checker, "accuracy", lambda n, seed: os.rmdir("sheets") or accuracy(n=2, seed=seed))
    status, out, err = run("eval", "--model", "toy", "--n", "1", "--steps", "1", "--sheet", "sheets/x.png", "--quiet", "--json")
    warning, error = err.splitlines(keepends=True)
    assert status == 1 and one_line(error) and "there is no folder sheets" in error
    assert warning.startswith("tfsd: warning: the prompts of this evaluation have words that 'toy' never learned")
    assert json.loads(out)["n"] == 1 and "sheet_error" not in json.loads(out)


def test_sheet_is_whole_or_not_there(tmp_path):
    from tfsd.training.evaluate import contact_sheet

    shown = [(np.full((32, 32, 3), i, "uint8"), "a red star") for i in range(9)]
    contact_sheet(shown, tmp_path / "x.PNG")
    contact_sheet(shown, str(tmp_path / "y.png"))
    assert Image.open(tmp_path / "x.PNG").size == (8 * 36, 2 * (32 + 42))
    with pytest.raises(OSError, match="there is no folder"):
        contact_sheet(shown, tmp_path / "missing" / "x.png")
    assert sorted(os.listdir(tmp_path)) == ["x.PNG", "y.png"]
