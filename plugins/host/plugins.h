// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The plugins of one job, called in the order that plugin.h promises them.
#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <sys/types.h>
#include <thread>
#include <vector>

#include "core/base/error.h"
#include "core/transaction/journal.h"
#include "plugins/host/cancellation.h"
#include "plugins/host/plugin_file.h"
#include "plugins/host/plugin_policy.h"
#include "plugins/plugin.h"

namespace checkpointd {

namespace images {
class ContentCheck;
}

inline constexpr const char* kPluginDirectory = "/usr/lib/checkpointd/plugins";

struct PluginOptions {
    std::string directory = kPluginDirectory;
    std::optional<std::vector<PluginFile>> installed;  // there, for whom has looked already
    std::map<std::string, PluginPolicy> policy;  // by name; plugins that are not named are enabled
    int image_dir_fd = -1;                       // borrowed
    Journal* journal = nullptr;                  // borrowed; without one nothing survives our death
    std::chrono::steady_clock::time_point open_by = std::chrono::steady_clock::time_point::max();
    int cancel_fd = -1;  // borrowed; readable from when the job was cancelled on
    std::function<void(uint64_t done, uint64_t total)> progress;
};

// Lets single threads of held tasks run, from the thread that traces them.
class ThreadControl {
  public:
    virtual ~ThreadControl() = default;
    // 0 or an errno value, see run_thread() and hold_thread() of struct ckptd_host.
    virtual int run(pid_t pid, pid_t tid) = 0;
    virtual int hold(pid_t pid, pid_t tid, std::chrono::steady_clock::time_point deadline) = 0;
};

// For ThreadControl.
int errno_of(const Result<void>& result);

// Not thread-safe, belongs to the thread that traces. Whatever a plugin says while it fails becomes the
// causes of one error; all plugins are asked before it is returned, where nothing has changed yet (probe).
class Plugins {
  public:
    using Deadline = std::chrono::steady_clock::time_point;

    // Those that are installed and not switched off, and find a device.
    static Result<std::unique_ptr<Plugins>> for_checkpoint(PluginOptions options);
    // `listed`: what the image names. None: an image of times before there were such lists, all are opened.
    // kNotFound where one is not installed, kUnsupported where its device is not there or the policy forbids it.
    static Result<std::unique_ptr<Plugins>> for_restore(PluginOptions options,
                                                        const std::optional<std::vector<std::string>>& listed);
    Plugins(const Plugins&) = delete;
    Plugins& operator=(const Plugins&) = delete;
    // Stops what still transfers and joins it, closes all. Does not resume(): that is for whoever
    // holds the tasks.
    ~Plugins();

    bool empty() const;
    // Names, for the image.
    std::vector<std::string> names() const;

    // Of a restore: whether a file of the image is checked against `check` (borrowed), which then has it, by the plugin that
    // reads it.
    bool reads_contents(const std::string& file) const;
    void check_contents(images::ContentCheck* check) const;

    Result<void> probe(const std::vector<pid_t>& pids, Deadline deadline);
    Result<void> quiesce(const std::vector<pid_t>& pids, Deadline deadline);
    Result<void> prepare(const std::vector<pid_t>& pids, ThreadControl* control, Deadline deadline);
    // In a thread of its own per plugin. complete() waits for all of them, to their end, to the first failure or to its
    // deadline.
    void start_transfer(Deadline deadline);
    Result<void> complete(Deadline deadline);
    // Of a checkpoint: of all that were quiesced, the last one first, whatever has become of them;
    // nothing if that was done already. All of them are called, the error has the failures of all.
    // What still transfers is stopped first: without complete() nobody will have it.
    Result<void> resume(const std::vector<pid_t>& pids, ThreadControl* control, Deadline deadline);
    // How long undoing may take of what plugins have in the journal by now: as long may resume() take.
    std::chrono::microseconds undo_time() const;
    // Null: nothing survives our death.
    Journal* journal() const { return options_.journal; }
    // The tasks have ended: there is nothing to resume.
    void abandon();

    // Of a checkpoint, after prepare(): by name, the plugin whose the file or mapping is from now on. `pid`, `fd`, `id` and
    // `vma` as in plugin.h.
    bool takes_files() const;
    bool takes_mappings() const;
    Result<std::optional<std::string>> dump_file(pid_t pid, int fd, uint32_t id, Deadline deadline);
    Result<std::optional<std::string>> handle_vma(pid_t pid, const ckptd_vma& vma, Deadline deadline);

    // Whether the plugin of this name, or with null any, can do that.
    bool has_in_task() const;
    bool restores_files(const char* plugin) const;
    bool restores_mappings(const char* plugin) const;
    // In restored tasks, before their memory is replaced: system calls and nothing else. An errno value, what
    // restore_file() of plugin.h answers, 0 or a negative errno value. `plugin`: null asks all.
    int in_task(pid_t pid) const;
    int restore_file(pid_t pid, uint32_t id, const char* plugin) const;
    int update_vma(pid_t pid, ckptd_vma& vma, const char* plugin) const;

    // The descriptors through which tasks send to transfer(), for the tasks to inherit; there since for_restore().
    std::vector<int> channels() const;
    // In a task: under what number it has channels()[index].
    void use_channel(size_t index, int fd) const;
    // No task can send any more.
    void tasks_are_past() const;
    // The restore failed: nobody is to wait for a message, nor to transfer any more.
    void cancel_messages() const;

  private:
    class Session;
    static Result<std::unique_ptr<Plugins>> begin(PluginOptions options);
    Plugins(PluginOptions options, Cancellation cancellation);
    void stop_transfers();
    std::vector<PluginFile> installed() const;
    Result<PluginFile> find(const std::string& name) const;
    Result<void> open(const PluginFile& file, ckptd_purpose purpose, bool is_needed);
    Result<void> open_listed(const std::string& name);
    using Method = std::function<int(const ckptd_plugin&, void* self, ckptd_call*)>;
    Result<void> each(const char* step, Deadline deadline, const Method& method);
    template <typename Ask>
    Result<std::optional<std::string>> who_takes(const char* step, Deadline deadline, const Ask& ask);
    bool any_session(const std::function<bool(const Session&)>& does) const;

    PluginOptions options_;
    Cancellation cancellation_;
    std::vector<std::unique_ptr<Session>> sessions_;
};

// What each undo of a plugin has, also of one that does not say how long it takes.
inline constexpr std::chrono::seconds kLeastUndoTime{60};

// Adds plugins.undo: what a plugin told the journal of a job that died. None gets less than `least`.
void add_plugin_undo_kinds(UndoTable& table, const std::string& directory = kPluginDirectory,
                           std::chrono::microseconds least = kLeastUndoTime);

}  // namespace checkpointd
