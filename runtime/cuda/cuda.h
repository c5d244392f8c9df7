// The CUDA device as the rest of the program sees it: no CUDA header.
#pragma once

#include "runtime/device.h"

#include <memory>

namespace kvmesh::cuda {

/// GPUs that answer; 0 also where there is no driver.
int device_count();

/// Why none answers.
std::string why_none();

/// The toolkit's and libraries' versions that this was built with and runs with, for people.
std::string versions();

/// cuDNN's, the same; "not compiled in".
std::string cudnn_versions();

/// Makes `options.gpu` this thread's GPU.
std::unique_ptr<Device> make_device(const DeviceOptions& options);

}  // namespace kvmesh::cuda
