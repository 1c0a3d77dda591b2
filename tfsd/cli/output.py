"""Where `tfsd generate` writes: files of given or free names, a folder, or standard output."""

import os
import sys
from pathlib import Path

from tfsd.cli.parsing import UsageError
from tfsd.cli.terminal import print_path, write_bytes


class Output:
    """The files of a command, whose names are known to be writable before anything is drawn.

    Raises: `UsageError`, `ValueError` for a target that does not fit; `OSError` for one that cannot be written.
    """

    def __init__(self, args, images: list[dict]):
        """`images`: prompt, seed and index of each, in order."""
        self._out, self._grid, self._columns = args.out, args.grid, args.columns
        files = images[:1] if args.grid else images
        self._folder = _folder(args.out)
        if args.out == "-":
            self._names: list[Path | None] = [None]
            _require_pipe(args.flags["out"], len(files))
        else:
            self._names = [*self._named(files, args.n)]

    def _named(self, files: list[dict], n: int) -> list[Path]:
        from tfsd.images import check_targets, file_names, free_names

        if self._folder is None:
            names = file_names(self._out, files)
        else:
            groups = [files[i : i + n] for i in range(0, len(files), n)]
            free = free_names([group[0]["prompt"] for group in groups], self._folder)
            names = [name for group, one in zip(groups, free) for name in file_names(one, group)]
        check_targets(names)
        return names

    def save(self, images, number: int = 0):
        """Writes image `number`, or the grid of all images, and prints the name of the file."""
        from tfsd.images import free_names
        from tfsd.images.files import FileThereError

        name = self._names[number]
        if name is None:
            self._pipe(images)
            return
        while True:
            try:
                self._write(images, name)
                break
            except FileThereError:
                if self._folder is None:
                    raise
                name = free_names([images.recipes[0]["prompt"]], self._folder)[0]  # another program took the name meanwhile
        print_path(name)

    def _write(self, images, name: Path):
        if self._grid:
            images.save_grid(name, self._columns, overwrite=self._folder is None)
        else:
            images.save(name, overwrite=self._folder is None)

    def _pipe(self, images):
        from tfsd.images.files import encode

        image, recipe = images.sheet(self._columns) if self._grid else (images.pil(0), images.recipes[0])
        write_bytes(encode(image, recipe))


def _folder(out: str | None) -> str | None:
    """Returns the folder in which names are to be found for the images; None if `out` names them."""
    if out is None:
        return "."
    if out != "-" and (os.path.isdir(out) or out.endswith(("/", os.sep))):
        if not os.path.isdir(out):
            raise FileNotFoundError(f"there is no folder {out}. Make it first.")
        return out
    return None


def _require_pipe(flag: str, count: int):
    if count > 1:
        raise UsageError(f"{flag} - takes one image; got {count}. Add --grid, or give the name of a file or folder.")
    if sys.stdout is None or sys.stdout.isatty():
        raise UsageError(f"{flag} - writes the bytes of an image, which a terminal cannot show. Redirect them: {flag} - > x.png")
