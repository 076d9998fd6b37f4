// One Gaussian at one pixel: blending front to back, its statistics, and its gradients.
//
// All passes walk front to back and decide by the same operations (products and sums are fused explicitly, so that no
// compiler may round them otherwise in one kernel than in the other): a Gaussian that the forward pass drew is one that
// the others see.
#pragma once

#include "constants.h"
#include "geometry.h"
#include "platform.h"

namespace sc {

template <typename R>
struct Touch {
    R u, v, m;
    R unclamped;  // opacity * exp(-m / 2)
    R alpha;      // at most kAlphaMax
};

// False where the Gaussian is not drawn at the pixel (x, y).
template <typename R>
SC_INLINE bool touch(const Splat<R>& splat, R x, R y, Touch<R>& t) {
    const R dx = x - splat.mx, dy = y - splat.my;
    t.u = fused(splat.l11, dx, splat.l21 * dy);
    t.v = splat.l22 * dy;
    t.m = fused(t.u, t.u, t.v * t.v);
    t.unclamped = splat.opacity * fast_exponential(R(-0.5) * t.m);
    t.alpha = lesser(t.unclamped, R(kAlphaMax));
    return t.alpha >= R(kAlphaMin);
}

// A pixel on its way: what light passes so far, and whether it is finished.
template <typename R>
struct Pixel {
    R x, y;
    R transmittance;
    bool done;
};

// Whether the Gaussian is drawn here. Gives its weight alpha T and steps the transmittance; ends the pixel instead
// where that would fall under the limit.
template <typename R>
SC_INLINE bool blend(const Splat<R>& splat, Pixel<R>& pixel, Touch<R>& t, R& weight) {
    if (pixel.done || !touch(splat, pixel.x, pixel.y, t)) return false;
    const R after = pixel.transmittance * (R(1) - t.alpha);
    if (!(after >= R(kTransmittanceMin))) {
        pixel.done = true;
        return false;
    }
    weight = t.alpha * pixel.transmittance;
    pixel.transmittance = after;
    return true;
}

// Loss gradients by one pixel's outputs, and two numbers that replace everything behind the current Gaussian: with
// value_i = dL/drgb . colour_i + dL/ddepth z_i, `total` is the sum of weight_i value_i over all Gaussians and the
// background less dL/dalpha T, `so_far` the sum up to and with the current one. Then
// dL/dalpha_i = T_i value_i - (total - so_far) / (1 - alpha_i).
template <typename R>
struct PixelGradient {
    R red, green, blue, depth;
    R total, so_far;
};

// Writes the kScreenSums contributions of this pixel for a Gaussian that was drawn on it.
template <typename R>
SC_INLINE void backward_pixel(const Splat<R>& splat, const Touch<R>& t, R weight, PixelGradient<R>& g, R* sums) {
    const R value = g.red * splat.red + g.green * splat.green + g.blue * splat.blue + g.depth * splat.z;
    g.so_far = fused(weight, value, g.so_far);
    sums[kByRed] = weight * g.red;
    sums[kByGreen] = weight * g.green;
    sums[kByBlue] = weight * g.blue;
    sums[kByDepth] = weight * g.depth;
    // alpha * dL/dalpha; none where alpha is clamped.
    const R behind = fast_quotient(g.total - g.so_far, R(1) - t.alpha);
    const R by_log_alpha = t.unclamped <= R(kAlphaMax) ? weight * value - t.alpha * behind : R(0);
    const R gu = by_log_alpha * t.u, gv = by_log_alpha * t.v;
    sums[kG] = by_log_alpha;
    sums[kGu] = gu;
    sums[kGv] = gv;
    sums[kGuu] = gu * t.u;
    sums[kGuv] = gu * t.v;
    sums[kGvv] = gv * t.v;
    sums[kAbsX] = magnitude(splat.l11 * gu);
    sums[kAbsY] = magnitude(splat.l21 * gu + splat.l22 * gv);
}

// Squared change (RGB) of a pixel if this Gaussian were taken out: its own light, less what it hid. `final` is the
// finished pixel over the background, `so_far` the light up to and with this Gaussian.
template <typename R>
SC_INLINE R removal_error(const Splat<R>& splat, R alpha, R weight, const R* final, const R* so_far) {
    const R share = fast_quotient(alpha, R(1) - alpha);
    const R red = weight * splat.red - share * (final[0] - so_far[0]);
    const R green = weight * splat.green - share * (final[1] - so_far[1]);
    const R blue = weight * splat.blue - share * (final[2] - so_far[2]);
    return red * red + green * green + blue * blue;
}

}  // namespace sc
