// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <sys/types.h>

namespace checkpointd::cuda {

// In the journal for each process of a checkpoint: what it takes to bring it back, and how long that may take.
struct UndoRecord {
    // Who was asked.
    static constexpr const char* kByCommand = "command";
    static constexpr const char* kByDriver = "api";
    static constexpr const char* kByStorage = "storage";  // and its device memory is on its way to a file

    pid_t pid = 0;
    uint64_t start = 0;  // of the process, so that another one is not taken for it
    std::string way;
    uint64_t bytes = 0;                    // on devices
    std::chrono::milliseconds timeout{0};  // what the policy has for one process
    std::string rest;                      // kByCommand: the command; kByStorage: the file of the image

    std::string text() const;
    static std::optional<UndoRecord> parse(const std::string& text);
    // At most.
    std::chrono::microseconds undo_time() const;
};

}  // namespace checkpointd::cuda
