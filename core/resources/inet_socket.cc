// SPDX-License-Identifier: LGPL-2.1-or-later
//
// AF_INET and AF_INET6 sockets: TCP that listens or is not connected, UDP bound or connected, ping and
// raw sockets without options of their own. A TCP connection is a blocker: its far end is outside.
#include <array>
#include <cerrno>
#include <cstring>
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include "core/kernel/sock_diag.h"
#include "core/resources/kinds.h"
#include "core/resources/open_file.h"
#include "core/resources/socket.h"

namespace checkpointd {

namespace {

using images::inet_sk_entry;
using images::ip_opts_entry;
using images::tcp_opts_entry;

constexpr int kUdpLite = 136;  // IPPROTO_UDPLITE

bool recognise(const OpenFile& file) {
    int family = socket_family(file);
    return family == AF_INET || family == AF_INET6;
}

// ---- dump ----------------------------------------------------------------------------------------

struct Name {
    uint16_t port = 0;
    std::vector<uint32_t> words;  // the address as the kernel has it; one word, or four for IPv6
    uint32_t scope = 0;
};

Name parse_name(const sockaddr_storage& address, int family) {
    Name name;
    if (family == AF_INET) {
        sockaddr_in v4{};
        std::memcpy(&v4, &address, sizeof(v4));
        name.port = ntohs(v4.sin_port);
        name.words = {v4.sin_addr.s_addr};
        return name;
    }
    sockaddr_in6 v6{};
    std::memcpy(&v6, &address, sizeof(v6));
    name.port = ntohs(v6.sin6_port);
    name.scope = v6.sin6_scope_id;
    name.words.resize(4);
    std::memcpy(name.words.data(), &v6.sin6_addr, sizeof(v6.sin6_addr));
    return name;
}

Result<void> dump_names(const OpenFile& file, int family, inet_sk_entry& record, bool& connected) {
    sockaddr_storage address{};
    socklen_t size = sizeof(address);
    if (getsockname(file.copy, reinterpret_cast<sockaddr*>(&address), &size) != 0)
        return fail_errno(file.object, "cannot tell its address");
    Name own = parse_name(address, family);
    address = {};
    size = sizeof(address);
    connected = getpeername(file.copy, reinterpret_cast<sockaddr*>(&address), &size) == 0;
    if (!connected)
        address = {};
    Name peer = parse_name(address, family);
    record.set_src_port(own.port);
    record.set_dst_port(peer.port);
    record.mutable_src_addr()->Add(own.words.begin(), own.words.end());
    record.mutable_dst_addr()->Add(peer.words.begin(), peer.words.end());
    return {};
}

Result<void> dump_tcp_options(const OpenFile& file, tcp_opts_entry& options) {
    auto get = [&](int option) { return socket_option<int>(file.copy, SOL_TCP, option, file.object); };
    CKPT_ASSIGN(int nodelay, get(TCP_NODELAY));
    CKPT_ASSIGN(int cork, get(TCP_CORK));
    CKPT_ASSIGN(int count, get(TCP_KEEPCNT));
    CKPT_ASSIGN(int idle, get(TCP_KEEPIDLE));
    CKPT_ASSIGN(int interval, get(TCP_KEEPINTVL));
    if (nodelay != 0)
        options.set_nodelay(true);
    if (cork != 0)
        options.set_cork(true);
    options.set_keepcnt(static_cast<uint32_t>(count));
    options.set_keepidle(static_cast<uint32_t>(idle));
    options.set_keepintvl(static_cast<uint32_t>(interval));
    return {};
}

Result<void> dump_ip_options(const OpenFile& file, int family, ip_opts_entry& options) {
    bool v6 = family == AF_INET6;
    int level = v6 ? SOL_IPV6 : SOL_IP;
    auto get = [&](int at, int option) {
        return socket_option<int>(file.copy, at, option, file.object);
    };
    CKPT_ASSIGN(int freebind, get(level, v6 ? IPV6_FREEBIND : IP_FREEBIND));
    CKPT_ASSIGN(int pktinfo, get(level, v6 ? IPV6_RECVPKTINFO : IP_PKTINFO));
    if (freebind != 0)
        options.set_freebind(true);
    if (pktinfo != 0)
        options.set_pktinfo(true);
    if (v6)
        return {};
    CKPT_ASSIGN(int tos, get(SOL_IP, IP_TOS));
    CKPT_ASSIGN(int ttl, get(SOL_IP, IP_TTL));
    if (tos != 0)
        options.set_tos(static_cast<uint32_t>(tos));
    if (ttl != 0)
        options.set_ttl(static_cast<uint32_t>(ttl));
    return {};
}

// The peer as a person writes it, for the blocker.
std::string peer_text(const inet_sk_entry& record) {
    std::array<char, INET6_ADDRSTRLEN> text{};
    inet_ntop(static_cast<int>(record.family()), record.dst_addr().data(), text.data(), text.size());
    return fmt::format("{}:{}", text.data(), record.dst_port());
}

void block_connection(const OpenFile& file, const inet_sk_entry& record, FileDumpContext& context) {
    context.blocker({ErrorKind::kUnsupported, file.object,
                     fmt::format("an established TCP connection to {}", peer_text(record)),
                     "close the connection, or let its clients disconnect before the checkpoint", 0,
                     {}});
}

// For a listening socket TCP_INFO tells its queue: `unacked` connections wait, `sacked` is the backlog
// (tcp_get_info in net/ipv4/tcp.c).
Result<void> dump_tcp(const OpenFile& file, inet_sk_entry& record, FileDumpContext& context) {
    CKPT_ASSIGN(tcp_info info, socket_option<tcp_info>(file.copy, SOL_TCP, TCP_INFO, file.object));
    record.set_state(info.tcpi_state);
    CKPT_TRY(dump_tcp_options(file, *record.mutable_tcp_opts()));
    if (info.tcpi_state == TCP_LISTEN) {
        record.set_backlog(info.tcpi_sacked);
        if (info.tcpi_unacked != 0)
            context.blocker({ErrorKind::kUnsupported, file.object,
                             fmt::format("{} connections wait to be accepted", info.tcpi_unacked),
                             "let the program accept them, or try again", 0, {}});
    } else if (info.tcpi_state != TCP_CLOSE) {
        block_connection(file, record, context);
    }
    return {};
}

// 0: neither, or nobody can tell. poll(2) knows of receiving only; the kernel may lack udp_diag.
uint8_t shutdown_of(const OpenFile& file, const inet_sk_entry& record) {
    pollfd events{file.copy, POLLRDHUP, 0};
    (void)poll(&events, 1, 0);
    if ((events.revents & POLLHUP) != 0)
        return 3;
    if (auto diag = open_sock_diag(file.copy); diag && record.src_port() != 0) {
        auto known = inet_diag(diag->get(), {static_cast<uint8_t>(record.family()),
                                             static_cast<uint8_t>(record.proto()),
                                             static_cast<uint16_t>(record.src_port()), record.ino()});
        if (known)
            return known->shutdown & 3;
    }
    return (events.revents & POLLRDHUP) != 0 ? 1 : 0;
}

// Datagrams that wait are dropped, as a network may do at any time.
Result<void> dump_datagram(const OpenFile& file, bool connected, inet_sk_entry& record,
                           FileDumpContext& context) {
    record.set_state(connected ? TCP_ESTABLISHED : TCP_CLOSE);
    if (uint8_t how = shutdown_of(file, record); how != 0)
        record.set_shutdown(static_cast<images::sk_shutdown>(how));
    if (record.proto() != IPPROTO_UDP && record.proto() != kUdpLite)
        return {};
    constexpr int kUdpCork = 1;  // UDP_CORK
    CKPT_ASSIGN(int corked, socket_option<int>(file.copy, IPPROTO_UDP, kUdpCork, file.object));
    if (corked != 0)
        context.blocker({ErrorKind::kUnsupported, file.object, "a corked UDP socket",
                         "let the program uncork it", 0, {}});
    return {};
}

Result<void> dump_v6(const OpenFile& file, inet_sk_entry& record) {
    CKPT_ASSIGN(int only, socket_option<int>(file.copy, SOL_IPV6, IPV6_V6ONLY, file.object));
    record.set_v6only(only != 0);
    // A link-local address means nothing without its interface.
    bool link_local = (ntohl(record.src_addr(0)) & 0xffc00000) == 0xfe800000;
    if (link_local && !record.opts().so_bound_dev().empty())
        record.set_ifname(record.opts().so_bound_dev());
    return {};
}

Result<void> dump(const OpenFile& file, FileDumpContext& context, images::file_entry& entry) {
    int family = socket_family(file);
    inet_sk_entry& record = *entry.mutable_isk();
    CKPT_ASSIGN(int type, socket_option<int>(file.copy, SOL_SOCKET, SO_TYPE, file.object));
    CKPT_ASSIGN(int protocol, socket_option<int>(file.copy, SOL_SOCKET, SO_PROTOCOL, file.object));
    record.set_id(entry.id());
    record.set_ino(static_cast<uint32_t>(file.st.st_ino));
    record.set_family(static_cast<uint32_t>(family));
    record.set_type(static_cast<uint32_t>(type));
    record.set_proto(static_cast<uint32_t>(protocol));
    record.set_flags(file.flags);
    record.set_backlog(0);
    put_owner(file, *record.mutable_fown());
    bool connected = false;
    CKPT_TRY(dump_names(file, family, record, connected));
    CKPT_TRY(dump_socket_options(file, family, *record.mutable_opts()));
    CKPT_TRY(dump_ip_options(file, family, *record.mutable_ip_opts()));
    if (family == AF_INET6)
        CKPT_TRY(dump_v6(file, record));
    if (context.is_external(socket_key(record.ino()))) {
        record.set_state(TCP_CLOSE);
        return {};
    }
    CKPT_TRY(check_socket_namespace(file, context));
    if (type == SOCK_STREAM && protocol == IPPROTO_TCP)
        return dump_tcp(file, record, context);
    if (type == SOCK_DGRAM)
        return dump_datagram(file, connected, record, context);
    record.set_state(TCP_CLOSE);
    context.blocker({ErrorKind::kUnsupported, file.object,
                     fmt::format("cannot carry inet sockets of type {}, protocol {}", type, protocol),
                     "let the program close it", 0, {}});
    return {};
}

// ---- restore -------------------------------------------------------------------------------------

struct Address {
    ArenaRef at;
    size_t size;
};

Address address_of(Plan& plan, const inet_sk_entry& record, bool own) {
    const auto& words = own ? record.src_addr() : record.dst_addr();
    auto port = htons(static_cast<uint16_t>(own ? record.src_port() : record.dst_port()));
    if (record.family() == AF_INET) {
        sockaddr_in v4{};
        v4.sin_family = AF_INET;
        v4.sin_port = port;
        v4.sin_addr.s_addr = words.Get(0);
        return {plan.object(v4), sizeof(v4)};
    }
    sockaddr_in6 v6{};
    v6.sin6_family = AF_INET6;
    v6.sin6_port = port;
    std::memcpy(&v6.sin6_addr, words.data(), sizeof(v6.sin6_addr));
    return {plan.object(v6), sizeof(v6)};
}

Result<void> check_record(const inet_sk_entry& record, const std::string& label) {
    int words = record.family() == AF_INET ? 1 : 4;
    bool right = (record.family() == AF_INET || record.family() == AF_INET6) &&
                 record.src_addr_size() >= words && record.dst_addr_size() >= words &&
                 record.src_port() <= UINT16_MAX && record.dst_port() <= UINT16_MAX;
    if (!right)
        return fail(ErrorKind::kBadImage, label, "its address cannot be right");
    bool tcp = record.type() == SOCK_STREAM;
    if (tcp && record.state() != TCP_LISTEN && record.state() != TCP_CLOSE)
        return fail(ErrorKind::kUnsupported, label, "TCP connections cannot be restored yet");
    if (!tcp && record.type() != SOCK_DGRAM)
        return fail(ErrorKind::kUnsupported, label,
                    fmt::format("inet sockets of type {} cannot be restored", record.type()));
    return {};
}

struct Making {
    const inet_sk_entry& record;
    FilePlanContext& context;
    std::string label;
    Slot socket;

    void set(int level, int option, int value) const {
        plan_option(context.agent(), context.plan(), label, socket, level, option, value);
    }
};

void plan_ip_options(const Making& m) {
    const ip_opts_entry& options = m.record.ip_opts();
    bool v6 = m.record.family() == AF_INET6;
    int level = v6 ? SOL_IPV6 : SOL_IP;
    if (options.pktinfo())
        m.set(level, v6 ? IPV6_RECVPKTINFO : IP_PKTINFO, 1);
    if (!v6 && options.has_tos())
        m.set(SOL_IP, IP_TOS, static_cast<int>(options.tos()));
    if (!v6 && options.has_ttl())
        m.set(SOL_IP, IP_TTL, static_cast<int>(options.ttl()));
}

void plan_tcp_options(const Making& m) {
    if (m.record.proto() != IPPROTO_TCP)
        return;
    const tcp_opts_entry& options = m.record.tcp_opts();
    if (options.nodelay())
        m.set(SOL_TCP, TCP_NODELAY, 1);
    if (options.cork())
        m.set(SOL_TCP, TCP_CORK, 1);
    if (options.has_keepcnt())
        m.set(SOL_TCP, TCP_KEEPCNT, static_cast<int>(options.keepcnt()));
    if (options.has_keepidle())
        m.set(SOL_TCP, TCP_KEEPIDLE, static_cast<int>(options.keepidle()));
    if (options.has_keepintvl())
        m.set(SOL_TCP, TCP_KEEPINTVL, static_cast<int>(options.keepintvl()));
}

// What bind(2) looks at is set before. SO_REUSEADDR is on for that moment, whatever it was: several
// sockets may have come to one address one after the other. So is IP_FREEBIND: an address may be gone, or
// not be there yet (DHCP, duplicate address detection), which never harmed a socket that was bound already.
void plan_bind(const Making& m) {
    if (m.record.src_port() == 0)
        return;
    if (m.record.has_v6only())
        m.set(SOL_IPV6, IPV6_V6ONLY, m.record.v6only() ? 1 : 0);
    bool v6 = m.record.family() == AF_INET6;
    auto set_freebind = [&](int on) {
        m.set(v6 ? SOL_IPV6 : SOL_IP, v6 ? IPV6_FREEBIND : IP_FREEBIND, on);
    };
    set_freebind(1);
    if (m.record.opts().has_so_bound_dev())
        m.context.agent().call(m.label, SYS_setsockopt,
                               {m.socket, SOL_SOCKET, SO_BINDTODEVICE,
                                m.context.plan().string(m.record.opts().so_bound_dev()),
                                m.record.opts().so_bound_dev().size() + 1});
    m.set(SOL_SOCKET, SO_REUSEADDR, 1);
    if (m.record.opts().so_reuseport())
        m.set(SOL_SOCKET, SO_REUSEPORT, 1);
    Address own = address_of(m.context.plan(), m.record, true);
    m.context.agent().call(m.label, SYS_bind, {m.socket, own.at, own.size});
    if (!m.record.ip_opts().freebind())
        set_freebind(0);
    if (!m.record.opts().reuseaddr())
        m.set(SOL_SOCKET, SO_REUSEADDR, 0);
}

void plan_state(const Making& m) {
    Program& agent = m.context.agent();
    if (m.record.type() == SOCK_STREAM && m.record.state() == TCP_LISTEN)
        agent.call(m.label, SYS_listen, {m.socket, m.record.backlog()});
    if (m.record.type() == SOCK_DGRAM && m.record.dst_port() != 0) {
        Address peer = address_of(m.context.plan(), m.record, false);
        agent.call(m.label, SYS_connect, {m.socket, peer.at, peer.size});
    }
    int how = shutdown_how(m.record.shutdown());
    // ENOTCONN on an unconnected one, which is shut down nevertheless (inet_shutdown).
    if (m.record.has_shutdown() && how >= 0)
        agent.try_call(m.label, SYS_shutdown, {m.socket, how});
}

Result<std::optional<Slot>> plan(const images::file_entry& entry, FilePlanContext& context) {
    const inet_sk_entry& record = entry.isk();
    std::string label = fmt::format("inet socket {} (port {})", entry.id(), record.src_port());
    if (auto given = plan_external_socket(context, label, entry.id(), record.ino(), record.flags(),
                                          record.fown()))
        return given;
    CKPT_TRY(check_record(record, label));
    Slot socket = context.agent().descriptor(
        label, SYS_socket, {record.family(), record.type() | SOCK_CLOEXEC, record.proto()});
    Making m{record, context, label, socket};
    plan_bind(m);
    if (record.src_port() == 0 && record.opts().reuseaddr())
        m.set(SOL_SOCKET, SO_REUSEADDR, 1);
    // Buffers before the state: a window scale is fixed when a connection is made (tcp(7)).
    plan_socket_options(context.agent(), context.plan(), label, socket, record.opts());
    plan_ip_options(m);
    plan_tcp_options(m);
    plan_state(m);
    context.settle(label, socket, entry.id(), record.flags(), record.fown());
    return socket;
}

}  // namespace

const FileKind kInetSocketKind{images::INETSK, "inet socket", recognise, dump, plan};

}  // namespace checkpointd
