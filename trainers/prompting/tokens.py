"""CLIP's byte-pair tokenizer behind one face, whichever package brings it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import lru_cache

import torch

from ..errors import UserError


class Tokenizer:
    """Texts to padded ids, refusing texts that are too long instead of cutting them.

    Args:
        encode: text -> ids without start and end token.
        decode: ids -> text, a blank behind every whole word.
        sot, eot: ids of the start and the end token.
        context_length: positions of the text tower.
    """

    def __init__(
        self,
        encode: Callable[[str], list[int]],
        sot: int,
        eot: int,
        context_length: int = 77,
        decode: Callable[[list[int]], str] | None = None,
    ):
        self.encode, self.sot, self.eot, self.decode = encode, sot, eot, decode
        self.context_length = context_length

    def __call__(self, texts: list[str], context_length: int | None = None) -> torch.Tensor:
        """Return ids (K, context_length), zero-padded.

        Raises:
            UserError: a text is longer than the context.
        """
        length = context_length or self.context_length
        out = torch.zeros(len(texts), length, dtype=torch.long)  # (K, L)
        for row, text in enumerate(texts):
            ids = [self.sot, *self.encode(text), self.eot]
            if len(ids) > length:
                raise UserError(
                    f"the text '{text}' takes {len(ids)} tokens but the text tower reads "
                    f"{length}; shorten it"
                )
            out[row, : len(ids)] = torch.tensor(ids)
        return out


@lru_cache(maxsize=1)
def from_open_clip() -> Tokenizer:
    """CLIP's tokenizer as open_clip brings it."""
    from open_clip.tokenizer import SimpleTokenizer

    bpe = SimpleTokenizer()
    return Tokenizer(bpe.encode, bpe.sot_token_id, bpe.eot_token_id, decode=bpe.decode)


def from_clip() -> Tokenizer:
    """CLIP's tokenizer as OpenAI's ``clip`` (or a fork's copy) brings it."""
    bpe = importlib.import_module("clip.simple_tokenizer").SimpleTokenizer()
    ends = bpe.encoder["<|startoftext|>"], bpe.encoder["<|endoftext|>"]
    return Tokenizer(bpe.encode, *ends, decode=bpe.decode)


class ForeignTokenizer:
    """A tokenizer of another family (SigLIP, Hugging Face): whole texts only."""

    encode = None  # no ids without padding, hence no learned prompts

    def __init__(self, tokenizer, context_length: int):
        self._tokenizer, self.context_length = tokenizer, context_length

    def __call__(self, texts: list[str], context_length: int | None = None) -> torch.Tensor:
        """Return ids (K, context_length)."""
        return self._tokenizer(texts, context_length=context_length or self.context_length)
