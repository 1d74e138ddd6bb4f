// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/resources/kinds.h"

#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <fmt/core.h>

namespace checkpointd {

const std::vector<const FileKind*>& file_kinds() {
    // The most frequent first; memfd before files, whose links look alike.
    static const std::vector<const FileKind*> kinds{
        &kMemfdKind,  &kRegularKind, &kPipeKind,     &kFifoKind,    &kEventfdKind,
        &kEpollKind,  &kTimerfdKind, &kSignalfdKind, &kInotifyKind, &kPidfdKind,
        &kUnixSocketKind, &kInetSocketKind, &kNetlinkSocketKind,
        &kPluginFileKind,
    };
    return kinds;
}

const FileKind* file_kind_of(images::fd_types type) {
    for (const FileKind* kind : file_kinds())
        if (kind->type == type)
            return kind;
    return nullptr;
}

namespace {

struct Hint {
    std::string_view link;  // start of the link text
    const char* message;
    const char* remedy;
};

constexpr Hint kHints[] = {
    {"anon_inode:[io_uring]", "io_uring instance", "run the program with io_uring disabled"},
    {"anon_inode:[userfaultfd]", "userfaultfd", "the program handles its own page faults; stop that"},
    {"anon_inode:bpf-", "BPF object", "let the program close it or pin it and reopen"},
    {"anon_inode:[perf_event]", "perf event", "stop profiling the program"},
    {"anon_inode:[fanotify]", "fanotify group", "let the program close it"},
    {"anon_inode:kvm", "KVM object", "virtual machines have checkpoints of their own"},
    {"anon_inode:[landlock-ruleset]", "Landlock ruleset", "let the program close it after enforcing"},
    {"anon_inode:seccomp", "seccomp notifier", "let the supervisor end"},
    {"anon_inode:dma", "DMA fence or buffer", "needs a GPU plugin"},
    {"socket:", "socket of an unsupported family", "let the program close it"},
    {"/dev/nvidia", "NVIDIA device", "enable the CUDA plugin; where it is, the program opened it just now: try again"},
    {"/dev/dri/", "GPU device", "enable the plugin of this GPU"},
    {"/dev/kfd", "AMD GPU device", "enable the amdgpu plugin"},
    {"/dev/pts/", "terminal", "run the program without a terminal"},
    {"/dev/tty", "terminal", "run the program without a terminal"},
    {"/dev/ptmx", "terminal master", "run the program without a terminal"},
    {"/dev/mqueue/", "POSIX message queue", "let the program close it"},
    {"mnt:", "namespace held open", "let the program close it"},
    {"net:", "namespace held open", "let the program close it"},
};

}  // namespace

Error unsupported_file(const OpenFile& file) {
    for (const Hint& hint : kHints)
        if (file.link.starts_with(hint.link))
            return Error{ErrorKind::kUnsupported, file.object,
                         fmt::format("cannot carry this {}", hint.message), hint.remedy, 0, {}};
    std::string what = "this kind of open file";
    if (S_ISCHR(file.st.st_mode) || S_ISBLK(file.st.st_mode))
        what = fmt::format("device {}:{}", major(file.st.st_rdev), minor(file.st.st_rdev));
    return Error{ErrorKind::kUnsupported, file.object, fmt::format("cannot carry {}", what),
                 "let the program close it before the checkpoint", 0, {}};
}

}  // namespace checkpointd
