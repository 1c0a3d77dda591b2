"""Prints the resident memory of this process in MB, one number a line, each time a model or an export has gone.

python memory_growth.py loads FOLDER: a model folder is loaded, draws without XLA and is deleted, five times.
python memory_growth.py sizes FOLDER: a model draws with XLA, in one more size each time, four times.
python memory_growth.py reloads FOLDER: a server's folder FOLDER/toy/1 is replaced by another version, ten times.
"""

import gc
import sys
from pathlib import Path


def resident() -> int:
    """Returns the resident memory in MB, 0 where the system does not say it."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    lines = status.read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS"))) // 1024


def loads(folder: str):
    """Loads and draws, then lets the model go."""
    import tfsd

    for seed in range(5):
        model = tfsd.load(folder, jit_compile=False)
        model.text_to_image("a red star", seed=seed, num_steps=1)
        del model
        gc.collect()
        print(resident(), flush=True)


def sizes(folder: str):
    """Draws in sizes that XLA compiles one after another."""
    import tfsd
    from tfsd.runtime.freeing import free_memory

    model = tfsd.load(folder)
    for side in (64, 72, 80, 88):
        model.text_to_image("a red star", num_steps=2, height=side, width=side)
        free_memory()
        print(resident(), flush=True)


def reloads(folder: str):
    """Renames the only version, which for the server is a new one in place of an old one."""
    from tfsd.serving.server.models import Models

    models = Models(folder)
    models.start()
    for number in range(1, 11):
        (Path(folder) / "toy" / str(number)).rename(Path(folder) / "toy" / str(number + 1))
        models.reload()
        with models.get("toy") as engine:
            assert engine.version == number + 1
            del engine
        print(resident(), flush=True)
    models.close()


if __name__ == "__main__":
    {"loads": loads, "sizes": sizes, "reloads": reloads}[sys.argv[1]](sys.argv[2])
