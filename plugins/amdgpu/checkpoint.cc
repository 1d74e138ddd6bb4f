// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/amdgpu/checkpoint.h"

#include <fcntl.h>
#include <linux/kcmp.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <algorithm>
#include <cerrno>

#include "core/base/io.h"
#include "core/kernel/liveness.h"
#include "core/kernel/pidfd.h"
#include "core/kernel/proc_status.h"
#include "core/kernel/proc_task.h"
#include "core/kernel/ptrace.h"
#include "core/transaction/undo_kinds.h"
#include "plugins/amdgpu/descriptor_limit.h"
#include "plugins/amdgpu/kfd_version.h"
#include "plugins/amdgpu/shared_memory.h"

namespace checkpointd::amdgpu {
namespace {

std::string fd_path(pid_t pid, int fd) {
    return fmt::format("/proc/{}/fd/{}", pid, fd);
}

Result<bool> same_open_file(pid_t one_pid, int one, pid_t other_pid, int other) {
    const long order = syscall(SYS_kcmp, one_pid, other_pid, KCMP_FILE, one, other);
    if (order < 0)
        return fail_errno(fmt::format("pid {} fd {}", one_pid, one), "cannot be compared (kcmp)");
    return order == 0;
}

// The one that has this number in its own PID namespace, first of all `user`; 0: none of them.
pid_t find_owner(pid_t number, pid_t user, const std::vector<pid_t>& pids) {
    const auto is_it = [&](pid_t pid) { return innermost_pid(pid) == number; };
    if (is_it(user))
        return user;
    auto found = std::find_if(pids.begin(), pids.end(), is_it);
    return found == pids.end() ? 0 : *found;
}

Error shared_buffer(pid_t pid, int fd) {
    return Error{ErrorKind::kUnsupported,
                 fmt::format("pid {} fd {}", pid, fd),
                 "is GPU memory that is shared with another process or device (a dma-buf)",
                 "end the sharing (HIP's IPC, RCCL between processes) before the checkpoint",
                 0,
                 {}};
}

}  // namespace

Result<bool> same_open_file(int one, int other) {
    return same_open_file(getpid(), one, getpid(), other);
}

Checkpoint::Checkpoint(const ckptd_host& host, const Kfd& kfd, Settings settings)
    : host_(host), kfd_(kfd), settings_(std::move(settings)) {}

OpenImage Checkpoint::open_image() const {
    return [this](const std::string& name) -> Result<ScopedFd> {
        ScopedFd file(host_.open_image(host_.context, name.c_str()));
        if (!file)
            return fail_errno(name, "cannot be made");
        return file;
    };
}

// Adds what of the task is not known yet. A descriptor that goes away meanwhile is none.
Result<void> Checkpoint::look_at(pid_t pid, std::vector<User>& users,
                                 std::vector<Error>* blockers) const {
    auto numbers = read_descriptor_list(pid);
    if (!numbers)
        return {};  // it has ended
    std::vector<int> dmabufs;
    std::vector<User> own;
    for (int number : *numbers) {
        struct stat status {};
        if (stat(fd_path(pid, number).c_str(), &status) != 0)
            continue;
        if (auto link = read_link(AT_FDCWD, fd_path(pid, number));
            link && link->starts_with("/dmabuf:"))
            dmabufs.push_back(number);
        if (!kfd_.is_kfd(status))
            continue;
        bool is_known = false;
        for (const auto* list : {&users, &own})
            for (const User& user : *list) {
                CKPT_ASSIGN(const bool same, same_open_file(user.pid, user.number, pid, number));
                is_known |= same;
            }
        if (!is_known)
            own.push_back({pid, number});
    }
    if (own.size() > 1 && blockers != nullptr)
        blockers->push_back({ErrorKind::kUnsupported,
                             fmt::format("pid {} fd {}", pid, own[1].number),
                             "is a second /dev/kfd of the process",
                             "close one of them before the checkpoint",
                             0,
                             {}});
    if (!own.empty() && blockers != nullptr)
        for (int number : dmabufs)
            blockers->push_back(shared_buffer(pid, number));
    users.insert(users.end(), own.begin(), own.end());
    return {};
}

Result<std::vector<Checkpoint::User>> Checkpoint::find_users(const std::vector<pid_t>& pids,
                                                             std::vector<Error>* blockers) const {
    std::vector<User> users;
    for (pid_t pid : pids)
        CKPT_TRY(look_at(pid, users, blockers));
    return users;
}

Result<bool> Checkpoint::probe(const std::vector<pid_t>& pids) {
    std::vector<Error> blockers;
    CKPT_ASSIGN(const auto users, find_users(pids, &blockers));
    if (users.empty())
        return false;
    if (auto version = check_kfd_version(kfd_); !version)
        blockers.push_back(std::move(version).error());
    auto topology = read_topology(kfd_.topology_root());
    if (topology)
        here_ = std::move(*topology);
    else
        blockers.push_back(std::move(topology).error());
    if (blockers.size() == 1)
        return tl::unexpected(std::move(blockers.front()));
    CKPT_TRY(all_blockers("AMD GPUs", "cannot be carried", std::move(blockers)));
    return true;
}

// KFD listens to the owner's tracer alone, and the file is known by whoever has it.
Result<void> Checkpoint::write_down(Held& held, pid_t owner) {
    CKPT_ASSIGN(const uint64_t start, process_start_time(owner));
    CKPT_ASSIGN(const uint64_t user_start, process_start_time(held.user.pid));
    const std::string record =
        fmt::format("{} {} {} {} {}", owner, start, held.user.number, held.user.pid, user_start);
    const uint64_t before = std::exchange(held.undo, host_.journal(host_.context, record.c_str()));
    if (held.undo == 0) {
        held.undo = before;
        return fail(ErrorKind::kSystem, "journal",
                    "cannot write down that queues are to run again");
    }
    if (before != 0)
        (void)host_.forget(host_.context, before);
    return {};
}

// In the journal first: should we die, the queues must not stay where they are. Whose they are KFD
// tells later; nearly always they are of the first that has the file.
Result<void> Checkpoint::hold(const User& user, const std::vector<pid_t>& pids) {
    CKPT_ASSIGN(const ScopedFd process, pidfd_open(user.pid));
    CKPT_ASSIGN(ScopedFd file, pidfd_get_fd(process.get(), user.number));
    Held& held = held_.emplace_back(Held{user, HeldProcess(kfd_, std::move(file))});
    CKPT_TRY(write_down(held, user.pid));
    CKPT_TRY(held.process.pause());
    held.process.set_pid(find_owner(held.process.own_number(), user.pid, pids));
    if (held.process.pid() != 0 && held.process.pid() != user.pid)
        CKPT_TRY(write_down(held, held.process.pid()));
    return held.process.save();
}

Result<void> Checkpoint::check_owners() const {
    std::vector<Error> blockers;
    for (const Held& held : held_)
        if (held.process.pid() == 0)
            blockers.push_back(
                {ErrorKind::kUnsupported,
                 fmt::format("pid {} fd {}", held.user.pid, held.user.number),
                 fmt::format("is a /dev/kfd that pid {} (of its own namespace) has opened "
                             "and lent, which is not among those of the checkpoint",
                             held.process.own_number()),
                 {},
                 0,
                 {}});
    return all_blockers("AMD GPUs", "cannot be carried", std::move(blockers));
}

Result<void> Checkpoint::prepare(const std::vector<pid_t>& pids) {
    std::vector<Error> blockers;
    raise_descriptor_limit();
    CKPT_ASSIGN(const auto users, find_users(pids, &blockers));  // they went on after probe()
    CKPT_TRY(all_blockers("AMD GPUs", "cannot be carried", std::move(blockers)));
    for (const User& user : users)
        CKPT_TRY(hold(user, pids));
    return check_owners();
}

Checkpoint::Held* Checkpoint::by_pid(pid_t pid) {
    auto found = std::find_if(held_.begin(), held_.end(),
                              [&](const Held& held) { return held.process.pid() == pid; });
    return found == held_.end() ? nullptr : &*found;
}

Result<bool> Checkpoint::dump_file(pid_t pid, int fd, uint32_t id) {
    struct stat status {};
    if (fstat(fd, &status) != 0)
        return fail_errno(fmt::format("file {} of pid {}", id, pid), "fstat");
    if (auto minor = kfd_.render_minor(status); minor && !held_.empty())
        return dump_render_node(pid, *minor, id);
    if (!kfd_.is_kfd(status))
        return false;
    for (Held& held : held_) {
        CKPT_ASSIGN(const bool same, same_open_file(held.process.file(), fd));
        if (same)
            return dump_kfd(held, pid, id);
    }
    return fail(ErrorKind::kSystem, fmt::format("file {} of pid {}", id, pid),
                "was not open when all tasks stopped");
}

Result<bool> Checkpoint::dump_kfd(Held& held, pid_t pid, uint32_t id) {
    const HeldProcess& from = held.process;
    if (from.pid() != pid)
        return fail(ErrorKind::kUnsupported, fmt::format("pid {} (AMD GPU)", pid),
                    fmt::format("has a /dev/kfd that pid {} has opened and lent", from.pid()));
    held.id = id;
    pb::Process process;
    process.set_pid(static_cast<uint32_t>(from.own_number()));
    put_topology(here_, from.names_of_gpus(), process);
    if (process.gpu_count() != from.devices().size())
        return fail(ErrorKind::kSystem, from.name(),
                    fmt::format("sees {} GPUs, of which the topology shows {}",
                                from.devices().size(), process.gpu_count()));
    for (const auto& bucket : from.buffers()) {
        pb::Buffer& buffer = *process.add_buffers();
        buffer.set_addr(bucket.addr);
        buffer.set_size(bucket.size);
        buffer.set_offset(bucket.offset);
        buffer.set_alloc_flags(bucket.alloc_flags);
        buffer.set_gpu_id(bucket.gpu_id);
        buffer.set_handle(kNoHandle);
    }
    process.set_buffer_count(from.buffers().size());
    process.set_object_count(from.object_count());
    CKPT_ASSIGN(const SharedMemory shared, read_shared_memory());
    process.set_shared_memory_size(shared.size);
    process.set_shared_memory_magic(shared.magic);
    process.set_private_data(from.private_data());
    CKPT_TRY(write_process(open_image(), id, process));
    return true;
}

Result<bool> Checkpoint::dump_render_node(pid_t pid, uint32_t minor, uint32_t id) {
    const Node* gpu = here_.by_render_minor(minor);
    const std::string object = fmt::format("pid {} (renderD{})", pid, minor);
    if (gpu == nullptr)
        return fail(ErrorKind::kUnsupported, object, "is a render node that is none of KFD's",
                    "graphics and video cannot be carried");
    // A task without a /dev/kfd of its own has inherited what it has.
    const Held* owner = by_pid(pid);
    const auto names = (owner != nullptr ? owner : &held_.front())->process.names_of_gpus();
    auto name = names.find(gpu->gpu_id);
    if (name == names.end())
        return fail(ErrorKind::kUnsupported, object, "is a GPU that the process cannot use");
    pb::RenderNode node;
    node.set_gpu_id(name->second);
    node.set_id(id);
    node.set_drm_render_minor(minor);
    node.set_buffer_count(0);
    CKPT_TRY(write_render_node(open_image(), id, node));
    return true;
}

Result<bool> Checkpoint::handle_vma(pid_t pid, const ckptd_vma& vma) {
    struct stat status {};
    if (fstat(vma.fd, &status) != 0)
        return fail_errno(fmt::format("pid {} {:#x}", pid, vma.start), "fstat");
    const auto minor = kfd_.render_minor(status);
    if (held_.empty() || (!minor && !kfd_.is_kfd(status)))
        return false;
    const Held* held = by_pid(pid);
    const Node* gpu = minor ? here_.by_render_minor(*minor) : nullptr;
    const auto names =
        held == nullptr ? std::map<uint32_t, uint32_t>() : held->process.names_of_gpus();
    const uint32_t name =
        gpu == nullptr || !names.contains(gpu->gpu_id) ? 0 : names.at(gpu->gpu_id);
    if (held != nullptr)
        for (const auto& buffer : held->process.buffers())
            if ((!minor || buffer.gpu_id == name) && vma.offset >= buffer.offset &&
                vma.offset - buffer.offset < buffer.size)
                return true;
    return fail(ErrorKind::kUnsupported,
                fmt::format("pid {} {:#x}-{:#x} ({})", pid, vma.start, vma.end, vma.path),
                "maps GPU memory that KFD does not know as the process's own",
                "graphics, video and memory that was inherited or shared cannot be carried");
}

Result<uint64_t> Checkpoint::add_gpu(Held& held, const kfd_criu_device_bucket& device,
                                     TransferPipeline& pipeline) {
    const Node* gpu = here_.by_gpu_id(device.actual_gpu_id);
    if (gpu == nullptr)
        return fail(ErrorKind::kSystem, gpu_name(device.actual_gpu_id), "is not in KFD's topology");
    const auto& buffers = held.process.buffers();
    uint64_t total = 0;
    for (const auto& buffer : buffers)
        if (buffer.gpu_id == device.user_gpu_id && has_contents(buffer.alloc_flags))
            total += buffer.size;
    if (total == 0)
        return 0;
    const std::string name = pages_image_name(held.id, device.user_gpu_id);
    CKPT_ASSIGN(ScopedFd made, open_image()(name));
    CKPT_TRY(write_image_header(made.get(), name, total));
    auto file = std::make_shared<const ScopedFd>(std::move(made));
    uint64_t at = kImageHeader;
    for (size_t i = 0; i < buffers.size(); ++i) {
        if (buffers[i].gpu_id != device.user_gpu_id || !has_contents(buffers[i].alloc_flags))
            continue;
        const std::string what =
            fmt::format("{}, buffer at {:#x}", held.process.name(), buffers[i].addr);
        ScopedFd dmabuf = held.process.take_dmabuf(i);
        if (!dmabuf)
            return fail(ErrorKind::kSystem, what, "KFD gave nothing to copy it by");
        pipeline.add(static_cast<uint32_t>(gpu->drm_render_minor),
                     {std::move(dmabuf), file, {}, at, buffers[i].size, what, {}});
        at += buffers[i].size;
    }
    return total;
}

Result<void> Checkpoint::save_contents(Held& held, TransferPipeline& pipeline) {
    for (const auto& device : held.process.devices())
        CKPT_TRY(add_gpu(held, device, pipeline));
    return {};
}

Result<void> Checkpoint::transfer(const TransferOptions& options) {
    TransferPipeline pipeline(Direction::kFromDevice, options,
                              [this](uint32_t minor) { return kfd_.open_engine(minor); });
    uint64_t total = 0;
    for (const Held& held : held_)
        for (const auto& buffer : held.process.buffers())
            total += has_contents(buffer.alloc_flags) ? buffer.size : 0;
    pipeline.expect(total);
    for (Held& held : held_) {
        if (held.id == 0)
            return fail(ErrorKind::kInternal, held.process.name(),
                        "its /dev/kfd was not among the open files");
        CKPT_TRY(save_contents(held, pipeline));
    }
    CKPT_TRY(pipeline.finish());
    is_transferred_ = true;
    return {};
}

Result<void> Checkpoint::complete() {
    if (!is_transferred_)
        return fail(ErrorKind::kInternal, "AMD GPUs", "nobody has copied their memory");
    return {};
}

// Whatever has become of the rest: queues do not stay off the GPUs.
Result<void> Checkpoint::resume() {
    std::vector<Error> failures;
    for (auto held = held_.rbegin(); held != held_.rend(); ++held) {
        held->process.drop_dmabufs();
        if (auto back = held->process.unpause(); !back)
            failures.push_back(std::move(back).error());
        else if (held->undo != 0)
            (void)host_.forget(host_.context, std::exchange(held->undo, 0));
    }
    if (failures.size() == 1)
        return tl::unexpected(std::move(failures.front()));
    return all_blockers("AMD GPUs", "queues could not be brought back", std::move(failures));
}

namespace {

// Traces a process for as long as this lives.
class Tracing {
  public:
    static Result<Tracing> begin(pid_t pid) {
        auto seized = ptrace_seize(pid, 0);
        if (!seized)
            return tl::unexpected(std::move(seized).error().with_remedy(
                "end what else traces it, and the job's undo follows"));
        return Tracing(pid);
    }
    Tracing(Tracing&& other) noexcept : pid_(std::exchange(other.pid_, 0)) {}
    Tracing& operator=(Tracing&&) = delete;
    ~Tracing() {
        if (pid_ == 0)
            return;
        // Detaching asks for a stop. A signal on its way stops it as well, and is passed on.
        int status = 0;
        if (!ptrace_interrupt(pid_) || waitpid(pid_, &status, __WALL) != pid_ ||
            !WIFSTOPPED(status))
            return;
        const int signal = status >> 16 == 0 ? WSTOPSIG(status) : 0;
        (void)ptrace(PTRACE_DETACH, pid_, nullptr, signal);
    }

  private:
    explicit Tracing(pid_t pid) : pid_(pid) {}
    pid_t pid_;
};

Result<void> unpause(const Kfd& kfd, pid_t pid, int number) {
    CKPT_ASSIGN(const ScopedFd process, pidfd_open(pid));
    CKPT_ASSIGN(const ScopedFd file, pidfd_get_fd(process.get(), number));
    struct stat status {};
    if (fstat(file.get(), &status) != 0 || !kfd.is_kfd(status))
        return {};  // it has gone on, and closed it
    kfd_ioctl_criu_args args{};
    args.op = KFD_CRIU_OP_UNPAUSE;
    const int code = kfd.criu_op(file.get(), &args);
    if (code == 0 || code == -EINVAL)  // EINVAL: they are not paused
        return {};
    return fail_errno(fmt::format("pid {} (AMD GPU)", pid), "KFD's UNPAUSE failed", -code);
}

}  // namespace

Result<void> undo_pause(const Kfd& kfd, const std::string& record) {
    int owner = 0, user = 0;
    unsigned long long start = 0, user_start = 0;
    int number = -1;
    const int count = std::sscanf(record.c_str(), "%d %llu %d %d %llu", &owner, &start, &number,
                                  &user, &user_start);
    if (count != 5 && count != 3)
        return fail(ErrorKind::kInternal, "plugins.undo",
                    "a record of the AMDGPU plugin cannot be read");
    if (count == 3) {  // of an older version: what it has opened itself
        user = owner;
        user_start = start;
    }
    CKPT_ASSIGN(const bool lives, process_lives(owner, start));
    if (!lives)
        return {};
    CKPT_ASSIGN(const bool has_file, process_lives(user, user_start));
    if (!has_file)
        return fail(
            ErrorKind::kGone, fmt::format("pid {} (AMD GPU)", owner),
            fmt::format("its queues are paused, and pid {}, which had its /dev/kfd, has ended",
                        user),
            "restart the program");
    CKPT_ASSIGN(const Tracing tracing, Tracing::begin(owner));
    return unpause(kfd, user, number);
}

}  // namespace checkpointd::amdgpu
