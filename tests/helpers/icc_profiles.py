"""ICC profiles built for tests."""

import struct

P3 = ((0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407))
"""Red, green and blue of Display P3, adapted to D50."""
ADOBE_RGB = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.7141))


def matrix_profile(primaries: tuple[tuple[float, ...], ...], gamma: float = 2.2) -> bytes:
    """Return an RGB profile with these primaries (XYZ) and one gamma."""
    tags = [(b"wtpt", _xyz(0.9642, 1.0, 0.8249))]
    tags += [(name, _xyz(*xyz)) for name, xyz in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries)]  # noqa: B905
    tags += [(name, _curve(gamma)) for name in (b"rTRC", b"gTRC", b"bTRC")]
    return _profile(b"mntr", b"RGB ", tags)


def grey_profile(gamma: float) -> bytes:
    """Return a profile for grey with one gamma."""
    return _profile(
        b"mntr", b"GRAY", [(b"wtpt", _xyz(0.9642, 1, 0.8249)), (b"kTRC", _curve(gamma))]
    )


def cmyk_profile() -> bytes:
    """Return a profile of a printer that has no black ink: Lab = 100 - mean of C, M, Y."""
    grid = 2
    header = b"mft1" + bytes(4) + bytes([4, 3, grid, 0])
    header += b"".join(_fixed(v) for v in (1, 0, 0, 0, 1, 0, 0, 0, 1))
    ramp = bytes(range(256))
    colors = b""
    for c in (0, 1):
        for m in (0, 1):
            for y in (0, 1):
                for _k in (0, 1):
                    colors += bytes([255 - 85 * (c + m + y), 128, 128])
    table = header + ramp * 4 + colors + ramp * 3
    tags = [(b"wtpt", _xyz(0.9642, 1.0, 0.8249)), (b"A2B0", table)]
    return _profile(b"prtr", b"CMYK", tags, connection=b"Lab ")


def _profile(
    kind: bytes, space: bytes, tags: list[tuple[bytes, bytes]], connection: bytes = b"XYZ "
) -> bytes:
    text = b"made for a test\0"
    described = b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(78)
    tags = [(b"desc", described), *tags, (b"cprt", b"text" + bytes(4) + b"none\0")]
    start, body, table = 132 + 12 * len(tags), b"", struct.pack(">I", len(tags))
    for sign, data in tags:
        padded = data + bytes(-len(data) % 4)
        table += sign + struct.pack(">II", start + len(body), len(data))
        body += padded
    head = struct.pack(">I4sI4s4s4s", 128 + len(table) + len(body), bytes(4), 0x02100000, kind,
                       space, connection)  # fmt: skip
    head += bytes(12) + b"acsp" + bytes(28) + b"".join(map(_fixed, (0.9642, 1, 0.8249))) + bytes(48)
    return head + table + body


def _fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def _xyz(*values: float) -> bytes:
    return b"XYZ " + bytes(4) + b"".join(map(_fixed, values))


def _curve(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
