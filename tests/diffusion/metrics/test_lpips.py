from __future__ import annotations

import pytest
import torch

from diffusion.metrics.lpips import LPIPSHED, distance
from pipelines import weights


@pytest.fixture(scope="module")
def lpips() -> LPIPSHED:
    return LPIPSHED(weights.load("hed"), weights.load("lpips-heads"))


def test_distance_is_the_published_one() -> None:
    """Against the published package's own steps: unit vectors, squares, a 1 x 1 convolution, the mean."""
    published = pytest.importorskip(
        "lpips", reason="needs: pip install --no-deps lpips==0.1.4, and a torchvision that fits torch"
    )
    draw = torch.Generator().manual_seed(0)
    x, y = (
        [torch.rand(2, c, 6, 6, generator=draw) for c in (4, 7)],
        [torch.rand(2, c, 6, 6, generator=draw) for c in (4, 7)],
    )
    heads = [torch.rand(c, generator=draw) for c in (4, 7)]
    expected = torch.zeros(2)
    for a, b, head in zip(x, y, heads, strict=True):
        layer = published.NetLinLayer(len(head), use_dropout=False)
        layer.model[-1].weight.data = head.reshape(1, -1, 1, 1)
        square = (published.normalize_tensor(a) - published.normalize_tensor(b)) ** 2
        expected += published.spatial_average(layer(square), keepdim=False)[:, 0].detach()
    torch.testing.assert_close(distance(x, y, heads), expected)


def test_rises_with_blur_and_with_noise(lpips: LPIPSHED) -> None:
    y, x = torch.meshgrid(torch.arange(48), torch.arange(48), indexing="ij")
    image = torch.stack([(x // 6 + y // 6) % 2, (x // 9) % 2, (y // 4) % 2]).float()[None] * 2 - 1
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    blurred = [
        torch.nn.functional.avg_pool2d(image, k, 1, k // 2, count_include_pad=False) for k in (1, 3, 7)
    ]
    for changed in (blurred, [image + s * noise for s in (0.0, 0.1, 0.5)]):
        found = [lpips(one, image).item() for one in changed]
        assert found[0] == pytest.approx(0, abs=1e-6)
        assert found == sorted(found)
        assert found[2] > 1.5 * found[1] > 0
