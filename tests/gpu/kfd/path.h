// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <fcntl.h>
#include <cerrno>
#include <cstdint>
#include <cstring>

namespace checkpointd::kfd_emulation {

// PREFIX and the number in decimal, where nothing may be allocated.
class Path {
  public:
    Path(const char* prefix, uint32_t number) noexcept {
        const size_t length = std::strlen(prefix);
        std::memcpy(text_, prefix, length);
        char digits[10];
        size_t count = 0;
        do {
            digits[count++] = static_cast<char>('0' + number % 10);
            number /= 10;
        } while (number > 0);
        for (size_t i = 0; i < count; ++i)
            text_[length + i] = digits[count - 1 - i];
        text_[length + count] = 0;
    }
    const char* text() const { return text_; }

  private:
    char text_[64];
};

// A descriptor, or -errno.
inline int open_file(const char* path, int flags) noexcept {
    const int fd = open(path, flags | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

}  // namespace checkpointd::kfd_emulation
