"""Recipes as readable text."""

from collections.abc import Mapping


def readable(recipe: Mapping) -> str:
    """Returns a recipe as text: the prompt, then "name: value" pairs; of a grid, the recipes of its pictures."""
    if "pictures" in recipe:
        return "\n\n".join(readable(one) for one in recipe["pictures"])
    lines = [str(recipe.get("prompt") or "")]
    if recipe.get("negative_prompt"):
        lines.append(f"Negative prompt: {recipe['negative_prompt']}")
    rest = {name: value for name, value in recipe.items() if name not in ("prompt", "negative_prompt")}
    return "\n".join([*lines, ", ".join(f"{name}: {value}" for name, value in rest.items())])
