// What the CUDA part of the extension says of itself and of a device; ganfast/ops/_native.py asks.
#include <cuda_runtime.h>
#include <torch/headeronly/version.h>

#include <string>

#define GANFAST_TEXT_OF(x) #x
#define GANFAST_TEXT(x) GANFAST_TEXT_OF(x)

namespace {

// One thread writes one number: the least that shows that this build has code for a device.
__global__ void write_one(int* out) { *out = 1; }

}  // namespace

extern "C" __attribute__((visibility("default"))) const char* ganfast_cuda_build_description() {
  return "CUDA " GANFAST_TEXT(__CUDACC_VER_MAJOR__) "." GANFAST_TEXT(
      __CUDACC_VER_MINOR__) " for torch " TORCH_VERSION;
}

// Returns an empty text where a kernel of this build runs on the device, else the driver's reason.
extern "C" __attribute__((visibility("default"))) const char* ganfast_cuda_probe(int device) {
  static thread_local std::string reason;
  const auto attempt = [&]() -> cudaError_t {
    int before = 0, *out = nullptr;
    if (cudaError_t error = cudaGetDevice(&before); error != cudaSuccess) return error;
    if (cudaError_t error = cudaSetDevice(device); error != cudaSuccess) return error;
    cudaError_t error = cudaMalloc(&out, sizeof(int));
    if (error == cudaSuccess) {
      write_one<<<1, 1>>>(out);
      error = cudaGetLastError();
      if (error == cudaSuccess) error = cudaDeviceSynchronize();
      cudaFree(out);
    }
    cudaSetDevice(before);
    return error;
  };
  const cudaError_t error = attempt();
  reason = error == cudaSuccess ? "" : cudaGetErrorString(error);
  return reason.c_str();
}
