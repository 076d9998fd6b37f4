// What the kernels need from the machine. With nvcc that is CUDA; with any other C++ compiler emulate.h stands in, so
// that the very same kernels run on a CPU, in tests.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)

#include <cuda_runtime.h>

#define SC_INLINE __host__ __device__ __forceinline__
#define SC_DEVICE __device__ __forceinline__
#define SC_LAUNCH(kernel, blocks, threads, stream, ...) kernel<<<blocks, threads, 0, stream>>>(__VA_ARGS__)

namespace sc {
using Stream = cudaStream_t;
inline int launch_error() { return static_cast<int>(cudaGetLastError()); }
}  // namespace sc

#else

#include "emulate.h"

#define SC_INLINE inline
#define SC_DEVICE inline
#define SC_LAUNCH(kernel, blocks, threads, stream, ...) \
    (void)(stream), sc::emulated::launch(blocks, threads, [&](auto... arguments) { kernel(arguments...); }, __VA_ARGS__)

namespace sc {
using Stream = void*;
inline int launch_error() { return sc::emulated::take_error(); }
}  // namespace sc

#endif

// Loops over arrays that must stay in registers.
#if defined(__CUDA_ARCH__)
#define SC_UNROLL _Pragma("unroll")
#else
#define SC_UNROLL
#endif

// The same C function for float, and in the emulated build also for double (tests compare gradients to 1e-9).
#if defined(__CUDACC__)
#define SC_FOR_EACH_REAL(define) define(float, f32)
#else
#define SC_FOR_EACH_REAL(define) define(float, f32) define(double, f64)
#endif

namespace sc {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kWarp = 32;

// One name for both precisions; a CUDA compiler must not fall back to double for a float.
SC_INLINE float root(float x) { return sqrtf(x); }
SC_INLINE double root(double x) { return sqrt(x); }
SC_INLINE float magnitude(float x) { return fabsf(x); }
SC_INLINE double magnitude(double x) { return fabs(x); }
SC_INLINE float natural_log(float x) { return logf(x); }
SC_INLINE double natural_log(double x) { return log(x); }
SC_INLINE float exponential(float x) { return expf(x); }
SC_INLINE double exponential(double x) { return exp(x); }
SC_INLINE float floored(float x) { return floorf(x); }
SC_INLINE double floored(double x) { return floor(x); }
SC_INLINE float fused(float a, float b, float c) { return fmaf(a, b, c); }
SC_INLINE double fused(double a, double b, double c) { return fma(a, b, c); }

// exp for alphas: the hardware's own (within 1e-6 for arguments of -6 to 0) where there is one.
SC_INLINE float fast_exponential(float x) {
#if defined(__CUDA_ARCH__)
    return __expf(x);
#else
    return expf(x);
#endif
}
SC_INLINE double fast_exponential(double x) { return exp(x); }

// Division within two units in the last place, where IEEE rounding would cost a dozen instructions.
SC_INLINE float fast_quotient(float a, float b) {
#if defined(__CUDA_ARCH__)
    return __fdividef(a, b);
#else
    return a / b;
#endif
}
SC_INLINE double fast_quotient(double a, double b) { return a / b; }

template <typename R>
SC_INLINE R lesser(R a, R b) {
    return a < b ? a : b;
}
template <typename R>
SC_INLINE R greater(R a, R b) {
    return a > b ? a : b;
}
template <typename R>
SC_INLINE R clamped(R x, R low, R high) {
    return lesser(greater(x, low), high);
}
template <typename R>
SC_INLINE bool finite(R x) {
    return x - x == R(0);
}

}  // namespace sc
