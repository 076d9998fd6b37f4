// The numbers that define a picture; a test compares them with splatcodec/render/constants.py.
#pragma once

namespace sc {

constexpr double kAlphaMin = 1.0 / 255.0;
constexpr double kAlphaMax = 0.99;
constexpr double kTransmittanceMin = 1e-4;
constexpr double kLowPassPx2 = 0.3;
constexpr double kLogScaleMax = 80.0;
constexpr double kColourMax = 1e6;
constexpr int kTile = 16;

// Variances beyond this many px^2 are an even veil (as in render/projection.py).
constexpr double kMaxVariancePx2 = 1e24;
// Larger ratios of width to depth than this do not fit a float once squared; they are a veil anyway.
constexpr double kMaxSigma = 1e16;
// Alpha is below kAlphaMin from a logit of -5.54 on.
constexpr double kMinLogit = -6.0;

constexpr int kTilePixels = kTile * kTile;

// Of the C functions; the Python side refuses another number.
constexpr int kAbiVersion = 1;

// Columns of the gradients that the tiles sum for every Gaussian (see blending.h), and of the pose's.
constexpr int kScreenSums = 12;
constexpr int kPoseSums = 12;
// Columns of the blending statistics: sum w, sum w^2, max w, hits, sum g, sum g m, sum g m^2, unused.
constexpr int kStatistics = 8;

}  // namespace sc
