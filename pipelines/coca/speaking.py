"""A CoCa that says one token after another; what it heard and saw is kept, not computed again."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from pipelines.coca.search import Speaker


def speaker(model: Any, seen: Float[Tensor, "images tokens width"], *, beams: int = 1) -> Speaker:
    """For `beams` rows an image, side by side.

    Args:
        model: open_clip's CoCa, in evaluation mode.
        seen: what its image tower says of the images (`image_embs`).
    """
    return Cached(model, seen, beams) if cacheable(model) else Recomputed(model, seen, beams)


def cacheable(model: Any) -> bool:
    """Whether all its blocks are plain ones behind a causal mask; open_clip has others, rarely used."""
    from open_clip.transformer import ResidualAttentionBlock, TextTransformer

    if not isinstance(model.text, TextTransformer) or model.text.attn_mask is None:
        return False
    decoder = model.text_decoder
    blocks = [*model.text.transformer.resblocks, *decoder.resblocks, *decoder.cross_attn]
    return all(
        type(block) is ResidualAttentionBlock and type(block.attn) is nn.MultiheadAttention
        for block in blocks
    )


class Recomputed:
    """All tokens again at each step, by open_clip's own forward: for any CoCa, and the cache's reference."""

    def __init__(self, model: Any, seen: Tensor, beams: int) -> None:
        self._model, self._seen = model, seen.repeat_interleave(beams, 0)
        self._heard = torch.empty(len(self._seen), 0, dtype=torch.long, device=seen.device)

    def next(self, tokens: Int[Tensor, " rows"]) -> Float[Tensor, "rows vocabulary"]:
        self._heard = torch.cat([self._heard, tokens[:, None]], 1)
        heard, length = self._heard, self._heard.shape[1]
        if getattr(self._model.text, "cls_emb", None) is None:
            # Without a class token open_clip's mask takes whole contexts; what comes later is not seen.
            heard = F.pad(heard, (0, self._model.text.context_length - length), value=1)
        said = self._model(None, heard, image_latent=self._seen, image_embs=self._seen, output_labels=False)
        return said["logits"][:, length - 1]

    def take(self, rows: Int[Tensor, " rows"]) -> None:
        self._heard = self._heard[rows]


class Cached:
    """Keys and values of what was heard, and of the image once for all its beams.

    Padding's number is not to be among the tokens: open_clip masks it.
    """

    def __init__(self, model: Any, seen: Tensor, beams: int) -> None:
        self._text, self._decoder, self._beams = model.text, model.text_decoder, beams
        blocks = [*self._text.transformer.resblocks, *self._decoder.resblocks]
        self._heard: list[tuple[Tensor, Tensor] | None] = [None] * len(blocks)
        self._seen = [_keys_values(block.attn, block.ln_1_kv(seen)) for block in self._decoder.cross_attn]
        self._length = 0

    def next(self, tokens: Int[Tensor, " rows"]) -> Float[Tensor, "rows vocabulary"]:
        text, decoder = self._text, self._decoder
        x = (text.token_embedding(tokens) + text.positional_embedding[self._length])[:, None]
        self._length += 1
        count = len(text.transformer.resblocks)
        for number, block in enumerate(text.transformer.resblocks):
            x = self._hear(number, block, x)
        if text.cls_emb is None:
            x = text.ln_final(x)
        for number, (block, cross) in enumerate(zip(decoder.resblocks, decoder.cross_attn, strict=True)):
            x = self._hear(count + number, block, x)
            x = self._look(cross, x, *self._seen[number])
        return (decoder.ln_final(x) @ decoder.text_projection)[:, 0]

    def take(self, rows: Int[Tensor, " rows"]) -> None:
        self._heard = [None if kept is None else (kept[0][rows], kept[1][rows]) for kept in self._heard]

    def _hear(self, number: int, block: Any, x: Tensor) -> Tensor:
        """A causal block, of one more token."""
        normed = block.ln_1(x)
        keys, values = _keys_values(block.attn, normed)
        kept = self._heard[number]
        if kept is not None:
            keys, values = torch.cat([kept[0], keys], 2), torch.cat([kept[1], values], 2)
        self._heard[number] = keys, values
        attended = F.scaled_dot_product_attention(_queries(block.attn, normed), keys, values)
        return _rest(block, x, _joined(attended))

    def _look(self, block: Any, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """A block that looks at the image: an image's beams are the queries of one attention."""
        rows, _, width = x.shape
        beside = block.ln_1(x).reshape(rows // self._beams, self._beams, width)
        attended = F.scaled_dot_product_attention(_queries(block.attn, beside), keys, values)
        return _rest(block, x, _joined(attended).reshape(rows, 1, width))


def _rest(block: Any, x: Tensor, attended: Tensor) -> Tensor:
    """What follows the attention in open_clip's `ResidualAttentionBlock`."""
    x = x + block.ls_1(block.attn.out_proj(attended))
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def _queries(attention: nn.MultiheadAttention, x: Tensor) -> Tensor:
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    width = attention.embed_dim
    return _parted(F.linear(x, weight[:width], bias[:width]), attention.num_heads)


def _keys_values(attention: nn.MultiheadAttention, x: Tensor) -> tuple[Tensor, Tensor]:
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    width = attention.embed_dim
    keys, values = F.linear(x, weight[width:], bias[width:]).chunk(2, -1)
    return _parted(keys, attention.num_heads), _parted(values, attention.num_heads)


def _parted(x: Tensor, heads: int) -> Tensor:
    """[b, n, heads * d] to [b, heads, n, d]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)
