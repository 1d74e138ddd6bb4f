// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Checkpoints and restores by the plugin's parts, on the emulated driver in this process.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <algorithm>
#include <csignal>
#include <filesystem>
#include <thread>

#include "core/base/io.h"
#include "core/kernel/proc_task.h"
#include "core/transaction/undo_kinds.h"
#include "plugins/amdgpu/checkpoint.h"
#include "plugins/amdgpu/emulated_host_test_util.h"
#include "plugins/amdgpu/emulated_program_test_util.h"

namespace checkpointd::amdgpu {
namespace {

using kfd_emulation::Fault;
using testing::HasSubstr;
using testing::StartsWith;

constexpr uint64_t kAddress = 0x7f0000000000;
constexpr uint64_t kSize = 5 * 65536 + 4096;

size_t open_descriptors() {
    const auto all = std::filesystem::directory_iterator("/proc/self/fd");
    return static_cast<size_t>(std::distance(begin(all), end(all)));
}

class AmdgpuJob : public testing::Test {
  protected:
    static constexpr uint32_t kKfdId = 7;
    static constexpr uint32_t kRenderId = 9;

    void SetUp() override {
        if (geteuid() != 0)
            GTEST_SKIP() << "needs root";
        program_ = start_program();
    }

    std::unique_ptr<EmulatedProgram> start_program(unsigned long namespaces = 0) {
        auto program = std::make_unique<EmulatedProgram>(*here_.kfd, namespaces);
        for (const auto& gpu : gpus())
            program->use_gpu(gpu);
        for (size_t i = 0; i < gpus().size(); ++i) {
            offsets_.push_back(program->allocate(gpus()[i], kAddress + i * 2 * kSize, kSize,
                                                 static_cast<unsigned>(i)));
            offsets_.push_back(
                program->allocate(gpus()[i], kAddress + (i * 2 + 1) * kSize, 4096, 7));
        }
        program->create_event();
        here_.kfd->set_tracer(program->pid(), gettid());
        return program;
    }
    const std::vector<kfd_emulation::Gpu>& gpus() { return here_.kfd->state().gpus(); }
    std::vector<pid_t> pids() const { return {program_->pid()}; }
    // Of the program's first render node.
    ckptd_vma mapping(uint64_t offset) const {
        ckptd_vma vma{};
        vma.path = "/dev/dri/renderD128";
        vma.fd = program_->render_node(0);
        vma.offset = offset;
        return vma;
    }

    // The whole of it; on failure too, the queues run afterwards.
    Result<void> checkpoint(const std::vector<pid_t>& pids) {
        here_.as_worker();
        Checkpoint job(host_.raw(), *here_.kfd, settings_);
        auto result = checkpoint_by(job, pids);
        here_.as_worker();
        auto back = job.resume();
        return result ? back : result;
    }
    Result<void> checkpoint_by(Checkpoint& job, const std::vector<pid_t>& all) {
        CKPT_ASSIGN(const bool used, job.probe(all));
        EXPECT_TRUE(used);
        here_.as_worker();
        CKPT_TRY(job.prepare(all));
        EXPECT_EQ(here_.process(program_->pid()).evicted, 1u);
        CKPT_ASSIGN(const bool kfd_is_ours,
                    job.dump_file(program_->pid(), program_->file(), kKfdId));
        EXPECT_TRUE(kfd_is_ours);
        CKPT_ASSIGN(const bool node_is_ours,
                    job.dump_file(program_->pid(), program_->render_node(0), kRenderId));
        EXPECT_TRUE(node_is_ours);
        CKPT_TRY(job.transfer(small_pieces()));
        return job.complete();
    }
    void expect_as_before() {
        EXPECT_EQ(here_.process(program_->pid()).evicted, 0u);
        EXPECT_FALSE(here_.process(program_->pid()).queues_paused);
        EXPECT_TRUE(host_.records.empty());
    }

    // What a task does, in the name of process `pid`.
    struct Task {
        int kfd_fd = -1;
        int render_fd = -1;
    };
    // A restore on another machine. The answer of restore_file() is in task_.
    Result<void> restore(Host& there, pid_t pid, int fails_to_send = 0) {
        TestHost host(dir_);
        host.is_writing = false;
        host.fails_to_send = fails_to_send;
        there.as_worker();
        Restore job(host.raw(), *there.kfd, settings_);
        return restore_by(job, host, there, pid, [&] {
            task_.render_fd = job.restore_file(pid, kRenderId);
            task_.kfd_fd = job.restore_file(pid, kKfdId);
            ask_for_mappings(job, pid);
            return task_.kfd_fd;
        });
    }
    void ask_for_mappings(Restore& job, pid_t pid) {
        for (uint64_t offset : {offsets_[0], offsets_[0] + 4096, uint64_t{12345}}) {
            ckptd_vma vma{};
            vma.fd = -1;
            vma.offset = offset;
            vma.path = "/dev/dri/renderD128";
            answers_.push_back(job.update_vma(pid, &vma));
            mapped_.push_back(vma);
        }
    }

    images::TestDir dir_;
    TestHost host_{dir_};
    Host here_{{"0x1001:128:64", "0x1002:129:64"}};
    std::unique_ptr<EmulatedProgram> program_;
    std::vector<uint64_t> offsets_;
    Settings settings_;
    Task task_;
    std::vector<int> answers_;
    std::vector<ckptd_vma> mapped_;
};

TEST_F(AmdgpuJob, LeavesTheProgramAsItWas) {
    const size_t before = open_descriptors();
    auto result = checkpoint(pids());
    ASSERT_TRUE(result) << result.error().text();
    expect_as_before();
    EXPECT_EQ(host_.last_record, 1u);
    EXPECT_EQ(open_descriptors(), before);
    for (const char* name : {"amdgpu-kfd-7.img", "amdgpu-renderD-9.img", "amdgpu-pages-7-1001.img",
                             "amdgpu-pages-7-1002.img"})
        EXPECT_TRUE(std::filesystem::exists(dir_.path() + "/" + name)) << name;
    EXPECT_TRUE(read_file(dir_.fd(), "amdgpu-pages-7-1002.img").value().substr(kImageHeader) ==
                here_.contents(129, offsets_[2], kSize) + here_.contents(129, offsets_[3], 4096));
}

TEST_F(AmdgpuJob, NobodyUsesIt) {
    here_.as_worker();
    Checkpoint job(host_.raw(), *here_.kfd, settings_);
    const pid_t idle = fork();
    if (idle == 0) {
        for (int fd = 3; fd < 1024; ++fd)
            close(fd);
        pause();
        _exit(0);
    }
    for (bool used = true; used;) {  // until it has closed them
        auto probed = job.probe({idle, 999999999});
        ASSERT_TRUE(probed || probed.error().kind == ErrorKind::kUnsupported);
        used = !probed || *probed;
    }
    kill(idle, SIGKILL);
    waitpid(idle, nullptr, 0);
}

TEST_F(AmdgpuJob, ComesBackOnOtherGpus) {
    ASSERT_TRUE(checkpoint(pids()));
    const std::string first = here_.contents(128, offsets_[0], kSize);
    const std::string last = here_.contents(129, offsets_[3], 4096);
    program_->end();
    Host there({"0x2002:130:64", "0x2001:131:64"});
    const size_t before = open_descriptors();
    auto result = restore(there, 500);
    ASSERT_TRUE(result) << result.error().text();
    const auto process = there.process(500);
    EXPECT_EQ(process.evicted, 0u);
    EXPECT_FALSE(process.mmu_blocked);
    ASSERT_EQ(process.devices.size(), 2u);
    EXPECT_EQ(process.devices[0].user_id, 0x1001u);
    EXPECT_EQ(answers_, (std::vector<int>{0, 0, 1}));
    EXPECT_TRUE(there.contents(130, mapped_[0].offset, kSize) == first);
    EXPECT_EQ(mapped_[1].offset, mapped_[0].offset + 4096);
    EXPECT_EQ(mapped_[0].fd, task_.render_fd);  // what KFD knows is what the program has
    std::string found;
    for (const auto& [handle, buffer] : process.devices[1].buffers)
        if (buffer.size == 4096)
            found = there.contents(131, buffer.mmap_offset, 4096);
    EXPECT_TRUE(found == last);
    EXPECT_EQ(open_descriptors(),
              before + 3 + 4);  // /dev/kfd and two render nodes; the emulation's buffers
}

TEST_F(AmdgpuJob, TheSerialWayLeadsThereToo) {
    ASSERT_TRUE(checkpoint(pids()));
    settings_.is_parallel = false;
    Host there({"0x1001:128:64", "0x1002:129:64"});
    auto result = restore(there, 500);
    ASSERT_TRUE(result) << result.error().text();
    EXPECT_TRUE(there.contents(128, mapped_[0].offset, kSize) ==
                here_.contents(128, offsets_[0], kSize));
}

TEST_F(AmdgpuJob, EveryFailureOfACheckpointLeavesTheQueuesRunning) {
    const std::vector<std::string> calls = {"version", "process-info", "checkpoint", "copy-from"};
    for (const std::string& call : calls)
        for (unsigned nth = 1; nth <= 2; ++nth)
            for (auto kind : {Fault::Kind::kFail, Fault::Kind::kFailAfter}) {
                if (call == "copy-from" && kind == Fault::Kind::kFailAfter)
                    continue;  // the emulation has none
                for (const auto& entry : std::filesystem::directory_iterator(dir_.path()))
                    std::filesystem::remove(entry.path());
                const size_t before = open_descriptors();
                here_.kfd->state().set_faults({{call, nth, kind, EIO}});
                auto result = checkpoint(pids());
                here_.kfd->state().set_faults({});
                if (result) {
                    EXPECT_EQ(nth, 2u) << call;  // it is called once
                }
                if (call != "checkpoint" ||
                    kind == Fault::Kind::kFail) {  // else the driver's answer is lost
                    EXPECT_EQ(open_descriptors(), before) << call;
                }
                expect_as_before();
            }
}

TEST_F(AmdgpuJob, QueuesThatDoNotComeBackAreTold) {
    here_.kfd->state().set_faults({{"unpause", 1, Fault::Kind::kFail, EIO}});
    auto result = checkpoint(pids());
    ASSERT_FALSE(result);
    EXPECT_THAT(result.error().line(), HasSubstr("UNPAUSE"));
    EXPECT_EQ(host_.records.size(), 1u);  // whoever undoes the job tries again
    const std::string record = host_.records.begin()->second;
    here_.as_worker();
    ASSERT_TRUE(undo_pause(*here_.kfd, record));
    EXPECT_EQ(here_.process(program_->pid()).evicted, 0u);
}

TEST_F(AmdgpuJob, NothingIsUndoneForWhoIsDeadAndNotWaitedFor) {
    const pid_t child = fork();
    if (child == 0)
        pause();
    const std::string record = fmt::format("{} {} 3", child, process_start_time(child).value());
    kill(child, SIGKILL);
    auto undone = undo_pause(*here_.kfd, record);
    EXPECT_TRUE(undone) << undone.error().text();
    EXPECT_EQ(waitpid(child, nullptr, 0), child);
}

TEST_F(AmdgpuJob, WhatADeadJobLeftIsUndone) {
    const std::string record =
        fmt::format("{} {} {}", program_->pid(), process_start_time(program_->pid()).value(), 0);
    EXPECT_FALSE(undo_pause(*here_.kfd, "nonsense"));
    EXPECT_TRUE(undo_pause(*here_.kfd, "999999999 1 1"));  // has ended
    here_.as_worker();
    Checkpoint job(host_.raw(), *here_.kfd, settings_);
    ASSERT_TRUE(job.probe(pids()));
    ASSERT_TRUE(job.prepare(pids()));
    ASSERT_EQ(here_.process(program_->pid()).evicted, 1u);
    auto undone = undo_pause(*here_.kfd, host_.records.begin()->second);
    ASSERT_TRUE(undone) << undone.error().text();
    EXPECT_EQ(here_.process(program_->pid()).evicted, 0u);
    ASSERT_TRUE(
        undo_pause(*here_.kfd, host_.records.begin()->second));  // a second time does no harm
    EXPECT_EQ(here_.process(program_->pid()).evicted, 0u);
    std::string status;
    for (int i = 0; i < 60'000 && status.find("State:\tS") == std::string::npos; ++i, usleep(1000))
        status = read_file(AT_FDCWD, fmt::format("/proc/{}/status", program_->pid())).value();
    EXPECT_THAT(status, HasSubstr("TracerPid:\t0\n"));
    EXPECT_THAT(status, HasSubstr("State:\tS"));
}

TEST_F(AmdgpuJob, NothingIsPausedThatTheJournalDoesNotKnow) {
    host_.fails_to_journal = true;
    ASSERT_FALSE(checkpoint(pids()));
    EXPECT_EQ(here_.process(program_->pid()).evicted, 0u);
}

TEST_F(AmdgpuJob, WhatCannotBeCarriedIsNamedAtOnce) {
    Host old({"0x1001:128:64"}, 7);
    EmulatedProgram program(*old.kfd);
    const int second = old.kfd->open_kfd();
    program.give(second);
    old.as_worker();
    Checkpoint job(host_.raw(), *old.kfd, settings_);
    auto probed = job.probe({program.pid()});
    ASSERT_FALSE(probed);
    EXPECT_THAT(probed.error().text(), HasSubstr("is a second /dev/kfd of the process"));
    EXPECT_THAT(probed.error().text(), HasSubstr("has version 1.7, and checkpoints need 1.8"));
    close(second);
}

TEST_F(AmdgpuJob, ALentDescriptorIsPausedOnce) {
    auto child = start_program();
    child->give(program_->file());
    here_.as_worker();
    Checkpoint job(host_.raw(), *here_.kfd, settings_);
    const std::vector<pid_t> both = {program_->pid(), child->pid()};
    auto used = job.probe(both);
    ASSERT_TRUE(used) << used.error().text();
    ASSERT_TRUE(job.prepare(both));
    EXPECT_EQ(here_.process(program_->pid()).evicted, 1u);
    EXPECT_EQ(here_.process(child->pid()).evicted, 1u);
    ASSERT_TRUE(job.resume());
    expect_as_before();
    EXPECT_EQ(here_.process(child->pid()).evicted, 0u);
}

// KFD tells the number that the owner has there; all else goes by those of the machine.
TEST_F(AmdgpuJob, AProcessOfAnotherPidNamespaceIsCarried) {
    offsets_.clear();
    program_ = start_program(CLONE_NEWPID);
    auto result = checkpoint(pids());
    ASSERT_TRUE(result) << result.error().text();
    expect_as_before();
    auto image = read_process(
        [&](const std::string& name) { return open_at(dir_.fd(), name, O_RDONLY); }, kKfdId);
    ASSERT_TRUE(image && *image);
    EXPECT_EQ((*image)->pid(), 1u);
    here_.as_worker();
    Checkpoint job(host_.raw(), *here_.kfd, settings_);
    ASSERT_TRUE(job.probe(pids()));
    ASSERT_TRUE(job.prepare(pids()));
    EXPECT_EQ(job.handle_vma(program_->pid(), mapping(offsets_[0])), true);
    auto undone = undo_pause(*here_.kfd, host_.records.begin()->second);
    ASSERT_TRUE(undone) << undone.error().text();
    EXPECT_EQ(here_.process(program_->pid()).evicted, 0u);
}

// A process with nothing but the /dev/kfd of `program`, until the end of this.
class Borrower {
  public:
    explicit Borrower(const EmulatedProgram& program) : pid_(fork()) {
        if (pid_ == 0)
            hold(program.file());
        for (int i = 0; i < 60'000 && read_descriptor_list(pid_).value().size() > 1; ++i)
            usleep(1000);
    }
    ~Borrower() {
        kill(pid_, SIGKILL);
        waitpid(pid_, nullptr, 0);
    }
    pid_t pid() const { return pid_; }

  private:
    [[noreturn]] static void hold(int file) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (int fd = 0; fd < 1024; ++fd)
            if (fd != file)
                close(fd);
        for (;;)
            pause();
    }
    pid_t pid_;
};

TEST_F(AmdgpuJob, WhatWasLentIsTheOwnersInTheJournalToo) {
    const Borrower borrower(*program_);
    here_.as_worker();
    Checkpoint job(host_.raw(), *here_.kfd, settings_);
    const std::vector<pid_t> both = {borrower.pid(), program_->pid()};
    ASSERT_TRUE(job.probe(both));
    ASSERT_TRUE(job.prepare(both));
    auto refused = job.dump_file(borrower.pid(), program_->file(), kKfdId);
    ASSERT_FALSE(refused);
    EXPECT_THAT(refused.error().line(),
                HasSubstr(fmt::format("a /dev/kfd that pid {} has opened", program_->pid())));
    ASSERT_EQ(host_.records.size(), 1u);
    EXPECT_THAT(host_.records.begin()->second, StartsWith(fmt::format("{} ", program_->pid())));
    auto undone = undo_pause(*here_.kfd, host_.records.begin()->second);
    ASSERT_TRUE(undone) << undone.error().text();
    EXPECT_EQ(here_.process(program_->pid()).evicted, 0u);
}

TEST_F(AmdgpuJob, AnOwnerWhoIsNotAmongThemIsNamed) {
    const Borrower borrower(*program_);
    here_.as_worker();
    Checkpoint job(host_.raw(), *here_.kfd, settings_);
    ASSERT_TRUE(job.probe({borrower.pid()}));
    auto held = job.prepare({borrower.pid()});
    ASSERT_FALSE(held);
    EXPECT_THAT(held.error().text(), HasSubstr("has opened and lent, which is not among those"));
    here_.as_worker();
    ASSERT_TRUE(job.resume());
    expect_as_before();
}

TEST_F(AmdgpuJob, MappingsOfOthersAreRefused) {
    here_.as_worker();
    Checkpoint job(host_.raw(), *here_.kfd, settings_);
    ASSERT_TRUE(job.probe(pids()));
    ASSERT_TRUE(job.prepare(pids()));
    EXPECT_EQ(job.handle_vma(program_->pid(), mapping(offsets_[0] + 4096)), true);
    auto other = job.handle_vma(program_->pid(), mapping(offsets_[2]));  // of the other GPU
    EXPECT_FALSE(other);
    EXPECT_FALSE(job.handle_vma(program_->pid(), mapping(12345)));
    ckptd_vma vma = mapping(offsets_[0]);
    EXPECT_FALSE(job.handle_vma(getpid(), vma));
    const ScopedFd file(memfd_create("no-device", MFD_CLOEXEC));
    vma.fd = file.get();
    EXPECT_EQ(job.handle_vma(program_->pid(), vma), false);
    EXPECT_EQ(job.dump_file(program_->pid(), file.get(), 3), false);
    ASSERT_TRUE(job.resume());
}

TEST_F(AmdgpuJob, EveryFailureOfARestoreIsItsEnd) {
    ASSERT_TRUE(checkpoint(pids()));
    for (const char* call : {"restore", "copy-to", "resume"}) {
        Host there({"0x1001:128:64", "0x1002:129:64"});
        there.kfd->state().set_faults({{call, 1, Fault::Kind::kFail, EIO}});
        for (bool parallel : {true, false}) {
            settings_.is_parallel = parallel;
            auto result = restore(there, parallel ? 500 : 501);
            ASSERT_EQ(result.has_value(), !parallel) << call;  // the fault comes once
        }
    }
    Host there({"0x1001:128:64", "0x1002:129:64"});
    EXPECT_FALSE(restore(there, 500, EPIPE));
    EXPECT_EQ(task_.kfd_fd, -EPIPE);
}

TEST_F(AmdgpuJob, ASerialTaskIsWokenByAFailure) {
    ASSERT_TRUE(checkpoint(pids()));
    settings_.is_parallel = false;
    Host there({"0x1001:128:64", "0x1002:129:64"});
    there.kfd->state().set_faults({{"copy-to", 1, Fault::Kind::kFail, EIO}});
    auto result = restore(there, 500);
    ASSERT_FALSE(result);
    EXPECT_EQ(task_.kfd_fd, -EIO);
}

TEST_F(AmdgpuJob, AnImageThatDoesNotFitIsRefusedBeforeAnything) {
    ASSERT_TRUE(checkpoint(pids()));
    Host smaller({"0x1001:128:64"});
    auto result = restore(smaller, 500);
    ASSERT_FALSE(result);
    EXPECT_THAT(result.error().text(), HasSubstr("the image has 2, and 1 can be seen here"));
    Host old({"0x1001:128:64", "0x1002:129:32"}, 7);
    result = restore(old, 500);
    ASSERT_FALSE(result);
    EXPECT_THAT(result.error().text(), HasSubstr("has version 1.7"));
    EXPECT_THAT(result.error().text(),
                HasSubstr("vram_size is 33554432, 67108864 or more is wanted"));
    std::filesystem::remove(dir_.path() + "/amdgpu-pages-7-1001.img");
    Host there({"0x1001:128:64", "0x1002:129:64"});
    result = restore(there, 500);
    ASSERT_FALSE(result);
    EXPECT_THAT(result.error().line(), HasSubstr("amdgpu-pages-7-1001.img: is missing"));
}

// Each GPU has 2 MiB free of its 64, as KFD counts; the image needs 2.3 and 0.3.
TEST_F(AmdgpuJob, AGpuThatOthersHaveTakenIsNamedBeforeAnything) {
    program_->allocate(gpus()[0], kAddress + 8 * kSize, 2 << 20, 3);
    ASSERT_TRUE(checkpoint(pids()));
    Host there({"0x2001:140:64", "0x2002:141:64"});
    EmulatedProgram other(*there.kfd);
    for (const auto& gpu : there.kfd->state().gpus()) {
        other.use_gpu(gpu);
        other.allocate(gpu, kAddress, (62 << 20) - 4096, 3);
    }
    auto refused = restore(there, 500);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().kind, ErrorKind::kConflict);
    EXPECT_THAT(refused.error().line(),
                HasSubstr("GPU 0x2001: has 2 MiB free of the 3 MiB that the image needs"));
    EXPECT_EQ(there.kfd->state().processes().size(), 2u) << "the other one, and we who asked";

    settings_.checks_memory = false;  // then the driver decides
    EXPECT_FALSE(restore(there, 501));
    settings_.checks_memory = true;
    there.as_worker();
    std::jthread ends([&] {  // a process that died a moment ago has its memory yet
        std::this_thread::sleep_for(std::chrono::milliseconds(100));
        other.end();
    });
    auto result = restore(there, 502);
    EXPECT_TRUE(result) << result.error().text();
}

TEST_F(AmdgpuJob, RoomOfTheHostIsLookedAtToo) {
    const NeededRoom needed{{{gpus()[0].id, 1 << 20}}, uint64_t{1} << 60};
    const auto missing = missing_room(*here_.kfd, needed, {});
    ASSERT_EQ(missing.size(), 1u);
    EXPECT_THAT(missing[0].line(), HasSubstr("host memory, for buffers of GPUs: has "));
    EXPECT_THAT(missing[0].line(), HasSubstr("of the 1099511627776 MiB that the image needs"));
}

// Before 1.9 KFD does not tell.
TEST_F(AmdgpuJob, AnOldKfdDoesNotTellWhatIsFree) {
    Host old({"0x1001:128:64"}, 8);
    EXPECT_TRUE(missing_room(*old.kfd, {{{0x1001, uint64_t{1} << 60}}, 0}, {}).empty());
    EXPECT_EQ(missing_room(*here_.kfd, {{{0x1001, uint64_t{1} << 60}}, 0}, {}).size(), 1u);
}

TEST_F(AmdgpuJob, BuffersOfTheRenderNodeAreRefused) {
    ASSERT_TRUE(checkpoint(pids()));
    pb::RenderNode node;
    node.set_gpu_id(0x1001);
    node.set_id(11);
    node.set_drm_render_minor(128);
    node.set_buffer_count(2);
    ASSERT_TRUE(write_render_node(
        [&](const std::string& name) { return open_at(dir_.fd(), name, O_WRONLY | O_CREAT, 0600); },
        11, node));
    Host there({"0x1001:128:64", "0x1002:129:64"});
    auto result = restore(there, 500);
    ASSERT_FALSE(result);
    EXPECT_THAT(
        result.error().line(),
        HasSubstr("amdgpu-renderD-11.img: has 2 buffers that were made through the render node"));
}

}  // namespace
}  // namespace checkpointd::amdgpu
