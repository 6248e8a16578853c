"""Where the data sets come from: addresses, checksums, sizes and terms of use.

Addresses and Google Drive files are those of CoOp's DATASETS.md and of the publishers' pages.
Sizes and checksums are those that TensorFlow Datasets (SHA-256) and torchvision (MD5) record for
the same files; the MD5s of ImageNet-A and ImageNet-R are those of public code that uses them, that
of EuroSAT's second address is Zenodo's. ``python -m advprompt data`` reads this; docs/data.md tells
what was tried.
"""

from .addresses import Address, Piece, Source, drive


def archive(makes: str, url: str, size: int | None = None, *digests: str, **facts) -> Piece:
    """Return the piece of one archive with one address; ``makes`` names paths, with spaces."""
    annotation = facts.pop("annotation", False)
    address = Address(url, size, digests, **facts)
    return Piece(tuple(makes.split()), (address,), annotation)


def by_hand(makes: str, advice: str, annotation: bool = False) -> Piece:
    """Return a piece that nobody serves without a registration, or at all."""
    return Piece(tuple(makes.split()), annotation=annotation, by_hand=advice)


CLASS_NAMES = Piece(
    ("classnames.txt",),
    (drive("1-61f_ol79pViBFDG_IDlUQSwoLcn2XXF", "classnames.txt"),),
    shared="imagenet",
)
CARS = "https://ai.stanford.edu/~jkrause/cars/car_dataset.html"
CARS_GONE = (
    f"the publisher's address ({CARS}) no longer serves it; take it from a copy that you or a "
    "colleague still have"
)
REGISTER = "register at https://image-net.org, download it and unpack it"
OXFORD = "https://www.robots.ox.ac.uk/~vgg/data"
SUN = "vision.princeton.edu/projects/2010/SUN"

_ALL = (
    Source(
        "caltech101",
        "Caltech101",
        100,
        (4128, 1649, 2465),
        "CC BY 4.0",
        "https://data.caltech.edu/records/mzrjq-6wc02",
        (
            Piece(
                ("101_ObjectCategories",),
                (
                    Address(
                        "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",
                        137_414_764,
                        (
                            "331234750fc7f77520e50d9565e8b6907b03565e30320da1401130db08c61f91",
                            "3138e1922a9193bfa496528edbbc45d0",
                        ),
                        inner="caltech-101/101_ObjectCategories.tar.gz",
                    ),
                    Address(
                        "http://www.vision.caltech.edu/Image_Datasets/Caltech101/"
                        "101_ObjectCategories.tar.gz",
                        131_740_031,
                        ("af6ece2f339791ca20f855943d8b55dd60892c0a25105fcd631ee3d6430f9926",),
                    ),
                ),
            ),
        ),
        split="1hyarUivQE36mY6jSomru6Fjd-JzwcCzN",
    ),
    Source(
        "oxford_pets",
        "OxfordPets",
        37,
        (2944, 736, 3669),
        "CC BY-SA 4.0",
        f"{OXFORD}/pets/",
        (
            archive(
                "images",
                f"{OXFORD}/pets/data/images.tar.gz",
                791_918_971,
                "67195c5e1c01f1ab5f9b6a5d22b8c27a580d896ece458917e61d459337fa318d",
                "5c4f3ee8e5d25df40f4fd59a7f44e54c",
            ),
            archive(
                "annotations",
                f"{OXFORD}/pets/data/annotations.tar.gz",
                19_173_078,
                "52425fb6de5c424942b7626b428656fcbd798db970a937df61750c0f1d358e91",
                "95a8c909bbe2e81eed6a22bccdf3f68f",
                annotation=True,
            ),
        ),
        split="1501r8Ber4nNKvmlFVQZ8SeUHTcdTTEqs",
    ),
    Source(
        "stanford_cars",
        "StanfordCars",
        196,
        (6509, 1635, 8041),
        "research, as ImageNet",
        CARS,
        (
            by_hand("cars_train", f"cars_train.tgz: {CARS_GONE}, and unpack it"),
            by_hand("cars_test", f"cars_test.tgz: {CARS_GONE}, and unpack it"),
            by_hand(
                "devkit/cars_meta.mat devkit/cars_train_annos.mat",
                f"car_devkit.tgz: {CARS_GONE}, and unpack it",
                annotation=True,
            ),
            by_hand(
                "cars_test_annos_withlabels.mat",
                f"cars_test_annos_withlabels.mat: {CARS_GONE}",
                annotation=True,
            ),
        ),
        split="1ObCFbaAgVu0I-k_Au-gIUcefirdAuizT",
        folders=(("cars_train", 0, 8144), ("cars_test", 0, 8041)),
    ),
    Source(
        "oxford_flowers",
        "OxfordFlowers",
        102,
        (4093, 1633, 2463),
        "none stated",
        f"{OXFORD}/flowers/102/",
        (
            archive(
                "jpg",
                f"{OXFORD}/flowers/102/102flowers.tgz",
                344_862_509,
                "2d01ecc807db462958cfe3d92f57a8c252b4abd240eb955770201e45f783b246",
                "52808999861908f626f3c1f4e79d11fa",
            ),
            archive(
                "imagelabels.mat",
                f"{OXFORD}/flowers/102/imagelabels.mat",
                502,
                "4903e94206bac23bf772aadf06451916df56b58fc483a62db32a97b82656651d",
                "e0620be6f572b9609742df49c70aed4d",
                annotation=True,
            ),
            Piece(
                ("cat_to_name.json",),
                (drive("1AkcxCXeK_RCGCEC_GvmWxjcjaNhu-at0", "cat_to_name.json"),),
                annotation=True,
            ),
        ),
        split="1Pp0sRXzZFZq15zVOzKjKBu4A9i01nozT",
    ),
    Source(
        "food101",
        "Food101",
        101,
        (50_500, 20_200, 30_300),
        "research; images of Foodspotting",
        "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        (
            archive(
                "images",
                "http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
                4_996_278_331,
                "d97d15e438b7f4498f96086a4f7e2fa42a32f2712e87d3295441b2b6314053a4",
                "85eeb15f3717b99a5da872d97d918f87",
                top="food-101/",
            ),
        ),
        split="1QK0tGi096I0Ba6kggatX1ee6dJFIcEJl",
    ),
    Source(
        "fgvc_aircraft",
        "FGVCAircraft",
        100,
        (3334, 3333, 3333),
        "non-commercial research",
        f"{OXFORD}/fgvc-aircraft/",
        (
            archive(
                "images variants.txt images_variant_train.txt images_variant_val.txt "
                "images_variant_test.txt",
                f"{OXFORD}/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
                2_750_000_000,
                top="fgvc-aircraft-2013b/data/",
            ),
        ),
    ),
    Source(
        "sun397",
        "SUN397",
        397,
        (15_880, 3970, 19_850),
        "research; images of their owners",
        f"https://{SUN}/",
        (
            archive(
                "SUN397",
                f"http://{SUN}/SUN397.tar.gz",
                39_077_296_924,
                "f404130965a7ad77bed5ececc71e720ab50f3cc1e1bb257257610d38f3b928ec",
                "8ca2778205c41d23104230ba66911c7a",
            ),
            archive(
                "ClassName.txt Training_01.txt Testing_01.txt",
                f"https://{SUN}/download/Partitions.zip",
                18_293_705,
                "e3311ea5f812d4cc6faef194688343d1111f6cd6f70f2c62f393c2b8d6ba1ec9",
                annotation=True,
            ),
        ),
        split="1y2RD81BYuiyvebdN-JymPfyWYcd8_MUq",
    ),
    Source(
        "dtd",
        "DescribableTextures",
        47,
        (2820, 1128, 1692),
        "research",
        f"{OXFORD}/dtd/",
        (
            archive(
                "images",
                f"{OXFORD}/dtd/download/dtd-r1.0.1.tar.gz",
                625_239_812,
                "e42855a52a4950a3b59612834602aa253914755c95b0cff9ead6d07395f8e205",
                "fff73e5086ae6bdbea199a49dfb8a4c1",
                top="dtd/",
            ),
        ),
        split="1u3_QfB467jqHgNXC00UIzbLZRQCg2S7x",
    ),
    Source(
        "eurosat",
        "EuroSAT",
        10,
        (13_500, 5400, 8100),
        "MIT",
        "https://github.com/phelber/EuroSAT",
        (
            Piece(
                ("2750",),
                (
                    Address(
                        "http://madm.dfki.de/files/sentinel/EuroSAT.zip",
                        94_280_567,
                        (
                            "8ebea626349354c5328b142b96d0430e647051f26efc2dc974c843f25ecf70bd",
                            "c8fa014336c82ac7804f0398fcb19387",
                        ),
                    ),
                    Address(  # the publishers' later edition, with the same file names
                        "https://zenodo.org/records/7711810/files/EuroSAT_RGB.zip",
                        94_658_721,
                        ("f46e308c4d50d4bf32fedad2d3d62f3b",),
                        renames=(("EuroSAT_RGB", "2750"),),
                    ),
                ),
            ),
        ),
        split="1Ip7yaCWFi0eaOFUGga0lUdVi_DDQth1o",
    ),
    Source(
        "ucf101",
        "UCF101",
        101,
        (7639, 1898, 3783),
        "none stated",
        "https://www.crcv.ucf.edu/data/UCF101.php",
        (
            Piece(
                ("UCF-101-midframes",),
                (drive("10Jqome3vtUA2keJkNanAiFpgbyC9Hc2O", "UCF-101-midframes.zip"),),
            ),
        ),
        split="1I0S0q91hJfsV9Gf4xDIjgDq4AqBNJb1y",
    ),
    Source(
        "imagenet",
        "ImageNet",
        1000,
        (1_281_167, 0, 50_000),
        "registration, non-commercial research",
        "https://image-net.org",
        (
            by_hand(
                "images/train",
                "ILSVRC2012_img_train.tar (138 GB, MD5 1d675b47d978889d74fa0da5fadfb00e): "
                f"{REGISTER} and the 1,000 archives in it, each into a folder of its name "
                "(n01440764, ...)",
            ),
            by_hand(
                "images/val",
                "ILSVRC2012_img_val.tar (6.3 GB, MD5 29b22e2961454d5413ddabcf34fc5622): "
                f"{REGISTER}, then sort the images into the 1,000 folders of their classes",
            ),
            CLASS_NAMES,
        ),
        folders=(("images/train", 1000, 1_281_167), ("images/val", 1000, 50_000)),
    ),
    Source(
        "imagenetv2",
        "ImageNetV2",
        1000,
        (0, 0, 10_000),
        "MIT; images of Flickr",
        "https://github.com/modestyachts/ImageNetV2",
        (
            Piece(
                ("imagenetv2-matched-frequency-format-val",),
                (
                    Address(
                        "https://huggingface.co/datasets/vaishaal/ImageNetV2/resolve/main/"
                        "imagenetv2-matched-frequency.tar.gz",
                        1_264_079_360,
                        ("f0c37fdf925916b19ea1323cd9a2208cdb6959ba2c32eef2a7fc393835c9ca7c",),
                    ),
                    Address(
                        "https://s3-us-west-2.amazonaws.com/imagenetv2public/"
                        "imagenetv2-matched-frequency.tar.gz"
                    ),
                ),
            ),
            CLASS_NAMES,
        ),
        folders=(("imagenetv2-matched-frequency-format-val", 1000, 10_000),),
    ),
    Source(
        "imagenet_sketch",
        "ImageNetSketch",
        1000,
        (0, 0, 50_889),
        "none stated for the images",
        "https://github.com/HaohanWang/ImageNet-Sketch",
        (
            Piece(
                ("images",),
                (
                    drive(
                        "1Mj0i5HBthqH1p_yeXzsg22gZduvgoNeA",
                        "ImageNet-Sketch.zip",
                        7_593_573_012,
                        "4d3ce6b82a7c48aabf14aeac105eb533e75707f152cc858f55bfc022031a72ed",
                        renames=(("sketch", "images"),),
                    ),
                ),
            ),
            CLASS_NAMES,
        ),
        folders=(("images", 1000, 50_889),),
    ),
    Source(
        "imagenet_a",
        "ImageNetA",
        200,
        (0, 0, 7500),
        "MIT; images of their owners",
        "https://github.com/hendrycks/natural-adv-examples",
        (
            archive(
                "imagenet-a",
                "https://people.eecs.berkeley.edu/~hendrycks/imagenet-a.tar",
                687_552_512,
                "3bb3632277e6ba6392ea64c02ddbf4dd2266c9caffd6bc09c9656d28f012589e",
                "c3e55429088dc681f30d81f4726b6595",
            ),
            CLASS_NAMES,
        ),
        folders=(("imagenet-a", 200, 7500),),
    ),
    Source(
        "imagenet_r",
        "ImageNetR",
        200,
        (0, 0, 30_000),
        "MIT; images of their owners",
        "https://github.com/hendrycks/imagenet-r",
        (
            archive(
                "imagenet-r",
                "https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar",
                2_191_079_936,
                "18c6bf493b39a0d975d48e587437f562caab9c52ae6327dcfa9dd8eb54aa1b52",
                "a61312130a589d0ca1a8fca1f2bd3337",
            ),
            CLASS_NAMES,
        ),
        folders=(("imagenet-r", 200, 30_000),),
    ),
)
SOURCES = {source.name: source for source in _ALL}

SHORT_NAMES = {
    "pets": "oxford_pets",
    "flowers": "oxford_flowers",
    "cars": "stanford_cars",
    "aircraft": "fgvc_aircraft",
    "food": "food101",
    "sun": "sun397",
    "caltech": "caltech101",
    "ucf": "ucf101",
    "sketch": "imagenet_sketch",
}
