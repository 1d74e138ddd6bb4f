// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/resources/socket.h"

#include <array>
#include <cerrno>
#include <linux/filter.h>
#include <net/if.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>

#include "core/kernel/sock_diag.h"

namespace checkpointd {

namespace {

using images::sk_opts_entry;

constexpr int kBufLock = 72;  // SO_BUF_LOCK, Linux 5.14; not in every libc
constexpr int kGetFilter = SO_ATTACH_FILTER;

// Options that are a number with a field of their own.
struct NumberOption {
    int option;
    void (sk_opts_entry::*set)(uint32_t);
    uint32_t (sk_opts_entry::*get)() const;
    bool (sk_opts_entry::*has)() const;
};
constexpr std::array kNumbers{
    NumberOption{SO_PRIORITY, &sk_opts_entry::set_so_priority, &sk_opts_entry::so_priority,
                 &sk_opts_entry::has_so_priority},
    NumberOption{SO_RCVLOWAT, &sk_opts_entry::set_so_rcvlowat, &sk_opts_entry::so_rcvlowat,
                 &sk_opts_entry::has_so_rcvlowat},
    NumberOption{SO_OOBINLINE, &sk_opts_entry::set_so_oobinline, &sk_opts_entry::so_oobinline,
                 &sk_opts_entry::has_so_oobinline},
};

struct FlagOption {
    int option;
    void (sk_opts_entry::*set)(bool);
    bool (sk_opts_entry::*get)() const;
    bool local_only;  // AF_UNIX and AF_NETLINK
};
constexpr std::array kFlags{
    FlagOption{SO_PASSCRED, &sk_opts_entry::set_so_passcred, &sk_opts_entry::so_passcred, true},
    FlagOption{SO_PASSSEC, &sk_opts_entry::set_so_passsec, &sk_opts_entry::so_passsec, true},
    FlagOption{SO_DONTROUTE, &sk_opts_entry::set_so_dontroute, &sk_opts_entry::so_dontroute, false},
    FlagOption{SO_NO_CHECK, &sk_opts_entry::set_so_no_check, &sk_opts_entry::so_no_check, false},
    FlagOption{SO_BROADCAST, &sk_opts_entry::set_so_broadcast, &sk_opts_entry::so_broadcast, false},
    FlagOption{SO_KEEPALIVE, &sk_opts_entry::set_so_keepalive, &sk_opts_entry::so_keepalive, false},
};

Result<void> dump_flags(const OpenFile& file, int family, sk_opts_entry& options) {
    for (const FlagOption& flag : kFlags) {
        if (flag.local_only && family != AF_UNIX && family != AF_NETLINK)
            continue;
        CKPT_ASSIGN(int value, socket_option<int>(file.copy, SOL_SOCKET, flag.option, file.object));
        (options.*flag.set)(value != 0);
    }
    CKPT_ASSIGN(int reuse, socket_option<int>(file.copy, SOL_SOCKET, SO_REUSEADDR, file.object));
    options.set_reuseaddr(reuse != 0);
    CKPT_ASSIGN(int port, socket_option<int>(file.copy, SOL_SOCKET, SO_REUSEPORT, file.object));
    options.set_so_reuseport(port != 0);
    return {};
}

Result<void> dump_numbers(const OpenFile& file, sk_opts_entry& options) {
    for (const NumberOption& number : kNumbers) {
        CKPT_ASSIGN(int value,
                    socket_option<int>(file.copy, SOL_SOCKET, number.option, file.object));
        (options.*number.set)(static_cast<uint32_t>(value));
    }
    CKPT_ASSIGN(int sndbuf, socket_option<int>(file.copy, SOL_SOCKET, SO_SNDBUF, file.object));
    CKPT_ASSIGN(int rcvbuf, socket_option<int>(file.copy, SOL_SOCKET, SO_RCVBUF, file.object));
    options.set_so_sndbuf(static_cast<uint32_t>(sndbuf));
    options.set_so_rcvbuf(static_cast<uint32_t>(rcvbuf));
    if (auto lock = socket_option<int>(file.copy, SOL_SOCKET, kBufLock, file.object); lock)
        options.set_so_buf_lock(static_cast<uint32_t>(*lock));
    CKPT_ASSIGN(int mark, socket_option<int>(file.copy, SOL_SOCKET, SO_MARK, file.object));
    if (mark != 0)
        options.set_so_mark(static_cast<uint32_t>(mark));
    return {};
}

Result<void> dump_times(const OpenFile& file, sk_opts_entry& options) {
    CKPT_ASSIGN(timeval send,
                socket_option<timeval>(file.copy, SOL_SOCKET, SO_SNDTIMEO, file.object));
    CKPT_ASSIGN(timeval receive,
                socket_option<timeval>(file.copy, SOL_SOCKET, SO_RCVTIMEO, file.object));
    options.set_so_snd_tmo_sec(static_cast<uint64_t>(send.tv_sec));
    options.set_so_snd_tmo_usec(static_cast<uint64_t>(send.tv_usec));
    options.set_so_rcv_tmo_sec(static_cast<uint64_t>(receive.tv_sec));
    options.set_so_rcv_tmo_usec(static_cast<uint64_t>(receive.tv_usec));
    CKPT_ASSIGN(linger wait, socket_option<linger>(file.copy, SOL_SOCKET, SO_LINGER, file.object));
    if (wait.l_onoff != 0)
        options.set_so_linger(static_cast<uint32_t>(wait.l_linger));
    return {};
}

Result<void> dump_device(const OpenFile& file, sk_opts_entry& options) {
    std::array<char, IFNAMSIZ> name{};
    socklen_t size = name.size();
    if (getsockopt(file.copy, SOL_SOCKET, SO_BINDTODEVICE, name.data(), &size) != 0)
        return fail_errno(file.object, "cannot read SO_BINDTODEVICE");
    if (size > 1)
        options.set_so_bound_dev(std::string(name.data(), strnlen(name.data(), name.size())));
    return {};
}

// The length of SO_GET_FILTER counts instructions, not bytes (sk_get_filter in net/core/filter.c).
Result<void> dump_filter(const OpenFile& file, sk_opts_entry& options) {
    socklen_t count = 0;
    if (getsockopt(file.copy, SOL_SOCKET, kGetFilter, nullptr, &count) != 0)
        return fail_errno(file.object, "cannot read the socket's filter");
    if (count == 0)
        return {};
    std::vector<sock_filter> filter(count);
    if (getsockopt(file.copy, SOL_SOCKET, kGetFilter, filter.data(), &count) != 0)
        return fail_errno(file.object, "cannot read the socket's filter");
    for (const sock_filter& one : filter)
        options.add_so_filter(uint64_t{one.code} << 48 | uint64_t{one.jt} << 40 |
                              uint64_t{one.jf} << 32 | one.k);
    return {};
}

void plan_times(Program& program, Plan& plan, std::string_view label, Slot socket,
                const sk_opts_entry& options) {
    auto set = [&](int option, uint64_t seconds, uint64_t microseconds) {
        timeval value{static_cast<time_t>(seconds), static_cast<suseconds_t>(microseconds)};
        if (seconds != 0 || microseconds != 0)
            program.call(label, SYS_setsockopt,
                         {socket, SOL_SOCKET, option, plan.object(value), sizeof(value)});
    };
    set(SO_SNDTIMEO, options.so_snd_tmo_sec(), options.so_snd_tmo_usec());
    set(SO_RCVTIMEO, options.so_rcv_tmo_sec(), options.so_rcv_tmo_usec());
    if (options.has_so_linger()) {
        linger value{1, static_cast<int>(options.so_linger())};
        program.call(label, SYS_setsockopt,
                     {socket, SOL_SOCKET, SO_LINGER, plan.object(value), sizeof(value)});
    }
}

void plan_filter(Program& program, Plan& plan, std::string_view label, Slot socket,
                 const sk_opts_entry& options) {
    if (options.so_filter().empty())
        return;
    std::vector<sock_filter> filter;
    for (uint64_t packed : options.so_filter())
        filter.push_back({static_cast<uint16_t>(packed >> 48), static_cast<uint8_t>(packed >> 40),
                          static_cast<uint8_t>(packed >> 32), static_cast<uint32_t>(packed)});
    ArenaRef code = plan.bytes(filter.data(), filter.size() * sizeof(sock_filter));
    ArenaRef head = plan.object(sock_fprog{static_cast<uint16_t>(filter.size()), nullptr});
    program.append(restorer::OpCode::kStore, label,
                   {code, ArenaRef{head.offset + offsetof(sock_fprog, filter)}, 8});
    program.call(label, SYS_setsockopt,
                 {socket, SOL_SOCKET, SO_ATTACH_FILTER, head, sizeof(sock_fprog)});
}

}  // namespace

std::string socket_key(uint64_t ino) { return fmt::format("socket:[{}]", ino); }

int socket_family(const OpenFile& file) {
    if (!S_ISSOCK(file.st.st_mode) || file.copy < 0)
        return -1;
    int family = -1;
    socklen_t size = sizeof(family);
    return getsockopt(file.copy, SOL_SOCKET, SO_DOMAIN, &family, &size) == 0 ? family : -1;
}

Result<void> dump_socket_options(const OpenFile& file, int family, sk_opts_entry& options) {
    CKPT_TRY(dump_numbers(file, options));
    CKPT_TRY(dump_times(file, options));
    CKPT_TRY(dump_flags(file, family, options));
    CKPT_TRY(dump_device(file, options));
    return dump_filter(file, options);
}

void plan_option(Program& program, Plan& plan, std::string_view label, Slot socket, int level,
                 int option, int value) {
    program.call(label, SYS_setsockopt, {socket, level, option, plan.object(value), sizeof(value)});
}

void plan_socket_options(Program& program, Plan& plan, std::string_view label, Slot socket,
                         const sk_opts_entry& options) {
    auto set = [&](int option, int value) {
        plan_option(program, plan, label, socket, SOL_SOCKET, option, value);
    };
    // The kernel doubles what is set; FORCE goes beyond the administrator's limit, as the program's
    // own buffers may have been set by someone who was allowed to.
    set(SO_SNDBUFFORCE, static_cast<int>(options.so_sndbuf() / 2));
    set(SO_RCVBUFFORCE, static_cast<int>(options.so_rcvbuf() / 2));
    if (options.has_so_buf_lock())
        set(kBufLock, static_cast<int>(options.so_buf_lock()));
    for (const NumberOption& number : kNumbers) {
        if ((options.*number.has)())
            set(number.option, static_cast<int>((options.*number.get)()));
    }
    if (options.has_so_mark())
        set(SO_MARK, static_cast<int>(options.so_mark()));
    for (const FlagOption& flag : kFlags) {
        if ((options.*flag.get)())
            set(flag.option, 1);
    }
    plan_times(program, plan, label, socket, options);
    if (options.has_so_bound_dev())
        program.call(label, SYS_setsockopt,
                     {socket, SOL_SOCKET, SO_BINDTODEVICE, plan.string(options.so_bound_dev()),
                      options.so_bound_dev().size() + 1});
    plan_filter(program, plan, label, socket, options);
}

int shutdown_how(images::sk_shutdown shutdown) {
    switch (shutdown) {
        case images::READ: return SHUT_RD;
        case images::WRITE: return SHUT_WR;
        case images::BOTH: return SHUT_RDWR;
        case images::NONE: break;
    }
    return -1;
}

std::optional<Slot> plan_external_socket(FilePlanContext& context, std::string_view label,
                                         uint32_t file_id, uint32_t ino, uint32_t flags,
                                         const images::fown_entry& owner) {
    std::optional<Slot> slot = context.external(socket_key(ino));
    if (slot)
        context.settle(label, *slot, file_id, flags, owner);
    return slot;
}

Result<void> check_socket_namespace(const OpenFile& file, FileDumpContext& context) {
    struct stat own {};
    if (stat(fmt::format("/proc/{}/ns/net", file.pid).c_str(), &own) != 0)
        return fail_errno(file.object, "cannot tell the task's network namespace");
    CKPT_ASSIGN(uint64_t theirs, socket_namespace(file.copy));
    if (theirs != own.st_ino)
        context.blocker({ErrorKind::kUnsupported, file.object,
                         "the socket belongs to another network namespace than its process",
                         "give it to the restore as an external file", 0, {}});
    return {};
}

}  // namespace checkpointd
