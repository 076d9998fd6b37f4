// Sums over the 32 threads of a warp.
#pragma once

#include "platform.h"

namespace sc {

// Sums `Count` values (a power of two, at most 32) over the warp at once. Every step halves either the values that a
// lane still carries or, when one is left, the lanes that still differ: Count + log2(32 / Count) - 1 shuffles rather
// than 5 Count. Returns the sum of value lane / (32 / Count), the same in all lanes that share it.
template <int Count, int Distance = 16, typename R>
SC_DEVICE R sums_over_warp(const R* values, int lane) {
    if constexpr (Count > 1) {
        const bool upper = (lane & Distance) != 0;
        R half[Count / 2];
        SC_UNROLL
        for (int k = 0; k < Count / 2; ++k) {
            const R given = upper ? values[k] : values[k + Count / 2];
            const R kept = upper ? values[k + Count / 2] : values[k];
            half[k] = kept + __shfl_xor_sync(kAllLanes, given, Distance);
        }
        return sums_over_warp<Count / 2, Distance / 2>(half, lane);
    } else {
        R total = values[0];
        SC_UNROLL
        for (int distance = Distance; distance > 0; distance /= 2) {
            total += __shfl_xor_sync(kAllLanes, total, distance);
        }
        return total;
    }
}

template <typename R>
SC_DEVICE R greatest_over_warp(R value) {
    SC_UNROLL
    for (int distance = 16; distance > 0; distance /= 2) {
        value = greater(value, __shfl_xor_sync(kAllLanes, value, distance));
    }
    return value;
}

// The larger of *at and value, for values of 0 and more (as integers, floats of one sign keep their order).
SC_DEVICE void raise_to(float* at, float value) {
#if defined(__CUDA_ARCH__)
    atomicMax(reinterpret_cast<int*>(at), __float_as_int(value));
#elif !defined(__CUDACC__)
    atomicMax(at, value);
#else
    (void)at, (void)value;
#endif
}
#if !defined(__CUDACC__)
SC_DEVICE void raise_to(double* at, double value) { atomicMax(at, value); }
#endif

}  // namespace sc
