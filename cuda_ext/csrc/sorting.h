// Sorts and running sums over the whole device: CUB, or the standard library in the emulated build. Scratch memory is
// the caller's: with `scratch` null only its size is set.
#pragma once

#include "platform.h"

#if defined(__CUDACC__)
#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>
#else
#include <algorithm>
#include <numeric>
#include <vector>
#endif

namespace sc {

// Stable, ascending by the lowest `bits` of the keys.
inline int sort_pairs(
    void* scratch, size_t& scratch_bytes, const uint32_t* keys, uint32_t* sorted_keys, const int32_t* values,
    int32_t* sorted_values, int64_t count, int bits, Stream stream
) {
#if defined(__CUDACC__)
    return static_cast<int>(cub::DeviceRadixSort::SortPairs(
        scratch, scratch_bytes, keys, sorted_keys, values, sorted_values, count, 0, bits, stream
    ));
#else
    (void)stream;
    if (scratch == nullptr) {
        scratch_bytes = 1;
        return 0;
    }
    const uint32_t mask = bits >= 32 ? 0xffffffffu : (1u << bits) - 1u;
    std::vector<int64_t> order(count);
    std::iota(order.begin(), order.end(), int64_t(0));
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
        return (keys[a] & mask) < (keys[b] & mask);
    });
    for (int64_t k = 0; k < count; ++k) {
        sorted_keys[k] = keys[order[k]];
        sorted_values[k] = values[order[k]];
    }
    return 0;
#endif
}

// sums[k] = values[0] + ... + values[k].
inline int running_sums(
    void* scratch, size_t& scratch_bytes, const int64_t* values, int64_t* sums, int64_t count, Stream stream
) {
#if defined(__CUDACC__)
    return static_cast<int>(cub::DeviceScan::InclusiveSum(scratch, scratch_bytes, values, sums, count, stream));
#else
    (void)stream;
    if (scratch == nullptr) {
        scratch_bytes = 1;
        return 0;
    }
    std::partial_sum(values, values + count, sums);
    return 0;
#endif
}

}  // namespace sc
