// SPDX-License-Identifier: LGPL-2.1-or-later
//
// For tests: a directory that goes away with the test.
#pragma once

#include <cstdlib>
#include <fcntl.h>
#include <filesystem>
#include <string>

#include "core/base/scoped_fd.h"

namespace checkpointd::images {

class TestDir {
  public:
    TestDir() {
        char name[] = "/tmp/checkpointd-images-XXXXXX";
        path_ = mkdtemp(name);
        fd_ = ScopedFd(open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    }
    ~TestDir() {
        std::error_code ignored;
        std::filesystem::remove_all(path_, ignored);
    }
    TestDir(const TestDir&) = delete;
    TestDir& operator=(const TestDir&) = delete;

    const std::string& path() const { return path_; }
    int fd() const { return fd_.get(); }

  private:
    std::string path_;
    ScopedFd fd_;
};

}  // namespace checkpointd::images
