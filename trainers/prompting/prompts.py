"""What a prompted CLIP learns: lengths, depths, coupling and refiners of both towers."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from ..backbone.adapter import CLIPAdapter
from ..utils.errors import UserError, nearest
from .learner import INIT_STD, POSITIONS, context_words
from .refiner import INITS

COUPLINGS = ("none", "text_to_vision", "vision_to_text")
STARTS = ("init_std", "refiner_init", "template")  # no matter once values are loaded


@dataclass(frozen=True)
class PromptSpec:
    """Prompts and refiners of the two towers, which count their own blocks.

    Attributes:
        text: number M_t of text vectors; 0 leaves the words of ``template``.
        text_depth: 1 puts vectors into the input only (CoOp); J also gives the prompt positions
            new vectors before blocks 1 to J-1. Behind them the outputs travel on.
        vision: number M_v of visual tokens, appended to [CLS] and patches before ``ln_pre``.
        vision_depth: the same for the image tower.
        coupling: ``none`` (independent vectors), ``text_to_vision`` (visual vectors are a Linear
            of the text vectors, one per layer: MaPLe, NAP) or ``vision_to_text`` (the reverse:
            FAP). Both towers then have the same number of vectors. Where the driven tower goes
            deeper than the driving one, the driver keeps vectors for those layers too; they only
            feed the Linear.
        refine_vision, refine_text: a :class:`~.refiner.TokenRefiner` before blocks 1 to depth-1
            on every token that is not a prompt (image: [CLS] and patches; text: start token,
            words, end token [our choice; the authors' code never calls its text refiners]).
        refiner_ratio: hidden width over token width.
        refiner_init: ``default`` or ``zero`` (identity at the start).
        text_init: words whose embeddings the first layer's text vectors start from; words
            beyond the ``text`` first tokens stay as fixed words behind the vectors (MaPLe, IVLP).
        csc: class-specific text vectors.
        position: where the class name stands: ``end``, ``middle`` or ``front``.
        init_std: standard deviation of the normal initial values.
        template: the prompt where ``text`` is 0.

    Raises:
        UserError: a value out of range or a combination that makes no sense.
    """

    text: int = 0
    text_depth: int = 1
    vision: int = 0
    vision_depth: int = 1
    coupling: str = "none"
    refine_vision: bool = False
    refine_text: bool = False
    refiner_ratio: int = 2
    refiner_init: str = "default"
    text_init: str = ""
    csc: bool = False
    position: str = "end"
    init_std: float = INIT_STD
    template: str = "a photo of a {}."

    def __post_init__(self):
        for field, least in (
            ("text", 0),
            ("vision", 0),
            ("text_depth", 1),
            ("vision_depth", 1),
            ("refiner_ratio", 1),
            ("init_std", 0),
        ):
            value = getattr(self, field)
            if value < least:
                raise UserError(
                    f"prompt setting {field} is {value} but must be {least} or more; raise it"
                )
        for field, choices in (
            ("coupling", COUPLINGS),
            ("refiner_init", INITS),
            ("position", POSITIONS),
        ):
            value = getattr(self, field)
            if value not in choices:
                raise UserError(
                    f"prompt setting {field} '{value}' is unknown.{nearest(value, choices)}"
                )
        if self.text == 0 and "{}" not in self.template:
            raise UserError(
                f"prompt template '{self.template}' has no place for the class name; write "
                "{} where the name goes"
            )
        self._check_coupling()

    def _check_coupling(self) -> None:
        if self.text_init and self.text == 0:
            raise UserError(
                f"text_init '{self.text_init}' starts text vectors but there are none; set their "
                "number or leave text_init empty"
            )
        if self.coupling == "none":
            return
        if self.text != self.vision:
            raise UserError(
                f"coupling '{self.coupling}' makes one tower's prompts from the other's, but "
                f"there are {self.text} text and {self.vision} visual vectors; give both the same "
                "number or set coupling to 'none'"
            )
        if self.csc:
            raise UserError(
                f"coupling '{self.coupling}' needs text vectors that all classes share; switch "
                "class-specific contexts (csc) off or set coupling to 'none'"
            )
        if self.text_init and self.coupling == "vision_to_text":
            raise UserError(
                f"text_init '{self.text_init}' cannot start text vectors that are made from the "
                "visual ones; leave it empty or choose another coupling"
            )

    @property
    def acts_on_images(self) -> bool:
        """Whether image features differ from the frozen tower's."""
        return self.vision > 0 or (self.refine_vision and self.vision_depth > 1)

    @property
    def acts_on_texts(self) -> bool:
        """Whether text features differ from those of the template."""
        return self.text > 0 or (self.refine_text and self.text_depth > 1)

    @property
    def source_depth(self) -> int:
        """Layers for which the driving tower of a coupling keeps vectors."""
        return max(self.text_depth, self.vision_depth)

    def facts(self) -> dict:
        """Return what two models must have in common for one to take the other's values.

        ``text_init`` is among it for the words that stay behind the vectors.
        """
        return {name: value for name, value in asdict(self).items() if name not in STARTS}

    def cut_to(self, clip: CLIPAdapter) -> PromptSpec:
        """Return the specification with depths no greater than the towers of ``clip``."""
        layers = {"text_depth": clip.text_layers, "vision_depth": clip.vision_layers}
        depths = {k: min(getattr(self, k), n) for k, n in layers.items() if n is not None}
        return replace(self, **depths)

    def check_backbone(self, clip: CLIPAdapter) -> None:
        """Compare with a backbone.

        Raises:
            UserError: the tower takes no prompts, or has fewer blocks than the depth.
        """
        if (self.vision or self.refine_vision) and not clip.is_vit:
            what = "visual prompts" if self.vision else "refiners"
            raise UserError(
                f"backbone {clip.name} is not a vision transformer that runs block by block, so "
                f"its image tower takes no {what}; choose a ViT backbone or a method with text "
                "prompts only"
            )
        used = {
            "text": (self.text or self.refine_text, self.text_depth, clip.text_layers),
            "vision": (self.vision or self.refine_vision, self.vision_depth, clip.vision_layers),
        }
        for tower, (acts, depth, layers) in used.items():
            if acts and layers is not None and depth > layers:
                raise UserError(
                    f"{tower} prompt depth {depth} goes beyond the {layers} blocks of the {tower} "
                    f"tower of {clip.name}; choose a depth from 1 to {layers}"
                )


def context_spec(keys, clip: CLIPAdapter) -> PromptSpec:
    """Return CoOp's prompts from its config keys; words to start from set the number of vectors.

    Args:
        keys: a config node with ``N_CTX``, ``CTX_INIT``, ``CSC`` and ``CLASS_TOKEN_POSITION``.
    """
    return PromptSpec(
        text=len(context_words(clip, keys.CTX_INIT)) or keys.N_CTX,
        text_init=keys.CTX_INIT,
        csc=keys.CSC,
        position=keys.CLASS_TOKEN_POSITION,
    )
