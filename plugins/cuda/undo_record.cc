// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/cuda/undo_record.h"

#include <algorithm>
#include <cstdio>

#include <fmt/core.h>

namespace checkpointd::cuda {
namespace {

using std::chrono::microseconds;

// To load the driver, and to have it say how things stand.
constexpr std::chrono::seconds kBeginning{60};
// What device memory comes back from may be a disk, or a network, that others use too.
constexpr uint64_t kSlowestBytesPerUsec = 100;

}  // namespace

std::string UndoRecord::text() const {
    return fmt::format("{} {} {} {} {} {}", pid, start, way, bytes, timeout.count(), rest);
}

std::optional<UndoRecord> UndoRecord::parse(const std::string& text) {
    UndoRecord record;
    char way[16] = "";
    unsigned long long start = 0, bytes = 0;
    unsigned timeout_ms = 0;
    int rest_at = 0;
    if (std::sscanf(text.c_str(), "%d %llu %15s %llu %u %n", &record.pid, &start, way, &bytes, &timeout_ms, &rest_at) != 5 ||
        rest_at == 0)
        return std::nullopt;
    record.start = start;
    record.way = way;
    record.bytes = bytes;
    record.timeout = std::chrono::milliseconds(timeout_ms);
    record.rest = text.substr(static_cast<size_t>(rest_at));
    return record;
}

microseconds UndoRecord::undo_time() const {
    return std::max<microseconds>(kBeginning + microseconds(bytes / kSlowestBytesPerUsec), timeout);
}

}  // namespace checkpointd::cuda
