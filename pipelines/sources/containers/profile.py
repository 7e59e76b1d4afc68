"""Which ICC profiles are sRGB, told without a colour engine."""

from __future__ import annotations

import struct


def is_srgb(profile: bytes) -> bool:
    """Whether an ICC profile is sRGB: by its primaries and curves, or by its name where it has none."""
    try:
        tags = _tags(profile)
        if profile[16:20] != b"RGB ":
            return False
        if {b"rXYZ", b"gXYZ", b"bXYZ", b"rTRC", b"gTRC", b"bTRC"} <= set(tags) and b"A2B0" not in tags:
            primaries = [_xyz(tags[name]) for name in (b"rXYZ", b"gXYZ", b"bXYZ")]
            near = all(
                abs(value - wanted) < 0.003
                for one, other in zip(primaries, _SRGB, strict=True)
                for value, wanted in zip(one, other, strict=True)
            )
            return near and all(_is_srgb_curve(tags[name]) for name in (b"rTRC", b"gTRC", b"bTRC"))
        name = tags.get(b"desc", b"").replace(b"\0", b"").lower()
        return b"srgb" in name or b"iec61966" in name
    except (struct.error, IndexError, ValueError):
        return False


_SRGB = ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141))
"""Its primaries as XYZ under D50."""


def _tags(profile: bytes) -> dict[bytes, bytes]:
    (count,) = struct.unpack_from(">I", profile, 128)
    tags = {}
    for n in range(min(count, 100)):
        name, start, size = struct.unpack_from(">4sII", profile, 132 + 12 * n)
        tags[name] = profile[start : start + size]
    return tags


def _xyz(tag: bytes) -> tuple[float, ...]:
    return tuple(value / 65536 for value in struct.unpack_from(">3i", tag, 8))


def _is_srgb_curve(tag: bytes) -> bool:
    """Whether it is within one gray level of sRGB's at 16 places."""
    places = [n / 16 for n in range(1, 16)]
    wanted = [((x + 0.055) / 1.055) ** 2.4 if x > 0.04045 else x / 12.92 for x in places]
    if tag[:4] == b"curv":
        (count,) = struct.unpack_from(">I", tag, 8)
        if count < 2:
            return False
        values = struct.unpack_from(f">{min(count, 4096)}H", tag, 12)
        found = [values[round(x * (len(values) - 1))] / 65535 for x in places]
    elif tag[:4] == b"para":
        (form,) = struct.unpack_from(">H", tag, 8)
        if form not in (3, 4):
            return False
        g, a, b, c, d, *_ = (value / 65536 for value in struct.unpack_from(">5i", tag, 12))
        found = [(a * x + b) ** g if x >= d else c * x for x in places]
    else:
        return False
    return all(abs(one - other) < 0.004 for one, other in zip(found, wanted, strict=True))
