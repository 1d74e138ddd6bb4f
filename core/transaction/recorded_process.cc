// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/transaction/recorded_process.h"

#include <charconv>
#include <string>

#include "core/kernel/liveness.h"
#include "core/transaction/undo_kinds.h"

namespace checkpointd {
namespace {

Error wrong_arguments() {
    return Error{ErrorKind::kInternal, "undo", "wrong arguments in the journal", {}, 0, {}};
}

template <typename Number>
bool read(const std::string& text, Number& value) {
    auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    return error == std::errc() && end == text.data() + text.size();
}

}  // namespace

Result<void> RecordedProcess::append(UndoArgs& args, pid_t pid) {
    CKPT_ASSIGN(const uint64_t start, process_start_time(pid));
    args.push_back(std::to_string(pid));
    args.push_back(std::to_string(start));
    return {};
}

Result<RecordedProcess> RecordedProcess::parse(const UndoArgs& args, size_t at) {
    RecordedProcess process;
    if (args.size() < at + 2 || !read(args[at], process.pid) || !read(args[at + 1], process.start))
        return tl::unexpected(wrong_arguments());
    return process;
}

Result<bool> RecordedProcess::lives() const { return process_lives(pid, start); }

}  // namespace checkpointd
