"""Tensors in HDF5 files: written one at a time, and read one at a time from untrusted files."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import ml_dtypes
import numpy as np

from tfsd.errors import CheckpointError, shown

FLOATS = ("float16", "bfloat16", "float32", "float64")
MAX_OBJECTS = 100_000  # the full-size U-Net has 2000; a crafted file can hold cycles of links
MAX_DEPTH = 24
OVERHEAD = 4096  # bytes of groups and headers per tensor, generously


@dataclass(frozen=True)
class StoredTensor:
    """A tensor still on disk: its shape and dtype are known, `read()` loads its values."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


@contextlib.contextmanager
def open_h5(path: Path) -> Iterator[h5py.File]:
    """Opens an HDF5 file for reading.

    Raises: `CheckpointError` if it is missing or damaged.
    """
    with _one_line_errors(path):
        file = h5py.File(path, "r")
    try:
        yield file
    finally:
        file.close()


def stored_tensors(file: h5py.File) -> dict[str, StoredTensor]:
    """Returns every dataset of an open file by its path, nothing read yet.

    Raises: `CheckpointError` for links, filters, external storage, other types than floats, or too many objects.
    """
    path = Path(file.filename)
    found, seen = {}, 0
    with _one_line_errors(path):
        pending = [("", file, 0)]
        while pending:
            prefix, group, depth = pending.pop()
            seen += len(group)
            if seen > MAX_OBJECTS or depth > MAX_DEPTH:
                raise CheckpointError(f"{path} is not a weights file: more than {MAX_OBJECTS} objects or {MAX_DEPTH} levels.")
            for name in group:
                child = member(group, name, path)
                if isinstance(child, h5py.Dataset):
                    found[prefix + name] = stored_tensor(child, path)
                else:
                    pending.append((f"{prefix}{name}/", child, depth + 1))
    return found


def member(group: h5py.Group, name: str, path: Path) -> h5py.Group | h5py.Dataset:
    """Returns a group's own child; links that lead elsewhere, even to other files, are refused."""
    with _one_line_errors(path):
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise CheckpointError(f"{path}: {shown(name, 300)} is missing or a link to another place, which is not allowed.")
        child = group[name]
    if not isinstance(child, (h5py.Group, h5py.Dataset)):
        raise CheckpointError(f"{path}: {shown(name, 300)} is neither a group nor a tensor.")
    return child


def stored_tensor(dataset: h5py.Dataset, path: Path) -> StoredTensor:
    """Returns a dataset as a tensor still on disk.

    Raises: `CheckpointError` if reading it would decode filters or open other files, or it holds no floats.
    """
    with _one_line_errors(path):
        if dataset.is_virtual or dataset.external or dataset.id.get_create_plist().get_nfilters():
            raise CheckpointError(f"{path}: {dataset.name} is compressed or stored elsewhere; only plain tensors are read.")
        if dataset.shape is None:
            raise CheckpointError(f"{path}: {dataset.name} is empty.")
        dtype = dataset.dtype.name
        if dataset.dtype.kind == "V" and dataset.dtype.itemsize == 2 and dataset.attrs.get("dtype") == "bfloat16":
            dtype = "bfloat16"  # Keras stores it as two opaque bytes and says so in an attribute
    if dtype not in FLOATS:
        raise CheckpointError(f"{path}: {dataset.name} must hold floats ({', '.join(FLOATS)}); it holds {dtype}.")

    def read() -> np.ndarray:
        with _one_line_errors(path):
            if dataset.id.get_storage_size() < dataset.size * dataset.dtype.itemsize:
                raise CheckpointError(f"{path}: {dataset.name} has a shape but no values.")
            values = dataset[()]
        return values.view(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.asarray(values).astype(dtype, copy=False)

    return StoredTensor(tuple(dataset.shape), dtype, read)


def write_tensors(path: Path, tensors: Iterable[tuple[str, np.ndarray]], size: int, count: int):
    """Writes a new HDF5 file from (path inside the file, values) pairs, as Keras would.

    `size` is the bytes of all values and `count` their number. Their space on the disk is taken first: a write that
    fails inside HDF5 leaves it in a state that ends the whole process with a segmentation fault later on.
    Raises: `OSError` if the disk or a quota has not that much space, `CheckpointError` if writing fails all the same.
    """
    with open(path, "w+b") as out:
        size += OVERHEAD * (count + 16)
        _reserve(out.fileno(), size)
        out.truncate(0)  # HDF5 wants to begin with an empty file
        with _one_line_errors(path, "cannot be written"):
            # The compact format of HDF5 1.8; closing cuts the file to its true length.
            file = h5py.File(out, "w", libver=("v108", "v108"))
        try:
            _reserve(out.fileno(), size)
            for key, values in tensors:
                with _one_line_errors(path, "cannot be written"):
                    dataset = file.create_dataset(key, data=values)
                    if values.dtype == ml_dtypes.bfloat16:
                        dataset.attrs["dtype"] = "bfloat16"
        finally:
            with _one_line_errors(path, "cannot be written"):
                file.close()


def _reserve(descriptor: int, size: int):
    if not hasattr(os, "posix_fallocate"):  # macOS, Windows
        return
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # file systems that cannot
            raise


@contextlib.contextmanager
def _one_line_errors(path: Path, what: str = "is damaged or not an HDF5 file"):
    try:
        yield
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist.") from None
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, UnicodeError, OverflowError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(f"{path} {what}: {reason[0]}") from error
