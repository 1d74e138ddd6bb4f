// SPDX-License-Identifier: LGPL-2.1-or-later
#include <algorithm>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <set>
#include <sys/epoll.h>
#include <sys/syscall.h>

#include <fmt/core.h>

#include "core/resources/kinds.h"
#include "core/resources/open_file.h"
#include "core/resources/shared_ids.h"

namespace checkpointd {

namespace {

// One thing that an epoll instance watches, as fdinfo tells it.
struct Watch {
    uint32_t number;  // under which it was added; may mean another file by now
    uint32_t events;
    uint64_t data;
    uint64_t pos;
    uint64_t ino;
    uint32_t dev;
    uint32_t nth;  // among watches of the same number: KCMP_EPOLL_TFD tells them apart by it
};

bool recognise(const OpenFile& file) {
    return file.is_anon("eventpoll");
}

std::optional<Watch> parse_watch(std::string_view line) {
    auto number = [&](std::string_view key, int base) -> std::optional<uint64_t> {
        auto text = line_field(line, key);
        return text ? parse_number(*text, base) : std::nullopt;
    };
    auto tfd = number("tfd", 10);
    auto events = number("events", 16);
    auto data = number("data", 16);
    if (!tfd || !events || !data)
        return std::nullopt;
    return Watch{static_cast<uint32_t>(*tfd),
                 static_cast<uint32_t>(*events),
                 *data,
                 number("pos", 10).value_or(0),
                 number("ino", 16).value_or(0),
                 static_cast<uint32_t>(number("sdev", 16).value_or(0)),
                 0};
}

std::vector<Watch> parse_watches(const std::string& fdinfo) {
    std::vector<Watch> watches;
    std::map<uint32_t, uint32_t> seen;
    for_each_line(fdinfo, [&](std::string_view line) {
        if (auto watch = parse_watch(line)) {
            watch->nth = seen[watch->number]++;
            watches.push_back(*watch);
        }
    });
    return watches;
}

bool is_watched(pid_t pid, uint32_t candidate, uint32_t epoll_fd, const Watch& watch) {
    kcmp_epoll_slot slot{epoll_fd, watch.number, watch.nth};
    auto order = kcmp_order(pid, pid, KCMP_EPOLL_TFD, candidate, reinterpret_cast<uint64_t>(&slot));
    return order && *order == 0;
}

// The number under which the watched file is open: its own in nearly all cases; that of a duplicate
// where the one that was added is closed or means something else.
std::optional<uint32_t> find_target(pid_t pid, uint32_t epoll_fd, const Watch& watch,
                                    const std::vector<FileTables::Descriptor>& table) {
    auto own = std::lower_bound(table.begin(), table.end(), watch.number,
                                [](const auto& d, uint32_t n) { return d.number < n; });
    if (own != table.end() && own->number == watch.number &&
        is_watched(pid, watch.number, epoll_fd, watch))
        return watch.number;
    for (const FileTables::Descriptor& other : table)
        if (other.ino == watch.ino && is_watched(pid, other.number, epoll_fd, watch))
            return other.number;
    return std::nullopt;
}

void resolve(pid_t pid, uint32_t epoll_fd, const std::string& object,
             const std::vector<Watch>& watches, FileDumpContext& context, FileTables& tables,
             images::eventpoll_file_entry& record) {
    for (const Watch& watch : watches) {
        auto target = find_target(pid, epoll_fd, watch, tables.of(pid));
        if (!target) {
            context.blocker(Error{
                ErrorKind::kUnsupported, object,
                fmt::format("watches a file that was fd {} (inode {}) and that no descriptor of the "
                            "process leads to any more", watch.number, watch.ino),
                "remove it from the epoll set before its descriptor is closed", 0, {}});
            continue;
        }
        images::eventpoll_tfd_entry& entry = *record.add_tfd();
        entry.set_id(record.id());
        entry.set_tfd(*target);
        entry.set_events(watch.events);
        entry.set_data(watch.data);
        entry.set_dev(watch.dev);
        entry.set_inode(watch.ino);
        entry.set_pos(watch.pos);
    }
}

Result<void> dump(const OpenFile& file, FileDumpContext& context, images::file_entry& entry) {
    images::eventpoll_file_entry& record = *entry.mutable_epfd();
    record.set_id(entry.id());
    record.set_flags(file.flags);
    put_owner(file, *record.mutable_fown());
    std::vector<Watch> watches = parse_watches(file.fdinfo);
    if (watches.empty())
        return {};
    const pid_t pid = file.pid;
    const uint32_t fd = static_cast<uint32_t>(file.fd);
    // Records move while others are added: it is found again by its id.
    context.when_collected([=, &context, id = entry.id(), object = file.object,
                            watches = std::move(watches)](FileTables& tables) -> Result<void> {
        auto& files = context.images().files;
        auto found = std::find_if(files.begin(), files.end(),
                                  [&](const images::file_entry& e) { return e.id() == id; });
        if (found != files.end())
            resolve(pid, fd, object, watches, context, tables, *found->mutable_epfd());
        return {};
    });
    return {};
}

// Emits one EPOLL_CTL_ADD. A number that is in the set already stands for a second registration of the
// same file, which was made through a descriptor that is closed now: so is it made again.
void add_watch(const images::eventpoll_tfd_entry& watch, bool again, std::string_view label,
               Program& late, const Installed& where, Plan& plan) {
    epoll_event event{};
    event.events = watch.events();
    event.data.u64 = watch.data();
    const ArenaRef at = plan.object(event);
    if (!again) {
        late.call(label, SYS_epoll_ctl, {where.number, EPOLL_CTL_ADD, watch.tfd(), at});
        return;
    }
    Slot twin = late.value(label, SYS_dup, {watch.tfd()});
    late.call(label, SYS_epoll_ctl, {where.number, EPOLL_CTL_ADD, twin, at});
    late.call(label, SYS_close, {twin});
}

Result<std::optional<Slot>> plan(const images::file_entry& entry, FilePlanContext& context) {
    const images::eventpoll_file_entry& record = entry.epfd();
    const std::string label = fmt::format("epoll {}", entry.id());
    Slot slot = context.agent().descriptor(label, SYS_epoll_create1, {EPOLL_CLOEXEC});
    context.settle(label, slot, entry.id(), record.flags(), record.fown());
    // The kernel's key of a watch is file and number, so the numbers have to be the final ones.
    Plan& plan = context.plan();
    context.when_installed(entry.id(), [&plan, label, record](Program& late, const Installed& where) {
        std::set<uint32_t> added;
        for (const images::eventpoll_tfd_entry& watch : record.tfd())
            add_watch(watch, !added.insert(watch.tfd()).second,
                      fmt::format("{}: watch of fd {}", label, watch.tfd()), late, where, plan);
    });
    return slot;
}

}  // namespace

const FileKind kEpollKind{images::EVENTPOLL, "epoll", recognise, dump, plan};

}  // namespace checkpointd
