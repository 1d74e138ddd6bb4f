// SPDX-License-Identifier: LGPL-2.1-or-later
#include <sys/signalfd.h>
#include <sys/syscall.h>

#include <fmt/core.h>

#include "core/resources/kinds.h"
#include "core/resources/open_file.h"

namespace checkpointd {

namespace {

bool recognise(const OpenFile& file) {
    return file.is_anon("signalfd");
}

Result<void> dump(const OpenFile& file, FileDumpContext&, images::file_entry& entry) {
    auto text = fdinfo_value(file.fdinfo, "sigmask");
    auto mask = text ? parse_number(*text, 16) : std::nullopt;
    if (!mask)
        return fail(ErrorKind::kInternal, file.object, "fdinfo tells no sigmask");
    images::signalfd_entry& record = *entry.mutable_sgfd();
    record.set_id(entry.id());
    record.set_flags(file.flags);
    record.set_mask(*mask);
    put_owner(file, *record.mutable_fown());
    return {};
}

Result<std::optional<Slot>> plan(const images::file_entry& entry, FilePlanContext& context) {
    const images::signalfd_entry& record = entry.sgfd();
    const std::string label = fmt::format("signalfd {}", entry.id());
    const uint64_t mask = record.mask();
    Slot slot = context.agent().descriptor(
        label, SYS_signalfd4, {-1, context.plan().object(mask), sizeof(mask), SFD_CLOEXEC});
    context.settle(label, slot, entry.id(), record.flags(), record.fown());
    return slot;
}

}  // namespace

const FileKind kSignalfdKind{images::SIGNALFD, "signalfd", recognise, dump, plan};

}  // namespace checkpointd
