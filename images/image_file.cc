// SPDX-License-Identifier: LGPL-2.1-or-later
#include "images/image_file.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <endian.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/io.h"

namespace checkpointd::images {

namespace {

constexpr size_t kBufferSize = 64 << 10;
// The largest real record is an mm_entry: 40 bytes for each of at most some million mappings.
constexpr uint32_t kMaxRecord = 256u << 20;
// A sparse file is as long as its author likes; memory is not.
constexpr uint64_t kMaxPayload = 1u << 30;

}  // namespace

Result<ImageWriter> ImageWriter::start(ScopedFd file, std::string name, ImageType type) {
    ImageWriter writer(std::move(file), std::move(name));
    const ImageTypeInfo& info = image_type(type);
    if (info.header == ImageHeader::kCommon)
        CKPT_TRY(writer.append_u32(kCommonMagic));
    if (info.header == ImageHeader::kService)
        CKPT_TRY(writer.append_u32(kServiceMagic));
    if (info.header != ImageHeader::kNone)
        CKPT_TRY(writer.append_u32(info.magic));
    return writer;
}

Result<void> ImageWriter::record(const google::protobuf::MessageLite& message) {
    if (!message.IsInitialized())
        return fail(ErrorKind::kInternal, name_,
                    message.GetTypeName() + " lacks a required field");
    size_t size = message.ByteSizeLong();
    if (size > kMaxRecord)
        return fail(ErrorKind::kUnsupported, name_,
                    fmt::format("a {} of {} bytes is more than the format can carry",
                                message.GetTypeName(), size));
    CKPT_TRY(append_u32(static_cast<uint32_t>(size)));
    return append(message.SerializeAsString().data(), size);
}

Result<void> ImageWriter::payload(const void* data, size_t size) { return append(data, size); }

Result<void> ImageWriter::finish() {
    Result<void> result = write_all(file_.get(), buffer_.data(), buffer_.size(), name_);
    buffer_.clear();
    return result;
}

Result<void> ImageWriter::append(const void* data, size_t size) {
    size_ += size;
    if (buffer_.size() + size > kBufferSize)
        CKPT_TRY(finish());
    if (size > kBufferSize)
        return write_all(file_.get(), data, size, name_);
    buffer_.append(static_cast<const char*>(data), size);
    return {};
}

Result<void> ImageWriter::append_u32(uint32_t value) {
    uint32_t wire = htole32(value);
    return append(&wire, sizeof(wire));
}

Result<ImageReader> ImageReader::start(ScopedFd file, std::string name, ImageType type) {
    struct stat about {};
    if (fstat(file.get(), &about) != 0)
        return fail_errno(std::move(name), "cannot stat the image file");
    if (!S_ISREG(about.st_mode))
        return fail(ErrorKind::kBadImage, std::move(name), "not a regular file");
    ImageReader reader(std::move(file), std::move(name), static_cast<uint64_t>(about.st_size));
    CKPT_TRY(reader.check_header(image_type(type)));
    return reader;
}

Result<void> ImageReader::check_header(const ImageTypeInfo& info) {
    if (info.header == ImageHeader::kCommon)
        CKPT_TRY(check_magic(kCommonMagic));
    if (info.header == ImageHeader::kService)
        CKPT_TRY(check_magic(kServiceMagic));
    if (info.header != ImageHeader::kNone)
        CKPT_TRY(check_magic(info.magic));
    return {};
}

Result<void> ImageReader::check_magic(uint32_t magic) {
    CKPT_ASSIGN(uint32_t found, u32());
    if (found != magic)
        return tl::unexpected(
            bad(fmt::format("magic {:#x} where {:#x} belongs", found, magic)));
    return {};
}

Result<bool> ImageReader::next(google::protobuf::MessageLite& out) {
    if (remaining() == 0)
        return false;
    CKPT_ASSIGN(uint32_t size, u32());
    if (size > kMaxRecord || size > remaining())
        return tl::unexpected(bad(fmt::format("a record of {} bytes, but {} are left", size,
                                              remaining())));
    CKPT_ASSIGN(std::string packed, payload(size));
    // Partial: the other one prints to stderr when a required field is missing.
    if (!out.ParsePartialFromString(packed) || !out.IsInitialized())
        return tl::unexpected(bad(fmt::format("not a {}", out.GetTypeName())));
    return true;
}

Result<std::string> ImageReader::payload(uint64_t size) {
    if (size > remaining())
        return tl::unexpected(
            bad(fmt::format("{} bytes belong here, but {} are left", size, remaining())));
    if (size > kMaxPayload)
        return tl::unexpected(bad(fmt::format("{} bytes are too many to read at once", size)));
    std::string data(size, '\0');
    CKPT_TRY(bytes(data.data(), data.size()));
    return data;
}

Result<void> ImageReader::skip(uint64_t size) {
    if (size > remaining())
        return tl::unexpected(
            bad(fmt::format("{} bytes belong here, but {} are left", size, remaining())));
    offset_ += size;
    size_t buffered = std::min<uint64_t>(size, buffer_.size() - used_);
    used_ += buffered;
    return {};
}

Result<uint32_t> ImageReader::u32() {
    if (remaining() < sizeof(uint32_t))
        return tl::unexpected(bad("the file ends in the middle of a number"));
    char raw[sizeof(uint32_t)];
    CKPT_TRY(bytes(raw, sizeof(raw)));
    uint32_t wire = 0;
    std::memcpy(&wire, raw, sizeof(wire));
    return le32toh(wire);
}

Result<void> ImageReader::bytes(char* out, size_t size) {
    while (size > 0) {
        if (used_ == buffer_.size())
            CKPT_TRY(fill());
        size_t chunk = std::min(size, buffer_.size() - used_);
        std::memcpy(out, buffer_.data() + used_, chunk);
        used_ += chunk;
        offset_ += chunk;
        out += chunk;
        size -= chunk;
    }
    return {};
}

// Positioned reads: a payload that was skipped costs nothing, and a file shared with others keeps its
// own position.
Result<void> ImageReader::fill() {
    buffer_.resize(kBufferSize);
    used_ = 0;
    ssize_t got = 0;
    do {
        got = pread(file_.get(), buffer_.data(), buffer_.size(), static_cast<off_t>(offset_));
    } while (got < 0 && errno == EINTR);
    int code = errno;
    buffer_.resize(got > 0 ? static_cast<size_t>(got) : 0);
    if (got < 0)
        return fail_errno(name_, fmt::format("cannot read at offset {}", offset_), code);
    if (got == 0)
        return tl::unexpected(bad("the file shrank while it was read"));
    return {};
}

Error ImageReader::bad(std::string message) const {
    return Error{ErrorKind::kBadImage, name_, fmt::format("{} (offset {})", message, offset_),
                 {}, 0, {}};
}

}  // namespace checkpointd::images
