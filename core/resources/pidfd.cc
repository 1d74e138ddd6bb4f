// SPDX-License-Identifier: LGPL-2.1-or-later
#include <fcntl.h>
#include <sys/syscall.h>

#include <fmt/core.h>

#include "core/resources/kinds.h"
#include "core/resources/open_file.h"

namespace checkpointd {

namespace {

bool recognise(const OpenFile& file) {
    return file.is_anon("pidfd") || file.link.starts_with("pidfd:");
}

Result<void> dump(const OpenFile& file, FileDumpContext& context, images::file_entry& entry) {
    auto text = fdinfo_value(file.fdinfo, "Pid");
    auto pid = text ? parse_number(*text, 10) : std::nullopt;
    const FileTask* target = pid ? context.task(static_cast<pid_t>(*pid)) : nullptr;
    images::pidfd_entry& record = *entry.mutable_pidfd();
    record.set_id(entry.id());
    record.set_ino(static_cast<uint32_t>(file.st.st_ino));
    record.set_flags(file.flags);
    record.set_nspid(target == nullptr ? -1 : target->ns_pid);
    put_owner(file, *record.mutable_fown());
    if (target == nullptr)
        context.blocker(Error{ErrorKind::kUnsupported, file.object,
                              pid ? fmt::format("pidfd of pid {}, which is not checkpointed", *pid)
                                  : "pidfd of a process that is gone",
                              "checkpoint both processes together, or close the pidfd", 0, {}});
    return {};
}

Result<std::optional<Slot>> plan(const images::file_entry& entry, FilePlanContext& context) {
    const images::pidfd_entry& record = entry.pidfd();
    const std::string label = fmt::format("pidfd {} of pid {}", entry.id(), record.nspid());
    if (!context.has_task(record.nspid()))
        return fail(ErrorKind::kUnsupported, label, "that process is not in the image");
    // PIDFD_NONBLOCK is O_NONBLOCK; PIDFD_THREAD is O_EXCL.
    const unsigned flags = record.flags() & (O_NONBLOCK | O_EXCL);
    const pid_t pid = record.nspid();
    context.install_late(entry.id(), [=](Program& late) {
        return late.value(label, SYS_pidfd_open, {pid, flags});
    });
    return std::nullopt;
}

}  // namespace

const FileKind kPidfdKind{images::PIDFD, "pidfd", recognise, dump, plan};

}  // namespace checkpointd
