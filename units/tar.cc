// SPDX-License-Identifier: LGPL-2.1-or-later
#include "units/tar.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <unistd.h>

#include "core/base/io.h"

namespace checkpointd {
namespace {

constexpr size_t kBlock = 512;
constexpr size_t kMaxExtension = 1u << 20;
constexpr std::string_view kAttribute = "SCHILY.xattr.";  // as star and GNU tar write them
constexpr uint32_t kNsecPerSec = 1'000'000'000;
constexpr char kExtension = 'x';

// ustar header block, POSIX.1-2001 "ustar Interchange Format".
struct Header {
    char name[100];
    char mode[8];
    char uid[8];
    char gid[8];
    char size[12];
    char mtime[12];
    char checksum[8];
    char type;
    char link[100];
    char magic[6];
    char version[2];
    char user[32];
    char group[32];
    char major[8];
    char minor[8];
    char prefix[155];
    char unused[12];
};
static_assert(sizeof(Header) == kBlock);

template <size_t N>
void put_octal(char (&field)[N], uint64_t value) {
    std::string text = fmt::format("{:0{}o}", value, N - 1);
    if (text.size() > N - 1)
        text.assign(N - 1, '7');  // does not fit: the extension has the number
    std::memcpy(field, text.data(), N - 1);
}

template <size_t N>
void put_text(char (&field)[N], const std::string& text) {
    std::memcpy(field, text.data(), std::min(text.size(), N));
}

template <size_t N>
std::string get_text(const char (&field)[N]) {
    return std::string(field, strnlen(field, N));
}

template <size_t N>
bool get_octal(const char (&field)[N], uint64_t& value) {
    auto [end, error] = std::from_chars(field, field + N, value, 8);
    return error == std::errc() && (end == field + N || *end == '\0' || *end == ' ');
}

// Sum of all bytes with the checksum field taken as blanks.
uint64_t checksum(Header header) {
    std::memset(header.checksum, ' ', sizeof(header.checksum));
    uint64_t sum = 0;
    for (size_t i = 0; i < kBlock; ++i)
        sum += reinterpret_cast<const unsigned char*>(&header)[i];
    return sum;
}

std::string block_of(const TarEntry& entry, char type, uint64_t size) {
    Header header = {};
    put_text(header.name, entry.path);
    put_octal(header.mode, entry.mode);
    put_octal(header.uid, entry.uid);
    put_octal(header.gid, entry.gid);
    put_octal(header.size, size);
    put_octal(header.mtime, static_cast<uint64_t>(std::max<time_t>(entry.mtime, 0)));
    header.type = type;
    put_text(header.link, entry.link);
    std::memcpy(header.magic, "ustar", 6);
    std::memcpy(header.version, "00", 2);
    std::string sum = fmt::format("{:06o}", checksum(header));
    std::memcpy(header.checksum, sum.data(), sum.size());
    header.checksum[7] = ' ';
    return std::string(reinterpret_cast<const char*>(&header), kBlock);
}

// "LENGTH KEY=VALUE\n", where LENGTH counts itself.
std::string extension_record(std::string_view key, std::string_view value) {
    size_t rest = key.size() + value.size() + 3;
    size_t length = rest + std::to_string(rest).size();
    if (rest + std::to_string(length).size() != length)
        ++length;
    return fmt::format("{} {}={}\n", length, key, value);
}

std::string map_text(const std::vector<TarExtent>& extents) {
    std::string out;
    for (const TarExtent& extent : extents)
        out += fmt::format("{}{},{}", out.empty() ? "" : ",", extent.offset, extent.length);
    return out;
}

std::string extension_of(const TarEntry& entry) {
    std::string out;
    if (entry.path.size() > sizeof(Header::name))
        out += extension_record("path", entry.path);
    if (entry.link.size() > sizeof(Header::link))
        out += extension_record("linkpath", entry.link);
    if (entry.uid > 07777777)
        out += extension_record("uid", std::to_string(entry.uid));
    if (entry.gid > 07777777)
        out += extension_record("gid", std::to_string(entry.gid));
    if (entry.size > 077777777777)
        out += extension_record("size", std::to_string(entry.size));
    if (entry.mtime_nsec != 0)
        out += extension_record("mtime", fmt::format("{}.{:09}", entry.mtime, entry.mtime_nsec));
    for (const auto& [name, value] : entry.attributes)
        out += extension_record(fmt::format("{}{}", kAttribute, name), value);
    if (entry.is_sparse()) {
        out += extension_record("GNU.sparse.size", std::to_string(entry.sparse_size));
        out += extension_record("GNU.sparse.numblocks", std::to_string(entry.extents.size()));
        out += extension_record("GNU.sparse.map", map_text(entry.extents));
    }
    return out;
}

tl::unexpected<Error> malformed(const char* what) {
    return fail(ErrorKind::kBadImage, "unit files", fmt::format("malformed archive: {}", what));
}

Result<void> read_exactly(int fd, char* data, size_t size) {
    while (size > 0) {
        ssize_t n = read(fd, data, size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return fail_errno("unit files", "cannot read the archive");
        if (n == 0)
            return malformed("it ends early");
        data += n;
        size -= static_cast<size_t>(n);
    }
    return {};
}

template <typename T>
bool number(std::string_view text, T& value) {
    auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    return error == std::errc() && end == text.data() + text.size();
}

bool read_time(std::string_view text, TarEntry& entry) {
    size_t point = text.find('.');
    return point != std::string_view::npos && number(text.substr(0, point), entry.mtime) &&
           text.size() == point + 10 && number(text.substr(point + 1), entry.mtime_nsec) &&
           entry.mtime_nsec < kNsecPerSec;
}

// "OFFSET,LENGTH,OFFSET,LENGTH": ascending, without overlap.
bool read_map(std::string_view text, std::vector<TarExtent>& extents) {
    uint64_t end = 0;
    while (!text.empty()) {
        TarExtent extent;
        for (uint64_t* value : {&extent.offset, &extent.length}) {
            std::string_view word = text.substr(0, text.find(','));
            if (!number(word, *value))
                return false;
            text.remove_prefix(std::min(text.size(), word.size() + 1));
        }
        if (extent.offset < end || extent.length > UINT64_MAX - extent.offset)
            return false;
        end = extent.offset + extent.length;
        extents.push_back(extent);
    }
    return true;
}

bool apply_record(std::string_view key, std::string_view value, TarEntry& entry) {
    if (key == "path")
        entry.path = value;
    else if (key == "linkpath")
        entry.link = value;
    else if (key == "uid")
        return number(value, entry.uid);
    else if (key == "gid")
        return number(value, entry.gid);
    else if (key == "size")
        return number(value, entry.size);
    else if (key == "mtime")
        return read_time(value, entry);
    else if (key.starts_with(kAttribute))
        entry.attributes[std::string(key.substr(kAttribute.size()))] = value;
    else if (key == "GNU.sparse.size")
        return number(value, entry.sparse_size);
    else if (key == "GNU.sparse.map")
        return read_map(value, entry.extents);
    else
        return key == "GNU.sparse.numblocks";
    return true;
}

// What follows is what the map says, and all of it lies in the file.
bool is_consistent(const TarEntry& entry) {
    uint64_t sum = 0;
    for (const TarExtent& extent : entry.extents)
        sum += extent.length;
    if (!entry.is_sparse())
        return entry.extents.empty();
    return entry.type == TarType::kFile && sum == entry.size && entry.sparse_size <= INT64_MAX &&
           (entry.extents.empty() ||
            entry.extents.back().offset + entry.extents.back().length <= entry.sparse_size);
}

Result<void> copy_bytes(int in_fd, int out_fd, uint64_t size, const std::string& path) {
    std::string block(1u << 16, '\0');
    for (uint64_t left = size; left > 0;) {
        size_t part = static_cast<size_t>(std::min<uint64_t>(left, block.size()));
        CKPT_TRY(read_exactly(in_fd, block.data(), part));
        CKPT_TRY(write_all(out_fd, block.data(), part, path));
        left -= part;
    }
    return {};
}

Result<void> copy_sparse(int in_fd, const TarEntry& entry, int out_fd) {
    for (const TarExtent& extent : entry.extents) {
        if (lseek(out_fd, static_cast<off_t>(extent.offset), SEEK_SET) < 0)
            return fail_errno(entry.path, "cannot seek");
        CKPT_TRY(copy_bytes(in_fd, out_fd, extent.length, entry.path));
    }
    if (ftruncate(out_fd, static_cast<off_t>(entry.sparse_size)) != 0)
        return fail_errno(entry.path, "cannot set its size");
    return {};
}

Result<void> apply_extension(std::string_view text, TarEntry& entry) {
    while (!text.empty()) {
        size_t blank = text.find(' '), length = 0;
        if (blank == std::string_view::npos || !number(text.substr(0, blank), length) ||
            length > text.size() || length < blank + 3 || text[length - 1] != '\n')
            return malformed("extended header");
        std::string_view record = text.substr(blank + 1, length - blank - 2);
        size_t equals = record.find('=');
        if (equals == std::string_view::npos ||
            !apply_record(record.substr(0, equals), record.substr(equals + 1), entry))
            return malformed("extended header");
        text.remove_prefix(length);
    }
    return {};
}

Result<TarEntry> entry_of(const Header& header) {
    TarEntry entry;
    uint64_t mode = 0, uid = 0, gid = 0, mtime = 0, sum = 0;
    if (std::memcmp(header.magic, "ustar", 6) != 0 || !get_octal(header.checksum, sum) ||
        sum != checksum(header))
        return malformed("header checksum");
    if (!get_octal(header.mode, mode) || !get_octal(header.uid, uid) || !get_octal(header.gid, gid) ||
        !get_octal(header.size, entry.size) || !get_octal(header.mtime, mtime) || mode > 07777)
        return malformed("number");
    entry.path = get_text(header.name);
    entry.link = get_text(header.link);
    entry.mode = static_cast<mode_t>(mode);
    entry.uid = static_cast<uid_t>(uid);
    entry.gid = static_cast<gid_t>(gid);
    entry.mtime = static_cast<time_t>(mtime);
    return entry;
}

Result<Header> read_header(int fd) {
    Header header;
    CKPT_TRY(read_exactly(fd, reinterpret_cast<char*>(&header), kBlock));
    return header;
}

bool is_end(const Header& header) {
    auto* bytes = reinterpret_cast<const char*>(&header);
    return std::all_of(bytes, bytes + kBlock, [](char byte) { return byte == 0; });
}

bool is_type(char type) {
    return std::string_view("01256").find(type) != std::string_view::npos;
}

Result<std::string> read_extension(int fd, uint64_t size) {
    if (size > kMaxExtension)
        return malformed("extended header's size");
    std::string text(size + tar_padding(size), '\0');
    CKPT_TRY(read_exactly(fd, text.data(), text.size()));
    text.resize(size);
    return text;
}

}  // namespace

size_t tar_padding(uint64_t size) {
    return (kBlock - size % kBlock) % kBlock;
}

std::string tar_header(const TarEntry& entry) {
    std::string out, extension = extension_of(entry);
    if (!extension.empty()) {
        out = block_of(TarEntry{"checkpointd-extension", TarType::kFile, "", 0600, 0, 0, 0, 0, 0, {}, {}, 0},
                       kExtension, extension.size());
        out += extension + std::string(tar_padding(extension.size()), '\0');
    }
    return out + block_of(entry, static_cast<char>(entry.type), entry.size);
}

std::string tar_end() {
    return std::string(2 * kBlock, '\0');
}

Result<std::optional<TarEntry>> tar_next(int fd) {
    CKPT_ASSIGN(Header header, read_header(fd));
    if (is_end(header))
        return std::nullopt;
    CKPT_ASSIGN(TarEntry entry, entry_of(header));
    if (header.type == kExtension) {
        CKPT_ASSIGN(std::string extension, read_extension(fd, entry.size));
        CKPT_ASSIGN(header, read_header(fd));
        CKPT_ASSIGN(entry, entry_of(header));
        CKPT_TRY(apply_extension(extension, entry));
    }
    if (!is_type(header.type) || entry.path.empty() || entry.path[0] != '/' ||
        entry.path.find('\0') != std::string::npos || entry.link.find('\0') != std::string::npos)
        return malformed("member");
    entry.type = static_cast<TarType>(header.type);
    if (entry.type != TarType::kFile && entry.size != 0)
        return malformed("content of what is no file");
    if (!is_consistent(entry))
        return malformed("map of a sparse file");
    return entry;
}

Result<void> tar_copy(int in_fd, const TarEntry& entry, int out_fd) {
    if (entry.is_sparse())
        CKPT_TRY(copy_sparse(in_fd, entry, out_fd));
    else
        CKPT_TRY(copy_bytes(in_fd, out_fd, entry.size, entry.path));
    char padding[kBlock];
    return read_exactly(in_fd, padding, tar_padding(entry.size));
}

}  // namespace checkpointd
