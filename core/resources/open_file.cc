// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/resources/open_file.h"

#include <charconv>
#include <fcntl.h>
#include <sys/vfs.h>

#include <fmt/core.h>

namespace checkpointd {

namespace {

// linux/fcntl.h; glibc 2.36 has no name for it.
constexpr int kGetOwnerUids = 17;

std::string_view trimmed(std::string_view text) {
    size_t first = text.find_first_not_of(" \t");
    if (first == std::string_view::npos)
        return {};
    return text.substr(first, text.find_last_not_of(" \t") - first + 1);
}

}  // namespace

bool OpenFile::is_anon(std::string_view name) const {
    constexpr std::string_view prefix = "anon_inode:";
    if (!link.starts_with(prefix))
        return false;
    std::string_view rest = std::string_view(link).substr(prefix.size());
    if (rest.size() > 2 && rest.front() == '[' && rest.back() == ']')
        rest = rest.substr(1, rest.size() - 2);
    return rest == name;
}

unsigned OpenFile::filesystem() const {
    struct statfs fs {};
    return fstatfs(copy, &fs) == 0 ? static_cast<unsigned>(fs.f_type) : 0;
}

void for_each_line(std::string_view text, const std::function<void(std::string_view)>& handle) {
    while (!text.empty()) {
        size_t end = text.find('\n');
        handle(text.substr(0, end));
        if (end == std::string_view::npos)
            return;
        text.remove_prefix(end + 1);
    }
}

std::optional<std::string_view> fdinfo_value(std::string_view fdinfo, std::string_view key) {
    while (!fdinfo.empty()) {
        size_t end = fdinfo.find('\n');
        std::string_view line = fdinfo.substr(0, end);
        if (line.size() > key.size() && line.starts_with(key) && line[key.size()] == ':')
            return trimmed(line.substr(key.size() + 1));
        if (end == std::string_view::npos)
            break;
        fdinfo.remove_prefix(end + 1);
    }
    return std::nullopt;
}

std::optional<std::string_view> line_field(std::string_view line, std::string_view key) {
    size_t at = 0;
    while ((at = line.find(key, at)) != std::string_view::npos) {
        bool starts_word = at == 0 || line[at - 1] == ' ' || line[at - 1] == '\t';
        size_t colon = at + key.size();
        if (starts_word && colon < line.size() && line[colon] == ':') {
            std::string_view rest = line.substr(colon + 1);
            size_t first = rest.find_first_not_of(" \t");
            if (first == std::string_view::npos)
                return std::string_view{};
            rest.remove_prefix(first);
            return rest.substr(0, rest.find_first_of(" \t"));
        }
        at = colon;
    }
    return std::nullopt;
}

std::optional<uint64_t> parse_number(std::string_view text, int base) {
    uint64_t number = 0;
    auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number, base);
    if (error != std::errc() || end != text.data() + text.size())
        return std::nullopt;
    return number;
}

Result<uint32_t> parse_common_fdinfo(OpenFile& file) {
    auto number = [&](std::string_view key, int base) -> std::optional<uint64_t> {
        auto text = fdinfo_value(file.fdinfo, key);
        return text ? parse_number(*text, base) : std::nullopt;
    };
    auto flags = number("flags", 8);
    if (!flags)
        return fail(ErrorKind::kInternal, file.object, "fdinfo tells no flags");
    // pos is printed signed: some device files run with negative positions.
    auto pos_text = fdinfo_value(file.fdinfo, "pos");
    int64_t pos = 0;
    if (pos_text)
        std::from_chars(pos_text->data(), pos_text->data() + pos_text->size(), pos);
    file.pos = static_cast<uint64_t>(pos);
    file.flags = static_cast<unsigned>(*flags) & ~static_cast<unsigned>(O_CLOEXEC);
    file.mnt_id = static_cast<int>(number("mnt_id", 10).value_or(UINT64_MAX));
    // fs/proc/fd.c: O_CLOEXEC is the descriptor's, shown among the file's flags.
    return (*flags & O_CLOEXEC) ? FD_CLOEXEC : 0u;
}

Result<void> read_owner(OpenFile& file) {
    if (file.flags & O_PATH)
        return {};  // fs/fcntl.c: check_fcntl_cmd() refuses all but F_GETFD and the like
    f_owner_ex owner{};
    if (fcntl(file.copy, F_GETOWN_EX, &owner) != 0)
        return fail_errno(file.object, "F_GETOWN_EX");
    int signal = fcntl(file.copy, F_GETSIG);
    if (signal < 0)
        return fail_errno(file.object, "F_GETSIG");
    file.owner.signum = static_cast<uint32_t>(signal);
    if (owner.pid == 0)
        return {};
    uid_t uids[2] = {0, 0};
    if (fcntl(file.copy, kGetOwnerUids, uids) != 0)
        return fail_errno(file.object, "F_GETOWNER_UIDS");
    file.owner.uid = uids[0];
    file.owner.euid = uids[1];
    file.owner.pid_type = static_cast<uint32_t>(owner.type);
    file.owner.pid = static_cast<uint32_t>(owner.pid);
    return {};
}

void put_owner(const OpenFile& file, images::fown_entry& entry) {
    entry.set_uid(file.owner.uid);
    entry.set_euid(file.owner.euid);
    entry.set_signum(file.owner.signum);
    entry.set_pid_type(file.owner.pid_type);
    entry.set_pid(file.owner.pid);
}

std::string describe(pid_t pid, int fd, std::string_view link) {
    return fmt::format("pid {} fd {} ({})", pid, fd, link);
}

}  // namespace checkpointd
