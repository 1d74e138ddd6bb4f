// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Which descriptors of a unit belong to its stage.
#include <charconv>
#include <cstring>
#include <fcntl.h>
#include <map>
#include <set>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "core/base/io.h"
#include "core/kernel/proc_task.h"
#include "units/resolve.h"

namespace checkpointd {
namespace {

constexpr int kFirstListenFd = 3;  // SD_LISTEN_FDS_START
// Of the journal and, with a dot and a name behind "journal", of others (LogNamespace=).
constexpr std::string_view kJournalFolder = "/run/systemd/journal";
constexpr std::string_view kJournalStream = "/stdout";

struct Descriptor {
    int fd;
    std::string target;  // as readlink(2) tells it: "socket:[7]", "/dev/null"
};

std::vector<Descriptor> descriptors(pid_t pid) {
    std::vector<Descriptor> out;
    for (int fd : read_descriptor_list(pid).value_or(std::vector<int>()))
        if (auto target = read_link(AT_FDCWD, fmt::format("/proc/{}/fd/{}", pid, fd)))
            out.push_back({fd, std::move(*target)});
    return out;
}

std::set<std::string> sockets_of_pid1() {
    std::set<std::string> out;
    for (Descriptor& descriptor : descriptors(1))
        if (descriptor.target.starts_with("socket:["))
            out.insert(std::move(descriptor.target));
    return out;
}

// The value after "\nKEY:" in an fdinfo or status file.
std::optional<uint64_t> field(std::string_view text, std::string_view key) {
    size_t at = text.find(key);
    if (at == std::string_view::npos)
        return {};
    at = text.find_first_not_of(" \t", at + key.size());
    uint64_t value = 0;
    if (at == std::string_view::npos ||
        std::from_chars(text.data() + at, text.data() + text.size(), value).ec != std::errc())
        return {};
    return value;
}

bool has_mount(std::string_view mountinfo, uint64_t id) {
    std::string start = fmt::format("{} ", id);
    return mountinfo.starts_with(start) || mountinfo.find("\n" + start) != std::string_view::npos;
}

// Copies of other processes' descriptors, taken with pidfd_getfd(2): they share the description.
class DescriptorSource {
  public:
    explicit DescriptorSource(pid_t pid)
        : pidfd_(static_cast<int>(syscall(SYS_pidfd_open, pid, 0))) {}
    ScopedFd take(int fd) const {
        return ScopedFd(static_cast<int>(syscall(SYS_pidfd_getfd, pidfd_.get(), fd, 0)));
    }

  private:
    ScopedFd pidfd_;
};

// The peer's address tells a journal stream in whatever network namespace the unit lives.
bool is_journal_stream(int socket) {
    sockaddr_un peer = {};
    socklen_t size = sizeof(peer);
    if (getpeername(socket, reinterpret_cast<sockaddr*>(&peer), &size) != 0 ||
        peer.sun_family != AF_UNIX)
        return false;
    std::string_view path(peer.sun_path, strnlen(peer.sun_path, sizeof(peer.sun_path)));
    return path.starts_with(kJournalFolder) && path.ends_with(kJournalStream);
}

// One that PID 1 has accepted, not one to accept connections from.
bool is_connection(int socket) {
    sockaddr_storage peer = {};
    socklen_t size = sizeof(peer);
    return getpeername(socket, reinterpret_cast<sockaddr*>(&peer), &size) == 0 &&
           peer.ss_family != AF_NETLINK;
}

class ExternalFinder {
  public:
    explicit ExternalFinder(pid_t main_pid) : main_pid_(main_pid), shared_(sockets_of_pid1()) {}

    Result<void> begin() {
        auto environment = read_file(AT_FDCWD, fmt::format("/proc/{}/environ", main_pid_));
        if (environment)
            names_ = listen_names(*environment);
        for (const Descriptor& descriptor : descriptors(main_pid_)) {
            if (descriptor.fd <= STDERR_FILENO && descriptor.target.starts_with("socket:["))
                stdio_.emplace(descriptor.target, descriptor.fd);
            if (descriptor.fd <= STDERR_FILENO)
                add_file(descriptor);
            size_t index = static_cast<size_t>(descriptor.fd - kFirstListenFd);
            if (descriptor.fd >= kFirstListenFd && index < names_.size())
                listen_.emplace(descriptor.target, index);
        }
        return {};
    }

    Result<void> add_process(pid_t pid) {
        DescriptorSource source(pid);
        for (const Descriptor& descriptor : descriptors(pid))
            if (descriptor.target.starts_with("socket:[") && !found_.contains(descriptor.target))
                CKPT_TRY(add_socket(source, descriptor));
        return {};
    }

    std::vector<UnitExternal> take() && {
        std::vector<UnitExternal> out;
        for (auto& [key, external] : found_)
            out.push_back(std::move(external));
        return out;
    }

  private:
    // A file that systemd opened before it made the unit's mount namespace lies on a mount that is not
    // there in the namespace: nobody can open it by path, only the stage has it (stdin, append: output).
    void add_file(const Descriptor& descriptor) {
        auto info = read_file(AT_FDCWD, fmt::format("/proc/{}/fdinfo/{}", main_pid_, descriptor.fd));
        auto mounts = read_file(AT_FDCWD, fmt::format("/proc/{}/mountinfo", main_pid_));
        struct stat status;
        std::string link = fmt::format("/proc/{}/fd/{}", main_pid_, descriptor.fd);
        if (!info || !mounts || stat(link.c_str(), &status) != 0)
            return;
        if (!S_ISREG(status.st_mode) && !S_ISCHR(status.st_mode))
            return;
        auto mount = field(*info, "mnt_id:");
        if (!mount || has_mount(*mounts, *mount))
            return;
        std::string key = fmt::format("file[{:x}:{:x}]", *mount, status.st_ino);
        found_.emplace(key, UnitExternal{key, ExternalKind::kStdio,
                                         static_cast<unsigned>(descriptor.fd), "", ""});
    }

    Result<void> add_socket(const DescriptorSource& source, const Descriptor& descriptor) {
        const std::string& key = descriptor.target;
        ScopedFd copy = source.take(descriptor.fd);
        if (!copy)
            return {};  // closed meanwhile; the engine looks again when all stand still
        if (shared_.contains(key) && is_connection(copy.get()) && !is_journal_stream(copy.get()))
            return fail(ErrorKind::kUnsupported, fmt::format("fd {} ({})", descriptor.fd, key),
                        "is a connection that systemd accepted for it",
                        "a connection cannot be carried; let the unit accept by itself (Accept=no)");
        if (shared_.contains(key)) {
            CKPT_ASSIGN(std::string address, describe_socket(copy.get()));
            auto index = listen_.find(key);
            bool known = index != listen_.end();
            found_.emplace(key, UnitExternal{key, ExternalKind::kListen,
                                             known ? static_cast<unsigned>(index->second) : 0u,
                                             known ? names_[index->second] : "", address});
        } else if (is_journal_stream(copy.get())) {
            auto stdio = stdio_.find(key);
            bool known = stdio != stdio_.end();
            found_.emplace(key, UnitExternal{
                                    key, known ? ExternalKind::kStdio : ExternalKind::kJournal,
                                    static_cast<unsigned>(known ? stdio->second : STDOUT_FILENO), "", ""});
        }
        return {};
    }

    pid_t main_pid_;
    std::set<std::string> shared_;
    std::vector<std::string> names_;
    std::map<std::string, int> stdio_;
    std::map<std::string, size_t> listen_;
    std::map<std::string, UnitExternal> found_;
};

}  // namespace

Result<std::string> describe_socket(int fd) {
    int type = 0, protocol = 0;
    socklen_t size = sizeof(type);
    sockaddr_storage address = {};
    socklen_t length = sizeof(address);
    if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) != 0 ||
        getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &size) != 0 ||
        getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) != 0)
        return fail_errno("socket", "cannot tell its address");
    std::string out = fmt::format("{} {} ", type, protocol);
    for (socklen_t i = 0; i < length; ++i)
        out += fmt::format("{:02x}", reinterpret_cast<const unsigned char*>(&address)[i]);
    return out;
}

std::vector<std::string> listen_names(std::string_view environ_text) {
    size_t count = 0;
    std::string_view names;
    while (!environ_text.empty()) {
        std::string_view entry = environ_text.substr(0, environ_text.find('\0'));
        if (entry.starts_with("LISTEN_FDS="))
            std::from_chars(entry.data() + 11, entry.data() + entry.size(), count);
        if (entry.starts_with("LISTEN_FDNAMES="))
            names = entry.substr(15);
        environ_text.remove_prefix(std::min(environ_text.size(), entry.size() + 1));
    }
    std::vector<std::string> out;
    for (size_t i = 0; i < std::min<size_t>(count, 1024); ++i) {
        size_t end = names.find(':');
        out.emplace_back(names.substr(0, end));
        names = end == std::string_view::npos ? std::string_view() : names.substr(end + 1);
    }
    return out;
}

Result<std::vector<UnitExternal>> find_externals(pid_t main_pid, const std::vector<pid_t>& pids) {
    ExternalFinder finder(main_pid);
    CKPT_TRY(finder.begin());
    for (pid_t pid : pids)
        CKPT_TRY(finder.add_process(pid));
    return std::move(finder).take();
}

}  // namespace checkpointd
