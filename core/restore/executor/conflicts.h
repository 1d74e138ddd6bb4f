// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include "core/restore/restore.h"

namespace checkpointd {

// That `id` is in use, and by whom.
Error taken_number(pid_t id);

}  // namespace checkpointd
