// What an emulated GPU can do is nothing that anyone wants to know.
#include "runtime/cuda/cuda_device.h"

namespace kvmesh::cuda {

Limits CudaDevice::measure_limits(DType) { return {1, 1}; }

}  // namespace kvmesh::cuda
