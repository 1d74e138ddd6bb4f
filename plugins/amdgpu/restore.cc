// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/amdgpu/restore.h"

#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <algorithm>
#include <cerrno>
#include <charconv>
#include <climits>
#include <set>

#include "plugins/amdgpu/kfd_version.h"
#include "plugins/amdgpu/shared_memory.h"
#include "plugins/host/deadline.h"

namespace checkpointd::amdgpu {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kMostDescriptors = 250;  // of one message, see plugin.h
constexpr std::chrono::milliseconds kLookAround{200};
constexpr std::chrono::seconds kRoomPatience{2};
constexpr uint32_t kFilled = 1;
constexpr uint32_t kGivenUp = 2;

// Between the two parts; none where the name is another's.
std::optional<uint32_t> id_of(std::string_view name, std::string_view before,
                              std::string_view after) {
    if (!name.starts_with(before) || !name.ends_with(after) ||
        name.size() < before.size() + after.size())
        return std::nullopt;
    name.remove_prefix(before.size());
    name.remove_suffix(after.size());
    uint32_t id = 0;
    const auto end = std::from_chars(name.data(), name.data() + name.size(), id);
    return end.ec == std::errc() && end.ptr == name.data() + name.size() ? std::optional(id)
                                                                         : std::nullopt;
}

}  // namespace

FilledFlags::~FilledFlags() {
    if (words_ != nullptr)
        munmap(words_, count_ * sizeof(*words_));
}

Result<void> FilledFlags::make(size_t count) {
    static_assert(std::atomic<uint32_t>::is_always_lock_free);
    count_ = std::max<size_t>(count, 1);
    void* memory = mmap(nullptr, count_ * sizeof(*words_), PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return fail_errno("AMD GPUs", "memory for tasks to wait at");
    words_ = static_cast<std::atomic<uint32_t>*>(memory);
    return {};
}

void FilledFlags::set(size_t index, uint32_t value) {
    uint32_t before = 0;
    if (words_ != nullptr && words_[index].compare_exchange_strong(before, value))
        (void)syscall(SYS_futex, &words_[index], FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

void FilledFlags::fill(size_t index) {
    set(index, kFilled);
}

void FilledFlags::give_up() {
    for (size_t i = 0; words_ != nullptr && i < count_; ++i)
        set(i, kGivenUp);
}

int FilledFlags::wait(size_t index) const noexcept {
    while (words_[index] == 0)
        (void)syscall(SYS_futex, &words_[index], FUTEX_WAIT, 0, nullptr, nullptr, 0);
    return words_[index] == kFilled ? 0 : -EIO;
}

Restore::Restore(const ckptd_host& host, const Kfd& kfd, Settings settings)
    : host_(host), kfd_(kfd), settings_(std::move(settings)) {}

OpenImage Restore::open_image() const {
    return [this](const std::string& name) -> Result<ScopedFd> {
        ScopedFd file(host_.open_image(host_.context, name.c_str()));
        if (!file && errno != ENOENT)
            return fail_errno(name, "cannot be read");
        return file;
    };
}

Result<std::vector<uint32_t>> Restore::image_ids() const {
    std::set<uint32_t> ids;
    auto take = [](void* out, const char* name) {
        for (const char* kind : {"amdgpu-kfd-", "amdgpu-renderD-"})
            if (auto id = id_of(name, kind, ".img"))
                static_cast<std::set<uint32_t>*>(out)->insert(*id);
    };
    if (host_.list_images(host_.context, take, &ids) != 0)
        return fail_errno("images of AMD GPUs", "cannot be listed");
    return std::vector<uint32_t>(ids.begin(), ids.end());
}

ReadContent Restore::reader_of(std::string name) const {
    return [this, name = std::move(name)](uint64_t offset, uint64_t size,
                                          std::byte* room) -> Result<std::byte*> {
        void* contents = nullptr;
        if (host_.read_contents(host_.context, name.c_str(), offset, size, room, &contents) == 0)
            return static_cast<std::byte*>(contents);
        if (errno == EBADMSG)
            return fail(ErrorKind::kBadImage, name, "is damaged", "take another image of the unit");
        if (errno == ENODATA)
            return fail(ErrorKind::kBadImage, name, "ends too early");
        return fail_errno(name, "cannot be read");
    };
}

Result<void> Restore::check_pages(const RestoredProcess& process) const {
    for (const auto& [gpu, bytes] : process.bytes_of_gpus()) {
        const std::string name = pages_image_name(process.id(), gpu);
        CKPT_ASSIGN(const ScopedFd file, open_image()(name));
        if (!file)
            return fail(ErrorKind::kBadImage, name, "is missing");
        CKPT_TRY(check_image_size(file.get(), name, bytes));
        alignas(UncachedFile::kPage) std::byte room[UncachedFile::room_for(kImageHeader)];
        CKPT_TRY(reader_of(name)(0, kImageHeader, room));  // for the digest of what it begins with
    }
    return {};
}

Result<void> Restore::read_process_image(uint32_t id, const pb::Process& process) {
    CKPT_ASSIGN(GpuMap map, map_gpus(topology_of(process), here_, settings_.rules));
    CKPT_ASSIGN(RestoredProcess made, RestoredProcess::prepare(id, process, here_, map));
    CKPT_TRY(check_pages(made));
    map_.merge(map);
    processes_.push_back(std::move(made));
    if (process.shared_memory_size() > shared_memory_size_) {
        shared_memory_size_ = process.shared_memory_size();
        shared_memory_magic_ = process.shared_memory_magic();
    }
    return {};
}

Result<void> Restore::read_render_image(uint32_t id, const pb::RenderNode& node) {
    if (node.buffer_count() != 0 || node.buffers_size() != 0)
        return fail(
            ErrorKind::kUnsupported, render_image_name(id),
            fmt::format("has {} buffers that were made through the render node",
                        node.buffer_count()),
            "memory of graphics, of video and shared between processes cannot be brought back");
    auto actual = map_.find(node.gpu_id());
    const Node* gpu = actual == map_.end() ? nullptr : here_.by_gpu_id(actual->second);
    if (gpu == nullptr)
        return fail(ErrorKind::kBadImage, render_image_name(id),
                    fmt::format("is of {}, which no process has", gpu_name(node.gpu_id())));
    render_files_.push_back({id, static_cast<uint32_t>(gpu->drm_render_minor)});
    return {};
}

Result<void> Restore::probe() {
    CKPT_ASSIGN(const auto ids, image_ids());
    if (ids.empty())
        return {};  // an image of a time when images did not say who is needed
    std::vector<Error> blockers;
    // Processes that want the same GPUs lack the same ones.
    auto keep = [&](Result<void> result) {
        const auto is_same = [&](const Error& one) { return one.text() == result.error().text(); };
        if (!result && std::none_of(blockers.begin(), blockers.end(), is_same))
            blockers.push_back(std::move(result).error());
    };
    keep(check_kfd_version(kfd_));
    CKPT_ASSIGN(here_, read_topology(kfd_.topology_root()));
    for (uint32_t id : ids) {
        auto process = read_process(open_image(), id);
        if (!process)
            blockers.push_back(std::move(process).error());
        else if (*process)
            keep(read_process_image(id, **process));
    }
    const bool has_map = blockers.empty();
    for (uint32_t id : has_map ? ids : std::vector<uint32_t>()) {
        auto node = read_render_node(open_image(), id);
        if (!node)
            blockers.push_back(std::move(node).error());
        else if (*node)
            keep(read_render_image(id, **node));
    }
    for (Error& missing : lacking_room())
        blockers.push_back(std::move(missing));
    if (blockers.size() == 1)
        return tl::unexpected(std::move(blockers.front()));
    return all_blockers("AMD GPUs", "cannot be restored here", std::move(blockers));
}

// Of all processes together, those that do fit here.
std::vector<Error> Restore::lacking_room() const {
    NeededRoom needed;
    for (const RestoredProcess& process : processes_)
        process.add_to(needed);
    return settings_.checks_memory ? missing_room(kfd_, needed, kRoomPatience)
                                   : std::vector<Error>();
}

Result<void> Restore::prepare() {
    CKPT_TRY(make_shared_memory({shared_memory_size_, shared_memory_magic_}));
    nodes_ = std::make_unique<TaskRenderNodes>(here_);
    received_.assign(processes_.size(), 0);
    filled_count_ = std::make_unique<std::atomic<size_t>[]>(processes_.size());
    return settings_.is_parallel ? Result<void>() : filled_.make(processes_.size());
}

int Restore::restore_file(pid_t, uint32_t id) noexcept {
    for (const RenderFile& file : render_files_)
        if (file.id == id)
            return nodes_->open(kfd_, file.minor);
    for (size_t i = 0; i < processes_.size(); ++i) {
        if (processes_[i].id() != id)
            continue;
        const int fd = processes_[i].restore(kfd_, *nodes_);
        if (fd < 0)
            return fd;
        current_ = &processes_[i];
        const int code = hand_over(i);
        return code == 0 ? fd : code;
    }
    return -ENOTSUP;
}

// The task's own descriptors go: the worker fills the buffers through its copies.
int Restore::hand_over(size_t index) noexcept {
    const RestoredProcess& process = processes_[index];
    const size_t count = process.contents().size();
    int fds[kMostDescriptors];
    for (size_t first = 0; first < count;) {
        const size_t part = std::min(count - first, kMostDescriptors);
        for (size_t i = 0; i < part; ++i)
            fds[i] = process.dmabuf(first + i);
        const Message message{static_cast<uint32_t>(index), static_cast<uint32_t>(first)};
        if (host_.send(host_.context, &message, sizeof(message), fds, part) != 0)
            return -errno;
        for (size_t i = 0; i < part; ++i)
            close(fds[i]);
        first += part;
    }
    return settings_.is_parallel || count == 0 ? 0 : filled_.wait(index);
}

int Restore::update_vma(pid_t, ckptd_vma* vma) noexcept {
    return current_ != nullptr && current_->map(vma->path, &vma->offset, &vma->fd) ? 0 : 1;
}

void Restore::count_filled(size_t process) {
    if (++filled_count_[process] == processes_[process].contents().size())
        filled_.fill(process);
}

Result<void> Restore::add(const Message& message, std::vector<ScopedFd> dmabufs,
                          TransferPipeline& pipeline) {
    if (message.process >= processes_.size() || message.first != received_[message.process] ||
        dmabufs.size() > processes_[message.process].contents().size() - message.first)
        return fail(ErrorKind::kInternal, "AMD GPUs", "a task has sent what it should not");
    const RestoredProcess& process = processes_[message.process];
    received_[message.process] += dmabufs.size();
    for (size_t i = 0; i < dmabufs.size(); ++i) {
        const RestoredProcess::Content& content = process.contents()[message.first + i];
        pipeline.add(content.render_minor,
                     {std::move(dmabufs[i]), nullptr,
                      reader_of(pages_image_name(process.id(), content.user_gpu)),
                      content.file_offset, content.size, process.content_name(content),
                      [this, index = message.process] { count_filled(index); }});
    }
    return {};
}

// False: the last one has come.
Result<bool> Restore::receive_one(const TransferOptions& options, TransferPipeline& pipeline) {
    Message message;
    int fds[kMostDescriptors];
    size_t count = kMostDescriptors;
    const auto deadline = std::min(options.deadline, Clock::now() + kLookAround);
    const ssize_t size = host_.receive(host_.context, &message, sizeof(message), fds, &count,
                                       deadline_usec(deadline));
    if (size < 0 && errno == ETIMEDOUT && Clock::now() < options.deadline)
        return true;
    if (size < 0)
        return tl::unexpected(system_error("AMD GPUs", "nothing comes from the tasks", errno));
    if (size == 0)
        return false;
    std::vector<ScopedFd> dmabufs;
    for (size_t i = 0; i < count; ++i)
        dmabufs.emplace_back(fds[i]);
    if (size != sizeof(message))
        return fail(ErrorKind::kInternal, "AMD GPUs", "a task has sent what it should not");
    CKPT_TRY(add(message, std::move(dmabufs), pipeline));
    return true;
}

Result<void> Restore::receive_all(const TransferOptions& options, TransferPipeline& pipeline) {
    for (bool more = true; more && !pipeline.failed();) {
        CKPT_ASSIGN(more, receive_one(options, pipeline));
    }
    for (size_t i = 0; i < processes_.size() && !pipeline.failed(); ++i)
        if (received_[i] != processes_[i].contents().size())
            return fail(ErrorKind::kInternal, processes_[i].name(),
                        "its buffers were not handed over");
    return {};
}

Result<void> Restore::transfer(const TransferOptions& options) {
    TransferPipeline pipeline(Direction::kToDevice, options,
                              [this](uint32_t minor) { return kfd_.open_engine(minor); });
    uint64_t total = 0;
    for (const RestoredProcess& process : processes_)
        total += process.content_bytes();
    pipeline.expect(total);
    auto result = receive_all(options, pipeline);
    if (result)
        result = pipeline.finish();
    if (!result)
        filled_.give_up();
    return result;
}

Result<void> Restore::resume(const std::vector<pid_t>& pids) {
    if (processes_.empty())
        return {};
    const ScopedFd own(kfd_.open_kfd());
    if (!own)
        return fail_errno("/dev/kfd", "cannot be opened", -own.get());
    size_t resumed = 0;
    for (pid_t pid : pids) {
        kfd_ioctl_criu_args args{};
        args.op = KFD_CRIU_OP_RESUME;
        args.pid = static_cast<uint32_t>(pid);
        const int code = kfd_.criu_op(own.get(), &args);
        if (code == 0)
            ++resumed;
        else if (code != -ESRCH)  // ESRCH: it has no /dev/kfd
            return fail_errno(fmt::format("pid {} (AMD GPU)", pid), "KFD's RESUME failed", -code);
    }
    if (resumed == processes_.size())
        return {};
    return fail(
        ErrorKind::kSystem, "AMD GPUs",
        fmt::format("KFD knows {} of the {} processes that used it", resumed, processes_.size()));
}

}  // namespace checkpointd::amdgpu
