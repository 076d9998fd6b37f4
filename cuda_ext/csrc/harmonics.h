// Real spherical harmonics up to degree 3 in the order and signs of 3DGS files, and their derivatives.
#pragma once

#include "platform.h"

namespace sc {

// basis[k] for k < kCount (1, 4, 9 or 16: known to the compiler, so that all of it stays in registers) at the unit
// vector (x, y, z).
template <int kCount, typename R>
SC_INLINE void harmonics(R x, R y, R z, R* basis) {
    basis[0] = R(0.28209479177387814);
    if constexpr (kCount >= 4) {
        const R c1 = R(0.4886025119029199);
        basis[1] = -c1 * y;
        basis[2] = c1 * z;
        basis[3] = -c1 * x;
    }
    const R xx = x * x, yy = y * y, zz = z * z;
    if constexpr (kCount >= 9) {
        const R c2 = R(1.0925484305920792);
        basis[4] = c2 * x * y;
        basis[5] = -c2 * y * z;
        basis[6] = R(0.31539156525252005) * (R(2) * zz - xx - yy);
        basis[7] = -c2 * x * z;
        basis[8] = R(0.5462742152960396) * (xx - yy);
    }
    if constexpr (kCount >= 16) {
        basis[9] = R(-0.5900435899266435) * y * (R(3) * xx - yy);
        basis[10] = R(2.890611442640554) * x * y * z;
        basis[11] = R(-0.4570457994644658) * y * (R(4) * zz - xx - yy);
        basis[12] = R(0.3731763325901154) * z * (R(2) * zz - R(3) * xx - R(3) * yy);
        basis[13] = R(-0.4570457994644658) * x * (R(4) * zz - xx - yy);
        basis[14] = R(1.445305721320277) * z * (xx - yy);
        basis[15] = R(-0.5900435899266435) * x * (xx - R(3) * yy);
    }
    (void)xx, (void)yy, (void)zz;
}

// Adds sum over k of by_basis[k] * d basis[k] / d (x, y, z) to by_direction (3); x, y, z as independent variables.
template <int kCount, typename R>
SC_INLINE void harmonics_backward(R x, R y, R z, const R* by_basis, R* by_direction) {
    R gx = R(0), gy = R(0), gz = R(0);
    if constexpr (kCount >= 4) {
        const R c1 = R(0.4886025119029199);
        gx = -c1 * by_basis[3];
        gy = -c1 * by_basis[1];
        gz = c1 * by_basis[2];
    }
    if constexpr (kCount >= 9) {
        const R c2 = R(1.0925484305920792), c20 = R(0.31539156525252005), c22 = R(0.5462742152960396);
        const R* g = by_basis + 4;
        gx += c2 * (y * g[0] - z * g[3]) - R(2) * c20 * x * g[2] + R(2) * c22 * x * g[4];
        gy += c2 * (x * g[0] - z * g[1]) - R(2) * c20 * y * g[2] - R(2) * c22 * y * g[4];
        gz += -c2 * (y * g[1] + x * g[3]) + R(4) * c20 * z * g[2];
    }
    if constexpr (kCount >= 16) {
        const R xx = x * x, yy = y * y, zz = z * z;
        const R c33 = R(-0.5900435899266435), c32 = R(2.890611442640554), c31 = R(-0.4570457994644658);
        const R c30 = R(0.3731763325901154), c3c = R(1.445305721320277);
        const R* g = by_basis + 9;
        gx += c33 * R(6) * x * y * g[0] + c32 * y * z * g[1] - c31 * R(2) * x * y * g[2] - c30 * R(6) * x * z * g[3];
        gx += c31 * (R(4) * zz - R(3) * xx - yy) * g[4] + c3c * R(2) * x * z * g[5] + c33 * R(3) * (xx - yy) * g[6];
        gy += c33 * R(3) * (xx - yy) * g[0] + c32 * x * z * g[1] + c31 * (R(4) * zz - xx - R(3) * yy) * g[2];
        gy += -c30 * R(6) * y * z * g[3] - c31 * R(2) * x * y * g[4] - c3c * R(2) * y * z * g[5];
        gy += -c33 * R(6) * x * y * g[6];
        gz += c32 * x * y * g[1] + c31 * R(8) * y * z * g[2] + c30 * (R(6) * zz - R(3) * xx - R(3) * yy) * g[3];
        gz += c31 * R(8) * x * z * g[4] + c3c * (xx - yy) * g[5];
    }
    by_direction[0] += gx;
    by_direction[1] += gy;
    by_direction[2] += gz;
}

}  // namespace sc
