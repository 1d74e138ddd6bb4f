// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/host/plugin_call.h"

#include "plugins/host/deadline.h"

namespace checkpointd {
namespace {

ErrorKind kind_of(ckptd_trouble trouble) {
    switch (trouble) {
        case CKPTD_UNSUPPORTED: return ErrorKind::kUnsupported;
        case CKPTD_BAD_INPUT: return ErrorKind::kBadInput;
        case CKPTD_BAD_IMAGE: return ErrorKind::kBadImage;
        case CKPTD_CONFLICT: return ErrorKind::kConflict;
        case CKPTD_TIMEOUT: return ErrorKind::kTimeout;
        case CKPTD_GONE: return ErrorKind::kGone;
        case CKPTD_SYSTEM: break;
    }
    return ErrorKind::kSystem;
}

}  // namespace

PluginCall::PluginCall(std::chrono::steady_clock::time_point deadline, int cancel_fd,
                       std::function<void(uint64_t, uint64_t)> moved)
    : progress(std::move(moved)) {
    raw.size = sizeof(raw);
    raw.deadline_usec = deadline_usec(deadline);
    raw.cancel_fd = cancel_fd;
    raw.context = this;
    raw.fail = [](const ckptd_call* call, ckptd_trouble trouble, int code, const char* object, const char* message,
                  const char* remedy) {
        static_cast<PluginCall*>(call->context)
            ->errors.push_back({kind_of(trouble), object, message, remedy == nullptr ? "" : remedy, code, {}});
    };
    raw.progress = [](const ckptd_call* call, uint64_t done, uint64_t total) {
        auto& own = *static_cast<PluginCall*>(call->context);
        if (own.progress)
            own.progress(done, total);
    };
}

Error PluginCall::failure(const std::string& plugin, const char* step) {
    if (errors.size() == 1)
        return std::move(errors.front());
    if (errors.empty())
        return Error{ErrorKind::kInternal, fmt::format("plugin '{}'", plugin),
                     fmt::format("failed to {} and did not say why", step), {}, 0, {}};
    Error all{errors.front().kind, fmt::format("plugin '{}'", plugin), fmt::format("cannot {}", step), {}, 0, {}};
    all.causes = std::move(errors);
    return all;
}

}  // namespace checkpointd
