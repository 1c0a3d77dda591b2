import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+?)"', (ROOT / "tfsd/__init__.py").read_text(encoding="utf-8"), re.MULTILINE)[1]
# Upper bounds: `tfsd/runtime/private.py` lists what is used of these packages although it may change with a release.
REQUIRED = [
    "tensorflow>=2.20,<2.22",
    'tensorflow-text>=2.20,<2.22; sys_platform != "win32"',  # no wheels for Windows; pip takes TensorFlow's release
    "keras>=3.12,<3.16",
    "numpy>=1.26,<3",
    "pillow>=10.1",
    "ftfy>=6.1",
    "regex",
    "h5py",
    "ml_dtypes",
    "safetensors>=0.4",
    "huggingface_hub>=0.25,<3",
    "filelock>=3.12",
    "tqdm",
    "typing_extensions>=4.6",
    'psutil>=5.9; sys_platform != "linux"',  # Linux tells of its memory in files
]
SERVING = [
    "tensorflow-serving-api>=2.18",
    "grpcio>=1.62",
    "grpcio-health-checking>=1.62",
    "grpcio-reflection>=1.62",
    "aiohttp>=3.10",
    "prometheus-client>=0.20",
]
DEVICE = ["ai-edge-litert>=2,<3", "ai-edge-quantizer>=0.10,<0.11", "jinja2>=3.1"]
DEV = ["ruff>=0.17,<0.18", "mypy>=2,<3", "pre-commit>=4"]
TEST = ["pytest>=8", "pytest-xdist>=3.5", "hypothesis>=6", "kubernetes-validate>=1.27", "psutil>=5.9", "PyYAML"]
# To build the site; ruff formats its signatures. `.ci/run` installs these alone: the sources are read, not imported.
DOCS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.5,<10", "mkdocstrings[python]>=0.26,<2", "ruff"]
CLASSIFIERS = [
    "Development Status :: 4 - Beta",
    "Environment :: Console",
    "Intended Audience :: Developers",
    "Intended Audience :: Science/Research",
    "Operating System :: POSIX :: Linux",
    *(f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 14)),
    "Topic :: Multimedia :: Graphics",
    "Topic :: Scientific/Engineering :: Artificial Intelligence",
    "Typing :: Typed",
]


def index_page(readme: str) -> str:
    """Returns the README as an index of packages can show it: without pictures and links that need the repository's files."""
    readme = re.sub(r"(?m)^!\[[^\]]*\]\((?!https?:)[^)]*\)\n\n?", "", readme)
    return re.sub(r"\[([^\]]*)\]\((?!https?:)[^)]*\)", r"\1", readme)


class FreshBuild(build_py):
    """Builds without what an earlier build left: after `git pull`, `pip install .` would install modules that are gone."""

    def run(self):
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib) / "tfsd", ignore_errors=True)
        super().run()


setup(
    cmdclass={"build_py": FreshBuild},
    name="tfsd",
    version=VERSION,
    description="Stable Diffusion, deployed with TensorFlow",
    long_description=index_page((ROOT / "README.md").read_text(encoding="utf-8")),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE", "tfsd/assets/LICENSE-CLIP"],
    classifiers=CLASSIFIERS,
    keywords="stable-diffusion text-to-image diffusion tensorflow keras tensorflow-serving tflite litert xla",
    python_requires=">=3.10,<3.14",
    packages=find_packages(include=["tfsd", "tfsd.*"]),
    package_data={
        "tfsd": ["assets/**/*", "py.typed"],
        "tfsd.converters.device": ["*.html"],
        "tfsd.serving.server": ["page/*"],
    },
    install_requires=REQUIRED,
    extras_require={
        "serving": SERVING,
        "device": DEVICE,
        "test": [*SERVING, *DEVICE, *TEST],
        "docs": DOCS,
        "dev": [*SERVING, *DEVICE, *TEST, *DEV, *DOCS],
    },
    entry_points={"console_scripts": ["tfsd = tfsd.__main__:main"]},
)
