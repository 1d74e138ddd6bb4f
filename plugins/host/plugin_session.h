// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <chrono>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "core/base/error.h"
#include "core/base/uncached_file.h"
#include "images/content_check.h"
#include "plugins/host/channel.h"
#include "plugins/host/plugin_library.h"
#include "plugins/host/plugins.h"

namespace checkpointd {

// In the journal: what undo() is told.
inline constexpr const char* kPluginUndo = "plugins.undo";

// One plugin in this job, and its host.
class Plugins::Session {
  public:
    using Deadline = Plugins::Deadline;

    // `options` and `cancellation` are borrowed.
    Session(PluginLibrary library, const PluginOptions& options, const Cancellation& cancellation,
            ckptd_purpose purpose);
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;
    ~Session();

    const ckptd_plugin& table() const { return library_.table(); }
    std::string name() const { return library_.name(); }
    void* self() const { return self_; }
    // Whether it is the one of this name; null names any. Allocates nothing.
    bool is(const char* name) const;

    // False where there is nothing for it here.
    Result<bool> open(Deadline deadline);
    Result<int> call(const char* step, Deadline deadline, const Method& method) {
        return call(step, deadline, cancellation_.fd(), method);
    }
    Result<void> resume(const std::vector<pid_t>& pids, ThreadControl* tracer, Deadline deadline);
    void start_transfer(Deadline deadline);
    bool is_transferring() const { return transfer_.has_value(); }
    // Stops it, which is a failure, if it has not ended by then.
    Result<void> join_transfer(Deadline deadline = Deadline::max());
    // Of all records that it has in the journal.
    std::chrono::microseconds undo_time() const;
    // Whether it reads this file of the image by read_contents() alone.
    bool reads_contents(const std::string& file) const;
    // Null where nobody would receive.
    Channel* channel() const { return channel_.get(); }

    ThreadControl* control = nullptr;  // while the tasks stand
    bool is_quiesced = false;  // or on the way up: resume() is due
    int task_end = -1;         // of the channel, in the task
    images::ContentCheck* check = nullptr;  // borrowed; of what read_contents() reads

  private:
    struct Transfer {
        explicit Transfer(std::packaged_task<Result<int>()> work) : result(work.get_future()), thread(std::move(work)) {}
        std::future<Result<int>> result;
        std::jthread thread;
    };

    Result<int> call(const char* step, Deadline deadline, int cancel_fd, const Method& method);
    static Session& of(void* self) { return *static_cast<Session*>(self); }
    const PluginPolicy* policy() const;
    const char* setting(const char* key) const;
    bool is_own_image(std::string_view file) const;
    int open_image(const char* file) const;
    int read_contents(const char* file, uint64_t offset, uint64_t size, void* room, void** contents);
    Result<UncachedFile*> contents_of(const std::string& file);
    int list_images(void (*take)(void* out, const char* name), void* out) const;
    uint64_t write_down(const char* record);
    int forget(uint64_t id);
    ssize_t receive(void* data, size_t size, int* fds, size_t* count, uint64_t deadline) const;
    void offer_images();
    void offer_threads();
    void offer_messages();

    PluginLibrary library_;
    const PluginOptions& options_;
    const Cancellation& cancellation_;
    ckptd_purpose purpose_;
    ckptd_host host_{};
    void* self_ = nullptr;
    std::map<uint64_t, std::string> records_;  // in the journal
    std::unique_ptr<Channel> channel_;
    std::mutex contents_mutex_;
    std::map<std::string, UncachedFile> contents_;  // none goes before the session
    std::optional<Transfer> transfer_;
};

// For the functions of a host.
int with_errno(int code);

}  // namespace checkpointd
