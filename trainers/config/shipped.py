"""The yaml files that come with the package: trainers, data sets and threat models."""

from pathlib import Path

from ..utils.errors import UserError, nearest

PACKAGE = Path(__file__).resolve().parents[1]  # the folder of the package


def configs_folder() -> Path:
    """Return the folder with trainers/, datasets/ and attacks/; UserError if this copy has none."""
    places = (
        PACKAGE / "configs",  # installed
        PACKAGE.parent.parent / "configs" / "advprompt",  # in a fork, as trainers/advprompt
        PACKAGE.parent / "configs",  # the clone
    )
    for place in places:
        if (place / "attacks").is_dir():
            return place
    raise UserError(
        f"the config files that belong to '{PACKAGE}' are not there (looked for '{places[0]}'); "
        "name a file by its path"
    )


def config_file(kind: str, name: str) -> Path:
    """Return the file of a config of ``trainers``, ``datasets`` or ``attacks``.

    Its name is such as ``linf1`` or, for trainers, ``AdvPT/vit_b16``; or the path of a file.
    """
    if Path(name).suffix in (".yaml", ".yml") or Path(name).is_file():
        # whether it exists is checked when it is opened
        return Path(name)
    folder = configs_folder() / kind
    files = sorted(folder.rglob("*.yaml"))
    names = {path.relative_to(folder).with_suffix("").as_posix(): path for path in files}
    if name not in names:
        what = {"trainers": "trainer config", "datasets": "data set", "attacks": "threat model"}
        raise UserError(f"no {what[kind]} is called '{name}'.{nearest(name, names)}")
    return names[name]
