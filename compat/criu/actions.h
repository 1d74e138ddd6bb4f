// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include "compat/criu/log.h"
#include "compat/criu/options.h"

namespace checkpointd::criu {

Result<void> dump(const Options& options, const Log& log);
Result<void> restore(const Options& options, const Log& log);

// Whether this kernel and this engine have what was asked for; the error names what is missing.
Result<void> check(const Options& options);

}  // namespace checkpointd::criu
