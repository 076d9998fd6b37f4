// All kernels on the emulated device, as a shared library with the functions of the CUDA one and their doubles (_f64).
#include "platform.h"

#include "binning.cu"
#include "project.cu"
#include "rasterize.cu"
