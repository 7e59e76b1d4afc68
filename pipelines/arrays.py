"""Arrays as members of a shard: npy, and the pixels of encoded images."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def to_npy(array: np.ndarray) -> bytes:
    """Equal arrays give equal bytes."""
    import numpy as np

    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


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
