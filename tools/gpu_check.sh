#!/usr/bin/env bash
# Everything that needs a GPU, in one command of less than 8 minutes that needs no network: builds cuda_ext, runs the
# parity tests on the device, compute-sanitizer on a small scene, timings (against gsplat where it is installed) and a
# short training run, and writes one JSON file. Where there is no CUDA device it does what can be done and says so.
#
#   tools/gpu_check.sh [OUT.json] [options of tools/gpu_check.py]
#
# PYTHON chooses another python3; it needs torch for CUDA, numpy, numba and pytest, and nvcc has to be found.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" tools/gpu_check.py "$@"
