"""A hook of mkdocs: pages of the site that lie outside docs/, where the files are that they are about.

Links from docs/ to these files, such as `../mobile/README.md`, work in a clone as they are and are rewritten for the site.
"""

import posixpath
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PAGES = {  # in the repository -> in the site
    "README.md": "readme.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "LICENSE": "LICENSE.txt",
    "mobile/README.md": "apps.md",
    "serving/tf_serving/README.md": "tf-serving.md",
}


def on_files(files, config):
    """Adds the pages to those of docs/."""
    for path, name in PAGES.items():
        files.append(File.generated(config, name, content=(ROOT / path).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown, page, config, files):
    """Rewrites links between docs/ and the rest of the repository; all pages of the site are in one folder."""
    source = {name: path for path, name in PAGES.items()}.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    places = {**PAGES, **{f"docs/{file.src_uri}": file.src_uri for file in files if file.src_uri not in PAGES.values()}}
    for path, name in places.items():
        link = posixpath.relpath(path, posixpath.dirname(source) or ".")
        for end in (")", "#"):
            markdown = markdown.replace(f"]({link}{end}", f"]({name}{end}")
    return markdown
