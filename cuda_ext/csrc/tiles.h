// Which tiles, and which part of a tile, the ellipse m <= cut of a Gaussian touches.
#pragma once

#include "constants.h"
#include "geometry.h"
#include "platform.h"

namespace sc {

struct Span {
    int first, last;  // inclusive; empty if last < first
};

// Clamped as floating point first: far-off ellipses do not fit an integer.
template <typename R>
SC_INLINE Span span_of(R first, R last, int count) {
    return {
        static_cast<int>(floored(clamped(first, R(0), R(count)))),
        static_cast<int>(floored(clamped(last, R(-1), R(count - 1))))
    };
}

template <typename R>
SC_INLINE Span tile_rows(const Splat<R>& splat, int tiles_y) {
    const R reach = root(splat.cut) / splat.l22 * R(1.0001) + R(0.02);
    return span_of((splat.my - reach - R(0.5)) / R(kTile), (splat.my + reach - R(0.5)) / R(kTile), tiles_y);
}

// Tile columns touched in one tile row, exact up to a slack of some hundredths of a pixel: the ellipse is convex, so
// within the row's pixel centres its leftmost and rightmost points lie at their own height or, where that is outside of
// the row, at the nearest one.
template <typename R>
SC_INLINE Span tile_columns(const Splat<R>& splat, int row, int height, int tiles_x) {
    const R far = root(splat.cut);
    const R reach = far / splat.l22 * R(1.0001) + R(0.01);
    const R top = R(row * kTile) + R(0.5) - splat.my;
    const R bottom = R((row + 1) * kTile < height ? (row + 1) * kTile : height) - R(0.5) - splat.my;
    const R low = greater(top, -reach), high = lesser(bottom, reach);
    if (!(low <= high)) return {0, -1};
    const R lean = -splat.l21 / splat.l11;
    // Height of the rightmost point; the leftmost one is opposite. Scaled so that squares stay in range.
    const R slope = splat.l21 / splat.l22;
    const R peak = -slope * far / (splat.l22 * root(R(1) + slope * slope));
    R y = clamped(peak, low, high);
    R v = splat.l22 * y;
    const R right = lean * y + root(greater(R(0), splat.cut - v * v)) / splat.l11;
    y = clamped(-peak, low, high);
    v = splat.l22 * y;
    const R left = lean * y - root(greater(R(0), splat.cut - v * v)) / splat.l11;
    const R slack = R(0.02) + R(1e-5) * greater(magnitude(left), magnitude(right));
    return span_of(
        (splat.mx + left - slack - R(0.5)) / R(kTile), (splat.mx + right + slack - R(0.5)) / R(kTile), tiles_x
    );
}

template <typename R>
SC_INLINE int64_t count_tiles(const Splat<R>& splat, const View<R>& view) {
    int64_t count = 0;
    const Span rows = tile_rows(splat, view.tiles_y);
    for (int row = rows.first; row <= rows.last; ++row) {
        const Span columns = tile_columns(splat, row, view.height, view.tiles_x);
        if (columns.last >= columns.first) count += columns.last - columns.first + 1;
    }
    return count;
}

// Whether the ellipse touches the box of pixel centres from (left, top) to (right, bottom). The quadratic form grows
// along every ray from the mean, so its least value over the box lies on an edge that faces the mean (or is 0 inside).
template <typename R>
SC_INLINE bool touches_box(const Splat<R>& splat, R left, R top, R right, R bottom) {
    const R x0 = left - splat.mx, x1 = right - splat.mx, y0 = top - splat.my, y1 = bottom - splat.my;
    const R near_x = clamped(R(0), x0, x1), near_y = clamped(R(0), y0, y1);
    // Best height on the facing vertical edge, best column on the facing horizontal one.
    const R slope = splat.l21 / splat.l22;
    const R y = clamped(-splat.l11 / splat.l22 * slope / (R(1) + slope * slope) * near_x, y0, y1);
    const R x = clamped(-splat.l21 / splat.l11 * near_y, x0, x1);
    const R ua = splat.l11 * near_x + splat.l21 * y, va = splat.l22 * y;
    const R ub = splat.l11 * x + splat.l21 * near_y, vb = splat.l22 * near_y;
    // Generous by more than rounding; alpha itself decides.
    return lesser(ua * ua + va * va, ub * ub + vb * vb) <= splat.cut * R(1.001) + R(0.01);
}

}  // namespace sc
