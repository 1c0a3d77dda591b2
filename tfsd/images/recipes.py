"""The recipe of a picture: everything it takes to make it again."""

import importlib.metadata

from tfsd import __version__


def recipes_of(per_picture: dict[str, list], shared: dict) -> list[dict]:
    """Returns one recipe per picture from lists with one value each and from what all have in common."""
    versions = {"tfsd": __version__, "tensorflow": importlib.metadata.version("tensorflow")}
    count = len(next(iter(per_picture.values())))
    return [{name: values[i] for name, values in per_picture.items()} | shared | versions for i in range(count)]
