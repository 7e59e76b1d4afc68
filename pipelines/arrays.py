"""Arrays as members of a shard: npy, and the pixels of encoded images."""

from __future__ import annotations

import functools
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def to_npy(array: np.ndarray) -> bytes:
    """Equal arrays give equal bytes."""
    return _header(array.dtype.str, array.shape) + array.tobytes()


def from_npy(data: bytes) -> np.ndarray:
    """`ValueError` for anything but plain numbers: nothing is unpickled."""
    import numpy as np

    return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)


def pixels(data: bytes) -> np.ndarray:
    """An encoded image as uint8 [height, width, 3], RGB."""
    import numpy as np
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
        return np.asarray(image.convert("RGB"))


@functools.lru_cache(maxsize=256)
def _header(dtype: str, shape: tuple[int, ...]) -> bytes:
    # Kept, because numpy takes ten times as long to write one as it takes to copy a small array.
    import numpy as np

    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    return buffer.getvalue()
