"""The training loop both stages share: seeded, resumable, with checkpoints and a progress bar. Keras alone."""

import json
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
from tqdm import tqdm

from tfsd.models import default_settings
from tfsd.storage.atomic import new_file
from tfsd.training.recipe import TrainingRecipe

# What reading a damaged archive raises, from numpy and beneath it.
_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
AVERAGE_EVERY = 10  # steps between two updates of the moving average of the weights


class Trainer:
    """Trains `model` on `batch(step) -> (inputs, targets[, weights of the errors])`, keeping its state in `folder`."""

    @default_settings()
    def __init__(self, model: keras.Model, recipe: TrainingRecipe, batch: Callable, folder: Path, loss="mse"):
        self.model = model
        self.recipe = recipe
        self.batch = batch
        self.folder = Path(folder)
        self.step = 0
        optimizer = keras.optimizers.AdamW(
            recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            beta_2=0.99,
            clipnorm=recipe.clip_norm,
        )
        optimizer.exclude_from_weight_decay(var_names=["bias", "beta", "gamma"])
        # XLA's CPU backend has no gradient of the nearest-neighbour resize.
        model.compile(optimizer=optimizer, loss=loss, jit_compile=keras.backend.backend() == "jax")
        optimizer.build(model.trainable_variables)
        self.average = self._values(model.trainable_variables)

    def _variables(self) -> list:
        return [*self.model.variables, *self.model.optimizer.variables]

    @staticmethod
    def _values(variables) -> list[np.ndarray]:
        return [np.array(keras.ops.convert_to_numpy(v), "float32") for v in variables]

    def _update_average(self):
        # The first steps would weigh too much: the average looks back no farther than training goes.
        weight = min(1.0, max(AVERAGE_EVERY * (1 - self.recipe.ema), AVERAGE_EVERY / (self.step + 1)))
        for mean, value in zip(self.average, self._values(self.model.trainable_variables)):
            mean += weight * (value - mean)

    def restore(self) -> bool:
        """Goes on from the folder's checkpoint, if there is one.

        Raises: `ValueError` if it is damaged, or of a model of other sizes; nothing is taken from it then.
        """
        path = self.folder / "checkpoint.npz"
        if not path.exists():
            return False
        try:
            with np.load(path, allow_pickle=False) as saved:
                stored = {name: np.asarray(saved[name]) for name in saved.files}
            step = int(stored.pop("step"))
        except _DAMAGE as error:
            raise ValueError(f"{path} cannot be read ({error}). Delete it to begin anew.") from error
        variables, averages = self._variables(), self.average
        expected = {f"v{i}": tuple(v.shape) for i, v in enumerate(variables)}
        expected |= {f"a{i}": mean.shape for i, mean in enumerate(averages)}
        if {name: value.shape for name, value in stored.items()} != expected:
            raise ValueError(f"{path} is the checkpoint of another model. Use another folder, or delete it to begin anew.")
        self.step = step
        for i, variable in enumerate(variables):
            variable.assign(stored[f"v{i}"])
        self.average = [stored[f"a{i}"] for i in range(len(averages))]
        return True

    def save(self):
        """Writes the checkpoint; an interruption leaves the one before."""
        self.folder.mkdir(parents=True, exist_ok=True)
        values = {f"v{i}": keras.ops.convert_to_numpy(v) for i, v in enumerate(self._variables())}
        values |= {f"a{i}": mean for i, mean in enumerate(self.average)}
        with new_file(self.folder / "checkpoint.npz") as file:
            np.savez(file, step=self.step, **values)

    def begin_with(self, other: "Trainer"):
        """Takes over the averaged weights of a trainer of the same network."""
        with other.averaged() as model:
            self.model.set_weights(model.get_weights())
        self.average = self._values(self.model.trainable_variables)

    def take(self, parts: dict[str, keras.Model]):
        """Takes over the weights of those parts that the trained model has too."""
        for name, part in parts.items():
            if hasattr(self.model, name):
                getattr(self.model, name).set_weights(part.get_weights())
        self.average = self._values(self.model.trainable_variables)

    def averaged(self):
        """Returns a context in which the model has the moving average of its weights."""
        return _Averaged(self.model, self.average)

    @default_settings()
    def run(
        self,
        *,
        steps: int | None = None,
        every: int = 500,
        on_checkpoint: Callable[["Trainer"], None] | None = None,
        progress: bool = True,
    ):
        """Trains up to `steps` (the recipe's number), saving and calling `on_checkpoint(trainer)` every so many."""
        last = self.recipe.steps if steps is None else min(steps, self.recipe.steps)
        started, mean = time.monotonic(), None
        bar = tqdm(total=last, initial=self.step, disable=None if progress else True, unit="step", mininterval=5)
        while self.step < last:
            self.model.optimizer.learning_rate = self.recipe.rate(self.step)
            logs = self.model.train_on_batch(*self.batch(self.step), return_dict=True)
            loss = float(logs["loss"])
            mean = loss if mean is None else 0.98 * mean + 0.02 * loss
            self.step += 1
            if self.step % AVERAGE_EVERY == 0:
                self._update_average()
            bar.update()
            bar.set_postfix(loss=f"{mean:.4f}", refresh=False)
            if self.step % every == 0 or self.step == last:
                self.save()
                self._log(loss=mean, seconds=time.monotonic() - started)
                if on_checkpoint is not None:
                    on_checkpoint(self)
        bar.close()

    def _log(self, **values):
        with open(self.folder / "log.jsonl", "a", encoding="utf-8") as log:
            log.write(json.dumps({"step": self.step, **{k: round(v, 6) for k, v in values.items()}}) + "\n")


class _Averaged:
    """The context of `Trainer.averaged`."""

    def __init__(self, model: keras.Model, average: list[np.ndarray]):
        self.model = model
        self.average = average

    def __enter__(self):
        self.kept = [np.array(keras.ops.convert_to_numpy(v)) for v in self.model.trainable_variables]
        for variable, value in zip(self.model.trainable_variables, self.average):
            variable.assign(value)
        return self.model

    def __exit__(self, *_):
        for variable, value in zip(self.model.trainable_variables, self.kept):
            variable.assign(value)
