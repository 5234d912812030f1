"""Colors of services, the same in every drawing."""

from __future__ import annotations

import zlib

from matplotlib import colormaps

Color = tuple[float, float, float, float]

_PALETTE: list[Color] = [colormaps[name](at) for name in ("tab20", "tab20b", "tab20c") for at in range(20)]
ERROR: Color = (0.8, 0.1, 0.1, 1.0)


def of_service(service: str) -> Color:
    """The color of a service; it depends on the name alone."""
    return _PALETTE[zlib.crc32(service.encode()) % len(_PALETTE)]


def readable_on(color: Color) -> str:
    """Black or white, whichever is read better on `color`."""
    red, green, blue = color[:3]
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"


def unit_of(nanos: float) -> tuple[float, str]:
    """How many nanoseconds the best unit for `nanos` has, and its name."""
    for size, name in ((1e9, "s"), (1e6, "ms"), (1e3, "µs")):
        if nanos >= size:
            return size, name
    return 1.0, "ns"
