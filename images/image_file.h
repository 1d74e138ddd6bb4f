// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <google/protobuf/message_lite.h>

#include "core/base/error.h"
#include "core/base/scoped_fd.h"
#include "images/image_type.h"

namespace checkpointd::images {

// Writes one image file of records: header, then `u32 size + protobuf` each, raw payload where the type
// has it. Buffered; nothing is promised to be in the file before finish() has returned success.
class ImageWriter {
  public:
    // Takes an empty file opened for writing. `name` is for errors.
    static Result<ImageWriter> start(ScopedFd file, std::string name, ImageType type);

    // Appends a record. A message that lacks a required field is kInternal.
    Result<void> record(const google::protobuf::MessageLite& message);
    // Appends raw bytes to the record before.
    Result<void> payload(const void* data, size_t size);
    // Writes out what is buffered. Not synced to disk: committing the directory does that.
    Result<void> finish();

    // Bytes written so far, buffered ones included.
    uint64_t size() const { return size_; }
    const std::string& name() const { return name_; }

  private:
    ImageWriter(ScopedFd file, std::string name) : file_(std::move(file)), name_(std::move(name)) {}
    Result<void> append(const void* data, size_t size);
    Result<void> append_u32(uint32_t value);

    ScopedFd file_;
    std::string name_;
    std::string buffer_;
    uint64_t size_ = 0;
};

// Reads one image file of records. Nothing in the file is trusted: every length is checked against what
// the file still has before anything is allocated, and every fault is kBadImage with file and offset.
class ImageReader {
  public:
    // Takes a regular file opened for reading and checks its header.
    static Result<ImageReader> start(ScopedFd file, std::string name, ImageType type);

    // Reads the next record into `out`; false at the end of the file.
    Result<bool> next(google::protobuf::MessageLite& out);
    // Reads a record that must be there.
    template <typename Message>
    Result<Message> expect();
    // The file's only record; kBadImage if there is none or more than one.
    template <typename Message>
    Result<Message> only();
    // All records up to the end of the file.
    template <typename Message>
    Result<std::vector<Message>> rest();

    // The `size` raw bytes that follow the record read last, at most 1 GiB.
    Result<std::string> payload(uint64_t size);
    // Leaves them out.
    Result<void> skip(uint64_t size);

    uint64_t offset() const { return offset_; }
    uint64_t remaining() const { return size_ - offset_; }
    const std::string& name() const { return name_; }
    // The failure kBadImage at the present offset, for readers that find the content itself wrong.
    Error bad(std::string message) const;

  private:
    ImageReader(ScopedFd file, std::string name, uint64_t size)
        : file_(std::move(file)), name_(std::move(name)), size_(size) {}
    Result<void> check_header(const ImageTypeInfo& info);
    Result<void> check_magic(uint32_t magic);
    Result<uint32_t> u32();
    Result<void> bytes(char* out, size_t size);
    Result<void> fill();

    ScopedFd file_;
    std::string name_;
    uint64_t size_ = 0;    // of the file, when it was opened
    uint64_t offset_ = 0;  // of the next byte that bytes() gives
    std::string buffer_;
    size_t used_ = 0;  // of buffer_
};

template <typename Message>
Result<Message> ImageReader::expect() {
    Message message;
    CKPT_ASSIGN(bool there, next(message));
    if (!there)
        return tl::unexpected(bad("a record is missing"));
    return message;
}

template <typename Message>
Result<Message> ImageReader::only() {
    CKPT_ASSIGN(Message message, expect<Message>());
    if (remaining() != 0)
        return tl::unexpected(bad("more than the one record this file may hold"));
    return message;
}

template <typename Message>
Result<std::vector<Message>> ImageReader::rest() {
    std::vector<Message> all;
    while (true) {
        Message message;
        CKPT_ASSIGN(bool there, next(message));
        if (!there)
            return all;
        all.push_back(std::move(message));
    }
}

}  // namespace checkpointd::images
