// Which Gaussians each tile draws, front to back. Gaussians are sorted by depth first (32-bit keys, one for each), then
// their tile entries are listed in that order and sorted by tile, stably: the order of a sort by (tile, depth, index),
// for a third of the memory traffic of 64-bit keys, since tile numbers need few bits.
#include "geometry.h"
#include "platform.h"
#include "sorting.h"
#include "tiles.h"

namespace sc {

constexpr int kBinThreads = 256;
// A Gaussian of more tiles is listed by its whole warp.
constexpr int64_t kAloneTiles = 16;

inline unsigned blocks_of(int64_t count) { return static_cast<unsigned>((count + kBinThreads - 1) / kBinThreads); }

// Parts of one caller-owned block of memory, in 256-byte steps; with no memory it only counts.
class Workspace {
public:
    explicit Workspace(void* memory) : memory_(static_cast<char*>(memory)) {}
    template <typename T>
    T* take(size_t count) {
        T* part = memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + bytes_);
        bytes_ += (count * sizeof(T) + 255) / 256 * 256;
        return part;
    }
    size_t bytes() const { return bytes_; }

private:
    char* memory_;
    size_t bytes_ = 0;
};

__global__ void __launch_bounds__(kBinThreads) count_up_kernel(int64_t count, int32_t* indices) {
    const int64_t i = int64_t(blockIdx.x) * kBinThreads + threadIdx.x;
    if (i < count) indices[i] = static_cast<int32_t>(i);
}

__global__ void __launch_bounds__(kBinThreads) gather_counts_kernel(
    int64_t count, const int32_t* __restrict__ order, const int32_t* __restrict__ tile_counts, int64_t* ordered_counts
) {
    const int64_t rank = int64_t(blockIdx.x) * kBinThreads + threadIdx.x;
    if (rank < count) ordered_counts[rank] = tile_counts[order[rank]];
}

// Writes the tiles of one row to keys[at..end); returns where it stopped. Never past the end: should this kernel's
// rounding find a tile more than the counting one did, that tile is left out.
template <typename R>
SC_DEVICE int64_t list_rows(
    const Splat<R>& splat, const View<R>& view, int id, int row, int64_t at, int64_t end, uint32_t* keys, int32_t* ids
) {
    const Span columns = tile_columns(splat, row, view.height, view.tiles_x);
    for (int column = columns.first; column <= columns.last && at < end; ++column, ++at) {
        keys[at] = static_cast<uint32_t>(row) * static_cast<uint32_t>(view.tiles_x) + static_cast<uint32_t>(column);
        ids[at] = id;
    }
    return at;
}

// One thread a rank; ends[rank] is where its entries end.
template <typename R>
__global__ void __launch_bounds__(kBinThreads) list_tiles_kernel(
    int64_t count,
    View<R> view,
    const Splat<R>* __restrict__ splats,
    const int32_t* __restrict__ order,
    const int64_t* __restrict__ ends,
    uint32_t* __restrict__ keys,
    int32_t* __restrict__ ids
) {
    const int64_t rank = int64_t(blockIdx.x) * kBinThreads + threadIdx.x;
    const int lane = threadIdx.x % kWarp;
    const uint32_t nowhere = static_cast<uint32_t>(view.tiles_x) * static_cast<uint32_t>(view.tiles_y);
    int64_t begin = 0, end = 0;
    int id = 0;
    if (rank < count) {
        begin = rank > 0 ? ends[rank - 1] : 0;
        end = ends[rank];
        id = order[rank];
    }
    const bool wide = end - begin > kAloneTiles;
    if (end > begin && !wide) {
        const Splat<R> splat = splats[id];
        const Span rows = tile_rows(splat, view.tiles_y);
        int64_t at = begin;
        for (int row = rows.first; row <= rows.last; ++row) at = list_rows(splat, view, id, row, at, end, keys, ids);
        for (; at < end; ++at) {
            keys[at] = nowhere;
            ids[at] = id;
        }
    }
    unsigned waiting = __ballot_sync(kAllLanes, wide);
    while (waiting != 0) {
        const int source = __ffs(waiting) - 1;
        waiting &= waiting - 1;
        const int64_t shared_begin = __shfl_sync(kAllLanes, begin, source);
        const int64_t shared_end = __shfl_sync(kAllLanes, end, source);
        const int shared_id = __shfl_sync(kAllLanes, id, source);
        const Splat<R> splat = splats[shared_id];
        const Span rows = tile_rows(splat, view.tiles_y);
        int64_t at = shared_begin;
        // A row a lane; each begins where those of the lanes before it end.
        for (int first = rows.first; first <= rows.last; first += kWarp) {
            const int row = first + lane;
            int tiles = 0;
            if (row <= rows.last) {
                const Span columns = tile_columns(splat, row, view.height, view.tiles_x);
                tiles = columns.last >= columns.first ? columns.last - columns.first + 1 : 0;
            }
            int before = tiles;
            for (int distance = 1; distance < kWarp; distance *= 2) {
                const int other = __shfl_up_sync(kAllLanes, before, distance);
                if (lane >= distance) before += other;
            }
            const int all = __shfl_sync(kAllLanes, before, kWarp - 1);
            if (tiles > 0) list_rows(splat, view, shared_id, row, at + before - tiles, shared_end, keys, ids);
            at += all;
        }
        for (int64_t k = at + lane; k < shared_end; k += kWarp) {
            keys[k] = nowhere;
            ids[k] = shared_id;
        }
    }
}

// starts[tile] of all tiles and one past them, from sorted keys.
__global__ void __launch_bounds__(kBinThreads) find_starts_kernel(
    int64_t count, const uint32_t* __restrict__ keys, uint32_t num_tiles, int64_t* __restrict__ starts
) {
    const int64_t k = int64_t(blockIdx.x) * kBinThreads + threadIdx.x;
    if (k > count) return;
    const uint32_t before = k > 0 ? keys[k - 1] + 1 : 0;
    const uint32_t here = k < count ? (keys[k] < num_tiles ? keys[k] : num_tiles) : num_tiles;
    for (uint32_t tile = before; tile <= here && tile <= num_tiles; ++tile) starts[tile] = k;
}

// Depth order of the Gaussians and the running sums of their tile counts in that order. With `workspace` null only
// *workspace_bytes is set.
inline int order(
    int64_t count, const uint32_t* depth_keys, const int32_t* tile_counts, int32_t* order_out, int64_t* ends,
    void* workspace, uint64_t* workspace_bytes, Stream stream
) {
    Workspace space(workspace);
    auto* sorted_keys = space.take<uint32_t>(count);
    auto* indices = space.take<int32_t>(count);
    auto* ordered_counts = space.take<int64_t>(count);
    size_t sort_bytes = 0, sum_bytes = 0;
    int error = sort_pairs(
        nullptr, sort_bytes, depth_keys, sorted_keys, indices, order_out, count, 32, stream
    );
    if (error == 0) error = running_sums(nullptr, sum_bytes, ordered_counts, ends, count, stream);
    size_t scratch_bytes = sort_bytes > sum_bytes ? sort_bytes : sum_bytes;
    auto* scratch = space.take<char>(scratch_bytes);
    *workspace_bytes = space.bytes();
    if (error != 0 || workspace == nullptr || count == 0) return error;

    auto count_up = count_up_kernel;
    SC_LAUNCH(count_up, blocks_of(count), kBinThreads, stream, count, indices);
    error = launch_error();
    if (error == 0) {
        error = sort_pairs(
            scratch, scratch_bytes, depth_keys, sorted_keys, indices, order_out, count, 32, stream
        );
    }
    if (error != 0) return error;
    auto gather = gather_counts_kernel;
    const int32_t* ordered = order_out;
    SC_LAUNCH(gather, blocks_of(count), kBinThreads, stream, count, ordered, tile_counts, ordered_counts);
    error = launch_error();
    if (error != 0) return error;
    return running_sums(scratch, scratch_bytes, ordered_counts, ends, count, stream);
}

// Tile lists: `entries` (num_entries) are Gaussians, those of tile t in starts[t]..starts[t + 1]. With `workspace` null
// only *workspace_bytes is set.
template <typename R>
int bin(
    int64_t count, int64_t num_entries, const R* splats, const double* camera, int width, int height,
    const int32_t* order_in, const int64_t* ends, int32_t* entries, int64_t* starts, void* workspace,
    uint64_t* workspace_bytes, Stream stream
) {
    const View<R> view = make_view<R>(camera, width, height, 0);
    const uint32_t num_tiles = static_cast<uint32_t>(view.tiles_x) * static_cast<uint32_t>(view.tiles_y);
    int bits = 1;
    while ((uint64_t(1) << bits) <= num_tiles) ++bits;
    Workspace space(workspace);
    auto* keys = space.take<uint32_t>(num_entries);
    auto* sorted_keys = space.take<uint32_t>(num_entries);
    auto* ids = space.take<int32_t>(num_entries);
    size_t scratch_bytes = 0;
    int error = 0;
    if (num_entries > 0) {
        error = sort_pairs(nullptr, scratch_bytes, keys, sorted_keys, ids, entries, num_entries, bits, stream);
    }
    auto* scratch = space.take<char>(scratch_bytes);
    *workspace_bytes = space.bytes();
    if (error != 0 || workspace == nullptr) return error;

    if (num_entries > 0) {
        auto list_tiles = list_tiles_kernel<R>;
        SC_LAUNCH(
            list_tiles, blocks_of(count), kBinThreads, stream, count, view,
            reinterpret_cast<const Splat<R>*>(splats), order_in, ends, keys, ids
        );
        error = launch_error();
        if (error == 0) {
            error = sort_pairs(scratch, scratch_bytes, keys, sorted_keys, ids, entries, num_entries, bits, stream);
        }
        if (error != 0) return error;
    }
    auto find_starts = find_starts_kernel;
    const uint32_t* sorted = sorted_keys;
    SC_LAUNCH(find_starts, blocks_of(num_entries + 1), kBinThreads, stream, num_entries, sorted, num_tiles, starts);
    return launch_error();
}

}  // namespace sc

extern "C" {

#define SC_DEFINE(R, suffix)                                                                                           \
    int sc_order_##suffix(                                                                                             \
        int64_t count, const uint32_t* depth_keys, const int32_t* tile_counts, int32_t* order, int64_t* ends,          \
        void* workspace, uint64_t* workspace_bytes, void* stream                                                       \
    ) {                                                                                                                \
        return sc::order(                                                                                           \
            count, depth_keys, tile_counts, order, ends, workspace, workspace_bytes, static_cast<sc::Stream>(stream)   \
        );                                                                                                             \
    }                                                                                                                  \
    int sc_bin_##suffix(                                                                                               \
        int64_t count, int64_t num_entries, const R* splats, const double* camera, int width, int height,              \
        const int32_t* order, const int64_t* ends, int32_t* entries, int64_t* starts, void* workspace,                 \
        uint64_t* workspace_bytes, void* stream                                                                        \
    ) {                                                                                                                \
        return sc::bin<R>(                                                                                             \
            count, num_entries, splats, camera, width, height, order, ends, entries, starts, workspace,                \
            workspace_bytes, static_cast<sc::Stream>(stream)                                                           \
        );                                                                                                             \
    }
SC_FOR_EACH_REAL(SC_DEFINE)
#undef SC_DEFINE

}  // extern "C"
