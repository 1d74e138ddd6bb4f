// SPDX-License-Identifier: LGPL-2.1-or-later
//
// For tests of whole jobs: a machine with the emulated driver, and a restore there.
#pragma once

#include <gtest/gtest.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "images/test_dir.h"
#include "plugins/amdgpu/restore.h"
#include "plugins/host/host_test_util.h"
#include "tests/gpu/kfd/in_process.h"
#include "tests/gpu/kfd/topology.h"

namespace checkpointd::amdgpu {

// A machine with a driver.
struct Host {
    explicit Host(const std::vector<std::string>& devices,
                  uint32_t minor_version = KFD_IOCTL_MINOR_VERSION) {
        const auto machine = kfd_emulation::Machine::parse(devices, 2).value();
        EXPECT_TRUE(kfd_emulation::write_topology(machine, topology.path()));
        kfd_emulation::InProcessKfd::Options options;
        options.gpus = machine.gpus();
        options.topology_root = topology.path();
        options.minor_version = minor_version;
        kfd = std::make_unique<kfd_emulation::InProcessKfd>(options);
    }
    void as_worker() { kfd->act_as({getpid(), gettid()}); }
    kfd_emulation::Process process(pid_t pid) {
        for (const auto& one : kfd->state().processes())
            if (one.pid == pid)
                return one;
        ADD_FAILURE() << "no process " << pid;
        return kfd_emulation::Process(0);
    }
    std::string contents(uint32_t minor, uint64_t offset, uint64_t size) {
        uint64_t into = 0;
        const auto memory = kfd->state().find_mapping(minor, offset, &into);
        return memory == nullptr
                   ? std::string()
                   : std::string(reinterpret_cast<const char*>(memory->data() + into), size);
    }

    images::TestDir topology;
    std::unique_ptr<kfd_emulation::InProcessKfd> kfd;
};

inline TransferOptions small_pieces() {
    TransferOptions options;
    options.staging_bytes = 1;  // the least there is
    options.gpu_count = 2;
    return options;
}

// `as_task`: what is done in the name of process `pid`; it answers what restore_file() did for
// /dev/kfd.
inline Result<void> restore_by(Restore& job, TestHost& host, Host& there, pid_t pid,
                               const std::function<int()>& as_task) {
    CKPT_TRY(job.probe());
    CKPT_TRY(job.prepare());
    Result<void> transferred;
    int code = 0;
    std::thread worker([&] { transferred = job.transfer(small_pieces()); });
    std::thread task([&] {
        there.kfd->act_as({pid, pid});
        code = as_task();
        host.no_more_senders();
    });
    task.join();
    worker.join();
    if (code < 0)
        return fail_errno("restore_file", "", -code);
    CKPT_TRY(transferred);
    there.as_worker();
    return job.resume({pid, 4711});
}

}  // namespace checkpointd::amdgpu
