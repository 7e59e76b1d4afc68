from __future__ import annotations

import pytest
import torch

from diffusion.networks import positions
from diffusion.networks.positions import position_table, rotary_angles, rotary_table, rotate

CPU = torch.device("cpu")


def place(rows: int, columns: int, width: int, trained: tuple[int, int]) -> torch.Tensor:
    table = position_table(rows, columns, width, trained, CPU, torch.float32)
    return table.reshape(rows, columns, width)


def test_rotary_dot_products_see_offsets_only() -> None:
    torch.manual_seed(0)
    rows, columns, width = 5, 6, 16
    rotary = rotary_table(rows, columns, width, CPU, torch.float32)
    q, k = (torch.randn(width).expand(1, rows * columns, 1, width) for _ in range(2))
    q, k = (rotate(x, rotary)[0, :, 0].reshape(rows, columns, width) for x in (q, k))
    for down, right in ((0, 0), (1, 0), (0, 2), (2, 3)):
        products = (q[: rows - down, : columns - right] * k[down:, right:]).sum(-1)
        torch.testing.assert_close(products, products[:1, :1].expand_as(products), atol=1e-4, rtol=1e-4)
    assert (q[0, 0] @ k[1, 0] - q[0, 0] @ k[0, 1]).abs() > 1e-3


def test_a_larger_grid_keeps_the_angles_of_a_smaller_one() -> None:
    small, large = rotary_angles(3, 4, 16).reshape(3, 4, 8), rotary_angles(7, 9, 16).reshape(7, 9, 8)
    assert torch.equal(large[:3, :4], small)


def test_angles_are_position_times_frequency() -> None:
    angles = rotary_angles(3, 4, 8, theta=100.0).reshape(3, 4, 4)
    torch.testing.assert_close(angles[2, 3], torch.tensor([2.0, 0.2, 3.0, 0.3]))


def test_the_trained_table_is_sines_of_whole_positions() -> None:
    table = place(3, 5, 8, (3, 5))
    want = [torch.tensor([2.0, 0.02]), torch.tensor([4.0, 0.04])]
    want = torch.cat([f(angle) for angle in want for f in (torch.sin, torch.cos)])
    torch.testing.assert_close(table[2, 4], want)


@pytest.mark.parametrize("times", [(3, 3), (1, 5)])
def test_a_finer_grid_fills_in_between_the_trained_positions(times: tuple[int, int]) -> None:
    """An odd multiple of the grid has a token at the centre of each trained one, and none far outside."""
    rows, columns = 4, 6
    trained = place(rows, columns, 16, (rows, columns))
    down, right = times
    finer = place(down * rows, right * columns, 16, (rows, columns))
    torch.testing.assert_close(finer[down // 2 :: down, right // 2 :: right], trained)


def test_a_table_is_made_once_and_serves_training() -> None:
    with torch.inference_mode():
        first = rotary_table(6, 7, 8, CPU, torch.float32)
    assert rotary_table(6, 7, 8, CPU, torch.float32) is first
    assert rotary_table(6, 7, 8, CPU, torch.bfloat16).dtype == torch.bfloat16
    assert rotary_table(6, 7, 8, torch.device("meta"), torch.float32).is_meta
    x = torch.randn(1, 42, 1, 8, requires_grad=True)
    rotate(x, first).square().sum().backward()
    torch.testing.assert_close(x.grad, 2 * x)


def test_no_more_tables_are_kept_than_fit() -> None:
    for rows in range(1, 2 * positions._KEPT):
        rotary_table(rows, 1, 4, CPU, torch.float32)
    assert len(positions._TABLES) == positions._KEPT
    assert rotary_table(1, 1, 4, CPU, torch.float32).shape == (2, 1, 2)
