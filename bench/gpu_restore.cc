// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Measures restores of a process tree with GPU memory, in the serial and in the parallel way by
// turns, in one run. The host's part is the engine's real work, the GPUs' part the plugin's on
// files for devices (file_gpu.cc). Run by bench/gpu-restore; makes a PID namespace of its
// own. Prints a line "WAY MILLISECONDS" for each restore.
//
// gpu_restore FOLDER PLUGINS PROCESSES GPUS HOST_MIB GPU_MIB BYTES_PER_SECOND ROUNDS cached|disk
#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>

#include <fmt/core.h>

#include "core/checkpoint/bare_process_test_util.h"
#include "core/checkpoint/checkpoint.h"
#include "core/restore/restore.h"
#include "plugins/amdgpu/kfd.h"
#include "plugins/host/plugins.h"
#include "tests/gpu/kfd/topology.h"

namespace checkpointd {
namespace {

using Clock = std::chrono::steady_clock;

struct Setup {
    std::string folder, plugins;
    unsigned processes, gpus;
    uint64_t host_bytes, gpu_bytes;  // of all processes together
    std::string bytes_per_second;
    int rounds;
    bool from_disk;

    std::string images() const { return folder + "/images"; }
};

[[noreturn]] void die(const std::string& why) {
    fmt::print(stderr, "bench: {}\n", why);
    std::exit(1);
}

template <typename T>
T must(Result<T> result) {
    if (!result)
        die(result.error().text());
    return std::move(*result);
}

void must(const Result<void>& result) {
    if (!result)
        die(result.error().text());
}

// Not compressible, no two pages the same (xorshift).
void fill(uint64_t* words, uint64_t count, uint64_t seed) {
    for (uint64_t i = 0; i < count; ++i) {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        words[i] = seed;
    }
}

bool is_filled(const uint64_t* words, uint64_t count, uint64_t seed) {
    for (uint64_t i = 0; i < count; ++i) {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        if (words[i] != seed)
            return false;
    }
    return true;
}

void touch(const std::string& path) {
    close(open(path.c_str(), O_CREAT | O_WRONLY, 0600));
}

bool is_there(const std::string& path) {
    return access(path.c_str(), F_OK) == 0;
}

void wait_for(const std::string& path) {
    for (int i = 0; !is_there(path); ++i, usleep(1000))
        if (i == 120000)
            die(fmt::format("{} does not come", path));
}

// A program on the GPU: says that it is ready, and tells when asked whether its memory is what it
// was.
[[noreturn]] void run_program(const Setup& setup, unsigned number) {
    const auto kfd = amdgpu::make_kfd();
    (void)kfd->open_kfd();
    (void)kfd->open_render(128 + static_cast<uint32_t>(getpid()) % setup.gpus);
    const uint64_t bytes = setup.host_bytes / setup.processes;
    auto* heap = static_cast<uint64_t*>(
        mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    fill(heap, bytes / sizeof(*heap), number + 1);
    touch(fmt::format("{}/ready-{}", setup.folder, number));
    while (!is_there(setup.folder + "/verify"))
        usleep(10000);
    const bool good = is_filled(heap, bytes / sizeof(*heap), number + 1);
    touch(fmt::format("{}/{}-{}", setup.folder, good ? "good" : "bad", number));
    while (true)
        pause();
}

pid_t start_programs(const Setup& setup) {
    const pid_t root = fork();
    if (root != 0)
        return root;
    become_bare_process();
    for (unsigned i = 1; i < setup.processes; ++i)
        if (fork() == 0)
            run_program(setup, i);
    run_program(setup, 0);
}

void wait_until_ready(const Setup& setup) {
    for (unsigned i = 0; i < setup.processes; ++i)
        wait_for(fmt::format("{}/ready-{}", setup.folder, i));
}

void verify(const Setup& setup) {
    touch(setup.folder + "/verify");
    for (unsigned i = 0; i < setup.processes; ++i) {
        const std::string good = fmt::format("{}/good-{}", setup.folder, i);
        for (int tries = 0; !is_there(good); ++tries, usleep(1000))
            if (tries == 120000 || is_there(fmt::format("{}/bad-{}", setup.folder, i)))
                die(fmt::format("the memory of program {} is not what it was", i));
        unlink(good.c_str());
    }
    unlink((setup.folder + "/verify").c_str());
}

void reap_all() {
    while (waitpid(-1, nullptr, __WALL) > 0) {
    }
}

PluginOptions plugin_options(const Setup& setup, int images, bool parallel) {
    PluginOptions options;
    options.directory = setup.plugins;
    options.policy["amdgpu"].settings = {{"parallel", parallel ? "yes" : "no"}};
    options.image_dir_fd = images;
    return options;
}

void take_down(const Setup& setup, int images) {
    const pid_t root = start_programs(setup);
    wait_until_ready(setup);
    auto plugins = must(Plugins::for_checkpoint(plugin_options(setup, images, true)));
    SilentSteps steps;
    CheckpointRequest request;
    request.target = TreeTarget{root};
    request.image_dir_fd = images;
    request.plugins = plugins.get();
    CheckpointStats stats;
    HeldForest held = must(checkpoint(request, steps, stats));
    must(held.kill());
    reap_all();
}

// Written back before, or dropping does nothing.
void settle_cache(const Setup& setup) {
    for (const auto& entry : std::filesystem::directory_iterator(setup.images())) {
        const ScopedFd file(open(entry.path().c_str(), O_RDONLY | O_CLOEXEC));
        (void)fsync(file.get());
        if (setup.from_disk)
            (void)posix_fadvise(file.get(), 0, 0, POSIX_FADV_DONTNEED);
    }
}

double bring_up(const Setup& setup, int images, bool parallel, bool verifies) {
    settle_cache(setup);
    const auto begin = Clock::now();
    auto plugins = must(Plugins::for_restore(plugin_options(setup, images, parallel),
                                             std::vector<std::string>{"amdgpu"}));
    must(plugins->probe({}, Plugins::Deadline::max()));
    SilentSteps steps;
    RestoreRequest request(steps);
    request.image_dir_fd = images;
    request.plugins = plugins.get();
    RestoreStats stats;
    BuiltForest forest = must(build_forest(request, stats));
    const std::vector<pid_t> pids = forest.pids();
    must(forest.commit());
    const std::chrono::duration<double, std::milli> took = Clock::now() - begin;
    if (verifies)
        verify(setup);
    for (pid_t pid : pids)
        kill(pid, SIGKILL);
    reap_all();
    return took.count();
}

void make_machine(const Setup& setup) {
    kfd_emulation::Machine machine;
    for (uint32_t i = 0; i < setup.gpus; ++i)
        machine.devices.push_back({{0x1001 + i, 128 + i, 64ull << 30}});
    std::filesystem::create_directories(setup.folder + "/topology");
    std::filesystem::create_directories(setup.images());
    must(kfd_emulation::write_topology(machine, setup.folder + "/topology"));
}

void describe_devices(const Setup& setup, const char* bytes_per_second) {
    const std::string text =
        fmt::format("{} {} {} {} {}", setup.folder, setup.gpus, setup.gpu_bytes / setup.processes,
                    64u << 20, bytes_per_second);
    setenv("CKPT_BENCH_GPU", text.c_str(), 1);
}

// In a PID namespace, where nobody else takes the programs' numbers; and in a mount namespace that
// is younger than this program's own file, or the kernel would hold the programs' file, the same
// one, to be in use (replace_mm_exe_file()).
int run_alone(const std::function<int()>& work) {
    if (unshare(CLONE_NEWPID | CLONE_NEWNS) != 0)
        die("cannot make namespaces: needs root");
    const pid_t init = fork();
    if (init == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
            mount("proc", "/proc", "proc", 0, nullptr) != 0)
            die("cannot mount /proc");
        std::exit(work());
    }
    int status = 0;
    if (waitpid(init, &status, 0) != init)
        return 1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

int run(const Setup& setup) {
    make_machine(setup);
    describe_devices(setup, "0");
    const ScopedFd images(open(setup.images().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    take_down(setup, images.get());
    describe_devices(setup, setup.bytes_per_second.c_str());
    for (int round = 0; round <= setup.rounds; ++round)
        for (const bool parallel : {false, true}) {
            const double took = bring_up(setup, images.get(), parallel, round == 0);
            if (round > 0)  // the first ones warm up, and are verified
                fmt::print("{} {:.1f}\n", parallel ? "parallel" : "serial", took);
        }
    return 0;
}

}  // namespace
}  // namespace checkpointd

int main(int argc, char** argv) {
    using namespace checkpointd;
    if (argc != 10)
        die("wrong arguments");
    auto number = [&](int i) { return std::strtoull(argv[i], nullptr, 10); };
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    const Setup setup{argv[1],
                      argv[2],
                      static_cast<unsigned>(number(3)),
                      static_cast<unsigned>(number(4)),
                      number(5) << 20,
                      number(6) << 20,
                      argv[7],
                      static_cast<int>(number(8)),
                      std::strcmp(argv[9], "disk") == 0};
    return run_alone([&] { return run(setup); });
}
