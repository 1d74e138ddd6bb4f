// SPDX-License-Identifier: LGPL-2.1-or-later
#include <ctime>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <fmt/core.h>

#include "core/base/io.h"
#include "core/resources/kinds.h"
#include "core/resources/open_file.h"

namespace checkpointd {

namespace {

constexpr uint64_t kNanosPerSecond = 1'000'000'000;
constexpr unsigned long kSetTicks = _IOW('T', 0, uint64_t);  // linux/timerfd.h: TFD_IOC_SET_TICKS

bool recognise(const OpenFile& file) {
    return file.is_anon("timerfd");
}

Result<void> dump(const OpenFile& file, FileDumpContext&, images::file_entry& entry) {
    // A periodic timer that has expired and was not read stands still; asking for the time brings its
    // ticks up to date and starts it again, as any timerfd_gettime() of the program would.
    itimerspec left{};
    if (timerfd_gettime(file.copy, &left) != 0)
        return fail_errno(file.object, "timerfd_gettime");
    CKPT_ASSIGN(std::string info,
                read_file(AT_FDCWD, fmt::format("/proc/self/fdinfo/{}", file.copy)));
    auto number = [&](std::string_view key, int base) -> std::optional<uint64_t> {
        auto text = fdinfo_value(info, key);
        return text ? parse_number(*text, base) : std::nullopt;
    };
    auto clock = number("clockid", 10);
    auto ticks = number("ticks", 10);
    auto settime = number("settime flags", 8);
    if (!clock || !ticks || !settime)
        return fail(ErrorKind::kInternal, file.object, "fdinfo tells no timer");
    images::timerfd_entry& record = *entry.mutable_tfd();
    record.set_id(entry.id());
    record.set_flags(file.flags);
    put_owner(file, *record.mutable_fown());
    record.set_clockid(static_cast<uint32_t>(*clock));
    record.set_ticks(*ticks);
    record.set_settime_flags(static_cast<uint32_t>(*settime));
    record.set_vsec(static_cast<uint64_t>(left.it_value.tv_sec));
    record.set_vnsec(static_cast<uint64_t>(left.it_value.tv_nsec));
    record.set_isec(static_cast<uint64_t>(left.it_interval.tv_sec));
    record.set_insec(static_cast<uint64_t>(left.it_interval.tv_nsec));
    return {};
}

struct ArmedTimer {
    uint32_t flags = 0;
    itimerspec value{};
};

// The image has the time left, also of absolute timers. On clocks that go on where they stopped that is
// the same moment; only a wall clock alarm must be absolute again, to follow when the clock is set.
ArmedTimer timer_of(const images::timerfd_entry& record, const PlanClocks& clocks) {
    ArmedTimer timer;
    timer.value.it_interval = {static_cast<time_t>(record.isec()), static_cast<long>(record.insec())};
    timer.value.it_value = {static_cast<time_t>(record.vsec()), static_cast<long>(record.vnsec())};
    bool periodic = record.isec() != 0 || record.insec() != 0;
    bool idle = record.vsec() == 0 && record.vnsec() == 0;
    // Other writers note a periodic timer that waits to be read as one with no time left.
    if (idle && periodic)
        timer.value.it_value = timer.value.it_interval;
    bool wall = record.clockid() == CLOCK_REALTIME || record.clockid() == CLOCK_REALTIME_ALARM;
    if (wall && (record.settime_flags() & TFD_TIMER_ABSTIME) && !idle) {
        timer.flags = record.settime_flags();
        uint64_t nanos = static_cast<uint64_t>(clocks.realtime.tv_nsec) + record.vnsec();
        timer.value.it_value.tv_sec += clocks.realtime.tv_sec +
                                       static_cast<time_t>(nanos / kNanosPerSecond);
        timer.value.it_value.tv_nsec = static_cast<long>(nanos % kNanosPerSecond);
    }
    return timer;
}

Result<std::optional<Slot>> plan(const images::file_entry& entry, FilePlanContext& context) {
    const images::timerfd_entry& record = entry.tfd();
    const std::string label = fmt::format("timerfd {}", entry.id());
    if (record.vnsec() >= kNanosPerSecond || record.insec() >= kNanosPerSecond)
        return fail(ErrorKind::kBadImage, label, "a timer with more than a second of nanoseconds");
    Slot slot = context.agent().descriptor(label, SYS_timerfd_create, {record.clockid(), TFD_CLOEXEC});
    context.settle(label, slot, entry.id(), record.flags(), record.fown());
    const ArmedTimer timer = timer_of(record, context.clocks());
    const ArenaRef value = context.plan().object(timer.value);
    const uint64_t ticks = record.ticks();
    const ArenaRef ticks_at = context.plan().object(ticks);
    // Late: what was left when it was dumped begins to run when the tasks do.
    context.when_installed(entry.id(), [=](Program& late, const Installed& where) {
        late.call(label, SYS_timerfd_settime, {where.number, timer.flags, value, 0});
        if (ticks != 0)
            late.call(label, SYS_ioctl, {where.number, kSetTicks, ticks_at});
    });
    return slot;
}

}  // namespace

const FileKind kTimerfdKind{images::TIMERFD, "timerfd", recognise, dump, plan};

}  // namespace checkpointd
