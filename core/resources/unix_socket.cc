// SPDX-License-Identifier: LGPL-2.1-or-later
//
// AF_UNIX sockets. A connection whose two ends are both in the unit comes back as a socket pair, with
// what waited in its queues; a listening or bound one is bound again; a datagram socket that sends to
// an outside path is connected to that path again; everything else that reaches outside has to be given
// by the caller ("socket:[INO]").
#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <memory>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "core/base/io.h"
#include "core/kernel/sock_diag.h"
#include "core/resources/kinds.h"
#include "core/resources/open_file.h"
#include "core/resources/socket.h"
#include "images/constants.h"

namespace checkpointd {

namespace {

using images::unix_sk_entry;

// ---- dump ----------------------------------------------------------------------------------------

constexpr size_t kLargestMessage = 8u << 20;
constexpr size_t kMostMessages = 100'000;
constexpr unsigned kUnixFile = 0x89e0;  // SIOCUNIXFILE; <linux/un.h> cannot stand beside <sys/un.h>

// What a socket's closure needs when all descriptors are known.
struct Facts {
    std::string object;
    uint32_t file_id = 0;
    ScopedFd copy;  // outlives the collector's
    UnixDiag diag;
};

bool recognise(const OpenFile& file) { return socket_family(file) == AF_UNIX; }

// Peeks through a queue from its start and puts the socket's own peek offset back afterwards.
class PeekFromStart {
  public:
    explicit PeekFromStart(int socket) : socket_(socket) {
        socklen_t size = sizeof(before_);
        int start = 0;
        ready_ = getsockopt(socket, SOL_SOCKET, SO_PEEK_OFF, &before_, &size) == 0 &&
                 setsockopt(socket, SOL_SOCKET, SO_PEEK_OFF, &start, sizeof(start)) == 0;
    }
    ~PeekFromStart() {
        if (ready_)
            (void)setsockopt(socket_, SOL_SOCKET, SO_PEEK_OFF, &before_, sizeof(before_));
    }
    PeekFromStart(const PeekFromStart&) = delete;
    PeekFromStart& operator=(const PeekFromStart&) = delete;
    bool ready() const { return ready_; }

  private:
    int socket_;
    int before_ = -1;
    bool ready_ = false;
};

// Descriptors that travel in a message are installed in us by peeking at it; they are closed again.
bool close_rights(msghdr& header) {
    bool found = false;
    for (cmsghdr* part = CMSG_FIRSTHDR(&header); part != nullptr; part = CMSG_NXTHDR(&header, part)) {
        if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS)
            continue;
        size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; ++i) {
            int fd = -1;
            std::memcpy(&fd, CMSG_DATA(part) + i * sizeof(int), sizeof(int));
            close(fd);
        }
        found = true;
    }
    return found;
}

struct Peeked {
    ssize_t size = 0;  // as recvmsg(2) gives it
    int error = 0;
    bool rights = false;
    bool cut = false;
};

Peeked peek(int socket, char* buffer, size_t size) {
    alignas(cmsghdr) std::array<char, 4096> control;
    iovec where{buffer, size};
    msghdr header{};
    header.msg_iov = &where;
    header.msg_iovlen = 1;
    header.msg_control = control.data();
    header.msg_controllen = control.size();
    Peeked result;
    result.size = recvmsg(socket, &header, MSG_PEEK | MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    result.error = result.size < 0 ? errno : 0;
    if (result.size >= 0) {
        result.rights = close_rights(header);
        result.cut = (header.msg_flags & MSG_TRUNC) != 0;
    }
    return result;
}

Error blocked(const OpenFile& file, std::string message, std::string remedy) {
    return Error{ErrorKind::kUnsupported, file.object, std::move(message), std::move(remedy), 0, {}};
}

Result<void> dump_queue(const OpenFile& file, uint32_t type, uint32_t file_id,
                        FileDumpContext& context) {
    PeekFromStart from_start(file.copy);
    if (!from_start.ready())
        return fail_errno(file.object, "cannot set SO_PEEK_OFF");
    auto buffer = std::make_unique_for_overwrite<char[]>(kLargestMessage);
    std::vector<std::string> messages;
    while (messages.size() < kMostMessages) {
        Peeked peeked = peek(file.copy, buffer.get(), kLargestMessage);
        if (peeked.error == EINTR)
            continue;
        // Zero is the end of a connection, but an empty message of a datagram socket.
        if (peeked.error == EAGAIN || (peeked.size == 0 && type != SOCK_DGRAM))
            break;
        if (peeked.error != 0)
            return fail_errno(file.object, "cannot look into the queue", peeked.error);
        if (peeked.rights || peeked.cut) {
            context.blocker(blocked(file, peeked.cut ? "a queued message is too large"
                                                     : "descriptors travel in its queue (SCM_RIGHTS)",
                                    "let the program receive what is queued, then try again"));
            return {};
        }
        messages.emplace_back(buffer.get(), static_cast<size_t>(peeked.size));
    }
    if (!messages.empty())
        context.images().queues[file_id] = std::move(messages);
    return {};
}

// Where a path-bound socket's file is and whose it is. The kernel gives the very inode, so a renamed or
// removed path cannot mislead us.
Result<void> dump_path(const OpenFile& file, const std::string& name, unix_sk_entry& record) {
    ScopedFd inode(ioctl(file.copy, kUnixFile));
    if (!inode)
        return fail_errno(file.object, "cannot find the file it is bound to (SIOCUNIXFILE)");
    struct stat about {};
    if (fstat(inode.get(), &about) != 0)
        return fail_errno(file.object, "cannot stat the file it is bound to");
    images::file_perms_entry& perms = *record.mutable_file_perms();
    perms.set_mode(about.st_mode);
    perms.set_uid(about.st_uid);
    perms.set_gid(about.st_gid);
    if (about.st_nlink == 0)
        record.set_deleted(true);
    if (name[0] == '/')
        return {};
    CKPT_ASSIGN(std::string path,
                read_link(AT_FDCWD, fmt::format("/proc/self/fd/{}", inode.get())));
    std::string ending = "/" + std::string(name.c_str());
    if (about.st_nlink == 0 && path.ends_with(" (deleted)"))
        path.resize(path.size() - strlen(" (deleted)"));
    if (!path.ends_with(ending))
        return fail(ErrorKind::kUnsupported, file.object,
                    fmt::format("bound to {}, which is now {}", name.c_str(), path));
    record.set_name_dir(path.substr(0, path.size() - ending.size()));
    return {};
}

unix_sk_entry* record_of(FileImages& images, uint32_t ino) {
    for (images::file_entry& entry : images.files) {
        if (entry.type() == images::UNIXSK && entry.usk().ino() == ino)
            return entry.mutable_usk();
    }
    return nullptr;
}

std::string peer_name(int socket) {
    sockaddr_un address{};
    socklen_t size = sizeof(address);
    if (getpeername(socket, reinterpret_cast<sockaddr*>(&address), &size) != 0 ||
        size <= offsetof(sockaddr_un, sun_path))
        return {};
    return std::string(address.sun_path, std::min<size_t>(size - offsetof(sockaddr_un, sun_path),
                                                          sizeof(address.sun_path)));
}

// "process 1 (systemd), /run/systemd/journal/stdout"
std::string describe_peer(int socket) {
    std::string name = peer_name(socket);
    std::string text;
    ucred who{};
    socklen_t size = sizeof(who);
    if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &who, &size) == 0 && who.pid > 0) {
        auto comm = read_file(AT_FDCWD, fmt::format("/proc/{}/comm", who.pid), 64);
        text = fmt::format("process {}", who.pid);
        if (comm && comm->size() > 1)
            text += fmt::format(" ({})", comm->substr(0, comm->size() - 1));
    }
    if (name.empty())
        return text.empty() ? "an unnamed socket" : text;
    std::string shown = name[0] == '\0' ? "@" + name.substr(1) : std::string(name.c_str());
    return text.empty() ? shown : text + ", " + shown;
}

// CRIU's way to say that a datagram socket sends to a name outside: a record of the outside socket.
void add_outside_peer(const Facts& facts, const std::string& name, FileDumpContext& context) {
    if (record_of(context.images(), facts.diag.peer) != nullptr)
        return;
    images::file_entry entry;
    entry.set_type(images::UNIXSK);
    entry.set_id(context.new_id());
    unix_sk_entry& outside = *entry.mutable_usk();
    outside.set_id(entry.id());
    outside.set_ino(facts.diag.peer);
    outside.set_type(SOCK_DGRAM);
    outside.set_state(TCP_LISTEN);
    outside.set_flags(0);
    outside.set_uflags(images::kUnixExternal);
    outside.set_backlog(0);
    outside.set_peer(0);
    put_owner(OpenFile{}, *outside.mutable_fown());
    images::sk_opts_entry& options = *outside.mutable_opts();
    options.set_so_sndbuf(0);
    options.set_so_rcvbuf(0);
    options.set_so_snd_tmo_sec(0);
    options.set_so_snd_tmo_usec(0);
    options.set_so_rcv_tmo_sec(0);
    options.set_so_rcv_tmo_usec(0);
    outside.set_name(name);
    context.images().files.push_back(std::move(entry));
}

void outside_blocker(const Facts& facts, FileDumpContext& context) {
    context.blocker({ErrorKind::kUnsupported, facts.object,
                     fmt::format("connected to {} outside of the unit",
                                 describe_peer(facts.copy.get())),
                     fmt::format("close the connection before, or give {} to the restore as an "
                                 "external file",
                                 socket_key(facts.diag.ino)),
                     0, {}});
}

void finish_peer(const Facts& facts, FileDumpContext& context) {
    unix_sk_entry* peer = record_of(context.images(), facts.diag.peer);
    if (peer != nullptr && (peer->uflags() & images::kUnixInherit) == 0) {
        bool reachable = peer->peer() == facts.diag.ino || !peer->name().empty();
        if (!reachable)
            context.blocker({ErrorKind::kUnsupported, facts.object,
                             "connected to a socket that has neither a name nor a way back", {}, 0, {}});
        return;
    }
    std::string name = peer_name(facts.copy.get());
    if (facts.diag.type == SOCK_DGRAM && !name.empty())
        add_outside_peer(facts, name, context);
    else
        outside_blocker(facts, context);
}

// Connected, but not accepted yet: the far end has no inode. Its listening socket knows us.
Result<void> finish_waiting(const Facts& facts, FileDumpContext& context) {
    CKPT_ASSIGN(ScopedFd diag, open_sock_diag(facts.copy.get()));
    CKPT_ASSIGN(std::vector<UnixDiag> listening, unix_diag_listening(diag.get()));
    for (const UnixDiag& listener : listening) {
        if (std::ranges::find(listener.waiting, facts.diag.ino) == listener.waiting.end())
            continue;
        if (record_of(context.images(), listener.ino) == nullptr || facts.diag.write_queue != 0) {
            outside_blocker(facts, context);
            return {};
        }
        record_of(context.images(), facts.diag.ino)->set_peer(listener.ino);
        return {};
    }
    return {};  // the peer is gone; what it sent is in the queue
}

void finish_listener(const Facts& facts, FileDumpContext& context) {
    for (uint32_t ino : facts.diag.waiting) {
        if (ino != 0 && record_of(context.images(), ino) != nullptr)
            continue;
        context.blocker({ErrorKind::kUnsupported, facts.object,
                         "a connection from outside of the unit waits to be accepted",
                         "let the program accept it, or try again when it has", 0, {}});
    }
}

Result<void> finish(const Facts& facts, FileDumpContext& context) {
    if (facts.diag.state == TCP_LISTEN) {
        finish_listener(facts, context);
        return {};
    }
    if (facts.diag.peer != 0) {
        finish_peer(facts, context);
        return {};
    }
    if (facts.diag.state == TCP_ESTABLISHED && facts.diag.type != SOCK_DGRAM)
        return finish_waiting(facts, context);
    return {};
}

void fill(const OpenFile& file, const UnixDiag& diag, unix_sk_entry& record) {
    record.set_ino(diag.ino);
    record.set_type(diag.type);
    record.set_state(diag.state);
    record.set_flags(file.flags);
    record.set_uflags(0);
    record.set_backlog(diag.state == TCP_LISTEN ? diag.write_queue : 0);
    record.set_peer(diag.peer);
    put_owner(file, *record.mutable_fown());
    record.set_name(diag.name);
    if (diag.shutdown != 0)
        record.set_shutdown(static_cast<images::sk_shutdown>(diag.shutdown & 3));
}

// Given by the caller at restore: nothing of it is made again, nothing of its path is touched.
void make_external(unix_sk_entry& record) {
    record.set_uflags(images::kUnixInherit);
    record.set_peer(0);
    record.clear_shutdown();
}

Result<void> dump_own(const OpenFile& file, UnixDiag diag, uint32_t file_id, unix_sk_entry& record,
                      FileDumpContext& context) {
    CKPT_TRY(check_socket_namespace(file, context));
    if (!diag.name.empty() && diag.name[0] != '\0')
        CKPT_TRY(dump_path(file, diag.name, record));
    if (diag.state != TCP_LISTEN && diag.read_queue != 0)
        CKPT_TRY(dump_queue(file, diag.type, file_id, context));
    auto facts = std::make_shared<Facts>();
    facts->object = file.object;
    facts->file_id = file_id;
    facts->copy = ScopedFd(fcntl(file.copy, F_DUPFD_CLOEXEC, 0));
    if (!facts->copy)
        return fail_errno(file.object, "cannot duplicate the descriptor");
    facts->diag = std::move(diag);
    context.when_collected([facts, &context](FileTables&) { return finish(*facts, context); });
    return {};
}

Result<void> dump(const OpenFile& file, FileDumpContext& context, images::file_entry& entry) {
    CKPT_ASSIGN(ScopedFd socket, open_sock_diag(file.copy));
    CKPT_ASSIGN(UnixDiag diag, unix_diag(socket.get(), static_cast<uint32_t>(file.st.st_ino)));
    unix_sk_entry& record = *entry.mutable_usk();
    record.set_id(entry.id());
    fill(file, diag, record);
    CKPT_TRY(dump_socket_options(file, AF_UNIX, *record.mutable_opts()));
    if (context.is_external(socket_key(diag.ino))) {
        make_external(record);
        return {};
    }
    return dump_own(file, std::move(diag), entry.id(), record, context);
}

// ---- restore -------------------------------------------------------------------------------------

constexpr const char* kShared = "unix socket";  // by inode
constexpr const char* kConnected = "connected unix socket";  // likewise
constexpr int kRoomForQueues = 256 << 20;       // SO_SNDBUF while a queue is filled
constexpr const char* kAside = ".checkpointd-aside";

// One socket's plan: what it is called in errors, its record and where it is emitted.
struct Making {
    const unix_sk_entry& record;
    uint32_t file_id;
    FilePlanContext& context;
    std::string label;

    Program& agent() const { return context.agent(); }
    Plan& plan() const { return context.plan(); }
    bool path_bound() const { return !record.name().empty() && record.name()[0] != '\0'; }
};

Making making(const images::file_entry& entry, FilePlanContext& context) {
    const unix_sk_entry& record = entry.usk();
    std::string name = record.name().empty() || record.name()[0] != '\0'
                           ? std::string(record.name().c_str())
                           : "@" + record.name().substr(1);
    return {record, entry.id(), context,
            fmt::format("unix socket {} ({})", entry.id(),
                        name.empty() ? socket_key(record.ino()) : name)};
}

const images::file_entry* entry_of(const FileImages& images, uint32_t ino) {
    for (const images::file_entry& entry : images.files) {
        if (entry.type() == images::UNIXSK && entry.usk().ino() == ino)
            return &entry;
    }
    return nullptr;
}

Result<void> check_record(const unix_sk_entry& record, const std::string& label) {
    bool type_known = record.type() == SOCK_STREAM || record.type() == SOCK_DGRAM ||
                      record.type() == SOCK_SEQPACKET;
    if (!type_known || record.name().size() > sizeof(sockaddr_un::sun_path))
        return fail(ErrorKind::kBadImage, label, "its type or name cannot be right");
    return {};
}

struct Address {
    ArenaRef at;
    size_t size = 0;
};

Address address_of(Plan& plan, const std::string& name) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    size_t length = std::min(name.size(), sizeof(address.sun_path));
    std::memcpy(address.sun_path, name.data(), length);
    return {plan.object(address), offsetof(sockaddr_un, sun_path) + length};
}

// Names that are not absolute count from the directory in which the program was when it bound them.
void enter_name_dir(const Making& m, const unix_sk_entry& record) {
    if (!record.name_dir().empty())
        m.agent().call(m.label, SYS_chdir, {m.plan().string(record.name_dir())});
}
void leave_name_dir(const Making& m, const unix_sk_entry& record) {
    if (!record.name_dir().empty())
        m.agent().call(m.label, SYS_chdir, {m.plan().string("/")});
}

void plan_perms(const Making& m, ArenaRef path) {
    if (!m.record.has_file_perms())
        return;
    const images::file_perms_entry& perms = m.record.file_perms();
    m.agent().call(m.label, SYS_fchownat,
                   {AT_FDCWD, path, perms.uid(), perms.gid(), AT_SYMLINK_NOFOLLOW});
    m.agent().call(m.label, SYS_fchmodat, {AT_FDCWD, path, perms.mode() & 07777});
}

// The name of a removed socket is free or another's: bound beside it and removed again, with the other
// one moved aside for that moment.
void plan_bind(const Making& m, Slot socket) {
    if (m.record.name().empty())
        return;
    Address address = address_of(m.plan(), m.record.name());
    if (!m.path_bound()) {
        m.agent().call(m.label, SYS_bind, {socket, address.at, address.size});
        return;
    }
    std::string name = m.record.name().c_str();
    ArenaRef path = m.plan().string(name);
    ArenaRef aside = m.plan().string(name + kAside);
    enter_name_dir(m, m.record);
    if (m.record.deleted())
        m.agent().try_call(m.label, SYS_rename, {path, aside});
    else
        m.agent().try_call(m.label, SYS_unlink, {path});
    m.agent().call(m.label, SYS_bind, {socket, address.at, address.size});
    if (m.record.deleted()) {
        m.agent().call(m.label, SYS_unlink, {path});
        m.agent().try_call(m.label, SYS_rename, {aside, path});
    } else {
        plan_perms(m, path);
    }
    leave_name_dir(m, m.record);
}

// Whatever `sender` sends ends up in the queue of the socket that has this file id.
void plan_queue(const Making& m, uint32_t file_id, Slot sender) {
    auto queue = m.context.images().queues.find(file_id);
    if (queue == m.context.images().queues.end())
        return;
    plan_option(m.agent(), m.plan(), m.label, sender, SOL_SOCKET, SO_SNDBUFFORCE, kRoomForQueues);
    for (const std::string& message : queue->second)
        m.agent().call_expect(m.label, static_cast<int64_t>(message.size()), SYS_sendto,
                              {sender, m.plan().bytes(message.data(), message.size()),
                               message.size(), MSG_DONTWAIT | MSG_NOSIGNAL, 0, 0});
}

void plan_shutdown(const Making& m, Slot socket) {
    int how = shutdown_how(m.record.shutdown());
    if (m.record.has_shutdown() && how >= 0)
        m.agent().call(m.label, SYS_shutdown, {socket, how});
}

struct Pair {
    Slot first;
    Slot second;
};

Pair plan_pair(const Making& m) {
    ArenaRef ends = m.plan().reserve(8, 4);
    m.agent().call(m.label, SYS_socketpair, {AF_UNIX, m.record.type() | SOCK_CLOEXEC, 0, ends});
    Pair pair;
    pair.first = m.agent().descriptor_from(m.label, ends);
    pair.second = m.agent().descriptor_from(m.label, ArenaRef{ends.offset + 4});
    return pair;
}

void finish_socket(const Making& m, Slot socket) {
    plan_shutdown(m, socket);
    plan_socket_options(m.agent(), m.plan(), m.label, socket, m.record.opts());
    m.context.settle(m.label, socket, m.file_id, m.record.flags(), m.record.fown());
}

// Both ends are in the image: made together, when the first of them is asked for.
Slot plan_connected(const Making& m, const images::file_entry& peer_entry) {
    if (auto made = m.context.shared_slot(kShared, m.record.ino()))
        return *made;
    Making peer = making(peer_entry, m.context);
    Pair pair = plan_pair(m);
    m.context.share_slot(kShared, peer.record.ino(), pair.second);
    // An accepted socket has its listener's name, which only one can bind.
    if (m.record.type() == SOCK_DGRAM) {
        plan_bind(m, pair.first);
        plan_bind(peer, pair.second);
    }
    plan_queue(m, m.file_id, pair.second);
    plan_queue(peer, peer.file_id, pair.first);
    finish_socket(m, pair.first);
    finish_socket(peer, pair.second);
    return pair.first;
}

// The far end is gone and what it sent is still to be read.
Slot plan_half_closed(const Making& m) {
    Pair pair = plan_pair(m);
    plan_queue(m, m.file_id, pair.second);
    m.agent().call(m.label, SYS_close, {pair.second});
    plan_socket_options(m.agent(), m.plan(), m.label, pair.first, m.record.opts());
    m.context.settle(m.label, pair.first, m.file_id, m.record.flags(), m.record.fown());
    return pair.first;
}

// A datagram socket with a queue gets it from a passing partner, which it forgets: connecting to
// AF_UNSPEC dissolves the pair on one side (unix_dgram_connect in net/unix/af_unix.c).
Slot plan_unconnected(const Making& m) {
    if (!m.context.images().queues.contains(m.file_id) || m.record.type() != SOCK_DGRAM) {
        Slot socket = m.agent().descriptor(m.label, SYS_socket,
                                           {AF_UNIX, m.record.type() | SOCK_CLOEXEC, 0});
        plan_bind(m, socket);
        return socket;
    }
    Pair pair = plan_pair(m);
    sa_family_t nobody = AF_UNSPEC;
    m.agent().call(m.label, SYS_connect, {pair.first, m.plan().object(nobody), sizeof(nobody)});
    plan_bind(m, pair.first);
    plan_queue(m, m.file_id, pair.second);
    m.agent().call(m.label, SYS_close, {pair.second});
    return pair.first;
}

Result<const images::file_entry*> named_peer(const Making& m) {
    const images::file_entry* peer = entry_of(m.context.images(), m.record.peer());
    if (peer == nullptr || peer->usk().name().empty())
        return fail(ErrorKind::kBadImage, m.label,
                    fmt::format("its peer {} is not in the image", m.record.peer()));
    return peer;
}

void plan_connect(const Making& m, const unix_sk_entry& peer, Slot socket) {
    Address address = address_of(m.plan(), peer.name());
    enter_name_dir(m, peer);
    m.agent().call(m.label + " to " + peer.name().c_str(), SYS_connect,
                   {socket, address.at, address.size});
    leave_name_dir(m, peer);
}

// Nobody but its own peer may connect to a datagram socket that has one (unix_may_send): whoever sends to this
// one comes first.
void connect_datagram(const Making& m) {
    std::optional<Slot> socket = m.context.shared_slot(kShared, m.record.ino());
    if (!socket || m.context.shared_slot(kConnected, m.record.ino()))
        return;
    m.context.share_slot(kConnected, m.record.ino(), *socket);
    for (const images::file_entry& entry : m.context.images().files) {
        const unix_sk_entry& other = entry.usk();
        if (!m.record.name().empty() && entry.type() == images::UNIXSK &&
            other.peer() == m.record.ino() && other.type() == SOCK_DGRAM)
            connect_datagram(making(entry, m.context));
    }
    if (const images::file_entry* peer = entry_of(m.context.images(), m.record.peer()))
        plan_connect(m, peer->usk(), *socket);
    finish_socket(m, *socket);
}

Result<Slot> plan_standalone(const Making& m) {
    Slot socket = plan_unconnected(m);
    if (m.record.state() == TCP_LISTEN)
        m.agent().call(m.label, SYS_listen, {socket, m.record.backlog()});
    m.context.share_slot(kShared, m.record.ino(), socket);
    if (m.record.peer() == 0) {
        finish_socket(m, socket);
        return socket;
    }
    CKPT_ASSIGN(const images::file_entry* peer, named_peer(m));
    if (m.record.type() == SOCK_DGRAM) {  // when all are bound
        m.context.when_opened([m](Program&) { connect_datagram(m); });
        return socket;
    }
    if ((peer->usk().uflags() & images::kUnixExternal) == 0)
        CKPT_TRY(m.context.slot_of(peer->id()));  // bound first
    plan_connect(m, peer->usk(), socket);
    finish_socket(m, socket);
    return socket;
}

Result<std::optional<Slot>> plan(const images::file_entry& entry, FilePlanContext& context) {
    Making m = making(entry, context);
    CKPT_TRY(check_record(m.record, m.label));
    if (auto given = plan_external_socket(context, m.label, entry.id(), m.record.ino(),
                                          m.record.flags(), m.record.fown()))
        return given;
    if ((m.record.uflags() & images::kUnixInherit) != 0)
        return fail(ErrorKind::kNotFound, m.label, "has to be given to the restore and was not",
                    fmt::format("give it as external file {}", socket_key(m.record.ino())));
    const images::file_entry* peer =
        m.record.peer() != 0 ? entry_of(context.images(), m.record.peer()) : nullptr;
    if (peer != nullptr && peer->usk().peer() == m.record.ino() && peer->id() != entry.id()) {
        CKPT_TRY(check_record(peer->usk(), m.label));
        return plan_connected(m, *peer);
    }
    if (m.record.peer() == 0 && m.record.state() == TCP_ESTABLISHED && m.record.type() != SOCK_DGRAM)
        return plan_half_closed(m);
    CKPT_ASSIGN(Slot socket, plan_standalone(m));
    return socket;
}

}  // namespace

const FileKind kUnixSocketKind{images::UNIXSK, "unix socket", recognise, dump, plan};

}  // namespace checkpointd
