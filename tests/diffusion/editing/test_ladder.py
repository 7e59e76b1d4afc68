from __future__ import annotations

import pytest

from diffusion.editing.ladder import share, squeezed
from diffusion.noise import RectifiedFlow
from diffusion.samplers.spacing import Even, Karras, Spacing


@pytest.mark.parametrize("spacing", [Even(), Even(shift=3.0), Karras()])
def test_a_part_of_a_ladder_has_as_many_rungs_and_any_head(spacing: Spacing):
    times = spacing(RectifiedFlow(), 4)
    assert squeezed(times, 1.0) == pytest.approx(times)
    assert squeezed(times, 0.5)[::2] == pytest.approx(times[2:])
    heads = [squeezed(times, part)[0] for part in (0.26, 0.3, 0.49)]
    assert times[3] < heads[0] < heads[1] < heads[2] < times[2]
    assert [share(times, head) for head in heads] == pytest.approx([0.26, 0.3, 0.49])
    for part in (0.1, 0.7):
        rungs = squeezed(times, part)
        assert len(rungs) == 5
        assert rungs == sorted(rungs, reverse=True)
        assert rungs[-1] == 0


def test_evenly_spaced_the_share_is_the_time():
    assert squeezed(Even()(RectifiedFlow(), 3), 0.6) == pytest.approx([0.6, 0.4, 0.2, 0.0])
