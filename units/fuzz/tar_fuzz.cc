// SPDX-License-Identifier: LGPL-2.1-or-later
//
// libFuzzer target: any bytes as the archive of a unit's files. Built with clang only.
#include <cstdint>
#include <sys/mman.h>
#include <unistd.h>

#include "core/base/io.h"
#include "units/tar.h"

using namespace checkpointd;

namespace {

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

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    ScopedFd archive(memfd_create("fuzz", MFD_CLOEXEC));
    if (!archive || !write_all(archive.get(), data, size, "fuzz") ||
        lseek(archive.get(), 0, SEEK_SET) != 0)
        return 0;
    (void)read_all(archive.get());
    return 0;
}
