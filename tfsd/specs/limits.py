"""Limits of arguments and names of choices, for what must know them without importing numpy: the command line."""

MAX_BATCH = 64  # images of one call
MAX_SIDE = 2048  # pixels
MAX_STEPS = 1000
MAX_SCALE = 100  # of guidance
MAX_INDEX = 2**20  # of an image in its seed's batch
INT64 = (-(2**63), 2**63 - 1)  # lowest and highest seed
DTYPES = ("float32", "bfloat16", "float16")
NUMERICS = ("compvis", "kerascv")
QUANTIZATIONS = ("none", "float16", "dynamic", "int8-weights", "int8", "int4")  # the keys of RECIPES
