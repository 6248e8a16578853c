"""Tokenizers of all packages behind one interface."""

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import torch

from ..utils.errors import UserError

PROBES = ("a photo of a cat.", "an old dog", "a centered satellite photo of forest")


class Tokenizer:
    """Texts to padded ids, refusing texts that are too long instead of cutting them.

    Args:
        encode: text -> ids of its words alone.
        start, end: ids before and after the words.
        pad: id that fills the rest.
        context_length: positions of the text tower.
    """

    def __init__(
        self,
        encode: Callable[[str], list[int]],
        start: Sequence[int],
        end: Sequence[int],
        *,
        pad: int = 0,
        context_length: int = 77,
    ):
        self.encode, self.pad, self.context_length = encode, pad, context_length
        self.start, self.end = list(start), list(end)

    def __call__(self, texts: list[str], context_length: int | None = None) -> torch.Tensor:
        """Return ids (K, context_length), padded; UserError for a text beyond the context."""
        length = context_length or self.context_length
        layouts = [[*self.start, *self.encode(text), *self.end] for text in texts]
        for text, ids in zip(texts, layouts, strict=True):
            if len(ids) > length:
                raise UserError(
                    f"the text '{text}' takes {len(ids)} tokens but the text tower reads "
                    f"{length}; shorten it"
                )
        return self.rows(layouts, length)

    def rows(self, layouts: Sequence[Sequence[int]], length: int) -> torch.Tensor:
        """Pad ids to (K, length)."""
        rows = [[*ids, *[self.pad] * (length - len(ids))] for ids in layouts]
        return torch.tensor(rows, dtype=torch.long).view(len(layouts), length)  # (K, L)


@lru_cache(maxsize=1)
def from_open_clip() -> Tokenizer:
    """CLIP's tokenizer as open_clip brings it, read from its file: the package imports slowly."""
    path = Path(importlib.util.find_spec("open_clip").origin).with_name("tokenizer.py")
    spec = importlib.util.spec_from_file_location("open_clip_tokenizer", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    bpe = module.SimpleTokenizer()
    return Tokenizer(bpe.encode, [bpe.sot_token_id], [bpe.eot_token_id])


def from_clip() -> Tokenizer:
    """CLIP's tokenizer as OpenAI's ``clip`` (or a fork's copy) brings it."""
    bpe = importlib.import_module("clip.simple_tokenizer").SimpleTokenizer()
    ends = ([bpe.encoder[f"<|{end}oftext|>"]] for end in ("start", "end"))
    return Tokenizer(bpe.encode, *ends)


class WholeTexts:
    """A tokenizer whose rows cannot be taken apart: whole texts only, no learned prompts."""

    encode = None

    def __init__(self, tokenizer, context_length: int):
        self._tokenizer, self.context_length = tokenizer, context_length

    def __call__(self, texts: list[str], context_length: int | None = None) -> torch.Tensor:
        """Return ids (K, context_length)."""
        return self._tokenizer(texts, context_length=context_length or self.context_length)


def from_hugging_face(tokenizer, context_length: int) -> Tokenizer | WholeTexts:
    """Take open_clip's ``HFTokenizer`` (SigLIP, multilingual models) apart.

    What stands before the words, after them and in the rest of a row is read off its own
    rows; where that does not give its rows back, it serves for whole texts only.
    """
    words = getattr(tokenizer, "tokenizer", None)
    clean = getattr(tokenizer, "clean_fn", str)

    def encode(text: str) -> list[int]:
        return list(words(clean(text), add_special_tokens=False)["input_ids"])

    whole = WholeTexts(tokenizer, context_length)
    try:
        room = 77  # whatever the tower reads: the probes must not be cut
        row, body = whole([PROBES[0]], room)[0].tolist(), encode(PROBES[0])
        at = next(i for i in range(len(row)) if row[i : i + len(body)] == body)
        rest = row[at + len(body) :]
        pad = rest[-1]
        closing = [i for i, token in enumerate(rest) if token != pad]
        end = rest[: closing[-1] + 1] if closing else rest[:1]  # SigLIP pads with its end token
        found = Tokenizer(encode, row[:at], end, pad=pad, context_length=context_length)
        same = torch.equal(found(list(PROBES), room), whole(list(PROBES), room))
    except Exception:  # of another make than was foreseen
        same = False
    return found if same else whole
