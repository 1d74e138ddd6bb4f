// SPDX-License-Identifier: LGPL-2.1-or-later
//
// For plugins that are written with Result: how they answer calls of plugin.h.
#pragma once

#include "core/base/error.h"
#include "plugins/plugin.h"

namespace checkpointd {

inline ckptd_trouble trouble_of(ErrorKind kind) {
    switch (kind) {
        case ErrorKind::kUnsupported:
        case ErrorKind::kNotFound:
            return CKPTD_UNSUPPORTED;
        case ErrorKind::kBadInput:
            return CKPTD_BAD_INPUT;
        case ErrorKind::kBadImage:
            return CKPTD_BAD_IMAGE;
        case ErrorKind::kConflict:
            return CKPTD_CONFLICT;
        case ErrorKind::kTimeout:
            return CKPTD_TIMEOUT;
        case ErrorKind::kGone:
            return CKPTD_GONE;
        default:
            return CKPTD_SYSTEM;
    }
}

// Says what went wrong, and is the answer. Where there are causes, these are the reasons.
inline int tell(const ckptd_call* call, const Error& error) {
    if (error.causes.empty())
        call->fail(call, trouble_of(error.kind), error.errno_code, error.object.c_str(),
                   error.message.c_str(), error.remedy.empty() ? nullptr : error.remedy.c_str());
    for (const Error& cause : error.causes)
        tell(call, cause);
    return -1;
}

inline int tell(const ckptd_call* call, const Result<void>& result) {
    return result ? 0 : tell(call, result.error());
}

}  // namespace checkpointd
