// SPDX-License-Identifier: LGPL-2.1-or-later
//
// A program on the emulated driver: a process of its own, which has /dev/kfd and render nodes open
// and does nothing; what it asked of the driver was asked by the test in its name.
#pragma once

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <csignal>
#include <cstring>
#include <random>

#include "core/base/scoped_fd.h"
#include "core/base/send_descriptors.h"
#include "tests/gpu/kfd/in_process.h"

namespace checkpointd::amdgpu {

class EmulatedProgram {
  public:
    using Kfd = kfd_emulation::InProcessKfd;

    // In a PID namespace of its own (CLONE_NEWPID), or with 0 in the test's.
    explicit EmulatedProgram(Kfd& kfd, unsigned long namespaces = 0) : kfd_(kfd) {
        int ends[2];
        EXPECT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
        socket_ = ScopedFd(ends[0]);
        pid_ = static_cast<pid_t>(syscall(SYS_clone, namespaces | SIGCHLD, 0, 0, 0, 0));
        if (pid_ == 0)
            hold_descriptors(ends[1]);
        close(ends[1]);
        as_itself();
        file_ = ScopedFd(kfd_.open_kfd());
        give(file_.get());
    }
    ~EmulatedProgram() { end(); }
    EmulatedProgram(const EmulatedProgram&) = delete;
    EmulatedProgram& operator=(const EmulatedProgram&) = delete;

    pid_t pid() const { return pid_; }
    int file() const { return file_.get(); }
    void as_itself() { kfd_.act_as({pid_, pid_}); }
    // Also without being its own: what a parent lends.
    void give(int fd) {
        char answer = 0;
        ASSERT_EQ(send_descriptors(socket_.get(), &answer, 1, &fd, 1, 0), 1);
        ASSERT_EQ(read(socket_.get(), &answer, 1), 1);
    }
    void end() {
        if (pid_ <= 0)
            return;
        kill(pid_, SIGKILL);
        waitpid(pid_, nullptr, 0);
        kfd_.state().end_process(pid_);
        pid_ = 0;
    }

    template <typename Args>
    void call(uint32_t command, Args& args) {
        as_itself();
        ASSERT_EQ(kfd_.call(file_.get(), command, &args), 0);
    }
    void use_gpu(const kfd_emulation::Gpu& gpu) {
        render_nodes_.emplace_back(kfd_.open_render(gpu.render_minor));
        give(render_nodes_.back().get());
        kfd_ioctl_acquire_vm_args args{static_cast<uint32_t>(render_nodes_.back().get()), gpu.id};
        call(AMDKFD_IOC_ACQUIRE_VM, args);
    }
    int render_node(size_t index) const { return render_nodes_[index].get(); }
    // A buffer with random contents. Its place to map.
    uint64_t allocate(const kfd_emulation::Gpu& gpu, uint64_t address, uint64_t size,
                      unsigned seed) {
        kfd_ioctl_alloc_memory_of_gpu_args args{};
        args.va_addr = address;
        args.size = size;
        args.gpu_id = gpu.id;
        args.flags = KFD_IOC_ALLOC_MEM_FLAGS_VRAM | KFD_IOC_ALLOC_MEM_FLAGS_WRITABLE |
                     KFD_IOC_ALLOC_MEM_FLAGS_PUBLIC;
        call(AMDKFD_IOC_ALLOC_MEMORY_OF_GPU, args);
        uint64_t into = 0;
        const auto memory = kfd_.state().find_mapping(gpu.render_minor, args.mmap_offset, &into);
        std::mt19937 random(seed);
        for (uint64_t i = 0; memory != nullptr && i < size; ++i)
            memory->data()[into + i] = static_cast<std::byte>(random());
        return args.mmap_offset;
    }
    void create_event() {
        kfd_ioctl_create_event_args event{};
        call(AMDKFD_IOC_CREATE_EVENT, event);
    }

  private:
    [[noreturn]] static void hold_descriptors(int socket) {
        for (int fd = 0; fd < 1024; ++fd)
            if (fd != socket)
                close(fd);
        while (true) {
            char byte = 0;
            iovec bytes{&byte, 1};
            alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
            msghdr message{};
            message.msg_iov = &bytes;
            message.msg_iovlen = 1;
            message.msg_control = control;
            message.msg_controllen = sizeof(control);
            if (recvmsg(socket, &message, 0) <= 0)
                _exit(0);
            if (write(socket, &byte, 1) != 1)
                _exit(1);
        }
    }

    Kfd& kfd_;
    pid_t pid_ = 0;
    ScopedFd socket_;
    ScopedFd file_;
    std::vector<ScopedFd> render_nodes_;
};

}  // namespace checkpointd::amdgpu
