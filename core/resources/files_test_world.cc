// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/resources/files_test_world.h"

#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <linux/close_range.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fmt/core.h>

#include "restorer/interpreter.h"

namespace checkpointd::testing {

namespace {

constexpr int kImageDirNumber = 1000;  // below the usual RLIMIT_NOFILE, above what is restored

void* shared_memory(size_t size) {
    return mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}

// A plan laid out as the executor does, in ordinary memory of this process.
class PlanRunner {
  public:
    explicit PlanRunner(const Plan& plan, uint32_t floor) : arena_(plan.arena()) {
        for (const Program& program : plan.programs()) {
            ranges_.push_back({ops_.size(), program.ops().size()});
            ops_.insert(ops_.end(), program.ops().begin(), program.ops().end());
        }
        slots_.resize(plan.slots());
        header_.operations = reinterpret_cast<uint64_t>(ops_.data());
        header_.programs = reinterpret_cast<uint64_t>(ranges_.data());
        header_.program_count = ranges_.size();
        header_.arena = reinterpret_cast<uint64_t>(arena_.data());
        header_.slots = reinterpret_cast<uint64_t>(slots_.data());
        header_.descriptor_floor = floor;
    }
    void set_slot(Slot slot, uint64_t value) { slots_[slot.index] = value; }

    std::string run(const Program& program) {
        restorer::Interpreter interpreter(header_, restorer::Place::kStage);
        restorer::Outcome outcome = interpreter.run(program.index());
        if (outcome.error == 0)
            return "";
        const char* label = reinterpret_cast<const char*>(arena_.data()) +
                            program.ops()[outcome.op].label;
        return fmt::format("{}: {}: {}", program.name(), label, strerror(outcome.error));
    }

  private:
    std::vector<std::byte> arena_;
    std::vector<restorer::Op> ops_;
    std::vector<restorer::ProgramRange> ranges_;
    std::vector<uint64_t> slots_;
    restorer::RegionHeader header_{};
};

struct Report {
    // Tasks that have what is theirs, and the agent when it has nothing left.
    std::atomic<int> installed;
    std::atomic<int> turn;
    char text[2000];
};

void wait_for(std::atomic<int>& value, int at_least) {
    while (value.load() < at_least)
        usleep(1000);
}

void complain(Report& report, const std::string& text) {
    if (!text.empty() && report.text[0] == '\0')
        std::strncpy(report.text, text.c_str(), sizeof(report.text) - 1);
}

struct Scene {
    PlanRunner& runner;
    Report& report;
    std::vector<FilePlanTask>& tasks;
    std::vector<std::function<std::string()>>& checks;
    uint32_t floor;
};

[[noreturn]] void be_task(Scene& scene, size_t index) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    const TaskPrograms& programs = scene.tasks[index].programs;
    complain(scene.report, scene.runner.run(*programs.stage));
    close_range(scene.floor - 1, ~0u, 0);
    scene.report.installed++;
    wait_for(scene.report.installed, static_cast<int>(scene.tasks.size()) + 1);
    complain(scene.report, scene.runner.run(*programs.late));
    wait_for(scene.report.turn, static_cast<int>(index));
    if (scene.report.text[0] == '\0' && index < scene.checks.size())
        complain(scene.report, scene.checks[index]());
    scene.report.turn++;
    wait_for(scene.report.turn, static_cast<int>(scene.tasks.size()));
    _exit(0);
}

[[noreturn]] void be_agent(Scene& scene, int image_dir_fd, Slot image_dir, const Program& agent) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    dup2(image_dir_fd, kImageDirNumber);
    close_range(0, kImageDirNumber - 1, 0);
    close_range(kImageDirNumber + 1, ~0u, 0);
    scene.runner.set_slot(image_dir, kImageDirNumber);
    complain(scene.report, scene.runner.run(agent));
    if (scene.report.text[0] != '\0')
        _exit(1);
    for (size_t i = 0; i < scene.tasks.size(); ++i)
        if (fork() == 0)
            be_task(scene, i);
    close_range(0, ~0u, 0);  // or a pipe would keep a reader that the forest has not
    scene.report.installed++;
    for (size_t i = 0; i < scene.tasks.size(); ++i)
        wait(nullptr);
    _exit(0);
}

Result<FileImages> through_disk(const World& world, const FileCollector& collector, int dir) {
    CKPT_TRY(collector.write(dir));
    std::set<uint32_t> tables;
    for (const auto& [id, unused] : collector.images().tables)
        tables.insert(id);
    return read_file_images(dir, tables, {world.pids().begin(), world.pids().end()});
}

}  // namespace

TempDir::TempDir() {
    char name[] = "/tmp/checkpointd-files-XXXXXX";
    path_ = mkdtemp(name);
}

TempDir::~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
}

World::World() : shared_(static_cast<Shared*>(shared_memory(sizeof(Shared)))) {}

World::~World() {
    for (pid_t pid : pids_)
        kill(pid, SIGKILL);
    for (pid_t pid : pids_)
        waitpid(pid, nullptr, 0);
    munmap(shared_, sizeof(Shared));
}

void World::be(const std::function<void()>& setup) {
    setup();
    shared_->ready++;
    while (true)
        pause();
}

void World::start(const std::function<void()>& setup) {
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close_range(0, ~0u, 0);
        for (int i = 0; i < 3; ++i)
            open("/dev/null", O_RDWR);
        shared_->pids[shared_->started++] = getpid();
        be(setup);
    }
    while (shared_->ready < 1 || shared_->ready < shared_->started)
        usleep(1000);
    pids_.assign(shared_->pids, shared_->pids + shared_->started);
}

void World::fork_here(const std::function<void()>& setup) {
    int before = shared_->ready;
    int index = shared_->started++;
    if (pid_t pid = fork(); pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        be(setup);
    } else {
        shared_->pids[index] = pid;
    }
    wait_for(shared_->ready, before + 1);
}

void World::kill_first() const {
    kill(pids_.front(), SIGKILL);
    siginfo_t info;
    waitid(P_PID, static_cast<id_t>(pids_.front()), &info, WEXITED | WNOWAIT);
}

Result<void> World::collect(FileCollector& collector) const {
    std::vector<ScopedFd> pidfds;
    for (pid_t pid : pids_) {
        pidfds.emplace_back(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
        collector.add_task(FileTask{pid, pid, pidfds.back().get()});
    }
    for (pid_t pid : pids_)
        CKPT_TRY(collector.collect(pid));
    return collector.finish();
}

std::string restore(const World& world, const FileCollector& collector,
                    std::vector<std::function<std::string()>> checks, FilePlanOptions options) {
    TempDir store;
    ScopedFd dir(open(store.path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    auto images = through_disk(world, collector, dir.get());
    if (!images)
        return images.error().text();
    Plan plan;
    Program& agent = plan.new_program("agent");
    options.image_dir = plan.new_slot();
    std::vector<FilePlanTask> tasks;
    uint32_t number = 1;
    for (pid_t pid : world.pids())
        tasks.push_back({{pid, &plan.new_program(fmt::format("stage {}", pid)),
                          &plan.new_program(fmt::format("late {}", pid))}, number++, 1});
    FilePlanner planner(*images, tasks, plan, agent, options);
    if (auto planned = planner.plan(); !planned)
        return planned.error().text();
    for (FilePlanTask& task : tasks)
        if (auto planned = planner.plan_fs(task, *task.programs.stage); !planned)
            return planned.error().text();
    PlanRunner runner(plan, *descriptor_floor(*images));
    auto* report = static_cast<Report*>(shared_memory(sizeof(Report)));
    Scene scene{runner, *report, tasks, checks, *descriptor_floor(*images)};
    pid_t pid = fork();
    if (pid == 0)
        be_agent(scene, dir.get(), options.image_dir, agent);
    waitpid(pid, nullptr, 0);
    std::string text = report->text;
    if (text.empty() && report->turn < static_cast<int>(tasks.size()))
        text = "a restored process died";
    munmap(report, sizeof(Report));
    return text;
}

}  // namespace checkpointd::testing
