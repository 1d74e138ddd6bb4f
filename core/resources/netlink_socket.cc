// SPDX-License-Identifier: LGPL-2.1-or-later
//
// AF_NETLINK sockets: protocol, port and groups. What the kernel had queued for it is not carried: a
// program that is told nothing for a while has to expect that (ENOBUFS), and asks again.
#include <array>
#include <cerrno>
#include <linux/netlink.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include "core/resources/kinds.h"
#include "core/resources/open_file.h"
#include "core/resources/socket.h"

namespace checkpointd {

namespace {

using images::netlink_sk_entry;

enum : uint32_t { kUnconnected = 0, kConnected = 1 };  // NETLINK_* states of af_netlink.h

bool recognise(const OpenFile& file) { return socket_family(file) == AF_NETLINK; }

Result<void> dump_addresses(const OpenFile& file, netlink_sk_entry& record) {
    sockaddr_nl own{};
    sockaddr_nl peer{};
    socklen_t own_size = sizeof(own);
    socklen_t peer_size = sizeof(peer);
    if (getsockname(file.copy, reinterpret_cast<sockaddr*>(&own), &own_size) != 0 ||
        getpeername(file.copy, reinterpret_cast<sockaddr*>(&peer), &peer_size) != 0)
        return fail_errno(file.object, "cannot tell its netlink address");
    record.set_portid(own.nl_pid);
    record.set_dst_portid(peer.nl_pid);
    record.set_dst_group(peer.nl_groups == 0 ? 0 : static_cast<uint32_t>(
                                                       __builtin_ctz(peer.nl_groups) + 1));
    record.set_state(peer.nl_pid != 0 || peer.nl_groups != 0 ? kConnected : kUnconnected);
    return {};
}

Result<void> dump_groups(const OpenFile& file, netlink_sk_entry& record) {
    std::array<uint32_t, 64> groups{};
    socklen_t size = sizeof(groups);
    if (getsockopt(file.copy, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, groups.data(), &size) != 0)
        return fail_errno(file.object, "cannot list its netlink groups");
    size_t words = std::min<size_t>(size / sizeof(uint32_t), groups.size());
    while (words > 0 && groups[words - 1] == 0)
        --words;
    for (size_t i = 0; i < words; ++i)
        record.add_groups(groups[i]);
    return {};
}

void check_queue(const OpenFile& file, FileDumpContext& context) {
    char byte = 0;
    ssize_t got = recv(file.copy, &byte, 1, MSG_PEEK | MSG_DONTWAIT | MSG_TRUNC);
    if (got > 0)
        context.blocker({ErrorKind::kUnsupported, file.object,
                         "messages of the kernel wait in its queue",
                         "try again when the program has read them", 0, {}});
}

Result<void> dump(const OpenFile& file, FileDumpContext& context, images::file_entry& entry) {
    netlink_sk_entry& record = *entry.mutable_nlsk();
    record.set_id(entry.id());
    record.set_ino(static_cast<uint32_t>(file.st.st_ino));
    record.set_flags(file.flags);
    put_owner(file, *record.mutable_fown());
    CKPT_ASSIGN(int protocol, socket_option<int>(file.copy, SOL_SOCKET, SO_PROTOCOL, file.object));
    record.set_protocol(static_cast<uint32_t>(protocol));
    CKPT_TRY(dump_addresses(file, record));
    CKPT_TRY(dump_groups(file, record));
    CKPT_TRY(dump_socket_options(file, AF_NETLINK, *record.mutable_opts()));
    CKPT_TRY(check_socket_namespace(file, context));
    check_queue(file, context);
    return {};
}

// A port number is nobody's right: where the old one is taken, any other will do, as for a program that
// had let the kernel choose.
void plan_bind(FilePlanContext& context, const std::string& label, Slot socket,
               const netlink_sk_entry& record) {
    if (record.portid() == 0)
        return;
    Program& agent = context.agent();
    sockaddr_nl any{};
    any.nl_family = AF_NETLINK;
    sockaddr_nl own = any;
    own.nl_pid = record.portid();
    agent.try_call(label, SYS_bind, {socket, context.plan().object(own), sizeof(own)});
    // Fails with EINVAL, as it should, when the first one succeeded (netlink_bind).
    agent.try_call(label, SYS_bind, {socket, context.plan().object(any), sizeof(any)});
}

Result<std::optional<Slot>> plan(const images::file_entry& entry, FilePlanContext& context) {
    const netlink_sk_entry& record = entry.nlsk();
    std::string label = fmt::format("netlink socket {} (protocol {})", entry.id(), record.protocol());
    Program& agent = context.agent();
    if (auto given = plan_external_socket(context, label, entry.id(), record.ino(), record.flags(),
                                          record.fown()))
        return given;
    Slot socket = agent.descriptor(label, SYS_socket,
                                   {AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, record.protocol()});
    plan_bind(context, label, socket, record);
    for (int word = 0; word < record.groups_size(); ++word) {
        for (int bit = 0; bit < 32; ++bit) {
            if ((record.groups(word) >> bit & 1) != 0)
                plan_option(agent, context.plan(), label, socket, SOL_NETLINK,
                            NETLINK_ADD_MEMBERSHIP, word * 32 + bit + 1);
        }
    }
    if (record.state() == kConnected) {
        sockaddr_nl peer{};
        peer.nl_family = AF_NETLINK;
        peer.nl_pid = record.dst_portid();
        peer.nl_groups = record.dst_group() == 0 ? 0 : 1u << (record.dst_group() - 1) % 32;
        agent.call(label, SYS_connect, {socket, context.plan().object(peer), sizeof(peer)});
    }
    plan_socket_options(agent, context.plan(), label, socket, record.opts());
    context.settle(label, socket, entry.id(), record.flags(), record.fown());
    return socket;
}

}  // namespace

const FileKind kNetlinkSocketKind{images::NETLINKSK, "netlink socket", recognise, dump, plan};

}  // namespace checkpointd
