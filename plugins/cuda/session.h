// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "core/base/scoped_fd.h"
#include "plugins/cuda/backend.h"
#include "plugins/cuda/devices_image.h"
#include "plugins/cuda/process.h"
#include "plugins/cuda/settings.h"
#include "plugins/plugin.h"

namespace checkpointd::cuda {

// One process's file of device memory.
struct Stored {
    std::string name;
    ScopedFd file;
    std::string kept;  // see kept_file.h
    std::vector<Region> regions;
    Backend::Deadline deadline;
    bool is_whole = false;  // and has its header
    uint64_t bytes = 0;  // copied
};

// The CUDA processes of one job. Members have the names of plugin.h's calls, and what stands there holds.
class Session {
  public:
    using Deadline = Backend::Deadline;

    // None where there is no NVIDIA device.
    static Result<std::unique_ptr<Session>> open(const ckptd_host& host, ckptd_purpose purpose);

    Result<bool> probe(const std::vector<pid_t>& pids, Deadline deadline);
    Result<void> quiesce(const std::vector<pid_t>& pids);
    Result<void> prepare(const ckptd_call& call, Deadline deadline);
    Result<void> transfer(const ckptd_call& call);
    Result<void> complete(Deadline deadline);
    Result<void> resume(const std::vector<pid_t>& pids, Deadline deadline);
    // What a dead job told the journal.
    static Result<void> undo(const std::string& record, Deadline deadline);

  private:
    Session(const ckptd_host& host, ckptd_purpose purpose, Settings settings)
        : host_(host), purpose_(purpose), settings_(std::move(settings)) {}
    Result<Answer> devices(bool with_memory, Deadline deadline);
    Result<bool> find_processes(const std::vector<pid_t>& pids, Deadline deadline);
    Result<void> check_here(const std::vector<pid_t>& pids, Deadline deadline);
    uint64_t taken_bytes() const;
    Result<void> measure(Deadline deadline);
    Result<void> measure(const Process& process, Deadline deadline);
    Result<std::vector<Error>> check_host_memory() const;
    Result<std::vector<Error>> check_processes(Deadline deadline);
    std::vector<Error> leftovers(const std::vector<pid_t>& pids) const;
    Result<void> check_image(Deadline deadline);
    Result<void> check_storages(const WantedDevices& wanted, const Answer& here);
    Result<void> write_down(const Process& process, const char* way, const std::string& rest);
    Result<void> forget(pid_t pid, size_t but_last = 0);
    Result<void> map(Process& process, Deadline deadline);
    Result<void> take_off(Process& process, Deadline deadline);
    Result<void> start_copy(Process& process, std::vector<Region> regions, Deadline deadline);
    static Result<void> end_file(Stored& stored);
    Result<void> in_time(const Process& process, Result<void> done);
    Result<void> finish_copies(const ckptd_call& call);
    Result<Image> image_of(pid_t pid);
    Result<void> begin_restores(Deadline deadline);
    Result<void> bring_back(Process& process, Deadline deadline);
    void leave_or_end(const Process& process);
    Result<void> give_up_on(Process& process, Error why, Deadline deadline);

    const ckptd_host& host_;
    ckptd_purpose purpose_;
    Settings settings_;
    std::unique_ptr<Backend> backend_;
    std::vector<Process> processes_;
    std::map<pid_t, std::vector<uint64_t>> undo_;
    std::set<pid_t> late_;  // are not brought back, see in_time()
    std::map<pid_t, uint64_t> bytes_;  // that they have on devices
    std::map<pid_t, std::optional<std::vector<Region>>> had_;  // by device, where it is known
    bool stores_ = false;  // device memory goes to files of the image, by us
    std::map<pid_t, Stored> stored_;
    std::vector<ScopedFd> to_read_;  // files of device memory, before the processes are there
    size_t wanted_processes_ = 0;  // of an image
    Answer before_;  // the devices, before a checkpoint took anything from them
};

}  // namespace checkpointd::cuda
