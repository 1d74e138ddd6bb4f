// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <string_view>

#include "core/base/error.h"
#include "core/base/scoped_fd.h"

namespace checkpointd {

// A pipe whose ends are closed on exec.
struct Pipe {
    ScopedFd read_end, write_end;
};

// `object` is for the error.
Result<Pipe> make_pipe(std::string_view object);

}  // namespace checkpointd
