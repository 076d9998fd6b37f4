// A CUDA device in plain C++, for tests: blocks run one after the other, the threads of a block as fibers that switch
// at barriers, in random order. Shared memory, barriers, ballots, shuffles and atomics work as on a GPU as far as the
// kernels here use them; a barrier that not all threads reach is reported as an error, and a missing one shows as wrong
// results for some order of the threads. Not fast and not for users: render/cpu.py is the CPU renderer.
#pragma once

#if defined(_FORTIFY_SOURCE)
#undef _FORTIFY_SOURCE  // its longjmp would take fibers for errors
#endif

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define SC_INLINE inline
#define SC_DEVICE inline

struct Index3 {
    unsigned x = 0, y = 0, z = 0;
};
// Of the fiber that runs.
inline Index3 threadIdx, blockIdx, blockDim, gridDim;

namespace sc {
namespace emulated {

constexpr int kMaxThreads = 256;
constexpr std::size_t kStackBytes = 64 << 10;
constexpr int kErrorBarrier = 999001;  // some threads wait at a barrier that others never reach

enum class State { ready, at_block_barrier, at_warp_barrier, finished };

struct Fiber {
    State state = State::finished;
    bool started = false;
    jmp_buf point;
    ucontext_t entry;
};

struct Device {
    std::mt19937 order{1};
    int error = 0;
    std::vector<Fiber> fibers = std::vector<Fiber>(kMaxThreads);
    std::unique_ptr<char[]> stacks{new char[kMaxThreads * kStackBytes]};
    jmp_buf scheduler;
    ucontext_t scheduler_entry;
    int current = 0, num_threads = 0;
    std::function<void()> body;
    std::uint64_t slots[kMaxThreads] = {};
};

inline Device& device() {
    static Device instance;
    return instance;
}

inline int take_error() {
    const int error = device().error;
    device().error = 0;
    return error;
}

inline void fiber_main() {
    Device& d = device();
    d.body();
    d.fibers[d.current].state = State::finished;
    _longjmp(d.scheduler, 1);
}

[[gnu::noinline]] inline void wait(State state) {
    Device& d = device();
    Fiber& fiber = d.fibers[d.current];
    fiber.state = state;
    if (_setjmp(fiber.point) == 0) _longjmp(d.scheduler, 1);
}

[[gnu::noinline]] inline void resume(int thread) {
    Device& d = device();
    d.current = thread;
    threadIdx.x = static_cast<unsigned>(thread);
    Fiber& fiber = d.fibers[thread];
    if (_setjmp(d.scheduler) != 0) return;
    if (fiber.started) _longjmp(fiber.point, 1);
    fiber.started = true;
    getcontext(&fiber.entry);
    fiber.entry.uc_stack.ss_sp = d.stacks.get() + thread * kStackBytes;
    fiber.entry.uc_stack.ss_size = kStackBytes;
    fiber.entry.uc_link = nullptr;
    makecontext(&fiber.entry, fiber_main, 0);
    setcontext(&fiber.entry);
}

// Lets all of first..last pass if every one of them waits in `state`.
inline bool release(int first, int last, State state) {
    Device& d = device();
    for (int k = first; k < last; ++k) {
        if (d.fibers[k].state != state) return false;
    }
    for (int k = first; k < last; ++k) d.fibers[k].state = State::ready;
    return true;
}

// Warp after warp, each as far as it gets alone: that is the order in which a missing block barrier shows.
inline void run_block() {
    Device& d = device();
    const int n = d.num_threads, num_warps = (n + 31) / 32;
    for (int k = 0; k < n; ++k) {
        d.fibers[k].state = State::ready;
        d.fibers[k].started = false;
    }
    std::vector<int> warps(num_warps), lanes;
    std::iota(warps.begin(), warps.end(), 0);
    for (;;) {
        std::shuffle(warps.begin(), warps.end(), d.order);
        for (int warp : warps) {
            const int first = 32 * warp, last = first + 32 < n ? first + 32 : n;
            lanes.resize(last - first);
            std::iota(lanes.begin(), lanes.end(), first);
            do {
                std::shuffle(lanes.begin(), lanes.end(), d.order);
                for (int thread : lanes) {
                    if (d.fibers[thread].state == State::ready) resume(thread);
                }
            } while (release(first, last, State::at_warp_barrier));
        }
        bool waits = false;
        for (int k = 0; k < n; ++k) waits = waits || d.fibers[k].state != State::finished;
        if (!waits) return;
        if (!release(0, n, State::at_block_barrier)) {
            d.error = kErrorBarrier;
            return;
        }
    }
}

template <typename Kernel, typename... Arguments>
void launch(int64_t blocks, int threads, Kernel kernel, Arguments... arguments) {
    Device& d = device();
    d.num_threads = threads;
    d.body = [&] { kernel(arguments...); };
    gridDim.x = static_cast<unsigned>(blocks);
    blockDim.x = static_cast<unsigned>(threads);
    for (int64_t block = 0; block < blocks && d.error == 0; ++block) {
        blockIdx.x = static_cast<unsigned>(block);
        run_block();
    }
}

// Every lane of the warp gives a value and reads any lane's.
template <typename T, typename Read>
auto exchange(T value, Read read) {
    static_assert(sizeof(T) <= 8, "one slot");
    Device& d = device();
    std::memcpy(&d.slots[d.current], &value, sizeof(T));
    wait(State::at_warp_barrier);
    const int warp = d.current & ~31;
    auto result = read([&](int lane) {
        T other;
        std::memcpy(&other, &d.slots[warp + lane], sizeof(T));
        return other;
    });
    wait(State::at_warp_barrier);
    return result;
}

}  // namespace emulated
}  // namespace sc

inline void __syncthreads() { sc::emulated::wait(sc::emulated::State::at_block_barrier); }

inline int __syncthreads_count(int predicate) {
    sc::emulated::Device& d = sc::emulated::device();
    d.slots[d.current] = predicate != 0;
    __syncthreads();
    int count = 0;
    for (int k = 0; k < d.num_threads; ++k) count += static_cast<int>(d.slots[k]);
    __syncthreads();
    return count;
}

inline unsigned __ballot_sync(unsigned, int predicate) {
    return sc::emulated::exchange(predicate, [](auto lane_value) {
        unsigned mask = 0;
        for (int lane = 0; lane < 32; ++lane) mask |= (lane_value(lane) != 0 ? 1u : 0u) << lane;
        return mask;
    });
}
inline int __all_sync(unsigned lanes, int predicate) { return __ballot_sync(lanes, predicate) == 0xffffffffu; }

template <typename T>
inline T __shfl_xor_sync(unsigned, T value, int mask) {
    const int lane = static_cast<int>(threadIdx.x) & 31;
    return sc::emulated::exchange(value, [&](auto lane_value) { return lane_value(lane ^ mask); });
}
template <typename T>
inline T __shfl_up_sync(unsigned, T value, int delta) {
    const int lane = static_cast<int>(threadIdx.x) & 31;
    return sc::emulated::exchange(value, [&](auto lane_value) {
        return lane_value(lane >= delta ? lane - delta : lane);
    });
}
template <typename T>
inline T __shfl_sync(unsigned, T value, int source) {
    return sc::emulated::exchange(value, [&](auto lane_value) { return lane_value(source & 31); });
}

inline int __ffs(unsigned x) { return __builtin_ffs(static_cast<int>(x)); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }

template <typename T>
inline T atomicAdd(T* at, T value) {
    const T old = *at;
    *at = old + value;
    return old;
}
template <typename T>
inline T atomicMax(T* at, T value) {
    const T old = *at;
    *at = old < value ? value : old;
    return old;
}
