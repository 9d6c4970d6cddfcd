"""Words to unit vectors: templates, tokenizer, text tower, averaging.

Shapes: W words, K templates, T tokens, E embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from segclip.models.segclip import SegCLIP
    from segclip.tokenizer import ClipTokenizer

__all__ = ["Averaging", "TextBank", "average_templates", "tokenize"]

Averaging = Literal["mean_then_normalise", "normalise_mean_normalise"]


def _tokenizer() -> ClipTokenizer:
    from segclip.tokenizer import clip_tokenizer  # reads the vocabulary: only when words are needed

    return clip_tokenizer()


def tokenize(texts: Sequence[str], context_length: int) -> Tensor:
    """CLIP's byte-pair ids, int64 [len(texts), context_length], padded with 0.

    Raises:
        ValueError: a text has more tokens than fit. Cutting it would silently ask for something else.
    """
    tokenizer = _tokenizer()
    rows = torch.zeros(len(texts), context_length, dtype=torch.long)
    for row, text in zip(rows, texts, strict=True):
        ids = [tokenizer.sot_token_id, *tokenizer.encode(text), tokenizer.eot_token_id]
        if len(ids) > context_length:
            raise ValueError(
                f"{text!r} has {len(ids)} tokens, but the model reads only {context_length}; use fewer words"
            )
        row[: len(ids)] = torch.tensor(ids)
    return rows


def average_templates(embed_WKE: Tensor, rule: Averaging) -> Tensor:
    """One unit vector a word, [W, E], from its un-normalised embeddings under each template.

    ``mean_then_normalise`` lets templates with long embeddings weigh more, as the original does;
    ``normalise_mean_normalise`` weighs all alike, as CLIP's own zero-shot code does.
    """
    if rule == "normalise_mean_normalise":
        embed_WKE = F.normalize(embed_WKE, dim=-1)
    return F.normalize(embed_WKE.mean(dim=1), dim=-1)


class TextBank:
    """Embeddings of words by one model under one set of templates, each word computed once.

    The bank belongs to the weights the model has now: make a new one after training goes on.
    """

    def __init__(
        self,
        model: SegCLIP,
        templates: Sequence[str] = ("{}",),
        averaging: Averaging = "mean_then_normalise",
        *,
        batch_size: int = 256,
    ) -> None:
        vocabulary = _tokenizer().vocab_size
        if model.config.vocab_size != vocabulary:
            raise ValueError(
                f"the checkpoint has a vocabulary of {model.config.vocab_size} tokens, but CLIP's tokenizer "
                f"has {vocabulary}: it was trained with another tokenizer"
            )
        self._model = model
        self._templates = tuple(templates)
        self._averaging: Averaging = averaging
        self._batch_size = batch_size
        self._known: dict[str, Tensor] = {}

    @torch.inference_mode()
    def __call__(self, words: Sequence[str]) -> Tensor:
        """Unit rows float32 [W, E] on the model's device.

        Raises:
            ValueError: no words, an empty word, or one too long for the model.
        """
        if not words:
            raise ValueError("no words to segment by")
        if any(not word.strip() for word in words):
            raise ValueError("a class name is empty; every class needs at least one word")
        new = [word for word in dict.fromkeys(words) if word not in self._known]
        if new:
            texts = [template.replace("{}", word) for word in new for template in self._templates]
            tokens_NT = tokenize(texts, self._model.config.context_length)
            device = next(self._model.parameters()).device
            embed_NE = torch.cat(
                [
                    self._model.encode_text(part.to(device)).float()
                    for part in tokens_NT.split(self._batch_size)
                ]
            )
            embed_WKE = embed_NE.unflatten(0, (len(new), len(self._templates)))
            self._known.update(zip(new, average_templates(embed_WKE, self._averaging), strict=True))
        return torch.stack([self._known[word] for word in words])
