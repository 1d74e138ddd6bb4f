// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/amdgpu/drm_api.h"

#include <dlfcn.h>
#include <string>

namespace checkpointd::amdgpu::drm {
namespace {

constexpr const char* kRemedy =
    "install libdrm-amdgpu1 (Debian), or the libdrm of your distribution";

template <typename Function>
void find(void* library, const char* name, Function& out, std::string& missing) {
    out = reinterpret_cast<Function>(dlsym(library, name));
    if (out == nullptr)
        missing += std::string(missing.empty() ? "" : ", ") + name;
}

}  // namespace

Result<Api> load_api(const char* name) {
    void* library = dlopen(name, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (library == nullptr)
        return fail(ErrorKind::kUnsupported, name, fmt::format("cannot be loaded: {}", dlerror()),
                    kRemedy);
    Api api{};
    std::string missing;
    find(library, "amdgpu_device_initialize", api.device_initialize, missing);
    find(library, "amdgpu_device_deinitialize", api.device_deinitialize, missing);
    find(library, "amdgpu_query_gpu_info", api.query_gpu_info, missing);
    find(library, "amdgpu_create_bo_from_user_mem", api.create_bo_from_user_mem, missing);
    find(library, "amdgpu_bo_import", api.bo_import, missing);
    find(library, "amdgpu_bo_alloc", api.bo_alloc, missing);
    find(library, "amdgpu_bo_free", api.bo_free, missing);
    find(library, "amdgpu_bo_cpu_map", api.bo_cpu_map, missing);
    find(library, "amdgpu_bo_cpu_unmap", api.bo_cpu_unmap, missing);
    find(library, "amdgpu_va_range_alloc", api.va_range_alloc, missing);
    find(library, "amdgpu_va_range_free", api.va_range_free, missing);
    find(library, "amdgpu_bo_va_op", api.bo_va_op, missing);
    find(library, "amdgpu_bo_list_create", api.bo_list_create, missing);
    find(library, "amdgpu_bo_list_destroy", api.bo_list_destroy, missing);
    find(library, "amdgpu_cs_ctx_create", api.cs_ctx_create, missing);
    find(library, "amdgpu_cs_ctx_free", api.cs_ctx_free, missing);
    find(library, "amdgpu_cs_submit", api.cs_submit, missing);
    find(library, "amdgpu_cs_query_fence_status", api.cs_query_fence_status, missing);
    if (missing.empty())
        return api;
    return fail(ErrorKind::kUnsupported, name, fmt::format("lacks {}", missing), kRemedy);
}

}  // namespace checkpointd::amdgpu::drm
