"""Install the folders of this repository as one package, ``advprompt``.

``trainers/`` becomes ``advprompt`` itself; ``datasets/``, ``configs/`` and ``scripts/`` become
its sub-packages, so that no name as common as ``trainers`` or ``datasets``
reaches site-packages. Everything about the build that is not a mapping of folders is in
pyproject.toml.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
DEFENCES = ["scikit-image", "PyWavelets", "diffusers"]
FOLDERS = {
    "advprompt": "trainers",
    "advprompt.datasets": "datasets",
    "advprompt.configs": "configs",
    "advprompt.scripts": "scripts",
}


def read(name):
    path = HERE / name
    return path.read_text(encoding="utf-8") if path.exists() else ""


def all_packages():
    """Map every package to its folder, sub-packages included."""
    folders = dict(FOLDERS)
    for package, folder in FOLDERS.items():
        for inner in find_packages(str(HERE / folder)):
            folders[f"{package}.{inner}"] = f"{folder}/{inner.replace('.', '/')}"
    return folders


PACKAGES = all_packages()

setup(
    name="advprompt",
    version=re.search(r'__version__ = "(.+)"', read("trainers/utils/version.py"))[1],
    description="Adversarially robust prompt learning for CLIP, on top of CoOp and Dassl",
    long_description=read("README.md"),
    long_description_content_type="text/markdown",
    author="advprompt contributors",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=list(PACKAGES),
    package_dir=PACKAGES,
    package_data={
        "advprompt": ["assets/*.safetensors", "assets/*.md", "assets/*.json"],
        "advprompt.datasets": ["*.yaml"],
        "advprompt.configs": ["**/*.yaml", "**/*.md"],
        "advprompt.scripts": ["**/*.sh"],
    },
    install_requires=[
        "torch>=2.0",
        "torchvision",
        "numpy",
        "pillow",
        "yacs",
        "tqdm",
        "tabulate",
        "open_clip_torch",
        "torchattacks",
        "matplotlib",
        "safetensors",
    ],
    extras_require={
        "dassl": ["dassl @ git+https://github.com/KaiyangZhou/Dassl.pytorch"],
        "defences": DEFENCES,
        "slurm": ["submitit"],
        "tensorboard": ["tensorboard"],
        "test": [
            *["pytest", "pytest-xdist", "hypothesis", "ruff", "setuptools>=64", "wheel"],
            "pyautoattack",  # the authors' AutoAttack, which ours is held against
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
    ],
)
