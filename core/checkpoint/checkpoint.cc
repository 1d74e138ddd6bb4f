// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/checkpoint/checkpoint.h"

#include <algorithm>
#include <ctime>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <unistd.h>

#include "core/base/io.h"
#include "core/checkpoint/forked_copies.h"
#include "core/checkpoint/held_devices.h"
#include "core/checkpoint/task_dump.h"
#include "core/inject/dead_bytes.h"
#include "core/kernel/cgroup.h"
#include "core/kernel/proc_task.h"
#include "core/memory/page_images.h"
#include "core/resources/files.h"
#include "core/resources/user_namespace.h"
#include "images/constants.h"
#include "images/image_dir.h"
#include "images/proto/namespaces.pb.h"
#include "images/proto/stats.pb.h"

namespace checkpointd {

using Clock = std::chrono::steady_clock;
using std::chrono::nanoseconds;

namespace {

// Pages on their way into files, and who holds those that are written last.
struct ImageMemory {
    explicit ImageMemory(images::ImageDir directory) : dir(std::move(directory)), pages(dir) {}
    ImageMemory(const ImageMemory&) = delete;
    ImageMemory& operator=(const ImageMemory&) = delete;

    images::ImageDir dir;
    PageImages pages;
    ForkedCopies copies;
};

// Adds the request's deadline to the caller's steps.
class TimedSteps : public Steps {
  public:
    TimedSteps(Steps& steps, std::optional<Clock::time_point> deadline)
        : steps_(steps), deadline_(deadline) {}

    Result<void> enter(std::string_view step) override {
        if (deadline_ && Clock::now() >= *deadline_)
            return fail(ErrorKind::kTimeout, std::string(step), "the deadline of the checkpoint passed",
                        "allow more time in the policy");
        return steps_.enter(step);
    }
    void moved(uint64_t done, uint64_t total) override { steps_.moved(done, total); }
    Clock::time_point deadline() const override {
        return std::min(steps_.deadline(), deadline_.value_or(Clock::time_point::max()));
    }

  private:
    Steps& steps_;
    std::optional<Clock::time_point> deadline_;
};

// Namespaces that every task of a unit shares with the others; the names of /proc/PID/ns, and where the
// id goes.
struct NamespaceKind {
    const char* name;
    void (images::task_kobj_ids_entry::*set)(uint32_t);
};
constexpr NamespaceKind kNamespaces[] = {
    {"pid", &images::task_kobj_ids_entry::set_pid_ns_id},
    {"net", &images::task_kobj_ids_entry::set_net_ns_id},
    {"ipc", &images::task_kobj_ids_entry::set_ipc_ns_id},
    {"uts", &images::task_kobj_ids_entry::set_uts_ns_id},
    {"time", &images::task_kobj_ids_entry::set_time_ns_id},
    {"mnt", &images::task_kobj_ids_entry::set_mnt_ns_id},
    {"user", &images::task_kobj_ids_entry::set_user_ns_id},
    {"cgroup", &images::task_kobj_ids_entry::set_cgroup_ns_id},
};

void set_namespaces(images::task_kobj_ids_entry& ids) {
    uint32_t id = 0;
    for (const NamespaceKind& kind : kNamespaces)
        (ids.*kind.set)(++id);
}

std::string name_of(pid_t pid) { return fmt::format("pid {}", pid); }

// The dump of one forest, from stopped to written.
class Dump {
  public:
    Dump(const CheckpointRequest& request, std::set<std::string> externals, Steps& steps,
         CheckpointStats& stats, SeizedForest& forest)
        : request_(request),
          steps_(steps),
          stats_(stats),
          forest_(forest),
          files_(collect_options(std::move(externals))),
          memory_{[this](const MappedFile& mapped) { return files_.id_of_mapping(mapped); },
                  [this](pid_t pid) { return files_.id_of_exe(pid); },
                  shared_,
                  blockers_},
          context_{pids_, seccomp_, memory_, blockers_, std::nullopt} {
        offer_mappings();
    }

    Result<void> collect();
    Result<void> write();
    Result<std::vector<pid_t>> order() const;
    // What write() left to be written.
    std::unique_ptr<ImageMemory> take_memory() { return std::move(memory_images_); }

  private:
    CollectOptions collect_options(std::set<std::string> externals);
    void offer_mappings();
    Result<std::optional<std::string>> offer_mapping(pid_t pid, const images::vma_entry& vma, const std::string& path,
                                                     int fd);
    Result<void> map_pids();
    Result<void> find_cgroup();
    Result<void> check_process(const SeizedProcess& process);
    Result<void> check_namespaces(const SeizedProcess& process);
    Result<void> check_users(const SeizedProcess& process);
    Result<void> collect_process(SeizedProcess& process);
    Result<void> collect_ids(TaskImages& task);
    Result<void> make_copies();
    ProcessSource source_of(const TaskImages& task) const;
    Result<void> write_task(const images::ImageDir& dir, const TaskImages& task);
    Result<void> add_shared_memory();
    Result<void> write_memory(const images::ImageDir& dir);
    Result<void> write_tree(const images::ImageDir& dir);
    Result<void> write_common(const images::ImageDir& dir);
    Result<void> write_clocks(const images::ImageDir& dir);
    Result<void> write_user_namespace(const images::ImageDir& dir);
    Result<void> write_inventory(const images::ImageDir& dir);
    void block(pid_t pid, std::string why, std::string remedy) {
        blockers_.push_back(
            Error{ErrorKind::kUnsupported, name_of(pid), std::move(why), std::move(remedy), 0, {}});
    }

    const CheckpointRequest& request_;
    Steps& steps_;
    CheckpointStats& stats_;
    SeizedForest& forest_;
    PidMap pids_;
    SeccompCollector seccomp_;
    std::vector<Error> blockers_;
    std::map<uint64_t, SharedSegment> shared_;
    FileCollector files_;
    SharedIds spaces_{KCMP_VM};
    SharedIds handlers_{KCMP_SIGHAND};
    AddressSpaceContext memory_;
    TaskDumpContext context_;
    std::map<pid_t, TaskImages> tasks_;
    std::map<std::string, uint64_t> namespaces_;  // of the first living process
    TimeOffsets clocks_;
    std::unique_ptr<ImageMemory> memory_images_;
};

CollectOptions Dump::collect_options(std::set<std::string> externals) {
    CollectOptions options{std::move(externals)};
    if (request_.plugins && request_.plugins->takes_files())
        options.ask_plugins = [this](const OpenFile& file, uint32_t id) {
            return request_.plugins->dump_file(file.pid, file.copy, id, steps_.deadline());
        };
    return options;
}

void Dump::offer_mappings() {
    if (request_.plugins && request_.plugins->takes_mappings())
        memory_.ask_plugins = [this](pid_t pid, const images::vma_entry& vma, const std::string& path, int fd) {
            return offer_mapping(pid, vma, path, fd);
        };
}

Result<std::optional<std::string>> Dump::offer_mapping(pid_t pid, const images::vma_entry& vma,
                                                       const std::string& path, int fd) {
    ckptd_vma offered{};
    offered.size = sizeof(offered);
    offered.fd = fd;
    offered.start = vma.start();
    offered.end = vma.end();
    offered.offset = vma.pgoff();
    offered.prot = vma.prot();
    offered.flags = vma.flags();
    offered.path = path.c_str();
    return request_.plugins->handle_vma(pid, offered, steps_.deadline());
}

Result<void> Dump::map_pids() {
    for (const SeizedProcess& process : forest_.processes()) {
        CKPT_ASSIGN(ProcStatus status, read_status(process.pid));
        pids_.add(status);
        for (const SeizedThread& thread : process.threads) {
            CKPT_ASSIGN(ProcStatus own, read_thread_status(process.pid, thread.tid()));
            pids_.add(own);
        }
    }
    return {};
}

Result<void> Dump::check_namespaces(const SeizedProcess& process) {
    for (const NamespaceKind& kind : kNamespaces) {
        CKPT_ASSIGN(uint64_t id, read_namespace_id(process.pid, kind.name));
        auto [known, is_first] = namespaces_.emplace(kind.name, id);
        if (!is_first && known->second != id)
            block(process.pid, fmt::format("lives in a {} namespace of its own", kind.name),
                  "processes of a unit that make namespaces cannot be checkpointed");
    }
    return {};
}

// Ids can only be chosen on the way into a user namespace (setgroups(2) is denied in systemd's),
// and the threads are made when their process is in.
Result<void> Dump::check_users(const SeizedProcess& process) {
    CKPT_ASSIGN(UserNamespace users, read_user_namespace(process.pid));
    if (!users)
        return {};
    CKPT_ASSIGN(ProcStatus leader, read_status(process.pid));
    for (const SeizedThread& thread : process.threads) {
        CKPT_ASSIGN(ProcStatus own, read_thread_status(process.pid, thread.tid()));
        if (own.uids != leader.uids || own.gids != leader.gids || own.groups != leader.groups)
            block(process.pid,
                  fmt::format("its thread {} has other user or group ids than it", own.pid),
                  "in a user namespace (PrivateUsers=) they must be the same");
    }
    return {};
}

Result<void> Dump::check_process(const SeizedProcess& process) {
    if (process.leader_exited)
        block(process.pid, "its first thread has ended and others run on",
              "the program must not leave main() by pthread_exit()");
    CKPT_TRY(check_namespaces(process));
    return check_users(process);
}

Result<void> Dump::collect_ids(TaskImages& task) {
    bool new_space = false;
    bool new_handlers = false;
    CKPT_ASSIGN(uint32_t space, spaces_.of(task.pid, &new_space));
    CKPT_ASSIGN(uint32_t handlers, handlers_.of(task.pid, &new_handlers));
    CKPT_ASSIGN(uint32_t table, files_.files_id(task.pid));
    CKPT_ASSIGN(uint32_t directory, files_.fs_id(task.pid));
    if (!new_space)
        block(task.pid, "shares its memory with another process (vfork or CLONE_VM)",
              "try again when the child has called exec");
    if (!new_handlers)
        block(task.pid, "shares its signal handlers with another process (CLONE_SIGHAND)", {});
    task.ids.set_vm_id(space);
    task.ids.set_sighand_id(handlers);
    task.ids.set_files_id(table);
    task.ids.set_fs_id(directory);
    set_namespaces(task.ids);
    return {};
}

Result<void> Dump::collect_process(SeizedProcess& process) {
    TaskImages& task = tasks_[process.pid];
    ++stats_.tasks;
    if (process.zombie)
        return observe_zombie(process, context_, task);
    stats_.threads += static_cast<unsigned>(process.threads.size());
    CKPT_TRY(check_process(process));
    CKPT_TRY(steps_.enter("checkpoint.observe"));
    if (memory_.ask_plugins)
        CKPT_TRY(steps_.enter("checkpoint.device-mappings"));
    CKPT_TRY(observe_task(process, context_, task));
    CKPT_TRY(steps_.enter("checkpoint.files"));
    if (request_.plugins && request_.plugins->takes_files())
        CKPT_TRY(steps_.enter("checkpoint.device-files"));
    CKPT_TRY(files_.collect(process.pid));
    CKPT_TRY(collect_ids(task));
    CKPT_TRY(steps_.enter("checkpoint.ask"));
    if (auto wiped = wipe_dead_stubs(process); !wiped)
        blockers_.push_back(std::move(wiped).error());
    return ask_task(process, context_, task);
}

// The cgroup's path as the kernel tells it to us: from the root of our cgroup namespace.
Result<void> Dump::find_cgroup() {
    const auto* target = std::get_if<CgroupTarget>(&request_.target);
    if (!target)
        return {};
    std::string_view best;
    for (const SeizedProcess& process : forest_.processes()) {
        CKPT_ASSIGN(const auto path, read_cgroup2_path(process.pid));
        const std::string own = path.value_or("");
        for (std::string_view part = own; part.size() > 1 && part.starts_with('/');
             part = part.substr(0, part.rfind('/')))
            if (std::string_view(target->path).ends_with(part) && part.size() > best.size()) {
                context_.cgroup = std::string(part);
                best = *context_.cgroup;
            }
    }
    return {};
}

Result<void> Dump::collect() {
    CKPT_TRY(steps_.enter("checkpoint.collect"));
    CKPT_TRY(map_pids());
    CKPT_TRY(find_cgroup());
    for (const SeizedProcess& process : forest_.processes())
        if (!process.zombie)
            files_.add_task({process.pid, pids_.image_pid(process.pid), process.pidfd.get()});
    for (SeizedProcess& process : forest_.processes())
        CKPT_TRY(collect_process(process));
    CKPT_TRY(files_.finish());
    blockers_.insert(blockers_.end(), files_.blockers().begin(), files_.blockers().end());
    return all_blockers("checkpoint", "there are objects that cannot be carried",
                        std::move(blockers_));
}

// Parents before children, the tree of the main process first.
Result<std::vector<pid_t>> Dump::order() const {
    std::map<pid_t, pid_t> root_of;
    std::vector<pid_t> main_tree;
    std::vector<pid_t> others;
    const auto& processes = forest_.processes();
    if (processes.empty())
        return fail(ErrorKind::kNotFound, "checkpoint", "there is no process to checkpoint");
    for (const SeizedProcess& process : processes) {
        auto parent = root_of.find(process.parent);
        root_of[process.pid] = parent == root_of.end() ? process.pid : parent->second;
    }
    pid_t main = request_.main_pid.value_or(processes.front().pid);
    if (!root_of.contains(main))
        return fail(ErrorKind::kBadInput, name_of(main), "is not among the processes to checkpoint");
    for (const SeizedProcess& process : processes)
        (root_of[process.pid] == root_of[main] ? main_tree : others).push_back(process.pid);
    main_tree.insert(main_tree.end(), others.begin(), others.end());
    return main_tree;
}

// The last thing that is done in the tasks: the copies hold this moment.
Result<void> Dump::make_copies() {
    CKPT_TRY(steps_.enter("checkpoint.fork"));
    std::vector<CopyCandidate> candidates;
    for (SeizedProcess& process : forest_.processes()) {
        const TaskImages& task = tasks_.at(process.pid);
        if (task.zombie)
            continue;
        uint64_t bytes = 0;
        for (const PageSegment& segment : task.memory.pages)
            bytes += segment.forks ? segment.run.end - segment.run.start : 0;
        candidates.push_back({&process, bytes, task.cores.front().tc().child_subreaper()});
    }
    memory_images_->copies = ForkedCopies::make(
        candidates, request_.copies_from.value_or(ForkedCopies::kWorthForking));
    stats_.copies = static_cast<unsigned>(memory_images_->copies.size());
    return {};
}

ProcessSource Dump::source_of(const TaskImages& task) const {
    ProcessSource source{task.pid, task.mem_fd};
    if (const ForkedCopy* copy = memory_images_->copies.of(task.pid)) {
        source.copy = copy->pid();
        source.copy_mem_fd = copy->mem_fd();
    }
    return source;
}

Result<void> Dump::write_task(const images::ImageDir& dir, const TaskImages& task) {
    for (size_t i = 0; i < task.cores.size(); ++i) {
        auto tid = static_cast<uint64_t>(task.tree.threads(static_cast<int>(i)));
        CKPT_TRY(dir.write_one(images::ImageType::kCore, tid, task.cores[i]));
    }
    if (task.zombie)
        return {};
    auto id = static_cast<uint64_t>(task.image_pid);
    CKPT_TRY(dir.write_one(images::ImageType::kIds, id, task.ids));
    CKPT_TRY(dir.write_one(images::ImageType::kMm, id, task.memory.mm));
    stats_.pages_scanned += task.memory.pages_scanned;
    return memory_images_->pages.add_process(task.image_pid, source_of(task), task.memory.pages);
}

Result<void> Dump::add_shared_memory() {
    PageImages& pages = memory_images_->pages;
    for (const auto& [inode, segment] : shared_)
        CKPT_TRY(pages.add_shared(inode, segment.fd.get(), segment.size));
    for (const WantedMemory& wanted : files_.wanted_memory())
        if (!shared_.contains(wanted.shmid))
            CKPT_TRY(pages.add_shared(wanted.shmid, wanted.fd.get(), wanted.size));
    return {};
}

Result<void> Dump::write_memory(const images::ImageDir& dir) {
    PageImages& pages = memory_images_->pages;
    CKPT_TRY(steps_.enter("checkpoint.write"));
    if (request_.plugins)
        request_.plugins->start_transfer(steps_.deadline());
    CKPT_ASSIGN(std::vector<pid_t> pids, order());
    for (pid_t pid : pids)
        CKPT_TRY(write_task(dir, tasks_.at(pid)));
    CKPT_TRY(add_shared_memory());
    CKPT_TRY(steps_.enter("checkpoint.memory"));
    if (request_.digests)
        pages.want_digests();
    CKPT_TRY(pages.run(steps_, request_.memory_threads));
    stats_.pages_written = pages.process_pages();
    stats_.shared_pages_written = pages.shared_pages();
    stats_.shared_pages_scanned = pages.shared_pages();
    stats_.bytes_written = pages.bytes();
    if (request_.digests && !request_.goes_on)
        stats_.digests = pages.digests();
    return {};
}

Result<void> Dump::write_tree(const images::ImageDir& dir) {
    CKPT_ASSIGN(images::ImageWriter tree, dir.create(images::ImageType::kPstree));
    CKPT_ASSIGN(images::ImageWriter extra, dir.create(images::ImageType::kTasks));
    CKPT_ASSIGN(std::vector<pid_t> pids, order());
    for (pid_t pid : pids) {
        const TaskImages& task = tasks_.at(pid);
        CKPT_TRY(tree.record(task.tree));
        if (!task.zombie)
            CKPT_TRY(extra.record(task.extra));
    }
    CKPT_TRY(tree.finish());
    return extra.finish();
}

Result<void> Dump::write_clocks(const images::ImageDir& dir) {
    constexpr int64_t kSecond = 1000000000;
    auto now = [](clockid_t clock, int64_t offset, images::timespec& out) {
        struct timespec host {};
        clock_gettime(clock, &host);
        int64_t value = host.tv_sec * kSecond + host.tv_nsec + offset;
        out.set_tv_sec(static_cast<uint64_t>(value / kSecond));
        out.set_tv_nsec(static_cast<uint64_t>(value % kSecond));
    };
    // Our own clocks may be shifted as well; what counts is what the tasks see.
    CKPT_ASSIGN(TimeOffsets own, read_time_offsets(getpid()));
    pid_t root = forest_.processes().front().pid;
    CKPT_ASSIGN(TimeOffsets theirs, read_time_offsets(root));
    images::timens_entry entry;
    now(CLOCK_MONOTONIC, theirs.monotonic - own.monotonic, *entry.mutable_monotonic());
    now(CLOCK_BOOTTIME, theirs.boottime - own.boottime, *entry.mutable_boottime());
    return dir.write_one(images::ImageType::kTimens, 0, entry);
}

Result<void> Dump::write_user_namespace(const images::ImageDir& dir) {
    auto living = std::find_if(forest_.processes().begin(), forest_.processes().end(),
                               [](const SeizedProcess& process) { return !process.zombie; });
    if (living == forest_.processes().end())
        return {};
    CKPT_ASSIGN(UserNamespace users, read_user_namespace(living->pid));
    if (!users)
        return {};
    images::task_kobj_ids_entry ids;
    set_namespaces(ids);
    return dir.write_one(images::ImageType::kUserns, ids.user_ns_id(), *users);
}

Result<void> Dump::write_inventory(const images::ImageDir& dir) {
    images::inventory_entry entry;
    entry.set_img_version(images::kImageVersion);
    entry.set_fdinfo_per_id(true);
    entry.set_ns_per_id(true);
    entry.set_root_cg_set(1);
    entry.set_lsmtype(images::NO_LSM);
    entry.set_network_lock_method(0);
    auto& used = *entry.mutable_plugins_entry();  // empty: none was; not there: nobody knows
    for (const std::string& name : request_.plugins ? request_.plugins->names() : std::vector<std::string>())
        used.add_plugins(name);
    images::task_kobj_ids_entry& ids = *entry.mutable_root_ids();
    // Ids of the dumper itself where CRIU writes; only its namespaces are ever compared.
    ids.set_vm_id(0);
    ids.set_files_id(0);
    ids.set_fs_id(0);
    ids.set_sighand_id(0);
    set_namespaces(ids);
    return dir.write_one(images::ImageType::kInventory, 0, entry);
}

Result<void> Dump::write_common(const images::ImageDir& dir) {
    CKPT_TRY(steps_.enter("checkpoint.finish"));
    CKPT_TRY(write_tree(dir));
    CKPT_TRY(dir.write_one(images::ImageType::kSeccomp, 0, seccomp_.image()));
    CKPT_TRY(write_clocks(dir));
    CKPT_TRY(write_user_namespace(dir));
    CKPT_TRY(files_.write(dir.fd()));
    return write_inventory(dir);
}

Result<void> Dump::write() {
    ScopedFd copy(fcntl(request_.image_dir_fd, F_DUPFD_CLOEXEC, 0));
    if (!copy)
        return fail_errno("image directory", "cannot use its descriptor");
    memory_images_ =
        std::make_unique<ImageMemory>(images::ImageDir::adopt(std::move(copy), "image"));
    // A driver knows of one owner of what it shares with a process.
    const bool has_devices = request_.plugins && !request_.plugins->empty();
    if (request_.goes_on && !has_devices)
        CKPT_TRY(make_copies());
    CKPT_TRY(write_memory(memory_images_->dir));
    return write_common(memory_images_->dir);
}

uint32_t microseconds(nanoseconds time) {
    return static_cast<uint32_t>(std::chrono::duration_cast<std::chrono::microseconds>(time).count());
}

nanoseconds phase(const CheckpointStats& stats, std::string_view name) {
    for (const PhaseTime& time : stats.phases)
        if (time.name == name)
            return time.took;
    return nanoseconds{0};
}

Result<void> write_stats(const images::ImageDir& dir, const CheckpointStats& stats) {
    images::stats_entry entry;
    images::dump_stats_entry& dump = *entry.mutable_dump();
    dump.set_freezing_time(microseconds(phase(stats, "freeze")));
    dump.set_frozen_time(microseconds(stats.frozen));
    const auto writing = phase(stats, "write") + phase(stats, "copies");
    dump.set_memdump_time(microseconds(writing));
    dump.set_memwrite_time(microseconds(writing));
    dump.set_pages_scanned(stats.pages_scanned);
    dump.set_pages_skipped_parent(0);
    dump.set_pages_written(stats.pages_written);
    dump.set_irmap_resolve(0);
    dump.set_pages_lazy(0);
    dump.set_shpages_scanned(stats.shared_pages_scanned);
    dump.set_shpages_skipped_parent(0);
    dump.set_shpages_written(stats.shared_pages_written);
    return dir.write_one(images::ImageType::kStatsDump, 0, entry);
}

Result<SeizedForest> seize(const CheckpointRequest& request, Steps& steps) {
    SeizeOptions options{request.freeze_timeout, &steps, request.namespace_init, request.before_freeze};
    if (const auto* cgroup = std::get_if<CgroupTarget>(&request.target))
        return SeizedForest::seize_cgroup(cgroup->path, options);
    return SeizedForest::seize_tree(std::get<TreeTarget>(request.target).root, options);
}

Result<std::vector<pid_t>> members(const CheckpointRequest& request) {
    if (const auto* cgroup = std::get_if<CgroupTarget>(&request.target))
        return cgroup_processes(cgroup->path);
    return read_process_tree(std::get<TreeTarget>(request.target).root);
}

// While everything runs: a driver that waits for work in flight must not wait for a task that stands.
Result<HeldDevices> quiesce(const CheckpointRequest& request, Steps& steps, Steps& caller_steps) {
    if (!request.plugins || request.plugins->empty())
        return HeldDevices();
    CKPT_ASSIGN(auto pids, members(request));
    CKPT_TRY(steps.enter("checkpoint.probe-devices"));
    CKPT_TRY(request.plugins->probe(pids, steps.deadline()));
    if (request.plugins->empty())
        return HeldDevices();
    CKPT_TRY(steps.enter("checkpoint.quiesce"));
    return HeldDevices::quiesce(*request.plugins, caller_steps, pids, steps.deadline());
}

Result<std::set<std::string>> all_externals(const CheckpointRequest& request,
                                            const SeizedForest& forest) {
    std::set<std::string> keys = request.externals;
    if (!request.find_externals)
        return keys;
    std::vector<pid_t> pids;
    for (const SeizedProcess& process : forest.processes())
        if (!process.zombie)
            pids.push_back(process.pid);
    CKPT_ASSIGN(std::set<std::string> found, request.find_externals(pids));
    keys.merge(found);
    return keys;
}

}  // namespace

// The members end in the reverse order: copies, then devices are given back, then the tasks go on.
class HeldForest::Impl {
  public:
    Impl(SeizedForest held, HeldDevices held_devices)
        : forest(std::move(held)), devices(std::move(held_devices)) {
        devices.standing(forest);
    }

    SeizedForest forest;
    HeldDevices devices;
    std::vector<pid_t> pids;
    std::optional<Clock::time_point> deadline;
    unsigned memory_threads = 0;
    bool digests = false;
    std::unique_ptr<ImageMemory> memory;  // where it goes on
};

HeldForest::HeldForest(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
HeldForest::HeldForest(HeldForest&&) noexcept = default;
HeldForest& HeldForest::operator=(HeldForest&&) noexcept = default;
HeldForest::~HeldForest() = default;

const std::vector<pid_t>& HeldForest::pids() const { return impl_->pids; }

Result<void> HeldForest::resume() { return let_go(&SeizedForest::release); }

Result<void> HeldForest::resume_stopped() { return let_go(&SeizedForest::release_stopped); }

// Devices before anything else: a thread that their driver works in must not find a SIGSTOP.
Result<void> HeldForest::let_go(Result<void> (SeizedForest::*release)()) {
    impl_->pids.clear();
    auto devices = impl_->devices.resume();
    CKPT_TRY((impl_->forest.*release)());
    if (impl_->memory)
        impl_->memory->copies.leave_cgroup();
    return devices;
}

Result<void> HeldForest::kill() {
    impl_->pids.clear();
    impl_->devices.abandon();
    return impl_->forest.kill_all();
}

Result<void> HeldForest::finish(Steps& caller_steps, CheckpointStats& stats) {
    const auto memory = std::exchange(impl_->memory, nullptr);
    if (!memory)
        return {};
    TimedSteps steps(caller_steps, impl_->deadline);
    const auto start = Clock::now();
    if (memory->pages.bytes_later() != 0) {
        CKPT_TRY(steps.enter("checkpoint.copies"));
        CKPT_TRY(memory->pages.run_later(steps, impl_->memory_threads));
    }
    memory->copies = {};
    if (impl_->digests)
        stats.digests = memory->pages.digests();
    stats.phases.push_back({"copies", Clock::now() - start});
    return write_stats(memory->dir, stats);
}

Result<HeldForest> checkpoint(const CheckpointRequest& request, Steps& caller_steps,
                              CheckpointStats& stats) {
    stats = {};
    TimedSteps steps(caller_steps, request.deadline);
    auto start = Clock::now();
    auto last = start;
    auto finish_phase = [&](std::string name) {
        auto now = Clock::now();
        stats.phases.push_back({std::move(name), now - last});
        last = now;
    };
    CKPT_ASSIGN(HeldDevices devices, quiesce(request, steps, caller_steps));
    finish_phase("quiesce");
    auto frozen = last;
    CKPT_ASSIGN(SeizedForest forest, seize(request, steps));
    finish_phase("freeze");
    HeldDevices held_devices(std::move(devices));  // ends before the forest does
    held_devices.standing(forest);
    if (request.plugins && !request.plugins->empty()) {
        CKPT_TRY(steps.enter("checkpoint.devices"));
        CKPT_TRY(held_devices.prepare(steps.deadline()));
        finish_phase("devices");
    }
    CKPT_ASSIGN(std::set<std::string> externals, all_externals(request, forest));
    Dump dump(request, std::move(externals), steps, stats, forest);
    CKPT_ASSIGN(std::vector<pid_t> pids, dump.order());
    CKPT_TRY(dump.collect());
    finish_phase("collect");
    CKPT_TRY(dump.write());
    if (request.plugins)
        CKPT_TRY(request.plugins->complete(steps.deadline()));
    finish_phase("write");
    stats.frozen = Clock::now() - frozen;
    auto memory = dump.take_memory();
    if (!request.goes_on) {
        CKPT_TRY(write_stats(memory->dir, stats));
        memory.reset();
    }
    auto held = std::make_unique<HeldForest::Impl>(std::move(forest), std::move(held_devices));
    held->pids = std::move(pids);
    held->deadline = request.deadline;
    held->memory_threads = request.memory_threads;
    held->digests = request.digests;
    held->memory = std::move(memory);
    return HeldForest(std::move(held));
}

}  // namespace checkpointd
