// One block a tile, one thread a pixel: blending, its statistics, and its gradients.
#include "blending.h"
#include "constants.h"
#include "platform.h"
#include "tiles.h"
#include "warp.h"

namespace sc {

// A warp draws 8 x 4 pixels: a compact box, so that most small Gaussians concern one or two warps of the eight.
constexpr int kBoxWidth = 8, kBoxHeight = 4;

struct TileLists {
    const int32_t* entries;
    const int64_t* starts;
};

template <typename R>
struct Place {
    int x, y;
    bool inside;
    int64_t pixel;
};

// Which pixel of the picture this thread draws.
template <typename R>
SC_DEVICE Place<R> place_of_thread(int width, int height, int tiles_x) {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const int tile = static_cast<int>(blockIdx.x);
    Place<R> place;
    place.x = tile % tiles_x * kTile + warp % 2 * kBoxWidth + lane % kBoxWidth;
    place.y = tile / tiles_x * kTile + warp / 2 * kBoxHeight + lane / kBoxWidth;
    place.inside = place.x < width && place.y < height;
    place.pixel = int64_t(place.y) * width + place.x;
    return place;
}

// Calls visit(splat, id) for the tile's Gaussians front to back, in each warp only for those that touch the warp's box;
// all lanes of a warp make the same calls. Ends when no pixel of the tile is left.
template <typename R, typename Visit>
SC_DEVICE void walk_tile(const TileLists& lists, const Splat<R>* splats, const Pixel<R>& pixel, Visit visit) {
    __shared__ Splat<R> batch[kTilePixels];
    __shared__ int32_t ids[kTilePixels];
    const int thread = static_cast<int>(threadIdx.x);
    const int lane = thread % kWarp;
    const R left = pixel.x - R(lane % kBoxWidth), top = pixel.y - R(lane / kBoxWidth);
    const int64_t stop = lists.starts[blockIdx.x + 1];
    for (int64_t first = lists.starts[blockIdx.x]; first < stop; first += kTilePixels) {
        // Also the barrier before the batch is written again.
        if (__syncthreads_count(pixel.done) == kTilePixels) break;
        if (first + thread < stop) {
            const int32_t id = lists.entries[first + thread];
            ids[thread] = id;
            batch[thread] = splats[id];
        }
        __syncthreads();
        const int count = stop - first < kTilePixels ? static_cast<int>(stop - first) : kTilePixels;
        for (int group = 0; group < count; group += kWarp) {
            if (__all_sync(kAllLanes, pixel.done)) break;
            const int own = group + lane;
            const bool touches =
                own < count && touches_box(batch[own], left, top, left + R(kBoxWidth - 1), top + R(kBoxHeight - 1));
            unsigned waiting = __ballot_sync(kAllLanes, touches);
            while (waiting != 0) {
                const int next = group + __ffs(waiting) - 1;
                waiting &= waiting - 1;
                visit(batch[next], ids[next]);
            }
        }
    }
}

template <typename R>
struct Picture {
    R* rgb;            // (H, W, 3) over the background
    R* transmittance;  // (H, W)
    R* depth;          // (H, W) or null
};

template <typename R>
struct Statistics {
    R* sums;         // (N, kStatistics), added to (column 2: raised to)
    const R* final;  // (H, W, 3) the finished picture, for removal errors
};

// Statistics 0: none; 1: of the weights; 2: of the weights and of removal errors.
template <typename R, int kMode>
__global__ void __launch_bounds__(kTilePixels) rasterize_kernel(
    int width,
    int height,
    int tiles_x,
    TileLists lists,
    const Splat<R>* __restrict__ splats,
    const R* __restrict__ background,
    Picture<R> out,
    Statistics<R> statistics
) {
    const Place<R> place = place_of_thread<R>(width, height, tiles_x);
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    Pixel<R> pixel{R(place.x) + R(0.5), R(place.y) + R(0.5), R(1), !place.inside};
    R rgb[3] = {R(0), R(0), R(0)}, depth = R(0);
    R final[3] = {R(0), R(0), R(0)};
    if (kMode == 2 && place.inside) {
        for (int c = 0; c < 3; ++c) final[c] = statistics.final[3 * place.pixel + c];
    }
    walk_tile(lists, splats, pixel, [&](const Splat<R>& splat, int32_t id) {
        Touch<R> t;
        R weight = R(0);
        const bool drawn = blend(splat, pixel, t, weight);
        if (drawn) {
            rgb[0] = fused(weight, splat.red, rgb[0]);
            rgb[1] = fused(weight, splat.green, rgb[1]);
            rgb[2] = fused(weight, splat.blue, rgb[2]);
            depth = fused(weight, splat.z, depth);
        }
        if (kMode > 0) {
            const unsigned drawing = __ballot_sync(kAllLanes, drawn);
            if (drawing == 0) return;
            // In the order of the columns; those of the greatest weight and the hits are made otherwise.
            R values[8] = {R(0), R(0), R(0), R(0), R(0), R(0), R(0), R(0)};
            if (drawn) {
                values[0] = weight;
                values[1] = weight * weight;
                if (kMode == 2) {
                    values[4] = removal_error(splat, t.alpha, weight, final, rgb);
                    values[5] = values[4] * t.m;
                    values[6] = values[5] * t.m;
                }
            }
            const R greatest = greatest_over_warp(weight);
            const R total = sums_over_warp<8>(values, lane);
            const int column = lane / 4;
            R* sums = statistics.sums + int64_t(kStatistics) * id;
            if (lane % 4 == 0) {
                if (column == 2) {
                    raise_to(sums + column, greatest);
                } else if (column == 3) {
                    atomicAdd(sums + column, R(__popc(drawing)));
                } else if (column < (kMode == 2 ? 7 : 2)) {
                    atomicAdd(sums + column, total);
                }
            }
        }
    });
    if (!place.inside) return;
    for (int c = 0; c < 3; ++c) {
        out.rgb[3 * place.pixel + c] = fused(pixel.transmittance, background[c], rgb[c]);
    }
    out.transmittance[place.pixel] = pixel.transmittance;
    if (out.depth != nullptr) out.depth[place.pixel] = depth;
}

template <typename R>
struct PictureGradient {
    const R *rgb, *alpha, *depth;  // alpha and depth null where the loss has none
};

template <typename R>
__global__ void __launch_bounds__(kTilePixels) rasterize_backward_kernel(
    int width,
    int height,
    int tiles_x,
    TileLists lists,
    const Splat<R>* __restrict__ splats,
    Picture<R> drawn_picture,
    PictureGradient<R> by,
    R* __restrict__ screen_sums
) {
    const Place<R> place = place_of_thread<R>(width, height, tiles_x);
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    Pixel<R> pixel{R(place.x) + R(0.5), R(place.y) + R(0.5), R(1), !place.inside};
    PixelGradient<R> g{R(0), R(0), R(0), R(0), R(0), R(0)};
    if (place.inside) {
        const int64_t at = place.pixel;
        g.red = by.rgb[3 * at];
        g.green = by.rgb[3 * at + 1];
        g.blue = by.rgb[3 * at + 2];
        const R* rgb = drawn_picture.rgb + 3 * at;
        g.total = g.red * rgb[0] + g.green * rgb[1] + g.blue * rgb[2];
        if (by.depth != nullptr) {
            g.depth = by.depth[at];
            g.total += g.depth * drawn_picture.depth[at];
        }
        if (by.alpha != nullptr) g.total -= by.alpha[at] * drawn_picture.transmittance[at];
    }
    walk_tile(lists, splats, pixel, [&](const Splat<R>& splat, int32_t id) {
        Touch<R> t;
        R weight = R(0);
        R values[16];
        SC_UNROLL
        for (int k = 0; k < 16; ++k) values[k] = R(0);
        const bool drawn = blend(splat, pixel, t, weight);
        if (drawn) backward_pixel(splat, t, weight, g, values);
        if (__ballot_sync(kAllLanes, drawn) == 0) return;
        const R total = sums_over_warp<16>(values, lane);
        // Neighbouring addresses in one instruction: one transaction for all of a Gaussian's sums.
        const int column = lane / 2;
        if (lane % 2 == 0 && column < kScreenSums) {
            atomicAdd(screen_sums + int64_t(kScreenSums) * id + column, total);
        }
    });
}

template <typename R>
int rasterize(
    int width, int height, const int32_t* entries, const int64_t* starts, const R* splats, const R* background,
    R* rgb, R* transmittance, R* depth, R* statistics, const R* final, Stream stream
) {
    const int tiles_x = (width + kTile - 1) / kTile, tiles_y = (height + kTile - 1) / kTile;
    auto kernel = rasterize_kernel<R, 0>;
    if (statistics != nullptr) kernel = final != nullptr ? rasterize_kernel<R, 2> : rasterize_kernel<R, 1>;
    SC_LAUNCH(
        kernel, static_cast<unsigned>(tiles_x) * static_cast<unsigned>(tiles_y), kTilePixels, stream, width, height,
        tiles_x, TileLists{entries, starts}, reinterpret_cast<const Splat<R>*>(splats), background,
        Picture<R>{rgb, transmittance, depth}, Statistics<R>{statistics, final}
    );
    return launch_error();
}

template <typename R>
int rasterize_backward(
    int width, int height, const int32_t* entries, const int64_t* starts, const R* splats, R* rgb, R* transmittance,
    R* depth, const R* by_rgb, const R* by_alpha, const R* by_depth, R* screen_sums, Stream stream
) {
    const int tiles_x = (width + kTile - 1) / kTile, tiles_y = (height + kTile - 1) / kTile;
    auto kernel = rasterize_backward_kernel<R>;
    SC_LAUNCH(
        kernel, static_cast<unsigned>(tiles_x) * static_cast<unsigned>(tiles_y), kTilePixels, stream, width, height,
        tiles_x, TileLists{entries, starts}, reinterpret_cast<const Splat<R>*>(splats),
        Picture<R>{rgb, transmittance, depth}, PictureGradient<R>{by_rgb, by_alpha, by_depth}, screen_sums
    );
    return launch_error();
}

}  // namespace sc

extern "C" {

const char* sc_error_text(int error) {
#if defined(__CUDACC__)
    return cudaGetErrorString(static_cast<cudaError_t>(error));
#else
    (void)error;
    return "a barrier that not all threads reach";
#endif
}

#define SC_DEFINE(R, suffix)                                                                                           \
    int sc_rasterize_##suffix(                                                                                         \
        int width, int height, const int32_t* entries, const int64_t* starts, const R* splats, const R* background,    \
        R* rgb, R* transmittance, R* depth, R* statistics, const R* final, void* stream                                \
    ) {                                                                                                                \
        return sc::rasterize<R>(                                                                                       \
            width, height, entries, starts, splats, background, rgb, transmittance, depth, statistics, final,          \
            static_cast<sc::Stream>(stream)                                                                            \
        );                                                                                                             \
    }                                                                                                                  \
    int sc_rasterize_backward_##suffix(                                                                                \
        int width, int height, const int32_t* entries, const int64_t* starts, const R* splats, R* rgb,                 \
        R* transmittance, R* depth, const R* by_rgb, const R* by_alpha, const R* by_depth, R* screen_sums,             \
        void* stream                                                                                                   \
    ) {                                                                                                                \
        return sc::rasterize_backward<R>(                                                                              \
            width, height, entries, starts, splats, rgb, transmittance, depth, by_rgb, by_alpha, by_depth,             \
            screen_sums, static_cast<sc::Stream>(stream)                                                               \
        );                                                                                                             \
    }
SC_FOR_EACH_REAL(SC_DEFINE)
#undef SC_DEFINE

}  // extern "C"
