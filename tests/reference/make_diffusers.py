"""Makes `tests/data/diffusers_fields.json` and `tests/data/samplers/diffusers_grids.npz` from the sources of diffusers.

    pip download --no-deps diffusers==0.42.1 transformers==5.23.0
    python tests/reference/make_diffusers.py diffusers-0.42.1-py3-none-any.whl transformers-5.23.0-py3-none-any.whl

Reads the wheels' sources as syntax trees: neither package is installed, torch is not needed, and tfsd is not imported.
"""

import ast
import json
import sys
import zipfile
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np

DATA = Path(__file__).parents[1] / "data"
TRAIN_STEPS, OFFSET = 1000, 1
SPACINGS = ("leading", "linspace", "trailing")
SCHEDULERS = {  # class -> file
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "PNDMScheduler": "pndm",
    "LMSDiscreteScheduler": "lms_discrete",
    "EulerDiscreteScheduler": "euler_discrete",
    "EulerAncestralDiscreteScheduler": "euler_ancestral_discrete",
    "DPMSolverMultistepScheduler": "dpmsolver_multistep",
    "HeunDiscreteScheduler": "heun_discrete",
    "UniPCMultistepScheduler": "unipc_multistep",
    "KDPM2DiscreteScheduler": "k_dpm_2_discrete",
    "KDPM2AncestralDiscreteScheduler": "k_dpm_2_ancestral_discrete",
    "DPMSolverSinglestepScheduler": "dpmsolver_singlestep",
    "DEISMultistepScheduler": "deis_multistep",
    "LCMScheduler": "lcm",
    "TCDScheduler": "tcd",
}
ONE_SPACING = ("DPMSolverSinglestepScheduler", "LCMScheduler", "TCDScheduler")  # their timesteps depend on no field
SOURCES = {name: f"diffusers/schedulers/scheduling_{file}.py" for name, file in SCHEDULERS.items()} | {
    "UNet2DConditionModel": "diffusers/models/unets/unet_2d_condition.py",
    "AutoencoderKL": "diffusers/models/autoencoders/autoencoder_kl.py",
    "StableDiffusionPipeline": "diffusers/pipelines/stable_diffusion/pipeline_stable_diffusion.py",
    "CLIPTextConfig": "transformers/models/clip/configuration_clip.py",
}


def class_of(wheels: list[zipfile.ZipFile], name: str) -> ast.ClassDef:
    path = SOURCES[name]
    wheel = next(wheel for wheel in wheels if path in wheel.namelist())
    return next(node for node in ast.parse(wheel.read(path)).body if isinstance(node, ast.ClassDef) and node.name == name)


def method_of(wheels: list[zipfile.ZipFile], name: str, method: str) -> ast.FunctionDef:
    return next(node for node in class_of(wheels, name).body if isinstance(node, ast.FunctionDef) and node.name == method)


def value_of(node: ast.expr):
    """A default as JSON has it; minus infinity is the only one that is no literal."""
    return "-Infinity" if ast.unparse(node) == "-float('inf')" else ast.literal_eval(node)


def fields_of(wheels: list[zipfile.ZipFile], name: str) -> dict:
    if name == "CLIPTextConfig":  # a dataclass
        fields = (node for node in class_of(wheels, name).body if isinstance(node, ast.AnnAssign))
        return {node.target.id: value_of(node.value) for node in fields}
    arguments = method_of(wheels, name, "__init__").args
    names = [argument.arg for argument in arguments.args[1:]]
    missing = [None] * (len(names) - len(arguments.defaults))  # modules of a pipeline have no default
    return dict(zip(names, missing + [value_of(node) for node in arguments.defaults]))


def grids_of(wheels: list[zipfile.ZipFile], name: str, spacing: str) -> list[np.ndarray]:
    """The timesteps of every number of steps from 1 to 1000, noisiest first, by the class's own lines on `timestep_spacing`."""
    tree = method_of(wheels, name, "set_timesteps")
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.If))
    choice = next(node for node in nodes if ast.unparse(node.test) == "self.config.timestep_spacing == 'linspace'")
    code = compile(ast.fix_missing_locations(ast.Module([choice], [])), name, "exec")
    grids = []
    for steps in range(1, TRAIN_STEPS + 1):
        config = SimpleNamespace(timestep_spacing=spacing, num_train_timesteps=TRAIN_STEPS, steps_offset=OFFSET)
        own = SimpleNamespace(config=config, num_inference_steps=steps)
        scope = {"self": own, "np": np, "num_inference_steps": steps}
        scope |= {"last_timestep": TRAIN_STEPS, "num_train_timesteps": TRAIN_STEPS}
        exec(code, scope)
        grids.append(scope["timesteps"] if "timesteps" in scope else own._timesteps[::-1])  # PNDM's before it repeats one
    return grids


def checksum(grid: np.ndarray) -> int:
    """The CRC-32 of timesteps as little-endian float32."""
    return zlib.crc32(np.asarray(grid, "<f4").tobytes())


def main(paths: list[str]):
    wheels = [zipfile.ZipFile(path) for path in paths]
    fields = {name: fields_of(wheels, name) for name in SOURCES}
    origin = "constructors of diffusers 0.42.1 and transformers 5.23.0: field -> default"
    (DATA / "diffusers_fields.json").write_text(json.dumps({"origin": origin, "fields": fields}, indent=1) + "\n")
    tables = {}
    for name in (name for name in SCHEDULERS if name not in ONE_SPACING):
        for spacing in SPACINGS:
            grids = grids_of(wheels, name, spacing)
            # The first `steps` timesteps: "trailing" has one more, at -1, for some numbers of steps.
            tables[f"{name}.{spacing}"] = np.array([checksum(grid[:i]) for i, grid in enumerate(grids, 1)], np.uint32)
    np.savez_compressed(DATA / "samplers" / "diffusers_grids.npz", **tables)


if __name__ == "__main__":
    main(sys.argv[1:])
