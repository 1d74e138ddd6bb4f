// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/amdgpu/shared_memory.h"

#include <fcntl.h>
#include <semaphore.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cerrno>

#include "core/base/io.h"

namespace checkpointd::amdgpu {
namespace {

constexpr const char* kMemory = "/hsakmt_shared_mem";
constexpr const char* kSemaphore =
    "/sem.hsakmt_semaphore";  // where sem_open(3) puts "hsakmt_semaphore"
constexpr unsigned kForAll = 0666;
constexpr uint64_t kMostBytes = 1 << 30;

// The file under its name only when it is whole. One that somebody else makes meanwhile stays.
Result<void> make_file(const std::string& path, const void* begin, size_t begin_size,
                       uint64_t size) {
    if (access(path.c_str(), F_OK) == 0)
        return {};
    const std::string folder = path.substr(0, path.rfind('/'));
    CKPT_ASSIGN(ScopedFd file, open_at(AT_FDCWD, folder, O_TMPFILE | O_WRONLY, kForAll));
    if (fchmod(file.get(), kForAll) != 0 || ftruncate(file.get(), static_cast<off_t>(size)) != 0)
        return fail_errno(path, "cannot be made");
    CKPT_TRY(write_all(file.get(), begin, begin_size, path));
    const std::string own = fmt::format("/proc/self/fd/{}", file.get());
    if (linkat(AT_FDCWD, own.c_str(), AT_FDCWD, path.c_str(), AT_SYMLINK_FOLLOW) != 0 &&
        errno != EEXIST)
        return fail_errno(path, "cannot be made");
    return {};
}

}  // namespace

Result<SharedMemory> read_shared_memory(const std::string& folder) {
    SharedMemory found;
    const std::string path = folder + kMemory;
    auto file = open_at(AT_FDCWD, path, O_RDONLY | O_NOFOLLOW);
    if (!file && file.error().errno_code == ENOENT)
        return found;
    if (!file)
        return tl::unexpected(std::move(file).error());
    struct stat status {};
    if (fstat(file->get(), &status) != 0 ||
        pread(file->get(), &found.magic, sizeof(found.magic), 0) < 0)
        return fail_errno(path, "cannot be read");
    found.size = static_cast<uint64_t>(status.st_size);
    return found;
}

Result<void> make_shared_memory(const SharedMemory& wanted, const std::string& folder) {
    if (wanted.size == 0)
        return {};
    if (wanted.size < sizeof(wanted.magic) || wanted.size > kMostBytes)
        return fail(ErrorKind::kBadImage, folder + kMemory,
                    fmt::format("is to have {} bytes", wanted.size));
    CKPT_TRY(make_file(folder + kMemory, &wanted.magic, sizeof(wanted.magic), wanted.size));
    sem_t free{};  // what sem_open(3) writes into a new file
    if (sem_init(&free, 1, 1) != 0)
        return fail_errno(folder + kSemaphore, "sem_init");
    return make_file(folder + kSemaphore, &free, sizeof(free), sizeof(free));
}

}  // namespace checkpointd::amdgpu
