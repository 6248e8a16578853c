"""Install the folders of this repository as one package, ``advprompt``.

``trainers/`` becomes ``advprompt`` itself; ``datasets/``, ``configs/`` and ``scripts/`` become its
sub-packages, so that no name as common as ``trainers`` or ``datasets`` reaches site-packages.
Settings of the tools are in pyproject.toml.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
FOLDERS = {
    "advprompt": "trainers",
    "advprompt.datasets": "datasets",
    "advprompt.configs": "configs",
    "advprompt.scripts": "scripts",
}
PACKAGES = dict(FOLDERS)
for package, folder in FOLDERS.items():
    for inner in find_packages(str(HERE / folder)):
        PACKAGES[f"{package}.{inner}"] = f"{folder}/{inner.replace('.', '/')}"

DEFENCES = ["scikit-image", "PyWavelets", "diffusers"]
VERSION = (HERE / "trainers/utils/version.py").read_text(encoding="utf-8")

setup(
    name="advprompt",
    version=re.search(r'__version__ = "(.+)"', VERSION)[1],
    description="Adversarially robust prompt learning for CLIP, on top of CoOp and Dassl",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="advprompt contributors",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=list(PACKAGES),
    package_dir=PACKAGES,
    package_data={
        "advprompt": ["py.typed", "assets/*", "**/*.j2", "**/*.yaml"],
        "advprompt.datasets": ["*.yaml"],
        "advprompt.configs": ["**/*.yaml", "**/*.md"],
        "advprompt.scripts": ["**/*.sh"],
    },
    install_requires=[
        "torch>=2.4",
        "torchvision",
        "numpy",
        "scipy",
        "pillow",
        "yacs",
        "tqdm",
        "tabulate",
        "jinja2",
        "matplotlib",
        "open_clip_torch",
        "safetensors",
        "filelock",
        "submitit",
    ],
    extras_require={
        "attacks": ["torchattacks"],  # pins an old requests: scripts/setup.sh leaves its pins out
        "defences": DEFENCES,
        "tensorboard": ["tensorboard"],
        "test": [
            *["pytest", "pytest-xdist", "hypothesis", "setuptools>=64", "wheel"],
            *["ruff", "mypy", "import-linter", "pre-commit", "mkdocs-material"],
            "pyautoattack",  # the authors' AutoAttack, which ours is compared with
            *DEFENCES,
        ],
    },
    entry_points={"console_scripts": ["advprompt = advprompt.cli.main:main"]},
    classifiers=[
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Operating System :: OS Independent",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
