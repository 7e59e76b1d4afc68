"""What an elastic training asks of machines of which some are away."""

from __future__ import annotations

import pytest

from cluster.resources import Capacity, Resources, settle


@pytest.mark.parametrize(("workers", "fewest"), [(4, 5), (4, 0), (None, 2)])
def test_the_fewest_are_one_to_all(workers: int | None, fewest: int) -> None:
    with pytest.raises(ValueError, match=r"resources\.min_workers is"):
        Resources(workers=workers, min_workers=fewest)


@pytest.mark.parametrize(("machines", "running"), [(1, 2), (2, 2), (3, 3), (4, 4), (9, 4)])
def test_an_elastic_training_takes_what_there_is_room_for(machines: int, running: int) -> None:
    capacity = Capacity.of([(2.0, 1.0)] * machines)
    asked = Resources(cpus=2, workers=4, min_workers=2)
    settled = settle(asked, capacity, shape="gang", accelerated=True)
    assert (settled.workers, settled.min_workers, settled.gpus) == (4, 2, 1.0)
    assert settled.running(capacity) == running


def test_one_of_fixed_size_takes_all_it_asks_for() -> None:
    capacity = Capacity.of([(2.0, 0.0)])
    assert settle(Resources(cpus=2, workers=4), capacity, shape="gang").running(capacity) == 4
