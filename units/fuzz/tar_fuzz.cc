// SPDX-License-Identifier: LGPL-2.1-or-later
//
// libFuzzer target: any bytes as the archive of a unit's files. It begins with archives of ours, and the
// checksums of headers are right whatever becomes of them, or all would end there. Built with clang only.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <sys/mman.h>
#include <unistd.h>

#include <fmt/format.h>

#include "core/base/io.h"
#include "units/tar.h"

using namespace checkpointd;

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

namespace {

constexpr size_t kBlock = 512, kMagic = 257, kChecksum = 148, kDigits = 6;

Result<void> read_all(int archive) {
    while (true) {
        CKPT_ASSIGN(auto entry, tar_next(archive));
        if (!entry)
            return {};
        ScopedFd out(memfd_create("fuzz", MFD_CLOEXEC));
        if (entry->type == TarType::kFile)
            CKPT_TRY(tar_copy(archive, *entry, out.get()));
    }
}

std::string archive_of_ours(unsigned seed) {
    TarEntry entry;
    entry.path = seed % 2 ? "/run/" + std::string(120, 'n') : "/run/name";
    entry.mode = 0640, entry.mtime = 1;
    entry.attributes["user.x"] = "value";
    const TarType types[] = {TarType::kFile, TarType::kHardLink, TarType::kLink, TarType::kDirectory};
    entry.type = types[seed / 2 % std::size(types)];
    std::string content;
    if (entry.type == TarType::kFile) {
        content = std::string(seed % 700, 'c');
        entry.size = content.size();
        if (seed % 3 == 0 && entry.size > 0)
            entry.extents = {{4096, entry.size}}, entry.sparse_size = 16384;
    } else if (entry.type != TarType::kDirectory) {
        entry.link = "/run/other";
    }
    return tar_header(entry) + content + std::string(tar_padding(content.size()), '\0') + tar_end();
}

void repair_checksums(uint8_t* data, size_t size) {
    for (uint8_t* block = data; block + kBlock <= data + size; block += kBlock) {
        if (std::memcmp(block + kMagic, "ustar", 6) != 0)
            continue;
        std::memset(block + kChecksum, ' ', kDigits + 2);
        unsigned sum = 0;
        for (size_t i = 0; i < kBlock; i++)
            sum += block[i];
        std::string text = fmt::format("{:06o}", sum);
        std::memcpy(block + kChecksum, text.data(), kDigits);
        block[kChecksum + kDigits] = 0;
    }
}

}  // namespace

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
    if (size < kBlock) {
        std::string begin = archive_of_ours(seed);
        size = std::min(begin.size(), max_size);
        std::memcpy(data, begin.data(), size);
    } else {
        size = LLVMFuzzerMutate(data, size, max_size);
    }
    repair_checksums(data, size);
    return size;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    ScopedFd archive(memfd_create("fuzz", MFD_CLOEXEC));
    if (!archive || !write_all(archive.get(), data, size, "fuzz") ||
        lseek(archive.get(), 0, SEEK_SET) != 0)
        return 0;
    (void)read_all(archive.get());
    return 0;
}
