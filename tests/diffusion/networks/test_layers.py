from __future__ import annotations

import pytest
import torch

from diffusion.networks.layers import NORMS, CrossAttention, NormKind, RMSNorm, SelfAttention, SwiGLU
from diffusion.networks.positions import rotary_table


def test_swiglu_is_its_equation() -> None:
    layer, x = SwiGLU(8, 16), torch.randn(3, 8)
    gate, value = layer.inner.weight[:16], layer.inner.weight[16:]
    h = x @ gate.T
    torch.testing.assert_close(layer(x), (h * torch.sigmoid(h) * (x @ value.T)) @ layer.outer.weight.T)


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_norms_are_their_equations(kind: NormKind) -> None:
    x = 3 + torch.randn(5, 64)
    centred = x - x.mean(-1, keepdim=True) if kind == "layer" else x
    want = centred / centred.square().mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(NORMS[kind](64, scale=False)(x), want)
    scaled = NORMS[kind](64)
    torch.nn.init.constant_(scaled.weight, 2)
    torch.testing.assert_close(scaled(x), 2 * want)
    assert [name for name, _ in scaled.named_parameters()] == ["weight"]


@pytest.mark.filterwarnings("error")
def test_a_scale_in_fp32_does_not_break_the_kernel_of_bf16() -> None:
    assert RMSNorm(8)(torch.randn(2, 8).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_attention_moves_with_its_tokens_and_not_with_the_grid(kind: NormKind) -> None:
    """Tokens permuted with their positions permute the output; a shift of all positions changes nothing."""
    torch.manual_seed(0)
    attention, x = SelfAttention(32, 2, norm=kind), torch.randn(2, 12, 32)
    large = rotary_table(8, 9, 16, torch.device("cpu"), torch.float32).reshape(2, 8, 9, 8)
    rotary, shifted = (
        large[:, down : down + 3, right : right + 4].flatten(1, 2) for down, right in ((0, 0), (5, 2))
    )
    want = attention(x, rotary)
    order = torch.randperm(12)
    torch.testing.assert_close(attention(x[:, order], rotary[:, order]), want[:, order], atol=1e-6, rtol=0)
    torch.testing.assert_close(attention(x, shifted), want, atol=1e-6, rtol=0)
    assert (attention(x[:, order], rotary) - want[:, order]).abs().max() > 1e-4


def test_positions_of_each_sample() -> None:
    torch.manual_seed(0)
    attention, x = SelfAttention(32, 2), torch.randn(2, 5, 32)
    rotary = torch.randn(2, 2, 5, 8)
    together = attention(x, rotary)
    apart = [attention(x[n : n + 1], rotary[:, n]) for n in range(2)]
    torch.testing.assert_close(together, torch.cat(apart))


def test_attentions_are_their_equation() -> None:
    """softmax(q k / sqrt(d)) v of each head, q and k normalised; of the context's real tokens alone."""
    torch.manual_seed(0)
    own, cross = SelfAttention(8, 2), CrossAttention(8, 2, context=6)
    torch.nn.init.normal_(cross.out.weight)
    x, context, mask = torch.randn(1, 5, 8), torch.randn(1, 3, 6), torch.tensor([[True, True, False]])
    cases = (
        (own, own(x, None), own.qkv.weight.chunk(3), x[0]),
        (
            cross,
            cross(x, context, mask),
            (cross.query.weight, *cross.key_value.weight.chunk(2)),
            context[0, :2],
        ),
    )
    for attention, answer, (query, key, value), seen in cases:
        heads = []
        for head in (slice(0, 4), slice(4, 8)):
            q, k, v = x[0] @ query[head].T, seen @ key[head].T, seen @ value[head].T
            q, k = (torch.nn.functional.layer_norm(part, (4,), eps=1e-6) for part in (q, k))
            heads.append((q @ k.T / 2).softmax(-1) @ v)
        torch.testing.assert_close(answer[0], torch.cat(heads, dim=-1) @ attention.out.weight.T)
