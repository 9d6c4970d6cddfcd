"""Multi-head attention, by plain matrix products or torch's fused kernel, whichever is faster for the shape.

Shape letters: B batch, H heads, Q query tokens, S key tokens, D head width, C = H * D.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from timm.layers import Attention
from torch import Tensor, nn

__all__ = ["MultiheadAttention", "SelfAttention", "attend"]

# Up to this many scores a head, plain products are at least as fast as the fused kernel on a CPU, forward and
# backward together; beyond, the fused kernel is as fast and does not keep the scores.
PLAIN_SCORES_CPU = 128 * 128


@cache
def _cpu_multiplies_bfloat16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


def _plain_is_faster(query_BHQD: Tensor, keys: int) -> bool:
    if query_BHQD.device.type != "cpu" or query_BHQD.shape[2] * keys > PLAIN_SCORES_CPU:
        return False
    # Without instructions for it, plain bfloat16 products crawl; the fused kernel computes in float32 inside.
    return query_BHQD.dtype != torch.bfloat16 or _cpu_multiplies_bfloat16()


def attend(query_BHQD: Tensor, key_BHSD: Tensor, value_BHSD: Tensor, mask_QS: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(D) + mask) v, with the softmax and its gradient in float32 at least.

    Args:
        mask_QS: added to the scores, in the type of the query; None for none.

    Returns:
        [B, Q, C], heads joined.
    """
    batch, heads, queries, width = query_BHQD.shape
    if _plain_is_faster(query_BHQD, key_BHSD.shape[2]):
        scores_BHQS = (query_BHQD * width**-0.5) @ key_BHSD.transpose(-2, -1)
        if mask_QS is not None:
            scores_BHQS = scores_BHQS + mask_QS
        # Like the fused kernel; no conversion where the scores are float32 anyway.
        wide = torch.promote_types(scores_BHQS.dtype, torch.float32)
        weights_BHQS = scores_BHQS.softmax(dim=-1, dtype=wide).to(value_BHSD.dtype)
        out_BHQD = weights_BHQS @ value_BHSD
    else:
        out_BHQD = F.scaled_dot_product_attention(query_BHQD, key_BHSD, value_BHSD, attn_mask=mask_QS)
    return out_BHQD.transpose(1, 2).reshape(batch, queries, heads * width)


class SelfAttention(Attention):
    """timm's ``Attention`` with its parameters, computed by ``attend``."""

    def forward(self, x_BLC: Tensor) -> Tensor:
        batch, tokens, _ = x_BLC.shape
        qkv = self.qkv(x_BLC).reshape(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        out: Tensor = self.proj(attend(*qkv.unbind(0)))
        return out


class MultiheadAttention(nn.MultiheadAttention):
    """torch's ``nn.MultiheadAttention`` (batch first) with its parameters, computed by ``attend``.

    Serves open_clip's text blocks, whose way of calling it this keeps, and the cross-attention of the
    centers. Both pass the same tensor as keys and values, so the values are not looked at. (Whether they are the
    same object cannot be checked: ZeRO stage 3 hands each argument through a hook of its own.)
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads, batch_first=True)

    def forward(  # type: ignore[override]  # only the arguments that are used here
        self,
        query_BQC: Tensor,
        key_BSC: Tensor,
        value_BSC: Tensor,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        assert not need_weights, "attention weights are never formed"
        assert self.in_proj_bias is not None
        width = self.embed_dim
        if query_BQC is key_BSC:
            query, key, value = F.linear(query_BQC, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        else:
            query = F.linear(query_BQC, self.in_proj_weight[:width], self.in_proj_bias[:width])
            key, value = F.linear(key_BSC, self.in_proj_weight[width:], self.in_proj_bias[width:]).chunk(
                2, dim=-1
            )
        heads = (self._heads(query), self._heads(key), self._heads(value))
        return self.out_proj(attend(*heads, mask_QS=attn_mask)), None

    def _heads(self, x_BLC: Tensor) -> Tensor:
        return x_BLC.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
