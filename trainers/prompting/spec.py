"""What a prompted CLIP learns: lengths, depths, coupling and refiners of both towers."""

from dataclasses import asdict, dataclass, fields, replace
from functools import partial

from ..backbone.adapter import CLIPAdapter
from ..config.keys import Key
from ..utils.errors import UserError
from .frame import context_words

POSITIONS = ("end", "middle", "front")
LEAST = {"text_depth": 1, "vision_depth": 1, "refiner_ratio": 1, "code_width": 1}  # else 0
CHOICES = {
    "coupling": ("none", "text_to_vision", "vision_to_text"),
    "first_coupling": ("same", "text_to_vision"),
    "refiner_init": ("default", "zero"),
    "position": POSITIONS,
}
# without effect once values are loaded; of text_init, words stay after the vectors
STARTS = ("init_std", "refiner_init", "template")
length = partial(Key, least=1, most=1000)  # declares N_CTX and PROMPT_DEPTH; a CLIP takes less


def of_context(number: int, source: str) -> dict[str, Key]:
    """Return the declarations of CoOp's keys: context vectors in the text input."""
    return {
        "N_CTX": length(number, f"number of context vectors ({source})"),
        "CTX_INIT": Key("", "words to start from, which then set their number"),
        "CSC": Key(False, "class-specific contexts"),
        "CLASS_TOKEN_POSITION": Key("end", "place of the class name", choices=POSITIONS),
    }


@dataclass(frozen=True)
class PromptSpec:
    """Prompts and refiners of the two towers, each of which counts its own blocks.

    Depth 1 puts vectors into the input only (CoOp); depth J also gives the prompt positions new
    vectors before blocks 1 to J-1, after which the outputs pass through. Coupled vectors are a
    Linear of the other tower's, one per layer: ``text_to_vision`` (MaPLe, NAP) or
    ``vision_to_text`` (FAP, whose input layer is ``text_to_vision``). If the driven tower has more
    layers with prompts, the driving one keeps vectors for them that only feed the Linear.
    Refiners act before blocks 1 to depth-1 on every token that is not a prompt (image: [CLS] and
    patches; text: start token, words, end token [our choice; the authors' code never calls its
    text refiners]). UserError for a value out of range or a combination that makes no sense.
    """

    text: int = 0  # number M_t of text vectors; 0: the words of `template`
    text_depth: int = 1
    vision: int = 0  # number M_v of visual tokens, after [CLS] and patches, before ln_pre
    vision_depth: int = 1
    coupling: str = "none"  # or text_to_vision, vision_to_text: with the same number in both
    first_coupling: str = "same"  # of the input layer; or text_to_vision (with vision_to_text)
    refine_vision: bool = False
    refine_text: bool = False
    refiner_ratio: int = 2  # hidden width over token width
    refiner_init: str = "default"  # or zero: the identity at the start
    text_init: str = ""  # words that the first layer starts from; spare ones stay after it (MaPLe)
    csc: bool = False  # class-specific text vectors
    position: str = "end"  # of the class name: end, middle or front
    init_std: float = 0.02  # standard deviation of the normal initial values, >= 0
    template: str = "a photo of a {}."  # the prompt where `text` is 0
    codes: int = 0  # size of the codebook that rebuilds the patches (DEFEAT); 0: none
    code_width: int = 256
    share: float = 0.5  # with a codebook: of the image's own logits, the rest is the patches'

    def __post_init__(self):
        for field in fields(self):
            limits = {"least": LEAST.get(field.name, 0), "choices": CHOICES.get(field.name, ())}
            key = Key(field.default, **limits)
            key.read(f"prompt setting {field.name}", getattr(self, field.name))
        if self.text == 0 and "{}" not in self.template:
            raise UserError(
                f"prompt template '{self.template}' has no place for the class name; write "
                "{} where the name goes"
            )
        if self.first_coupling != "same" and self.coupling != "vision_to_text":
            raise UserError(
                f"first_coupling '{self.first_coupling}' goes with coupling 'vision_to_text', not "
                f"'{self.coupling}'; set it to 'same'"
            )
        if self.text_init and (self.text == 0 or self.text_is_driven):
            raise UserError(
                f"text_init '{self.text_init}' cannot start text vectors: there are none, or they "
                "are made from the visual ones; leave it empty"
            )
        if self.coupling != "none" and (self.csc or self.text != self.vision):
            raise UserError(
                f"coupling '{self.coupling}' makes one tower's prompts from the other's, but there "
                f"are {self.text} text and {self.vision} visual vectors, csc {self.csc}; give both "
                "the same number and csc False, or set coupling to 'none'"
            )
        if self.codes and (self.vision or self.refine_vision):
            what = "visual vectors or refiners; leave those out, or set codes to 0"
            raise UserError(f"a codebook of {self.codes} does not go with {what}")

    @property
    def text_is_driven(self) -> bool:
        """Whether the text vectors of the input layer are made from the visual ones."""
        return self.coupling == "vision_to_text" and self.first_coupling == "same"

    @property
    def acts_on_images(self) -> bool:
        """Whether image features differ from the frozen tower's."""
        refined = self.refine_vision and self.vision_depth > 1
        return self.vision > 0 or self.codes > 0 or refined

    @property
    def acts_on_texts(self) -> bool:
        """Whether text features differ from those of the template."""
        return self.text > 0 or (self.refine_text and self.text_depth > 1)

    def facts(self) -> dict:
        """Return what two models must have in common for one to take the other's values."""
        return {name: value for name, value in asdict(self).items() if name not in STARTS}

    def cut_to(self, clip: CLIPAdapter) -> "PromptSpec":
        """Return the specification with depths no greater than the towers of ``clip``."""
        layers = {"text_depth": clip.text_layers, "vision_depth": clip.vision_layers}
        depths = {k: min(getattr(self, k), n) for k, n in layers.items() if n is not None}
        return replace(self, **depths)

    def check_backbone(self, clip: CLIPAdapter) -> None:
        """Refuse (UserError) a backbone that takes no such prompts, or has fewer blocks."""
        if (self.vision or self.refine_vision) and not clip.is_vit:
            raise UserError(
                f"backbone {clip.name} is not a vision transformer that runs block by block, so "
                f"its image tower takes no {'visual prompts' if self.vision else 'refiners'}; "
                "choose a ViT backbone or a method with text prompts only"
            )
        for tower, layers in (("text", clip.text_layers), ("vision", clip.vision_layers)):
            acts = getattr(self, tower) or getattr(self, f"refine_{tower}")
            depth = getattr(self, f"{tower}_depth")
            if acts and layers is not None and depth > layers:
                raise UserError(
                    f"{tower} prompt depth {depth} goes beyond the {layers} blocks of the {tower} "
                    f"tower of {clip.name}; choose a depth from 1 to {layers}"
                )


def in_context(keys, clip: CLIPAdapter) -> PromptSpec:
    """Return CoOp's prompts, see :func:`of_context`; words to start from set their number."""
    return PromptSpec(
        text=len(context_words(clip, keys.CTX_INIT)) or keys.N_CTX,
        text_init=keys.CTX_INIT,
        csc=keys.CSC,
        position=keys.CLASS_TOKEN_POSITION,
    )


def in_both_towers(keys, **others) -> PromptSpec:
    """Return N_CTX vectors in PROMPT_DEPTH layers of either tower.

    The text vectors start from the first words of CTX_INIT, where a method has that key, unless
    they are made from the visual ones or there are fewer words than vectors (as MaPLe does).
    """
    words, count = keys.get("CTX_INIT", ""), keys.N_CTX
    enough = 0 < count <= len(words.replace("_", " ").split())
    depth = keys.PROMPT_DEPTH
    spec = PromptSpec(text=count, vision=count, text_depth=depth, vision_depth=depth, **others)
    return spec if spec.text_is_driven else replace(spec, text_init=words if enough else "")
