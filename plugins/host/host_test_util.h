// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What a plugin's host does, for tests that call the plugin's parts themselves.
#pragma once

#include <fcntl.h>
#include <unistd.h>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <filesystem>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "core/base/uncached_file.h"
#include "images/test_dir.h"
#include "plugins/plugin.h"

namespace checkpointd {

class TestHost {
  public:
    explicit TestHost(const images::TestDir& dir) : dir_(dir) {
        host_.size = sizeof(host_);
        host_.context = this;
        host_.open_image = [](void* self, const char* name) { return of(self).open_image(name); };
        host_.read_contents = [](void* self, const char* name, uint64_t offset, uint64_t size,
                                 void* room, void** contents) {
            return of(self).read_contents(name, offset, size, room, contents);
        };
        host_.journal = [](void* self, const char* record) { return of(self).write_down(record); };
        host_.forget = [](void* self, uint64_t id) {
            return of(self).records.erase(id) == 1 ? 0 : -1;
        };
        host_.list_images = [](void* self, void (*take)(void*, const char*), void* out) {
            for (const auto& entry : std::filesystem::directory_iterator(of(self).dir_.path()))
                take(out, entry.path().filename().c_str());
            return 0;
        };
        host_.send = [](void* self, const void* data, size_t size, const int* fds, size_t count) {
            return of(self).send(data, size, fds, count);
        };
        host_.receive = [](void* self, void* data, size_t size, int* fds, size_t* count, uint64_t) {
            return of(self).receive(data, size, fds, count);
        };
    }

    const ckptd_host& raw() const { return host_; }
    // Every task is past the place where it could send.
    void no_more_senders() {
        const std::lock_guard lock(mutex_);
        closed_ = true;
        wake_.notify_all();
    }

    bool is_writing = true;
    bool fails_to_journal = false;
    int fails_to_send = 0;  // errno
    std::map<uint64_t, std::string> records;
    uint64_t last_record = 0;

  private:
    struct Datagram {
        std::vector<char> bytes;
        std::vector<int> fds;
    };

    static TestHost& of(void* self) { return *static_cast<TestHost*>(self); }

    int open_image(const char* name) const {
        const int flags = is_writing ? O_RDWR | O_CREAT | O_EXCL : O_RDONLY;
        return openat(dir_.fd(), name, flags | O_CLOEXEC, 0600);
    }
    int read_contents(const char* name, uint64_t offset, uint64_t size, void* room,
                      void** contents) const {
        auto file = UncachedFile::open(dir_.fd(), name);
        auto read = file ? file->read(offset, size, static_cast<std::byte*>(room))
                         : tl::unexpected(file.error());
        *contents = read ? *read : nullptr;
        errno = read ? 0 : ENODATA;
        return read ? 0 : -1;
    }
    uint64_t write_down(const char* record) {
        if (fails_to_journal)
            return 0;
        records[++last_record] = record;
        return last_record;
    }
    int send(const void* data, size_t size, const int* fds, size_t count) {
        if (fails_to_send != 0) {
            errno = fails_to_send;
            return -1;
        }
        Datagram datagram;
        datagram.bytes.resize(size);
        std::memcpy(datagram.bytes.data(), data, size);
        for (size_t i = 0; i < count; ++i)
            datagram.fds.push_back(fcntl(fds[i], F_DUPFD_CLOEXEC, 0));
        const std::lock_guard lock(mutex_);
        queue_.push_back(std::move(datagram));
        wake_.notify_all();
        return 0;
    }
    ssize_t receive(void* data, size_t size, int* fds, size_t* count) {
        std::unique_lock lock(mutex_);
        wake_.wait_for(lock, std::chrono::milliseconds(50),
                       [&] { return closed_ || !queue_.empty(); });
        if (queue_.empty()) {
            errno = ETIMEDOUT;
            return closed_ ? 0 : -1;
        }
        const Datagram datagram = std::move(queue_.front());
        queue_.pop_front();
        std::memcpy(data, datagram.bytes.data(), std::min(size, datagram.bytes.size()));
        *count = datagram.fds.size();
        std::copy(datagram.fds.begin(), datagram.fds.end(), fds);
        return static_cast<ssize_t>(datagram.bytes.size());
    }

    const images::TestDir& dir_;
    ckptd_host host_{};
    std::mutex mutex_;
    std::condition_variable wake_;
    std::deque<Datagram> queue_;
    bool closed_ = false;
};

}  // namespace checkpointd
