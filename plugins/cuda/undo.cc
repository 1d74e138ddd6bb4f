// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/cuda/undo.h"

#include <fcntl.h>

#include "core/base/scoped_fd.h"
#include "core/kernel/liveness.h"
#include "plugins/cuda/kept_file.h"
#include "plugins/cuda/preflight.h"
#include "plugins/cuda/process.h"
#include "plugins/cuda/storage_image.h"
#include "plugins/cuda/undo_record.h"

namespace checkpointd::cuda {
namespace {

Result<std::unique_ptr<Backend>> backend_of(const UndoRecord& record) {
    Settings settings;
    settings.by_command = record.way == UndoRecord::kByCommand;
    settings.command = record.rest;
    return open_backend(settings);
}

// The helper has all that it copied; should it be gone, the file is yet there, and has a header if it is whole.
Result<void> bring_back(Process& process, const std::string& path, Backend::Deadline deadline) {
    process.expect_contents();
    ScopedFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    auto regions = file ? read_storage_header(file.get(), path) : std::vector<Region>();
    const Image image = file && regions ? Image{file.get(), *regions} : Image();
    return process.bring_back(nullptr, {}, image, deadline);
}

Result<void> undo(const UndoRecord& record, Backend::Deadline deadline) {
    CKPT_ASSIGN(const bool lives, process_lives(record.pid, record.start));
    if (!lives)
        return {};
    CKPT_ASSIGN(auto backend, backend_of(record));
    // A call of the dead job that is still under way comes first.
    CKPT_ASSIGN(auto process, Process::find(*backend, record.pid, deadline));
    if (process)
        return record.way == UndoRecord::kByStorage ? bring_back(*process, record.rest, deadline)
                                                    : process->bring_back(nullptr, {}, {}, deadline);
    if (may_use_cuda(record.pid))
        return fail(ErrorKind::kSystem, fmt::format("pid {} (CUDA)", record.pid),
                    "the driver knows nothing of it any more", "restart the unit");
    return {};  // it runs another program by now
}

}  // namespace

Result<void> undo_recorded(const std::string& text, Backend::Deadline deadline) {
    const auto record = UndoRecord::parse(text);
    if (!record)
        return fail(ErrorKind::kInternal, "plugins.undo", "a record of the CUDA plugin cannot be read");
    CKPT_TRY(undo(*record, deadline));
    if (record->way == UndoRecord::kByStorage)
        drop_kept(record->rest);
    return {};
}

}  // namespace checkpointd::cuda
