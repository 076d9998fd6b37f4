#!/usr/bin/env python3
"""Moving scenes in the layout of V3 / VideoGS (arXiv:2409.13648), to compare with: one grey H.264 video per channel.

    python tools/v3_layout.py FRAMES_FOLDER [--group 20] [--qp 25]

Written from the paper and its published settings: Gaussians in Morton order of the first frame, a square of pixels
with a side that is a multiple of 8; every channel scaled to its least and largest value of every frame; positions 16
bit, as planes of low and of high bytes, everything else 8 bit, cut off and not rounded. 20 planes: 6 of positions, 3 of
normals (zeros), 3 of colour, opacity, 3 of scales, 4 of rotation. x264 at its defaults, 4:4:4 with full range, constant
QP: 0 (lossless) for high bytes, 22 for colour, scale and rotation, 25 for the rest. Groups of 20 frames.

The bytes counted are the packets alone: their MP4 files and JSON of ranges would add to them.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from splatcodec import api
from splatcodec.gaussians import Gaussians
from splatcodec.preprocess.self_organizing_grid import curve_grid

GROUP_FRAMES = 20
DEFAULT_QP = 25
_LOSSLESS = (1, 3, 5)  # high bytes of positions
_CAPPED = (9, 10, 11, *range(13, 20))  # colour, scale, rotation: at most QP 22
_CAP = 22
NUM_PLANES = 20


@dataclass(frozen=True, eq=False)
class V3Group:
    """One group: what its videos weigh, and the frames that they decode to.

    Attributes:
        plane_bytes: of each of the 20 videos. frames: decoded, in Morton order. order: (N,) of the original.
    """

    plane_bytes: list[int]
    frames: list[Gaussians]
    order: npt.NDArray[np.int64]

    @property
    def size_bytes(self) -> int:
        """Bytes of all packets."""
        return sum(self.plane_bytes)


def _channels(frame: Gaussians) -> npt.NDArray[np.float64]:
    """(14, N): x y z, colour, opacity, scales, rotation, as the PLY has them."""
    parts = [frame.means, frame.sh0[:, 0], frame.opacities[:, None], frame.scales, frame.quats]
    return np.concatenate(parts, axis=1).astype(np.float64).T


def _planes(values: npt.NDArray[np.float64]) -> tuple[list[npt.NDArray[np.uint8]], npt.NDArray[np.float64]]:
    low, high = values.min(1), values.max(1)
    share = (values - low[:, None]) / np.where(high > low, high - low, 1.0)[:, None]
    planes = []
    for axis in range(3):
        words = (share[axis] * 65535).astype(np.uint16)
        planes += [(words & 255).astype(np.uint8), (words >> 8).astype(np.uint8)]
    planes += [np.zeros(values.shape[1], np.uint8)] * 3
    planes += [(row * 255).astype(np.uint8) for row in share[3:]]
    return planes, np.stack([low, high])


def encode_plane(frames: npt.NDArray[np.uint8], qp: int) -> tuple[int, npt.NDArray[np.uint8]]:
    """Bytes of the packets of one grey video (F, side, side), and what it decodes to."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=30)
        stream.width, stream.height = frames.shape[2], frames.shape[1]
        stream.pix_fmt = "yuvj444p"
        stream.options = {"qp": str(qp)}
        stream.thread_count = 1
        for pixels in frames:
            picture = np.full((3, *pixels.shape), 128, np.uint8)
            picture[0] = pixels
            for packet in stream.encode(_frame(picture)):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    buffer.seek(0)
    size, decoded = 0, []
    with av.open(buffer) as container:
        for packet in container.demux(video=0):
            size += packet.size
            for frame in packet.decode():
                decoded.append(_luma(frame))
    return size, np.stack(decoded)


def _frame(picture: npt.NDArray[np.uint8]) -> av.VideoFrame:
    frame = av.VideoFrame(picture.shape[2], picture.shape[1], "yuvj444p")
    for plane, pixels in zip(frame.planes, picture):
        rows = np.zeros((pixels.shape[0], plane.line_size), np.uint8)
        rows[:, : pixels.shape[1]] = pixels
        plane.update(rows.tobytes())
    return frame


def _luma(frame: av.VideoFrame) -> npt.NDArray[np.uint8]:
    plane = frame.planes[0]
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: frame.height, : frame.width].copy()


def encode_group(frames: Sequence[Gaussians], *, qp: int = DEFAULT_QP, num_threads: int = 2) -> V3Group:
    """Code frames of one constant count as V3 does, and decode them again. SH above degree 0 is not coded."""
    order = curve_grid(frames[0].means, width=len(frames[0])).order
    count = len(order)
    side = -(-int(np.ceil(np.sqrt(count))) // 8) * 8
    images = np.zeros((NUM_PLANES, len(frames), side * side), np.uint8)
    ranges = []
    for f, frame in enumerate(frames):
        planes, bounds = _planes(_channels(frame)[:, order])
        ranges.append(bounds)
        for p, plane in enumerate(planes):
            images[p, f, :count] = plane
    images = images.reshape(NUM_PLANES, len(frames), side, side)

    def run(p: int) -> tuple[int, npt.NDArray[np.uint8]]:
        return encode_plane(images[p], 0 if p in _LOSSLESS else min(qp, _CAP) if p in _CAPPED else qp)

    with ThreadPoolExecutor(num_threads) as pool:
        coded = list(pool.map(run, range(NUM_PLANES)))
    decoded = []
    for f, frame in enumerate(frames):
        low, high = ranges[f]
        flat = [pixels[f].reshape(-1)[:count].astype(np.float64) for _, pixels in coded]
        words = [flat[2 * axis] + 256 * flat[2 * axis + 1] for axis in range(3)]
        share = np.stack([word / 65535 for word in words] + [flat[p] / 255 for p in range(9, 20)])
        values = (low[:, None] + share * (high - low)[:, None]).T.astype(np.float32)
        decoded.append(
            Gaussians(
                values[:, :3],
                values[:, 10:14],
                values[:, 7:10],
                values[:, 6],
                values[:, None, 3:6],
                metadata=frame.metadata,
            )
        )
    return V3Group([size for size, _ in coded], decoded, order)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--group", type=int, default=GROUP_FRAMES)
    parser.add_argument("--qp", type=int, default=DEFAULT_QP)
    args = parser.parse_args()
    paths = sorted(args.folder.iterdir())
    total = 0
    for at in range(0, len(paths), args.group):
        group = encode_group([api.read(path) for path in paths[at : at + args.group]], qp=args.qp)
        total += group.size_bytes
        print(f"frames {at} to {at + len(group.frames) - 1}: {group.size_bytes} bytes; planes {group.plane_bytes}")
    print(f"{total / len(paths) / 1000:.1f} KB a frame")
    return 0


if __name__ == "__main__":
    sys.exit(main())
