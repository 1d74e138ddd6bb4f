// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include "core/resources/kind.h"

namespace checkpointd {

// Made by memfd_create(2), wherever it was taken from: a descriptor or a mapping.
bool is_memfd(const OpenFile& file);

}  // namespace checkpointd
