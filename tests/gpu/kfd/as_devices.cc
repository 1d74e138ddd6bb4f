// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Preloaded into programs that look closer than those which compute: the files of kfd-emulator are
// character devices to them, and calls on /dev/kfd install descriptors of dma-bufs. With
// libdrm_amdgpu.cc that is all that CRIU's plugin, and ours as it is installed, need to take the
// emulation for the driver.
#include <fcntl.h>
#include <linux/kfd_ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>
#include <cerrno>
#include <cstdarg>

#include "tests/gpu/kfd/descriptors.h"
#include "tests/gpu/kfd/file_system.h"

namespace {

using checkpointd::kfd_emulation::FileSystem;
using Status = struct stat;

constexpr unsigned kKfdMajor = 511;  // the first that is given to who asks for none
constexpr unsigned kDrmMajor = 226;

int ask(int folder, const char* path, Status* out, int flags) {
    return static_cast<int>(syscall(SYS_newfstatat, folder, path, out, flags));
}

bool is_emulated(const Status& status) {
    const int before = errno;
    Status folder{};
    const bool is_there = ask(AT_FDCWD, "/run/kfd-emulated", &folder, 0) == 0;
    errno = before;
    return is_there && folder.st_dev == status.st_dev && S_ISREG(status.st_mode);
}

int answer(int result, Status* status) {
    if (result != 0 || !is_emulated(*status))
        return result;
    const bool is_render =
        status->st_ino > FileSystem::kRender && status->st_ino < FileSystem::kKfd;
    if (!is_render && status->st_ino != FileSystem::kKfd)
        return 0;
    status->st_mode = S_IFCHR | (status->st_mode & ~static_cast<mode_t>(S_IFMT));
    status->st_size = 0;
    status->st_rdev =
        is_render ? makedev(kDrmMajor, static_cast<unsigned>(status->st_ino - FileSystem::kRender))
                  : makedev(kKfdMajor, 0);
    return 0;
}

}  // namespace

extern "C" {

int fstatat(int folder, const char* path, Status* out, int flags) noexcept {
    return answer(ask(folder, path, out, flags), out);
}

int stat(const char* path, Status* out) noexcept {
    return fstatat(AT_FDCWD, path, out, 0);
}

int lstat(const char* path, Status* out) noexcept {
    return fstatat(AT_FDCWD, path, out, AT_SYMLINK_NOFOLLOW);
}

int fstat(int fd, Status* out) noexcept {
    return fstatat(fd, "", out, AT_EMPTY_PATH);
}

// The C library has each of them under two names, and has called those above by the longer one
// (stat64) for a program with _FILE_OFFSET_BITS=64; for x86-64 they are the same.
int short_fstatat(int folder, const char* path, Status* out, int flags) noexcept __asm__("fstatat");
int short_stat(const char* path, Status* out) noexcept __asm__("stat");
int short_lstat(const char* path, Status* out) noexcept __asm__("lstat");
int short_fstat(int fd, Status* out) noexcept __asm__("fstat");

int short_fstatat(int folder, const char* path, Status* out, int flags) noexcept {
    return fstatat(folder, path, out, flags);
}
int short_stat(const char* path, Status* out) noexcept {
    return stat(path, out);
}
int short_lstat(const char* path, Status* out) noexcept {
    return lstat(path, out);
}
int short_fstat(int fd, Status* out) noexcept {
    return fstat(fd, out);
}

int ioctl(int fd, unsigned long request, ...) noexcept {
    va_list rest;
    va_start(rest, request);
    void* data = va_arg(rest, void*);
    va_end(rest);
    const auto result = static_cast<int>(syscall(SYS_ioctl, fd, request, data));
    Status status{};
    if (result != 0 || request != AMDKFD_IOC_CRIU_OP || ask(fd, "", &status, AT_EMPTY_PATH) != 0 ||
        !is_emulated(status))
        return result;
    const int error =
        checkpointd::kfd_emulation::open_dmabufs(*static_cast<kfd_ioctl_criu_args*>(data));
    if (error == 0)
        return 0;
    errno = -error;
    return -1;
}

}  // extern "C"
