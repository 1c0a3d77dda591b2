import os
import time

import pytest


@pytest.fixture(scope="module")
def engine():
    """A stand-in for a model: grey images of the lightness of their seed."""
    from stand_in import Engine

    return Engine()


@pytest.fixture(scope="module")
def server(engine):
    """A server of that model, whose queue holds 8 rows."""
    from stand_in import served

    with served(engine, max_queue_rows=8) as server:
        yield server


@pytest.fixture(scope="session")
def toy_export(toy_folder, tmp_path_factory):
    """A folder of models with one: toy/1, 32 x 32 pixels, batches of up to 2. Read only: all test processes share it.

    Without XLA, whose programs no engine that is loaded from it would ever give back.
    """
    from tfsd.converters.saved_model.export import export_saved_model

    base = tmp_path_factory.getbasetemp()
    out = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "toy_export"
    try:
        out.mkdir()
    except FileExistsError:  # another process makes it, and ends with a word on how that went
        end = time.monotonic() + 600
        while not (words := [path for path in (out / "done", out / "failed") if path.exists()]):
            assert time.monotonic() < end, "the other process made no export"
            time.sleep(0.2)
        assert words[0].name == "done", "the export failed in another test process; see there"
        return out / "models"
    word = "failed"
    try:
        export_saved_model(toy_folder, out / "models", batch_sizes=(1, 2), max_steps=10, xla=False)
        word = "done"
    finally:
        (out / word).touch()
    return out / "models"
