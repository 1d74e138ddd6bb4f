// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Reading the facts of one descriptor.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "core/base/error.h"
#include "core/resources/kind.h"

namespace checkpointd {

// The rest of the line of fdinfo that starts with "KEY:", without blanks around it.
std::optional<std::string_view> fdinfo_value(std::string_view fdinfo, std::string_view key);

// The fields of one line of fdinfo, "tfd: 5 events: 1d data: 7" or "inotify wd:1 ino:2", as pairs.
// A value may follow its colon at once or after blanks.
std::optional<std::string_view> line_field(std::string_view line, std::string_view key);

// A whole number; nullopt for anything else.
std::optional<uint64_t> parse_number(std::string_view text, int base);

// Calls `handle` for every line.
void for_each_line(std::string_view text, const std::function<void(std::string_view)>& handle);

// Fills pos, flags (without O_CLOEXEC) and mnt_id of `file` from its fdinfo, and tells the
// descriptor's flags (FD_CLOEXEC or 0).
Result<uint32_t> parse_common_fdinfo(OpenFile& file);

// Asks the duplicate who gets its SIGIO. PIDs are as we see them.
Result<void> read_owner(OpenFile& file);

// Copies the owner into an image record.
void put_owner(const OpenFile& file, images::fown_entry& entry);

// The error text's object for a descriptor.
std::string describe(pid_t pid, int fd, std::string_view link);

}  // namespace checkpointd
