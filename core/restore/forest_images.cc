// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/restore/forest_images.h"

#include <fcntl.h>
#include <set>

#include <fmt/core.h>

#include "core/restore/restore.h"
#include "images/constants.h"

namespace checkpointd {

using images::ImageDir;
using images::ImageType;

namespace {

constexpr uint64_t kPage = 4096;
constexpr uint32_t kPidLimit = 1u << 22;  // PID_MAX_LIMIT in include/linux/threads.h

tl::unexpected<Error> bad(const TaskRecord& task, std::string message) {
    return fail(ErrorKind::kBadImage, task.object(), std::move(message));
}

// They stand behind the mappings in which they lie.
Result<void> take_guards_out(TaskRecord& task) {
    auto& vmas = *task.mm.mutable_vmas();
    for (int i = vmas.size() - 1; i >= 0 && vmas[i].status() & images::kVmaGuard; i--) {
        const images::vma_entry& guard = vmas[i];
        if (guard.start() % kPage != 0 || guard.end() % kPage != 0 || guard.start() >= guard.end())
            return bad(task, fmt::format("guard {:#x}-{:#x} cannot be right", guard.start(),
                                         guard.end()));
        task.guards.push_back(guard);
        vmas.RemoveLast();
    }
    return {};
}

Result<void> check_mappings(const TaskRecord& task) {
    uint64_t end = 0;
    for (const images::vma_entry& vma : task.mm.vmas()) {
        if (vma.status() & images::kVmaVsyscall)
            continue;
        bool aligned = vma.start() % kPage == 0 && vma.end() % kPage == 0;
        if (!aligned || vma.start() >= vma.end() || vma.start() < end ||
            vma.end() > kUserMemoryEnd)
            return bad(task, fmt::format("mapping {:#x}-{:#x} cannot be right", vma.start(),
                                         vma.end()));
        end = vma.end();
    }
    return {};
}

Result<PageRuns> read_runs(const ImageDir& dir, ImageType type, uint64_t id) {
    CKPT_ASSIGN(images::ImageReader reader, dir.open_image(type, id));
    CKPT_ASSIGN(auto head, reader.expect<images::pagemap_head>());
    CKPT_ASSIGN(auto runs, reader.rest<images::pagemap_entry>());
    for (images::pagemap_entry& run : runs) {
        if (!run.has_nr_pages())
            run.set_nr_pages(run.compat_nr_pages());
        if (!run.has_flags())  // before flags there was only "in the parent" or here
            run.set_flags(run.in_parent() ? images::kPagesInParent : images::kPagesPresent);
        if (run.vaddr() % kPage != 0 || run.nr_pages() > kUserMemoryEnd / kPage ||
            run.vaddr() > kUserMemoryEnd || run.vaddr() + run.nr_pages() * kPage > kUserMemoryEnd)
            return tl::unexpected(reader.bad("a run of pages cannot be right"));
    }
    return PageRuns{head.pages_id(), std::move(runs)};
}

Result<void> check_core(const TaskRecord& task, const images::core_entry& core, bool leader) {
    if (core.mtype() != images::core_entry::X86_64)
        return fail(ErrorKind::kUnsupported, task.object(), "is of another architecture");
    if (leader && !core.has_tc())
        return bad(task, "its core image has no task part");
    if (!task.zombie() && (!core.has_thread_info() || !core.has_thread_core()))
        return bad(task, "its core image lacks a thread's state");
    return {};
}

Result<void> read_threads(const ImageDir& dir, TaskRecord& task) {
    for (int i = 1; i < task.entry.threads_size(); i++) {
        uint32_t tid = task.entry.threads(i);
        CKPT_ASSIGN(auto core, dir.read_one<images::core_entry>(ImageType::kCore, tid));
        CKPT_TRY(check_core(task, core, false));
        task.threads.emplace(static_cast<pid_t>(tid), std::move(core));
    }
    return {};
}

Result<TaskRecord> read_task(const ImageDir& dir, const images::pstree_entry& entry) {
    TaskRecord task;
    task.entry = entry;
    CKPT_ASSIGN(task.core, dir.read_one<images::core_entry>(ImageType::kCore, entry.pid()));
    CKPT_TRY(check_core(task, task.core, true));
    if (task.zombie())
        return task;
    CKPT_TRY(read_threads(dir, task));
    if (task.core.has_ids()) {
        task.ids = task.core.ids();
    } else {
        CKPT_ASSIGN(task.ids,
                    dir.read_one<images::task_kobj_ids_entry>(ImageType::kIds, entry.pid()));
    }
    CKPT_ASSIGN(task.mm, dir.read_one<images::mm_entry>(ImageType::kMm, entry.pid()));
    CKPT_TRY(take_guards_out(task));
    CKPT_TRY(check_mappings(task));
    CKPT_ASSIGN(task.pages, read_runs(dir, ImageType::kPagemap, entry.pid()));
    return task;
}

Result<void> read_extra(const ImageDir& dir, ForestImages& forest) {
    CKPT_ASSIGN(auto extras, dir.read_all<images::process_extra_entry>(ImageType::kTasks));
    for (images::process_extra_entry& extra : extras)
        for (TaskRecord& task : forest.tasks)
            if (static_cast<uint32_t>(task.pid()) == extra.pid()) {
                task.extra = std::move(extra);
                break;
            }
    return {};
}

Result<void> check_numbers(const std::vector<images::pstree_entry>& entries) {
    std::set<uint32_t> seen;
    auto number = [&](uint32_t id) { return id > 0 && id < kPidLimit && seen.insert(id).second; };
    for (const images::pstree_entry& entry : entries) {
        bool good = number(entry.pid()) && entry.threads_size() >= 1 &&
                    entry.threads(0) == entry.pid() && entry.sid() < kPidLimit &&
                    entry.pgid() < kPidLimit;
        for (int i = 1; good && i < entry.threads_size(); i++)
            good = number(entry.threads(i));
        if (!good)
            return fail(ErrorKind::kBadImage, fmt::format("pid {}", entry.pid()),
                        "the numbers in the process tree cannot be right");
    }
    return {};
}

}  // namespace

bool TaskRecord::zombie() const {
    uint32_t state = core.tc().task_state();
    return state == images::kTaskDead || state == images::kTaskZombie;
}

bool TaskRecord::stopped() const {
    return core.tc().task_state() == images::kTaskStopped;
}

std::string TaskRecord::object() const {
    return fmt::format("pid {} ({})", entry.pid(), name());
}

const images::thread_extra_entry& TaskRecord::thread_extra(pid_t tid) const {
    for (const images::thread_extra_entry& thread : extra.threads())
        if (thread.tid() == static_cast<uint32_t>(tid))
            return thread;
    return images::thread_extra_entry::default_instance();
}

const TaskRecord* ForestImages::find(pid_t pid) const {
    for (const TaskRecord& task : tasks)
        if (task.pid() == pid)
            return &task;
    return nullptr;
}

Result<PageRuns> read_shared_pages(const ImageDir& dir, uint64_t shmid) {
    return read_runs(dir, ImageType::kPagemapShmem, shmid);
}

Result<ForestImages> read_forest(const ImageDir& dir) {
    ForestImages forest;
    CKPT_ASSIGN(forest.inventory,
                dir.read_one<images::inventory_entry>(ImageType::kInventory));
    CKPT_ASSIGN(auto entries, dir.read_all<images::pstree_entry>(ImageType::kPstree));
    if (entries.empty())
        return fail(ErrorKind::kBadImage, dir.name(), "there is no process in the image");
    CKPT_TRY(check_numbers(entries));
    for (const images::pstree_entry& entry : entries) {
        CKPT_ASSIGN(TaskRecord task, read_task(dir, entry));
        forest.tasks.push_back(std::move(task));
    }
    CKPT_TRY(read_extra(dir, forest));
    CKPT_ASSIGN(auto filters, dir.read_all<images::seccomp_entry>(ImageType::kSeccomp));
    if (!filters.empty())
        forest.seccomp = std::move(filters.front());
    CKPT_ASSIGN(auto clocks, dir.read_all<images::timens_entry>(ImageType::kTimens));
    if (!clocks.empty())
        forest.clocks = std::move(clocks.front());
    uint32_t user_namespace = forest.inventory.root_ids().user_ns_id();
    CKPT_ASSIGN(auto users, dir.read_all<images::userns_entry>(ImageType::kUserns, user_namespace));
    if (!users.empty())
        forest.user_namespace = std::move(users.front());
    return forest;
}

Result<std::optional<std::vector<std::string>>> plugins_of_image(int image_dir_fd) {
    using Names = std::vector<std::string>;
    ScopedFd copy(fcntl(image_dir_fd, F_DUPFD_CLOEXEC, 0));
    if (!copy)
        return fail_errno("image directory", "cannot use its descriptor");
    const auto dir = ImageDir::adopt(std::move(copy), "image");
    CKPT_ASSIGN(auto inventory, dir.read_one<images::inventory_entry>(ImageType::kInventory));
    if (!inventory.has_plugins_entry())
        return std::optional<Names>();
    const auto& names = inventory.plugins_entry().plugins();
    return std::optional<Names>(Names(names.begin(), names.end()));
}

}  // namespace checkpointd
