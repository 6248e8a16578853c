"""Hand-made prompt templates, one per data set, as in CoOp."""

TEMPLATES = {
    "OxfordPets": "a photo of a {}, a type of pet.",
    "OxfordFlowers": "a photo of a {}, a type of flower.",
    "FGVCAircraft": "a photo of a {}, a type of aircraft.",
    "DescribableTextures": "{} texture.",
    "EuroSAT": "a centered satellite photo of {}.",
    "StanfordCars": "a photo of a {}.",
    "Food101": "a photo of {}, a type of food.",
    "SUN397": "a photo of a {}.",
    "Caltech101": "a photo of a {}.",
    "UCF101": "a photo of a person doing {}.",
    "ImageNet": "a photo of a {}.",
    "ImageNetSketch": "a photo of a {}.",
    "ImageNetV2": "a photo of a {}.",
    "ImageNetA": "a photo of a {}.",
    "ImageNetR": "a photo of a {}.",
    "Shapes": "a drawing of a {}.",
}
DEFAULT_TEMPLATE = "a photo of a {}."


def template_for(dataset: str) -> str:
    """Return the template of a data set, ``a photo of a {}.`` for unknown ones."""
    return TEMPLATES.get(dataset, DEFAULT_TEMPLATE)


def fill(template: str, classnames: list[str]) -> list[str]:
    """Put class names (underscores become blanks, as in CoOp) into ``template``."""
    return [template.replace("{}", name.replace("_", " ")) for name in classnames]


def same_text(template: str, classnames: list[str]) -> tuple[list[str], str] | None:
    """Return the first class names that get one text, and that text; CLIP reads lower case."""
    texts: dict[str, list[str]] = {}
    for name, text in zip(classnames, fill(template, classnames), strict=True):
        texts.setdefault(" ".join(text.lower().split()), []).append(name)
    return next(((names, text) for text, names in texts.items() if len(names) > 1), None)
