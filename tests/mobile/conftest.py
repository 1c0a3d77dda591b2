"""What tests of the apps' code share: a bundle of the embedded model, in float32."""

import os

import pytest


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory):
    """The bundle, exported once: of the processes that run tests, the first one exports it while the others wait."""
    import fcntl

    from tfsd.converters.device.export import export_tflite
    from tfsd.converters.device.report import Check

    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # of all processes of this run
    with open(root / "tiny.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / "tiny").exists():
            export_tflite("tiny", root / "tiny", check=Check(pictures=1, adherence=0))
    return root / "tiny"
