// One thread a Gaussian: projection, and from the tiles' sums back to the attributes.
#include "geometry.h"
#include "platform.h"
#include "tiles.h"
#include "warp.h"

namespace sc {

constexpr int kProjectThreads = 128;

template <typename R>
struct Attributes {
    int64_t count;
    const R *means, *quats, *log_scales, *logits, *sh0, *shN;
};

template <typename R>
SC_DEVICE void load_shape(const Attributes<R>& scene, int64_t i, R* mean, R* quat, R* log_scale) {
    for (int k = 0; k < 3; ++k) mean[k] = scene.means[3 * i + k];
    for (int k = 0; k < 4; ++k) quat[k] = scene.quats[4 * i + k];
    for (int k = 0; k < 3; ++k) log_scale[k] = scene.log_scales[3 * i + k];
}

// Writes a record, the depth as a sortable integer, and how many tiles are touched (0: not drawn; its record and depth
// are then undefined and last).
template <int kCount, typename R>
__global__ void __launch_bounds__(kProjectThreads) project_kernel(
    Attributes<R> scene,
    View<R> view,
    Splat<R>* __restrict__ splats,
    uint32_t* __restrict__ depth_keys,
    int32_t* __restrict__ tile_counts
) {
    const int64_t i = int64_t(blockIdx.x) * kProjectThreads + threadIdx.x;
    if (i >= scene.count) return;
    int64_t tiles = 0;
    uint32_t key = 0xffffffffu;
    const R logit = scene.logits[i];
    if (logit > R(kMinLogit)) {
        R mean[3], quat[4], log_scale[3];
        load_shape(scene, i, mean, quat, log_scale);
        Geometry<R> g;
        Splat<R> splat;
        const R* shN = scene.shN + 3 * (kCount - 1) * i;
        if (place(view, mean, quat, log_scale, g) &&
            draw_record<kCount>(view, g, logit, scene.sh0 + 3 * i, shN, splat)) {
            tiles = count_tiles(splat, view);
            if (tiles > 0) {
                splats[i] = splat;
                // Positive floats sort like their bits.
                const float depth = static_cast<float>(splat.z);
#if defined(__CUDA_ARCH__)
                key = __float_as_uint(depth);
#elif !defined(__CUDACC__)
                std::memcpy(&key, &depth, sizeof key);
#endif
            }
        }
    }
    depth_keys[i] = key;
    tile_counts[i] = static_cast<int32_t>(tiles);
}

template <typename R>
struct AttributeOutputs {
    R *means, *quats, *log_scales, *logits, *sh0, *shN;
    R *screen, *screen_absolute;  // null where not asked for; added to
    R* pose;                      // (blocks, kPoseSums) or null
};

// All outputs but the last three must be zero before: Gaussians that are not drawn write nothing.
template <int kCount, typename R>
__global__ void __launch_bounds__(kProjectThreads) project_backward_kernel(
    Attributes<R> scene,
    View<R> view,
    const int32_t* __restrict__ tile_counts,
    const R* __restrict__ screen_sums,
    AttributeOutputs<R> by
) {
    const int64_t i = int64_t(blockIdx.x) * kProjectThreads + threadIdx.x;
    R pose[16] = {R(0), R(0), R(0), R(0), R(0), R(0), R(0), R(0), R(0), R(0), R(0), R(0), R(0), R(0), R(0), R(0)};
    if (i < scene.count && tile_counts[i] > 0) {
        R mean[3], quat[4], log_scale[3], sums[kScreenSums];
        load_shape(scene, i, mean, quat, log_scale);
        for (int k = 0; k < kScreenSums; ++k) sums[k] = screen_sums[kScreenSums * i + k];
        Geometry<R> g;
        if (place(view, mean, quat, log_scale, g)) {
            AttributeGradients<R> own;
            const int64_t rest = 3 * (kCount - 1) * i;
            attributes_backward<kCount>(
                view, g, scene.logits[i], scene.sh0 + 3 * i, scene.shN + rest, sums, own, by.sh0 + 3 * i,
                by.shN + rest, pose
            );
            for (int k = 0; k < 3; ++k) by.means[3 * i + k] = own.mean[k];
            for (int k = 0; k < 4; ++k) by.quats[4 * i + k] = own.quat[k];
            for (int k = 0; k < 3; ++k) by.log_scales[3 * i + k] = own.log_scale[k];
            by.logits[i] = own.logit;
            for (int k = 0; k < 2; ++k) {
                if (by.screen != nullptr) by.screen[2 * i + k] += own.screen[k];
                if (by.screen_absolute != nullptr) by.screen_absolute[2 * i + k] += sums[kAbsX + k];
            }
        }
    }
    if (by.pose == nullptr) return;
    // Sums of a block in a fixed order; the few blocks are summed by the caller.
    __shared__ R warps[kProjectThreads / kWarp][kPoseSums];
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const R total = sums_over_warp<16>(pose, lane);
    if (lane % 2 == 0 && lane / 2 < kPoseSums) warps[warp][lane / 2] = total;
    __syncthreads();
    if (threadIdx.x < kPoseSums) {
        R sum = R(0);
        for (int k = 0; k < kProjectThreads / kWarp; ++k) sum += warps[k][threadIdx.x];
        by.pose[int64_t(blockIdx.x) * kPoseSums + threadIdx.x] = sum;
    }
}

template <typename R>
int project(
    int64_t count, int num_harmonics, const R* means, const R* quats, const R* log_scales, const R* logits,
    const R* sh0, const R* shN, const double* camera, int width, int height, int antialiased, R* splats,
    uint32_t* depth_keys, int32_t* tile_counts, Stream stream
) {
    if (count == 0) return 0;
    const Attributes<R> scene{count, means, quats, log_scales, logits, sh0, shN};
    const View<R> view = make_view<R>(camera, width, height, antialiased);
    const int64_t blocks = (count + kProjectThreads - 1) / kProjectThreads;
    auto kernel = project_kernel<1, R>;
    if (num_harmonics == 4) kernel = project_kernel<4, R>;
    if (num_harmonics == 9) kernel = project_kernel<9, R>;
    if (num_harmonics == 16) kernel = project_kernel<16, R>;
    SC_LAUNCH(
        kernel, static_cast<unsigned>(blocks), kProjectThreads, stream, scene, view,
        reinterpret_cast<Splat<R>*>(splats), depth_keys, tile_counts
    );
    return launch_error();
}

template <typename R>
int project_backward(
    int64_t count, int num_harmonics, const R* means, const R* quats, const R* log_scales, const R* logits,
    const R* sh0, const R* shN, const double* camera, int width, int height, int antialiased,
    const int32_t* tile_counts, const R* screen_sums, R* by_means, R* by_quats, R* by_log_scales, R* by_logits,
    R* by_sh0, R* by_shN, R* by_screen, R* by_screen_absolute, R* by_pose, Stream stream
) {
    if (count == 0) return 0;
    const Attributes<R> scene{count, means, quats, log_scales, logits, sh0, shN};
    const View<R> view = make_view<R>(camera, width, height, antialiased);
    const AttributeOutputs<R> by{by_means, by_quats, by_log_scales, by_logits, by_sh0, by_shN,
                                 by_screen, by_screen_absolute, by_pose};
    const int64_t blocks = (count + kProjectThreads - 1) / kProjectThreads;
    auto kernel = project_backward_kernel<1, R>;
    if (num_harmonics == 4) kernel = project_backward_kernel<4, R>;
    if (num_harmonics == 9) kernel = project_backward_kernel<9, R>;
    if (num_harmonics == 16) kernel = project_backward_kernel<16, R>;
    SC_LAUNCH(
        kernel, static_cast<unsigned>(blocks), kProjectThreads, stream, scene, view, tile_counts, screen_sums, by
    );
    return launch_error();
}

}  // namespace sc

extern "C" {

// What the Python side checks before it calls anything else.
int sc_abi_version() { return sc::kAbiVersion; }
// Of this library's own runtime, which has a current device besides torch's.
int sc_set_device(int index) {
#if defined(__CUDACC__)
    return static_cast<int>(cudaSetDevice(index));
#else
    (void)index;
    return 0;
#endif
}
int sc_project_threads() { return sc::kProjectThreads; }
void sc_constants(double* out) {
    const double numbers[] = {
        sc::kAlphaMin, sc::kAlphaMax, sc::kTransmittanceMin, sc::kLowPassPx2, sc::kLogScaleMax, sc::kColourMax,
        double(sc::kTile)
    };
    for (int k = 0; k < 7; ++k) out[k] = numbers[k];
}

#define SC_DEFINE(R, suffix)                                                                                           \
    int sc_project_##suffix(                                                                                           \
        int64_t count, int num_harmonics, const R* means, const R* quats, const R* log_scales, const R* logits,        \
        const R* sh0, const R* shN, const double* camera, int width, int height, int antialiased, R* splats,           \
        uint32_t* depth_keys, int32_t* tile_counts, void* stream                                                       \
    ) {                                                                                                                \
        return sc::project<R>(                                                                                         \
            count, num_harmonics, means, quats, log_scales, logits, sh0, shN, camera, width, height, antialiased,      \
            splats, depth_keys, tile_counts, static_cast<sc::Stream>(stream)                                           \
        );                                                                                                             \
    }                                                                                                                  \
    int sc_project_backward_##suffix(                                                                                  \
        int64_t count, int num_harmonics, const R* means, const R* quats, const R* log_scales, const R* logits,        \
        const R* sh0, const R* shN, const double* camera, int width, int height, int antialiased,                      \
        const int32_t* tile_counts, const R* screen_sums, R* by_means, R* by_quats, R* by_log_scales, R* by_logits,    \
        R* by_sh0, R* by_shN, R* by_screen, R* by_screen_absolute, R* by_pose, void* stream                            \
    ) {                                                                                                                \
        return sc::project_backward<R>(                                                                                \
            count, num_harmonics, means, quats, log_scales, logits, sh0, shN, camera, width, height, antialiased,      \
            tile_counts, screen_sums, by_means, by_quats, by_log_scales, by_logits, by_sh0, by_shN, by_screen,         \
            by_screen_absolute, by_pose, static_cast<sc::Stream>(stream)                                               \
        );                                                                                                             \
    }
SC_FOR_EACH_REAL(SC_DEFINE)
#undef SC_DEFINE

}  // extern "C"
