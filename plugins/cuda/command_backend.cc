// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/cuda/command_backend.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstdio>
#include <fcntl.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

#include "core/base/io.h"

extern char** environ;

namespace checkpointd::cuda {

const char* const kHelperProgram = CHECKPOINTD_CUDA_HELPER;

namespace {

constexpr std::array<std::string_view, 4> kStates = {"running", "locked", "checkpointed", "failed"};

std::vector<std::string> arguments(const std::string& command, const Request& request) {
    const std::string pid = std::to_string(request.pid);
    switch (request.operation) {
        case Operation::kThread: return {command, "--get-restore-tid", "--pid", pid};
        case Operation::kState: return {command, "--get-state", "--pid", pid};
        case Operation::kLock:
            return {command, "--action", "lock", "--pid", pid, "--timeout", std::to_string(request.timeout_ms)};
        case Operation::kCheckpoint: return {command, "--action", "checkpoint", "--pid", pid};
        case Operation::kUnlock: return {command, "--action", "unlock", "--pid", pid};
        case Operation::kHello:
        case Operation::kMemory: return {command, "--help"};
        default: break;
    }
    std::vector<std::string> restore = {command, "--action", "restore", "--pid", pid};
    std::string map;
    for (uint32_t i = 0; i < request.pair_count; ++i)
        map += fmt::format("{}{}={}", map.empty() ? "" : ",", to_string(request.pairs[i].from), to_string(request.pairs[i].to));
    if (!map.empty())
        restore.insert(restore.end(), {"--device-map", map});
    return restore;
}

struct Running {
    pid_t pid = 0;
    ScopedFd pidfd;
    ScopedFd output;  // all of it, so that nobody has to read while it runs
};

// `turn` goes with it; -1: none.
Result<Running> start(const std::vector<std::string>& words, int turn) {
    Running running;
    running.output.reset(memfd_create("cuda-checkpoint", MFD_CLOEXEC));
    if (!running.output)
        return fail_errno(words[0], "cannot make room for its output");
    std::vector<char*> argv;
    for (const std::string& word : words)
        argv.push_back(const_cast<char*>(word.c_str()));
    argv.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, running.output.get(), 1);
    posix_spawn_file_actions_adddup2(&actions, running.output.get(), 2);
    if (turn >= 0)
        posix_spawn_file_actions_adddup2(&actions, turn, turn);  // to itself: without close-on-exec
    const int code = posix_spawnp(&running.pid, argv[0], &actions, nullptr, argv.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    if (code != 0)
        return fail_errno(words[0], "cannot be started", code);
    running.pidfd.reset(static_cast<int>(syscall(SYS_pidfd_open, running.pid, 0)));
    if (!running.pidfd)
        return fail_errno(words[0], "cannot be watched");
    return running;
}

// What the driver says of a process that uses no CUDA, where the command could ask it.
bool says_no_cuda(int status, const std::string& output) {
    const bool is_answer = WIFEXITED(status) && output.find("initializing CUDA") == std::string::npos;
    const auto says = [&](const char* words) { return output.find(words) != std::string::npos; };
    return is_answer && (says("invalid argument") || says("initialization error"));
}

// Its words become what the driver would have answered.
Answer translate(const Request& request, int status, const std::string& output) {
    Answer answer;
    const bool good = WIFEXITED(status) && WEXITSTATUS(status) == 0;
    std::snprintf(answer.text, sizeof(answer.text), "%s", output.substr(0, output.find('\n')).c_str());
    if (!good)
        answer.code = request.operation != Operation::kThread ? kIllegalState
                      : says_no_cuda(status, output)          ? kInvalidValue
                                                              : kNotAsked;
    if (answer.code == kNotAsked && answer.text[0] == 0)
        std::snprintf(answer.text, sizeof(answer.text), "%s", "the command died without a word");
    if (good && request.operation == Operation::kThread)
        std::from_chars(output.data(), output.data() + output.size(), answer.value);
    if (good && request.operation == Operation::kState) {
        const auto found = std::find_if(kStates.begin(), kStates.end(),
                                        [&](std::string_view state) { return output.starts_with(state); });
        answer.value = static_cast<int32_t>(found - kStates.begin());
        if (found == kStates.end())
            answer.code = kIllegalState;
    }
    if (good && (request.operation == Operation::kHello || request.operation == Operation::kMemory)) {
        answer.value = output.find("--device-map") == std::string::npos ? kBaseVersion : kPairsVersion;
        if (output.find("--action") == std::string::npos)
            answer.code = kNotInitialized;
    }
    return answer;
}

}  // namespace

// One that does not answer is as good as none: then nothing is known.
Answer CommandBackend::ask_teller(const Request& request, Deadline deadline) const {
    Answer none, answer;
    none.code = kNotSupported;
    std::vector<std::string> words{teller_, "--devices"};
    if (request.operation == Operation::kUsage)
        words.push_back(std::to_string(request.pid));
    const auto running = start(words, -1);
    if (!running)
        return none;
    const bool ended = wait_readable(running->pidfd.get(), soon(deadline));
    if (!ended) {
        (void)kill(running->pid, SIGKILL);
        (void)wait_readable(running->pidfd.get(), std::chrono::steady_clock::now() + std::chrono::seconds(1));
    }
    if (waitpid(running->pid, nullptr, ended ? __WALL : __WALL | WNOHANG) != running->pid || !ended)
        return none;
    const bool is_whole = pread(running->output.get(), &answer, sizeof(answer), 0) == sizeof(answer);
    return is_whole && answer.version == kMessageVersion && answer.code == kSuccess ? answer : none;
}

Result<Answer> CommandBackend::ask(const Request& request, Deadline deadline, int) {
    if (request.operation == Operation::kUsage)
        return ask_teller(request, deadline);
    if (request.operation >= Operation::kMapCheckpoint) {
        Answer none;
        none.code = kNotSupported;
        return none;
    }
    CKPT_ASSIGN(const Answer answer, run(request, deadline));
    if (request.operation != Operation::kMemory || answer.code != kSuccess)
        return answer;
    Answer devices = ask_teller(request, deadline);
    if (devices.code != kSuccess)
        return answer;
    if (answer.value < kPairsVersion)
        devices.value = std::min(devices.value, answer.value);  // the command is older than the driver
    return devices;
}

Result<Answer> CommandBackend::run(const Request& request, Deadline deadline) {
    ScopedFd turn;
    if (request.pid != 0) {
        CKPT_ASSIGN(turn, take_turn(turns_, request.pid, deadline, threads()));
    }
    CKPT_ASSIGN(Running running, start(arguments(command_, request), turn.get()));
    if (!wait_readable(running.pidfd.get(), deadline, threads())) {
        late_ = std::move(running.pidfd);
        late_pid_ = running.pid;
        return fail(ErrorKind::kTimeout, command_, "does not end in time");
    }
    int status = 0;
    if (waitpid(running.pid, &status, __WALL) != running.pid)
        return fail_errno(command_, "cannot wait for it");
    if (turn)
        remove_turn(turns_, request.pid);
    if (lseek(running.output.get(), 0, SEEK_SET) != 0)
        return fail_errno(command_, "cannot read what it said");
    CKPT_ASSIGN(const std::string output, read_fd(running.output.get(), command_, 1 << 20));
    return translate(request, status, output);
}

bool CommandBackend::finish_late(Deadline deadline) {
    if (!late_)
        return true;
    if (!wait_readable(late_.get(), deadline, threads()))
        return false;
    waitpid(late_pid_, nullptr, __WALL);
    late_.reset();
    return true;
}

}  // namespace checkpointd::cuda
