// One Gaussian seen by one camera: from its attributes to an ellipse on the picture, and gradients all the way back.
//
// EWA splatting (Zwicker et al., 2002) as used by 3D Gaussian Splatting (Kerbl et al., 2023). The projected covariance
// is J J^T + low-pass, J (2 x 3) the Gaussian's axes in pixels. It is kept as the Cholesky-like factor W of its
// inverse,
//
//     W = [ l11 l21 ]      e = W (pixel - mean),   m = |e|^2 the squared Mahalanobis distance,
//         [  0  l22 ]
//
// which stays accurate for needles where a quadratic form cancels. Gradients stay in that whitened frame too: with S
// the sum over pixels of G e e^T, dL/dJ = W^T S W J, in which no determinant and no cancelling difference appears.
#pragma once

#include "constants.h"
#include "harmonics.h"
#include "platform.h"

namespace sc {

// A pinhole camera; positions in double, since centres far from the origin would cost a float its pixels.
template <typename R>
struct View {
    double rotation[9];  // world to camera
    double center[3];
    double near_plane;
    R fx, fy, cx, cy;
    R limits[4];  // largest -x/z, x/z, -y/z, y/z at which the projection is linearised
    int width, height, tiles_x, tiles_y;
    bool antialiased;
};

// The numbers of a C call: rotation 9, centre 3, fx, fy, cx, cy, limits 4, near.
constexpr int kCameraNumbers = 21;

template <typename R>
inline View<R> make_view(const double* numbers, int width, int height, int antialiased) {
    View<R> view;
    for (int k = 0; k < 9; ++k) view.rotation[k] = numbers[k];
    for (int k = 0; k < 3; ++k) view.center[k] = numbers[9 + k];
    view.fx = R(numbers[12]);
    view.fy = R(numbers[13]);
    view.cx = R(numbers[14]);
    view.cy = R(numbers[15]);
    for (int k = 0; k < 4; ++k) view.limits[k] = R(numbers[16 + k]);
    view.near_plane = numbers[20];
    view.width = width;
    view.height = height;
    view.tiles_x = (width + kTile - 1) / kTile;
    view.tiles_y = (height + kTile - 1) / kTile;
    view.antialiased = antialiased != 0;
    return view;
}

// What a tile needs to draw a Gaussian: 12 numbers, three vector loads.
template <typename R>
struct alignas(16) Splat {
    R mx, my, l11, l21;
    R l22, opacity, cut, z;  // cut: the m beyond which alpha is below kAlphaMin
    R red, green, blue, spare;
};

// Everything on the way that the backward pass needs again.
template <typename R>
struct Geometry {
    R offset[3];                 // from the camera's centre, world axes
    R z, x_z, y_z;               // depth, and the other two over it
    R bent_x, bent_y;            // x_z, y_z within the limits
    R quat[4], quat_norm;        // unit, and the norm that was divided out
    R axes[9];                   // rotation of the Gaussian; columns are its axes
    R sigma[3];                  // standard deviations over z
    bool scale_clamped[3];
    R turned[9];                 // axes times sigma, in camera axes
    R jacobian[6];               // J, rows first
    R l11, l21, l22;
    R sharpness;                 // sqrt(det(J J^T) / det(J J^T + low-pass))
    bool veil;
};

template <typename R>
SC_INLINE void rotation_of(const R* q, R* axes) {
    const R w = q[0], x = q[1], y = q[2], z = q[3];
    axes[0] = R(1) - R(2) * (y * y + z * z);
    axes[1] = R(2) * (x * y - w * z);
    axes[2] = R(2) * (x * z + w * y);
    axes[3] = R(2) * (x * y + w * z);
    axes[4] = R(1) - R(2) * (x * x + z * z);
    axes[5] = R(2) * (y * z - w * x);
    axes[6] = R(2) * (x * z - w * y);
    axes[7] = R(2) * (y * z + w * x);
    axes[8] = R(1) - R(2) * (x * x + y * y);
}

// Fills g; false where the Gaussian cannot be drawn. Written so that NaN fails every test.
template <typename R>
SC_INLINE bool place(const View<R>& view, const R* mean, const R* quat, const R* log_scale, Geometry<R>& g) {
    const double px = double(mean[0]) - view.center[0];
    const double py = double(mean[1]) - view.center[1];
    const double pz = double(mean[2]) - view.center[2];
    const double* t = view.rotation;
    const double z = t[6] * px + t[7] * py + t[8] * pz;
    if (!(z > view.near_plane && z < 1e37)) return false;
    g.offset[0] = R(px);
    g.offset[1] = R(py);
    g.offset[2] = R(pz);
    g.z = R(z);
    g.x_z = R(t[0] * px + t[1] * py + t[2] * pz) / g.z;
    g.y_z = R(t[3] * px + t[4] * py + t[5] * pz) / g.z;
    if (!finite(g.x_z) || !finite(g.y_z)) return false;

    // Largest component first, so that neither huge nor tiny quaternions lose their norm; zero means identity.
    R largest = R(0);
    for (int k = 0; k < 4; ++k) {
        if (!finite(quat[k])) return false;
        largest = greater(largest, magnitude(quat[k]));
    }
    if (largest > R(0)) {
        R squares = R(0);
        for (int k = 0; k < 4; ++k) {
            g.quat[k] = quat[k] / largest;
            squares += g.quat[k] * g.quat[k];
        }
        const R norm = root(squares);
        for (int k = 0; k < 4; ++k) g.quat[k] /= norm;
        g.quat_norm = largest * norm;
    } else {
        g.quat[0] = R(1);
        g.quat[1] = g.quat[2] = g.quat[3] = R(0);
        g.quat_norm = R(0);
    }
    rotation_of(g.quat, g.axes);

    for (int k = 0; k < 3; ++k) {
        const R s = log_scale[k];
        if (!(s - s == R(0) || s < R(0))) return false;  // -inf is a Gaussian without width
        R sigma = exponential(lesser(s, R(kLogScaleMax))) / g.z;
        g.scale_clamped[k] = s > R(kLogScaleMax) || sigma > R(kMaxSigma);
        sigma = lesser(sigma, R(kMaxSigma));
        g.sigma[k] = sigma;
        for (int j = 0; j < 3; ++j) {
            const R along = R(t[3 * j]) * g.axes[k] + R(t[3 * j + 1]) * g.axes[3 + k] + R(t[3 * j + 2]) * g.axes[6 + k];
            g.turned[3 * j + k] = along * sigma;
        }
    }
    // Linearised at the mean, or at the edge of the picture's surroundings if the mean is beyond.
    g.bent_x = clamped(g.x_z, -view.limits[0], view.limits[1]);
    g.bent_y = clamped(g.y_z, -view.limits[2], view.limits[3]);
    R a = R(0), b = R(0), c = R(0);
    R* across = g.jacobian;
    R* down = g.jacobian + 3;
    for (int k = 0; k < 3; ++k) {
        across[k] = view.fx * (g.turned[k] - g.bent_x * g.turned[6 + k]);
        down[k] = view.fy * (g.turned[3 + k] - g.bent_y * g.turned[6 + k]);
        a += across[k] * across[k];
        b += across[k] * down[k];
        c += down[k] * down[k];
    }
    const R low_pass = R(kLowPassPx2);
    g.veil = !(a + low_pass < R(kMaxVariancePx2) && c + low_pass < R(kMaxVariancePx2));
    if (g.veil) {
        if (!(a == a && c == c)) return false;
        g.l11 = g.l22 = R(1e-12);
        g.l21 = R(0);
        g.sharpness = R(1);
        return true;
    }
    // The determinant by minors (Cauchy-Binet): all terms are positive, so needles do not cancel. All of it is divided
    // by c + low-pass early: determinants of wide Gaussians do not fit a float.
    const R l22 = R(1) / root(c + low_pass);
    const R m01 = (across[0] * down[1] - across[1] * down[0]) * l22;
    const R m02 = (across[0] * down[2] - across[2] * down[0]) * l22;
    const R m12 = (across[1] * down[2] - across[2] * down[1]) * l22;
    const R sharp = m01 * m01 + m02 * m02 + m12 * m12;
    const R blur = low_pass * (a * l22 * l22 + R(1));
    const R l11 = R(1) / root(sharp + blur);
    g.l22 = l22;
    g.l11 = l11;
    g.l21 = -b * l22 * l22 * l11;
    g.sharpness = root(sharp) * l11;
    return true;
}

// 1 / (1 + exp(-x)) for any x.
template <typename R>
SC_INLINE R sigmoid(R x) {
    const R e = exponential(-magnitude(x));
    return (x >= R(0) ? R(1) : e) / (R(1) + e);
}

// Unit vector from the camera to the Gaussian; returns 1 over the distance.
template <typename R>
SC_INLINE R direction_of(const Geometry<R>& g, R* direction) {
    R squares = R(0);
    for (int k = 0; k < 3; ++k) {
        direction[k] = g.offset[k] / g.z;  // x/z is tested to be finite; squares of offsets may not be
        squares += direction[k] * direction[k];
    }
    const R inverse = R(1) / root(squares);
    for (int k = 0; k < 3; ++k) direction[k] *= inverse;
    return inverse / g.z;
}

// The colour towards the camera before it is clamped; sh0 (3), shN (kCount - 1, 3).
template <int kCount, typename R>
SC_INLINE void colour_of(const R* sh0, const R* shN, const R* basis, R* colour) {
    for (int c = 0; c < 3; ++c) colour[c] = R(0.5) + basis[0] * sh0[c];
    SC_UNROLL
    for (int k = 1; k < kCount; ++k) {
        for (int c = 0; c < 3; ++c) colour[c] += basis[k] * shN[3 * (k - 1) + c];
    }
}

// The finished record; false where nothing of the Gaussian can be seen, wherever it stands.
template <int kCount, typename R>
SC_INLINE bool draw_record(
    const View<R>& view, const Geometry<R>& g, R logit, const R* sh0, const R* shN, Splat<R>& splat
) {
    R opacity = sigmoid(logit);
    if (view.antialiased) opacity *= g.sharpness;
    if (!(opacity * R(1.00001) >= R(kAlphaMin))) return false;
    splat.mx = view.fx * g.x_z + view.cx;
    splat.my = view.fy * g.y_z + view.cy;
    splat.l11 = g.l11;
    splat.l21 = g.l21;
    splat.l22 = g.l22;
    splat.opacity = opacity;
    // A little generous: alpha itself decides.
    splat.cut = greater(R(0), R(2) * natural_log(opacity / R(kAlphaMin))) + R(0.001);
    splat.z = g.z;
    R direction[3], basis[kCount], colour[3];
    direction_of(g, direction);
    harmonics<kCount>(direction[0], direction[1], direction[2], basis);
    colour_of<kCount>(sh0, shN, basis, colour);
    for (int c = 0; c < 3; ++c) {
        if (!finite(colour[c])) return false;  // only from infinite or NaN coefficients
        colour[c] = clamped(colour[c], R(0), R(kColourMax));
    }
    splat.red = colour[0];
    splat.green = colour[1];
    splat.blue = colour[2];
    splat.spare = R(0);
    return true;
}

// Columns of the sums over pixels that `backward_pixel` (blending.h) makes for every Gaussian. G is dL/d log alpha.
enum ScreenSum { kG, kGu, kGv, kGuu, kGuv, kGvv, kByRed, kByGreen, kByBlue, kByDepth, kAbsX, kAbsY };

template <typename R>
struct AttributeGradients {
    R mean[3], quat[4], log_scale[3], logit, screen[2];
};

// Gradients of all attributes of one drawn Gaussian from its screen sums. by_sh0 (3) and by_shN (kCount - 1, 3) are
// written; `pose` (kPoseSums: rotation 9, then the sum of the gradients by the offset) is added to.
template <int kCount, typename R>
SC_INLINE void attributes_backward(
    const View<R>& view,
    const Geometry<R>& g,
    R logit,
    const R* sh0,
    const R* shN,
    const R* sums,
    AttributeGradients<R>& by,
    R* by_sh0,
    R* by_shN,
    R* pose
) {
    // Alpha is opacity times sharpness times exp(-m / 2): the sum of G is the gradient by each factor's logarithm.
    by.logit = sums[kG] * sigmoid(-logit);
    // d m / d mean = -2 W^T e, and G = -2 dL/dm.
    const R by_mx = g.l11 * sums[kGu];
    const R by_my = g.l21 * sums[kGu] + g.l22 * sums[kGv];
    by.screen[0] = by_mx;
    by.screen[1] = by_my;

    // dL/dJ = W^T S B with B = W J.
    R by_jacobian[6] = {R(0), R(0), R(0), R(0), R(0), R(0)};
    const R* across = g.jacobian;
    const R* down = g.jacobian + 3;
    if (!g.veil) {
        for (int k = 0; k < 3; ++k) {
            const R bu = g.l11 * across[k] + g.l21 * down[k];
            const R bv = g.l22 * down[k];
            R su = sums[kGuu] * bu + sums[kGuv] * bv;
            R sv = sums[kGuv] * bu + sums[kGvv] * bv;
            if (view.antialiased) {
                // log sharpness = (log det(J J^T) - log det(J J^T + low-pass)) / 2; this is its second half.
                su -= sums[kG] * bu;
                sv -= sums[kG] * bv;
            }
            by_jacobian[k] = g.l11 * su;
            by_jacobian[3 + k] = g.l21 * su + g.l22 * sv;
        }
        if (view.antialiased) {
            // The first half: (J J^T)^-1 J, by minors of J scaled to unit size so that nothing over- or underflows.
            R size = R(0);
            for (int k = 0; k < 6; ++k) size = greater(size, magnitude(g.jacobian[k]));
            R unit[6] = {R(0), R(0), R(0), R(0), R(0), R(0)};
            if (size > R(0)) {
                for (int k = 0; k < 6; ++k) unit[k] = g.jacobian[k] / size;
            }
            const R m01 = unit[0] * unit[4] - unit[1] * unit[3];
            const R m02 = unit[0] * unit[5] - unit[2] * unit[3];
            const R m12 = unit[1] * unit[5] - unit[2] * unit[4];
            const R det = m01 * m01 + m02 * m02 + m12 * m12;
            if (det > R(0)) {
                const R scale = sums[kG] / (det * size);
                by_jacobian[0] += scale * (unit[4] * m01 + unit[5] * m02);
                by_jacobian[1] += scale * (unit[5] * m12 - unit[3] * m01);
                by_jacobian[2] -= scale * (unit[3] * m02 + unit[4] * m12);
                by_jacobian[3] -= scale * (unit[1] * m01 + unit[2] * m02);
                by_jacobian[4] += scale * (unit[0] * m01 - unit[2] * m12);
                by_jacobian[5] += scale * (unit[0] * m02 + unit[1] * m12);
            }
        }
    }

    // J = focal * (turned rows 0 and 1 - bent * row 2).
    R by_turned[9];
    R by_bent_x = R(0), by_bent_y = R(0);
    for (int k = 0; k < 3; ++k) {
        by_turned[k] = view.fx * by_jacobian[k];
        by_turned[3 + k] = view.fy * by_jacobian[3 + k];
        by_turned[6 + k] = -g.bent_x * by_turned[k] - g.bent_y * by_turned[3 + k];
        by_bent_x -= by_turned[k] * g.turned[6 + k];
        by_bent_y -= by_turned[3 + k] * g.turned[6 + k];
    }
    // turned = rotation * axes * sigma, sigma = exp(log scale) / z.
    const double* t = view.rotation;
    R by_axes[9];
    R by_z = R(0);
    for (int k = 0; k < 3; ++k) {
        R along = R(0);
        for (int j = 0; j < 3; ++j) along += by_turned[3 * j + k] * g.turned[3 * j + k];
        by.log_scale[k] = g.scale_clamped[k] ? R(0) : along;
        by_z -= along;
        for (int i = 0; i < 3; ++i) {
            R value = R(0);
            for (int j = 0; j < 3; ++j) value += R(t[3 * j + i]) * by_turned[3 * j + k];
            by_axes[3 * i + k] = value * g.sigma[k];
        }
        for (int j = 0; j < 3; ++j) {
            for (int i = 0; i < 3; ++i) pose[3 * j + i] += by_turned[3 * j + k] * g.sigma[k] * g.axes[3 * i + k];
        }
    }

    // Rotation matrix to unit quaternion to raw quaternion.
    for (int k = 0; k < 4; ++k) by.quat[k] = R(0);
    if (g.quat_norm > R(0)) {
        const R w = g.quat[0], x = g.quat[1], y = g.quat[2], z = g.quat[3];
        const R* r = by_axes;
        R q[4];
        q[0] = R(2) * (x * (r[7] - r[5]) + y * (r[2] - r[6]) + z * (r[3] - r[1]));
        q[1] = R(2) * (w * (r[7] - r[5]) + y * (r[1] + r[3]) + z * (r[2] + r[6])) - R(4) * x * (r[4] + r[8]);
        q[2] = R(2) * (w * (r[2] - r[6]) + x * (r[1] + r[3]) + z * (r[5] + r[7])) - R(4) * y * (r[0] + r[8]);
        q[3] = R(2) * (w * (r[3] - r[1]) + x * (r[2] + r[6]) + y * (r[5] + r[7])) - R(4) * z * (r[0] + r[4]);
        const R radial = q[0] * w + q[1] * x + q[2] * y + q[3] * z;
        for (int k = 0; k < 4; ++k) by.quat[k] = (q[k] - radial * g.quat[k]) / g.quat_norm;
    }

    // Mean on the picture, and where the projection is linearised.
    R by_x_z = view.fx * by_mx, by_y_z = view.fy * by_my;
    if (g.x_z >= -view.limits[0] && g.x_z <= view.limits[1]) by_x_z += by_bent_x;
    if (g.y_z >= -view.limits[2] && g.y_z <= view.limits[3]) by_y_z += by_bent_y;
    by_z -= by_x_z * g.x_z + by_y_z * g.y_z;
    const R by_local[3] = {by_x_z / g.z, by_y_z / g.z, by_z / g.z + sums[kByDepth]};

    // Colour: harmonics in the direction of the offset.
    R direction[3], basis[kCount], colour[3], by_basis[kCount];
    const R inverse = direction_of(g, direction);
    harmonics<kCount>(direction[0], direction[1], direction[2], basis);
    colour_of<kCount>(sh0, shN, basis, colour);
    R by_colour[3];
    for (int c = 0; c < 3; ++c) {
        const bool kept = colour[c] >= R(0) && colour[c] <= R(kColourMax);
        by_colour[c] = kept ? sums[kByRed + c] : R(0);
        by_sh0[c] = by_colour[c] * basis[0];
    }
    by_basis[0] = R(0);
    SC_UNROLL
    for (int k = 1; k < kCount; ++k) {
        by_basis[k] = R(0);
        for (int c = 0; c < 3; ++c) {
            by_basis[k] += by_colour[c] * shN[3 * (k - 1) + c];
            by_shN[3 * (k - 1) + c] = by_colour[c] * basis[k];
        }
    }
    R by_direction[3] = {R(0), R(0), R(0)};
    harmonics_backward<kCount>(direction[0], direction[1], direction[2], by_basis, by_direction);
    R radial = R(0);
    for (int k = 0; k < 3; ++k) radial += by_direction[k] * direction[k];

    for (int i = 0; i < 3; ++i) {
        R value = (by_direction[i] - radial * direction[i]) * inverse;
        for (int j = 0; j < 3; ++j) value += R(t[3 * j + i]) * by_local[j];
        by.mean[i] = value;
        pose[9 + i] += value;
        for (int j = 0; j < 3; ++j) pose[3 * j + i] += by_local[j] * g.offset[i];
    }
}

}  // namespace sc
