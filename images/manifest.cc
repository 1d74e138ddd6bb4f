// SPDX-License-Identifier: LGPL-2.1-or-later
#include "images/manifest.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <fcntl.h>
#include <numeric>
#include <set>
#include <sys/stat.h>
#include <thread>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "core/base/io.h"
#include "images/json.h"

namespace checkpointd::images {

namespace {

constexpr const char* kDigestName = "xxh3-64";
// Small enough to be still in the cache when it is digested.
constexpr uint64_t kReadSize = 256u << 10;

uint64_t chunk_count(uint64_t size) { return (size + kDigestChunk - 1) / kDigestChunk; }

Result<void> read_exactly(int fd, char* out, size_t size, uint64_t offset,
                          const std::string& object) {
    while (size > 0) {
        ssize_t got = pread(fd, out, size, static_cast<off_t>(offset));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return fail_errno(object, fmt::format("cannot read at offset {}", offset));
        if (got == 0)
            return fail(ErrorKind::kBadImage, object, "the file shrank while it was read");
        out += got;
        offset += static_cast<uint64_t>(got);
        size -= static_cast<size_t>(got);
    }
    return {};
}

Result<uint64_t> digest_chunk(int fd, const FileDigest& file, uint64_t chunk, std::vector<char>& buffer) {
    ChunkDigest digest;
    const uint64_t end = std::min(file.size, (chunk + 1) * kDigestChunk);
    for (uint64_t offset = chunk * kDigestChunk; offset < end; offset += buffer.size()) {
        const size_t size = std::min<uint64_t>(buffer.size(), end - offset);
        CKPT_TRY(read_exactly(fd, buffer.data(), size, offset, file.name));
        digest.add(buffer.data(), size);
    }
    return digest.value();
}

// One thread's share of some chunks: takes the next one until none is left.
Result<void> digest_some(int fd, FileDigest& digest, const std::vector<uint64_t>& chunks, std::atomic<size_t>& next,
                         const std::stop_token& stop) {
    std::vector<char> buffer(std::min(kReadSize, digest.size));
    for (size_t i = next++; i < chunks.size(); i = next++) {
        if (stop.stop_requested())
            return fail(ErrorKind::kCancelled, digest.name, "nobody waits for its digests any more");
        CKPT_ASSIGN(digest.chunks[chunks[i]], digest_chunk(fd, digest, chunks[i], buffer));
    }
    return {};
}

Result<void> digest_chunks(int fd, FileDigest& digest, const std::vector<uint64_t>& chunks, unsigned threads,
                           const std::stop_token& stop = {}) {
    std::atomic<size_t> next = 0;
    size_t helpers = std::min<uint64_t>(std::max(threads, 1u), chunks.size());
    helpers = helpers > 0 ? helpers - 1 : 0;
    std::vector<Result<void>> results(helpers);
    std::vector<std::jthread> running;
    for (Result<void>& result : results)
        running.emplace_back([&] { result = digest_some(fd, digest, chunks, next, stop); });
    Result<void> mine = digest_some(fd, digest, chunks, next, stop);
    running.clear();
    CKPT_TRY(mine);
    for (Result<void>& result : results)
        CKPT_TRY(result);
    return {};
}

std::vector<uint64_t> all_chunks(uint64_t size) {
    std::vector<uint64_t> all(chunk_count(size));
    std::iota(all.begin(), all.end(), 0);
    return all;
}

Result<ScopedFd> open_member(const ImageDir& dir, const std::string& name, uint64_t& size) {
    CKPT_ASSIGN(ScopedFd file,
                open_at(dir.fd(), name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK));
    struct stat about {};
    if (fstat(file.get(), &about) != 0)
        return fail_errno(name, "cannot stat");
    if (!S_ISREG(about.st_mode))
        return fail(ErrorKind::kBadImage, name, "not a regular file");
    size = static_cast<uint64_t>(about.st_size);
    return file;
}

Result<std::vector<uint64_t>> parse_chunks(const nlohmann::json& list, const std::string& object) {
    std::vector<uint64_t> chunks;
    for (const nlohmann::json& item : list) {
        if (!item.is_string())
            return fail(ErrorKind::kBadImage, object, "a digest is not a string");
        const auto& text = item.get_ref<const std::string&>();
        uint64_t value = 0;
        auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), value, 16);
        if (failure != std::errc{} || end != text.data() + text.size() || text.size() != 16)
            return fail(ErrorKind::kBadImage, object, "a digest is not sixteen hex digits");
        chunks.push_back(value);
    }
    return chunks;
}

// A manifest may name files of its own directory only.
bool plain_name(const std::string& name) {
    return !name.empty() && name != "." && name != ".." && name.size() <= NAME_MAX &&
           name.find('/') == std::string::npos && name.find('\0') == std::string::npos;
}

Result<FileDigest> parse_file(const nlohmann::json& json, const std::string& object) {
    FileDigest digest;
    CKPT_ASSIGN(digest.name, json_string(json, "name", object));
    CKPT_ASSIGN(digest.size, json_number(json, "size", object));
    CKPT_ASSIGN(const nlohmann::json* list, json_array(json, "chunks", object));
    CKPT_ASSIGN(digest.chunks, parse_chunks(*list, object));
    if (!plain_name(digest.name))
        return fail(ErrorKind::kBadImage, object, "names a file outside the image");
    if (!digest.chunks.empty() && digest.chunks.size() != chunk_count(digest.size))
        return fail(ErrorKind::kBadImage, object,
                    fmt::format("{}: the number of digests does not fit the size", digest.name));
    return digest;
}

Result<void> compare_chunks(int fd, const FileDigest& expected, const std::vector<uint64_t>& chunks, unsigned threads,
                            const std::stop_token& stop) {
    FileDigest found = expected;
    CKPT_TRY(digest_chunks(fd, found, chunks, threads, stop));
    auto [wrong, ignored] = std::ranges::mismatch(found.chunks, expected.chunks);
    if (wrong == found.chunks.end())
        return {};
    return tl::unexpected(damage(expected, static_cast<uint64_t>(wrong - found.chunks.begin())));
}

Result<void> check_file(const ImageDir& dir, const FileDigest& expected, bool wants_digests, unsigned threads,
                        const std::stop_token& stop) {
    uint64_t size = 0;
    CKPT_ASSIGN(ScopedFd file, open_member(dir, expected.name, size));
    if (size != expected.size)
        return fail(ErrorKind::kBadImage, expected.name,
                    fmt::format("has {} bytes, but was written with {}", size, expected.size));
    if (!wants_digests || expected.chunks.empty())
        return {};
    return compare_chunks(file.get(), expected, all_chunks(size), threads, stop);
}

}  // namespace

uint64_t chunk_digest(const void* data, size_t size) { return XXH3_64bits(data, size); }

struct ChunkDigest::State {
    XXH3_state_t xxh3;
};

ChunkDigest::ChunkDigest() : state_(std::make_unique<State>()) { XXH3_64bits_reset(&state_->xxh3); }
ChunkDigest::~ChunkDigest() = default;

void ChunkDigest::add(const void* data, size_t size) { XXH3_64bits_update(&state_->xxh3, data, size); }

uint64_t ChunkDigest::value() const { return XXH3_64bits_digest(&state_->xxh3); }

bool holds_memory(const std::string& name) {
    if (auto image = parse_image_name(name))
        return image->type == ImageType::kPages;
    return name.ends_with(".img") && (name.find("-pages-") != std::string::npos || name.starts_with("gpu-cs-"));
}

Error damage(const FileDigest& file, uint64_t chunk) {
    return {ErrorKind::kBadImage, file.name,
            fmt::format("is damaged between offsets {} and {}", chunk * kDigestChunk,
                        std::min(file.size, (chunk + 1) * kDigestChunk)),
            {}, 0, {}};
}

Result<void> check_chunks(const ImageDir& dir, const FileDigest& expected, const std::vector<uint64_t>& chunks,
                          unsigned threads, const std::stop_token& stop) {
    uint64_t size = 0;
    CKPT_ASSIGN(ScopedFd file, open_member(dir, expected.name, size));
    return compare_chunks(file.get(), expected, chunks, threads, stop);
}

Result<FileDigest> digest_file(const ImageDir& dir, const std::string& name, unsigned threads) {
    FileDigest digest{name, 0, {}};
    CKPT_ASSIGN(ScopedFd file, open_member(dir, name, digest.size));
    digest.chunks.resize(chunk_count(digest.size));
    CKPT_TRY(digest_chunks(file.get(), digest, all_chunks(digest.size), threads));
    return digest;
}

std::string to_json(const Manifest& manifest) {
    nlohmann::ordered_json json;
    json["version"] = kManifestVersion;
    json["digest"] = kDigestName;
    json["chunk_size"] = kDigestChunk;
    auto& files = json["files"] = nlohmann::ordered_json::array();
    for (const FileDigest& digest : manifest.files) {
        auto chunks = nlohmann::ordered_json::array();
        for (uint64_t chunk : digest.chunks)
            chunks.push_back(fmt::format("{:016x}", chunk));
        files.push_back({{"name", digest.name}, {"size", digest.size}, {"chunks", chunks}});
    }
    return json.dump(1, '\t', false, nlohmann::json::error_handler_t::replace) + "\n";
}

Result<Manifest> parse_manifest(const std::string& text, const std::string& object) {
    CKPT_ASSIGN(nlohmann::json json, parse_json_object(text, object));
    CKPT_ASSIGN(uint64_t version, json_number(json, "version", object));
    CKPT_ASSIGN(std::string digest, json_string(json, "digest", object));
    CKPT_ASSIGN(uint64_t chunk_size, json_number(json, "chunk_size", object));
    if (version != kManifestVersion || digest != kDigestName || chunk_size != kDigestChunk)
        return fail(ErrorKind::kBadImage, object,
                    fmt::format("version {} with {} is not one that this checkpointd reads",
                                version, digest),
                    "restore it with the version that wrote it");
    CKPT_ASSIGN(const nlohmann::json* files, json_array(json, "files", object));
    Manifest manifest;
    for (const nlohmann::json& file : *files) {
        CKPT_ASSIGN(FileDigest parsed, parse_file(file, object));
        manifest.files.push_back(std::move(parsed));
    }
    return manifest;
}

Result<Manifest> read_manifest(const ImageDir& dir) {
    std::string object = dir.name() + "/" + kManifestName;
    auto text = read_file(dir.fd(), kManifestName);
    if (!text && text.error().errno_code == ENOENT)
        return fail(ErrorKind::kBadImage, object, "the image has no manifest: it is not complete");
    if (!text)
        return tl::unexpected(std::move(text).error());
    return parse_manifest(*text, object);
}

Result<void> verify(const ImageDir& dir, VerifyDepth depth, unsigned threads, std::stop_token stop,
                    const std::set<std::string>& others) {
    CKPT_ASSIGN(Manifest manifest, read_manifest(dir));
    CKPT_ASSIGN(std::vector<std::string> present, dir.file_names());
    std::vector<Error> faults;
    std::set<std::string> listed;
    for (const FileDigest& file : manifest.files) {
        listed.insert(file.name);
        const bool wants_digests = depth != VerifyDepth::kSizes && !others.contains(file.name) &&
                                   (depth == VerifyDepth::kFull || !holds_memory(file.name));
        auto ok = check_file(dir, file, wants_digests, threads, stop);
        if (!ok && ok.error().kind == ErrorKind::kCancelled)
            return ok;
        if (!ok)
            faults.push_back(std::move(ok).error());
    }
    for (const std::string& name : present) {
        auto image = parse_image_name(name);
        // A restore leaves its figures beside the images.
        if (image && image->type != ImageType::kStatsRestore && !listed.contains(name))
            faults.push_back({ErrorKind::kBadImage, name, "is not in the manifest", {}, 0, {}});
    }
    if (faults.empty())
        return {};
    Error error{ErrorKind::kBadImage, dir.name(), "the image is damaged",
                "take another image of the unit", 0, std::move(faults)};
    return tl::unexpected(std::move(error));
}

}  // namespace checkpointd::images
