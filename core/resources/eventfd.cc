// SPDX-License-Identifier: LGPL-2.1-or-later
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>

#include <fmt/core.h>

#include "core/resources/kinds.h"
#include "core/resources/open_file.h"

namespace checkpointd {

namespace {

// The format has no place for EFD_SEMAPHORE. This bit of `flags` is O_WRONLY, which an eventfd never is
// and which F_SETFL ignores, so that CRIU reads such records as plain eventfds.
constexpr uint32_t kSemaphoreBit = EFD_SEMAPHORE;

bool recognise(const OpenFile& file) {
    return file.is_anon("eventfd");
}

Result<void> dump(const OpenFile& file, FileDumpContext&, images::file_entry& entry) {
    auto text = fdinfo_value(file.fdinfo, "eventfd-count");
    auto count = text ? parse_number(*text, 16) : std::nullopt;
    if (!count)
        return fail(ErrorKind::kInternal, file.object, "fdinfo tells no eventfd-count");
    // Told since Linux 6.5; before, a semaphore cannot be told from a counter.
    bool semaphore = fdinfo_value(file.fdinfo, "eventfd-semaphore") == "1";
    images::eventfd_file_entry& efd = *entry.mutable_efd();
    efd.set_id(entry.id());
    efd.set_flags(file.flags | (semaphore ? kSemaphoreBit : 0));
    efd.set_counter(*count);
    put_owner(file, *efd.mutable_fown());
    return {};
}

Result<std::optional<Slot>> plan(const images::file_entry& entry, FilePlanContext& context) {
    const images::eventfd_file_entry& efd = entry.efd();
    const std::string label = fmt::format("eventfd {}", entry.id());
    Program& agent = context.agent();
    // eventfd2 takes the first 32 bits only; the rest is written.
    Slot slot = agent.descriptor(label, SYS_eventfd2,
                                 {0, EFD_CLOEXEC | (efd.flags() & kSemaphoreBit ? EFD_SEMAPHORE : 0)});
    if (efd.counter() != 0)
        agent.call_expect(label, 8, SYS_write, {slot, context.plan().object(efd.counter()), 8});
    context.settle(label, slot, entry.id(), efd.flags(), efd.fown());
    return slot;
}

}  // namespace

const FileKind kEventfdKind{images::EVENTFD, "eventfd", recognise, dump, plan};

}  // namespace checkpointd
