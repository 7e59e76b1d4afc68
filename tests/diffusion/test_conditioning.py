from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from diffusion.conditioning import Conditioning, Nothing


def captions(batch: int, length: int) -> Conditioning:
    return Conditioning(
        text=torch.randn(batch, length, 5),
        mask=torch.arange(length) < torch.arange(1, batch + 1)[:, None],
        pooled=torch.randn(batch, 6),
        label=torch.arange(batch),
        classes=10,
    )


def test_dropping_touches_the_chosen_samples_and_kinds_only():
    before = captions(3, 4)
    after = before.drop(text=torch.tensor([False, True, False]), label=torch.tensor([True, False, False]))
    assert after.mask is not None
    assert after.pooled is not None
    assert after.label is not None
    assert after.mask.sum(1).tolist() == [1, 0, 3]
    assert after.pooled.eq(0).all(1).tolist() == [False, True, False]
    assert after.label.tolist() == [10, 1, 2]
    assert after.text is before.text


def test_null_drops_everything():
    null = captions(3, 4).null()
    assert null.mask is not None
    assert null.pooled is not None
    assert null.label is not None
    assert not null.mask.any()
    assert not null.pooled.any()
    assert null.label.tolist() == [10, 10, 10]


def test_cat_pads_captions_to_the_longer_and_slices_undo_it():
    short, long = captions(2, 3), captions(3, 7)
    both = short.cat(long)
    assert len(both) == 5
    assert both.text is not None
    assert both.mask is not None
    assert short.text is not None
    assert both.text[:2, :3].equal(short.text)
    assert not both.mask[:2, 3:].any()
    back = both[2:]
    assert back.text is not None
    assert long.text is not None
    assert back.text.equal(long.text)
    assert both.classes == 10


def test_indexing_by_tensor_keeps_samples_together():
    picked = captions(4, 4)[torch.tensor([3, 0])]
    assert picked.label is not None
    assert picked.mask is not None
    assert picked.label.tolist() == [3, 0]
    assert picked.mask.sum(1).tolist() == [4, 1]


def test_size_and_route_go_with_their_samples_and_are_never_dropped():
    size, route = torch.rand(3, 6), torch.tensor([[0, 1], [0, 2], [1, 2]])
    told = replace(captions(3, 4), size=size, route=route)
    for kept in (told.null(), told.cat(told)[3:], told[torch.tensor([0, 1, 2])]):
        assert kept.size is not None
        assert kept.route is not None
        assert kept.size.equal(size)
        assert kept.route.equal(route)
    assert Conditioning(size=size).empty
    assert Conditioning(size=size).null().size is size
    assert told.to("meta").size.is_meta
    with pytest.raises(ValueError, match="cannot join"):
        told.cat(captions(3, 4))


def test_unconditional_batches_stay_so():
    nothing = Conditioning()
    assert nothing.empty
    assert nothing.null().empty
    assert nothing[:2].empty
    assert nothing.cat(nothing).empty
    assert nothing.drop(text=torch.tensor([True])).empty
    with pytest.raises(ValueError, match="size"):
        len(nothing)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="text and mask"):
        Conditioning(text=torch.zeros(1, 2, 3))
    with pytest.raises(ValueError, match="cannot join"):
        captions(2, 3).cat(Conditioning(label=torch.tensor([0]), classes=10))


def test_an_encoders_own_empty_caption_stands_in_for_a_dropped_one():
    nothing = Nothing(text=torch.randn(5, 5), pooled=torch.randn(6))
    before = replace(captions(3, 4), nothing=nothing)
    after = before.drop(text=torch.tensor([False, True, False]))
    assert after.text is not None
    assert after.mask is not None
    assert after.pooled is not None
    assert before.text is not None
    assert after.mask.sum(1).tolist() == [1, 5, 3]
    assert torch.equal(after.text[1], nothing.text)
    assert torch.equal(after.text[0, :4], before.text[0])
    assert torch.equal(after.pooled[1], nothing.pooled)
    both = before.cat(before.null()).to("cpu")
    assert both.mask is not None
    assert both.mask.sum(1).tolist() == [1, 2, 3, 5, 5, 5]
    assert both[slice(0, 2)].nothing is not None
