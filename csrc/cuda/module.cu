// What the CUDA part of the extension says of itself and of a device; ganfast/ops/extension.py
// asks.
#include <cuda_runtime.h>
#include <torch/headeronly/version.h>

#include <mutex>
#include <string>
#include <vector>

#include "cuda/host.h"

#define GANFAST_TEXT_OF(x) #x
#define GANFAST_TEXT(x) GANFAST_TEXT_OF(x)

namespace {

// One thread writes one number: the least that shows that this build has code for a device.
__global__ void write_one(int* out) { *out = 1; }

}  // namespace

namespace ganfast {

const DeviceFacts& device_facts(int device) {
  static std::vector<DeviceFacts> facts(c10::cuda::device_count());
  static std::vector<std::once_flag> asked(facts.size());
  std::call_once(asked.at(device), [&] {
    int multiprocessors = 0, major = 0, cache_bytes = 0;
    C10_CUDA_CHECK(
        cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
    C10_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    C10_CUDA_CHECK(cudaDeviceGetAttribute(&cache_bytes, cudaDevAttrL2CacheSize, device));
    // Of the code that runs on the current device: it may have been made for an older one.
    cudaFuncAttributes code{};
    C10_CUDA_CHECK(cudaFuncGetAttributes(&code, write_one));
    facts[device] = {multiprocessors, cache_bytes, major >= 9 && code.ptxVersion >= 90};
  });
  return facts[device];
}

}  // namespace ganfast

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
