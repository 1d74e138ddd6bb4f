// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/restore/restore_files.h"

#include <fcntl.h>
#include <sys/syscall.h>

#include <fmt/format.h>

#include "images/proto/files.pb.h"

namespace checkpointd {

Result<MappedFiles> MappedFiles::read(const images::ImageDir& dir) {
    MappedFiles mapped;
    CKPT_ASSIGN(auto files, dir.read_all<images::file_entry>(images::ImageType::kFiles));
    for (const images::file_entry& file : files)
        if (file.has_reg())
            mapped.paths_[file.id()] = {file.reg().name(), file.reg().flags()};
    return mapped;
}

Result<Slot> MappedFiles::slot_of(uint32_t file_id, Program& agent) {
    auto path = paths_.find(file_id);
    if (path == paths_.end())
        return fail(ErrorKind::kUnsupported, fmt::format("file {}", file_id),
                    "is mapped, but is no regular file");
    auto [entry, is_new] = slots_.try_emplace(file_id);
    if (is_new) {
        const auto& [name, flags] = path->second;
        entry->second =
            agent.descriptor(name, SYS_openat,
                             {AT_FDCWD, agent.plan().string(name), (flags & O_ACCMODE) | O_CLOEXEC});
    }
    return entry->second;
}

}  // namespace checkpointd
