"""Bytes that groups of frames may have, so that a bitrate is kept over every window of time."""

from __future__ import annotations

from ..errors import ParameterError

__all__ = ["BitrateBudget"]


_MOST_OF_A_WINDOW = 0.6


class BitrateBudget:
    """Shares a bitrate out to groups, some of which have a scene that those after them use.

    Groups in a row that last no longer than the window have, together, no more bytes than the rate gives it.

    Args:
        bytes_a_second: the rate.
        window_s: seconds over which it is averaged.
    """

    def __init__(self, bytes_a_second: float, window_s: float) -> None:
        if not bytes_a_second > 0 or not window_s > 0:
            raise ParameterError(f"{bytes_a_second} bytes a second over {window_s} s", field="target_bitrate")
        self.rate = bytes_a_second
        self.window_s = window_s
        self._past: list[tuple[float, float]] = []  # seconds and bytes of groups in the window, the latest last
        self._planned_s = self._used_s = 0.0
        self._planned = self._used = 0.0
        self._own = 0.0  # bytes a second of the last group with a scene
        self.motion_share = 0.3  # bytes of a group without a scene over those of one with

    def allowed(self, seconds: float) -> float:
        """Bytes that the next group, which lasts so long, must not exceed."""
        left = self.rate * max(self.window_s, seconds)
        total = seconds
        for lasts, size in reversed(self._past):
            total += lasts
            if total > self.window_s * (1 + 1e-9):
                break
            left -= size
        return left

    def with_scene(self, seconds: float, planned_s: float) -> float:
        """Bytes for a group with a scene that serves for `planned_s` seconds, its own included."""
        self._planned_s = max(planned_s, seconds)
        self._planned, self._used_s, self._used = self.rate * self._planned_s, 0.0, 0.0
        others = self._planned_s / seconds - 1.0
        share = 1.0 / (1.0 + others * self.motion_share)
        if others > 0.5:  # a new scene may begin at any time
            share = min(share, _MOST_OF_A_WINDOW)
        return min(self.allowed(seconds), self._planned * share)

    def without_scene(self, seconds: float) -> float:
        """Bytes for a group that uses the scene of the last one that had one."""
        left_s = max(self._planned_s - self._used_s, seconds)
        return min(self.allowed(seconds), max(self._planned - self._used, 0.0) * seconds / left_s)

    def spend(self, size: float, seconds: float, has_scene: bool) -> None:
        """The next group is written.

        Args:
            size: its bytes. seconds: that it lasts. has_scene: whether it has one of its own.
        """
        self._past.append((seconds, size))
        while len(self._past) > 1 and sum(lasts for lasts, _ in self._past[1:]) >= self.window_s:
            self._past.pop(0)
        if has_scene:
            self._own = size / seconds
        elif self._own > 0:
            self.motion_share += 0.5 * (min(max(size / seconds / self._own, 0.02), 1.0) - self.motion_share)
        self._used += size
        self._used_s += seconds
