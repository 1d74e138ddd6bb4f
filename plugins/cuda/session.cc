// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/cuda/session.h"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/io.h"
#include "core/kernel/liveness.h"
#include "core/kernel/proc_status.h"
#include "core/kernel/room.h"
#include "core/transaction/undo_kinds.h"
#include "plugins/cuda/devices_image.h"
#include "plugins/cuda/kept_file.h"
#include "plugins/cuda/preflight.h"
#include "plugins/cuda/storage_image.h"
#include "plugins/cuda/undo_record.h"

namespace checkpointd::cuda {
namespace {

using Clock = std::chrono::steady_clock;

constexpr const char* kControlDevice = "/dev/nvidiactl";
// For calls that ask, and for loading the driver, which takes seconds.
constexpr std::chrono::seconds kAskTime{60};

// Saves a call to the driver for each process: whoever uses CUDA has its library mapped.
bool may_use_cuda(pid_t pid) {
    auto maps = read_file(AT_FDCWD, fmt::format("/proc/{}/maps", pid));
    return maps && maps->find("libcuda.so") != std::string::npos;
}

std::string version_text(int version) { return fmt::format("{}.{}", version / 1000, version % 1000 / 10); }

std::string here_text(const Answer& devices) {
    return fmt::format("is of CUDA {} and has {} device{}", version_text(devices.value), devices.device_count,
                       devices.device_count == 1 ? "" : "s");
}

void append(std::vector<Error>& to, std::vector<Error> more) {
    std::move(more.begin(), more.end(), std::back_inserter(to));
}

// By the PID that it has for itself, as in all of an image.
Result<std::string> storage_name_of(pid_t pid) {
    CKPT_ASSIGN(const ProcStatus status, read_status(pid));
    return storage_image_name(status.ns_pids.empty() ? pid : status.ns_pids.back());
}

// Into the page cache, for as long as there is more than a half of free memory left.
void read_ahead(int fd, int cancel_fd) {
    constexpr uint64_t kPiece = 8u << 20;
    struct stat about {};
    if (fstat(fd, &about) != 0)
        return;
    const auto size = static_cast<uint64_t>(about.st_size);
    const uint64_t most = std::min(size, available_memory().value_or(0) / 2);
    for (uint64_t at = 0; at < most; at += kPiece) {
        pollfd cancel{cancel_fd, POLLIN, 0};
        if ((cancel_fd >= 0 && poll(&cancel, 1, 0) > 0) || readahead(fd, static_cast<off64_t>(at), kPiece) != 0)
            return;
    }
}

uint64_t size_of(const std::vector<Region>& regions) {
    uint64_t sum = 0;
    for (const Region& region : regions)
        sum += region.size;
    return sum;
}

Backend::Deadline soon(Backend::Deadline deadline) { return std::min(deadline, Clock::now() + kAskTime); }

}  // namespace

Result<std::unique_ptr<Session>> Session::open(const ckptd_host& host, ckptd_purpose purpose) {
    CKPT_ASSIGN(Settings settings,
                Settings::read([&](const char* name) { return host.setting(host.context, name); }));
    if (access(kControlDevice, F_OK) != 0)
        return std::unique_ptr<Session>();
    return std::unique_ptr<Session>(new Session(host, purpose, std::move(settings)));
}

Result<Answer> Session::devices(bool with_memory, Deadline deadline) {
    Request request;
    request.operation = with_memory ? Operation::kMemory : Operation::kHello;
    CKPT_ASSIGN(Answer answer, backend_->ask(request, soon(deadline)));
    if (answer.code == kSuccess && answer.value >= kBaseVersion)
        return answer;
    return fail(ErrorKind::kUnsupported, "CUDA driver", fmt::format("cannot checkpoint processes: {}", answer.text),
                "install a driver of version 570 or newer, or switch the plugin off (plugins: {cuda: no})");
}

Result<bool> Session::find_processes(const std::vector<pid_t>& pids, Deadline deadline) {
    processes_.clear();
    std::vector<pid_t> candidates;
    std::copy_if(pids.begin(), pids.end(), std::back_inserter(candidates), may_use_cuda);
    if (candidates.empty())
        return false;
    if (!backend_) {
        CKPT_ASSIGN(backend_, open_backend(settings_));
    }
    for (pid_t pid : candidates) {
        CKPT_ASSIGN(auto process, Process::find(*backend_, pid, soon(deadline)));
        if (process)
            processes_.push_back(*process);
    }
    return !processes_.empty();
}

uint64_t Session::taken_bytes() const {
    uint64_t taken = 0;
    for (uint32_t i = 0; i < before_.device_count; ++i)
        taken += before_.devices[i].total_bytes - before_.devices[i].free_bytes;
    return taken;
}

// Of a process of which nobody tells what it has, it may be all that is taken.
Result<void> Session::measure(Deadline deadline) {
    for (const Process& process : processes_)
        CKPT_TRY(measure(process, deadline));
    return {};
}

Result<void> Session::measure(const Process& process, Deadline deadline) {
    CKPT_ASSIGN(auto had, process.device_memory(soon(deadline)));
    bytes_[process.pid()] = had ? size_of(*had) : taken_bytes();
    had_[process.pid()] = std::move(had);
    return {};
}

// What the driver copies goes to memory of the processes first.
Result<std::vector<Error>> Session::check_host_memory() const {
    std::vector<Staging> processes;
    for (const auto& [pid, bytes] : bytes_)
        processes.push_back({pid, bytes});
    return settings_.checks_memory ? check_staging(processes, taken_bytes()) : std::vector<Error>();
}

Result<std::vector<Error>> Session::check_processes(Deadline deadline) {
    std::vector<Error> blockers;
    for (const Process& process : processes_) {
        CKPT_ASSIGN(const ProcessState state, process.state(soon(deadline)));
        if (state != ProcessState::kRunning)
            blockers.push_back({ErrorKind::kConflict, fmt::format("pid {} (CUDA)", process.pid()),
                                "is locked or checkpointed by somebody else already",
                                "bring it back: cuda-checkpoint --toggle --pid PID", 0, {}});
        append(blockers, find_mps(process.pid()));
    }
    return blockers;
}

// Everything that is known before anything is locked, in one answer.
Result<void> Session::check_here(const std::vector<pid_t>& pids, Deadline deadline) {
    std::vector<Error> blockers = find_instances();
    CKPT_ASSIGN(before_, devices(true, deadline));
    // A helper that dies with us would take what it has mapped along.
    const bool wants_storage = settings_.storage == StorageWanted::kCustom ||
                               (settings_.storage == StorageWanted::kAuto && backend_->outlives_us());
    stores_ = wants_storage && before_.offers_storage != 0;
    if (settings_.storage == StorageWanted::kCustom && !stores_)
        blockers.push_back({ErrorKind::kUnsupported, "CUDA driver", "gives device memory to nobody",
                            "install a driver of version 615 or newer, or set plugins: {cuda: {storage: auto}}", 0, {}});
    CKPT_TRY(measure(deadline));
    if (!stores_) {
        CKPT_ASSIGN(auto memory, check_host_memory());
        append(blockers, std::move(memory));
    }
    CKPT_ASSIGN(auto of_processes, check_processes(deadline));
    append(blockers, std::move(of_processes));
    append(blockers, leftovers(pids));
    if (!blockers.empty())
        blockers.push_back({blockers.front().kind, "CUDA driver", here_text(before_), {}, 0, {}});
    return all_blockers("CUDA", "cannot be carried", std::move(blockers));
}

std::vector<Error> Session::leftovers(const std::vector<pid_t>& pids) const {
    std::vector<Error> blockers;
    for (pid_t pid : pids)
        if (std::none_of(processes_.begin(), processes_.end(), [&](const Process& one) { return one.pid() == pid; }))
            append(blockers, find_leftovers(pid));
    return blockers;
}

Result<bool> Session::probe(const std::vector<pid_t>& pids, Deadline deadline) {
    if (purpose_ == CKPTD_RESTORE) {
        CKPT_ASSIGN(backend_, open_backend(settings_));
        CKPT_TRY(check_image(deadline));
        return true;
    }
    CKPT_ASSIGN(const bool found, find_processes(pids, deadline));
    if (found)
        CKPT_TRY(check_here(pids, deadline));
    else
        CKPT_TRY(all_blockers("CUDA", "cannot be carried", leftovers(pids)));
    return found;
}

// In the place of what was written down of it before: what does not know that a file has its device memory must not bring
// it back.
Result<void> Session::write_down(const Process& process, const char* way, const std::string& rest) {
    CKPT_ASSIGN(const uint64_t start, process_start_time(process.pid()));
    const UndoRecord record{process.pid(), start, way, bytes_[process.pid()], settings_.checkpoint_timeout, rest};
    const uint64_t id = host_.journal(host_.context, record.text().c_str());
    if (id == 0)
        return fail(ErrorKind::kSystem, "journal", "cannot write down that CUDA is to be unlocked");
    undo_[process.pid()].push_back(id);
    return forget(process.pid(), 1);
}

Result<void> Session::forget(pid_t pid, size_t but_last) {
    auto& ids = undo_[pid];
    for (; ids.size() > but_last; ids.erase(ids.begin()))
        if (host_.forget(host_.context, ids.front()) != 0)
            return fail_errno("journal", "cannot write down that a step is not to be undone any more");
    return {};
}

// All of them, before any task stands: work that is under way may need another of them to come to its end.
Result<void> Session::quiesce(const std::vector<pid_t>&) {
    for (Process& process : processes_) {
        CKPT_TRY(write_down(process, settings_.by_command ? UndoRecord::kByCommand : UndoRecord::kByDriver, settings_.command));
        CKPT_TRY(process.lock(settings_.lock_timeout));
    }
    return {};
}

// The name says which of its own memory it is, so that a restore finds it; the file is in the journal, under a name of its
// own (keep_file()), because from the end of the copy on it alone has these numbers, should the helper die as well.
Result<void> Session::start_copy(Process& process, std::vector<Region> regions, Deadline deadline) {
    place_regions(regions);
    Stored& stored = stored_[process.pid()];
    stored.deadline = deadline;
    stored.regions = std::move(regions);
    CKPT_ASSIGN(stored.name, storage_name_of(process.pid()));
    stored.file.reset(host_.open_image(host_.context, stored.name.c_str()));
    if (!stored.file)
        return fail_errno(stored.name, "cannot be made");
    CKPT_ASSIGN(const uint64_t start, process_start_time(process.pid()));
    CKPT_ASSIGN(stored.kept, keep_file(stored.file.get(), process.pid(), start));
    bytes_[process.pid()] = size_of(stored.regions);
    had_[process.pid()] = stored.regions;
    CKPT_TRY(write_down(process, UndoRecord::kByStorage, stored.kept));
    return process.copy({stored.file.get(), stored.regions}, deadline);
}

// Where the choice is ours and this driver cannot after all, it goes the old way.
Result<void> Session::map(Process& process, Deadline deadline) {
    CKPT_TRY(write_down(process, UndoRecord::kByStorage, ""));
    auto regions = process.map(host_, deadline);
    if (regions)
        return start_copy(process, std::move(*regions), deadline);
    auto state = regions.error().kind == ErrorKind::kTimeout ? Result<ProcessState>(ProcessState::kCheckpointing)
                                                             : process.state(soon(deadline));
    if (settings_.storage == StorageWanted::kCustom || !state || *state != ProcessState::kLocked)
        return tl::unexpected(std::move(regions).error());
    CKPT_TRY(measure(process, deadline));
    CKPT_ASSIGN(auto no_room, check_host_memory());
    CKPT_TRY(all_blockers("CUDA", "has no room in memory", std::move(no_room)));
    CKPT_TRY(write_down(process, UndoRecord::kByDriver, ""));
    return process.checkpoint(host_, deadline);
}

Result<void> Session::take_off(Process& process, Deadline deadline) {
    if (stores_)
        return map(process, deadline);
    CKPT_TRY(measure(process, deadline));  // from here on that stays
    return process.checkpoint(host_, deadline);
}

// Where the driver's time passes, the policy may want that the process is not brought back: resume() does what is said here.
Result<void> Session::in_time(const Process& process, Result<void> done) {
    if (done || done.error().kind != ErrorKind::kTimeout || settings_.on_timeout == OnTimeout::kResume)
        return done;
    late_.insert(process.pid());
    const bool leaves = settings_.on_timeout == OnTimeout::kLeave;
    done.error().message += leaves ? "; it is left as it is, as plugins.cuda.on-timeout says"
                                   : "; it is ended, as plugins.cuda.on-timeout says";
    if (leaves)
        done.error().remedy = stores_ ? "restart the unit" : fmt::format("cuda-checkpoint --toggle --pid {}, or restart the unit",
                                                                         process.pid());
    return done;
}

// One after the other they are mapped, while those that are copy. Children are completed before their parents. Only what
// is completed has let go of the device, so none of this can be left for later, when their memory is written.
Result<void> Session::prepare(const ckptd_call& call, Deadline deadline) {
    for (Process& process : processes_)
        if (purpose_ == CKPTD_CHECKPOINT)
            CKPT_TRY(in_time(process, take_off(process, std::min(deadline, Clock::now() + settings_.checkpoint_timeout))));
    return finish_copies(call);
}

// With its header, which nothing has that is not whole: the rest may be in memory of the helper.
Result<void> Session::end_file(Stored& stored) {
    const std::string header = storage_header(stored.regions);
    alignas(kStorageHeader) char page[kStorageHeader] = {};  // the file may be one that goes past the page cache
    std::copy(header.begin(), header.end(), page);
    if (pwrite(stored.file.get(), page, sizeof(page), 0) != static_cast<ssize_t>(sizeof(page)))
        return fail_errno(stored.name, "cannot be written");
    stored.is_whole = true;
    return {};
}

Result<void> Session::finish_copies(const ckptd_call& call) {
    uint64_t total = 0;
    for (const auto& [pid, stored] : stored_)
        for (const Region& region : stored.regions)
            total += region.size;
    for (auto process = processes_.rbegin(); process != processes_.rend(); ++process) {
        auto found = stored_.find(process->pid());
        if (found == stored_.end())
            continue;
        Watch watch{call.cancel_fd, [&](uint64_t bytes) {
                        found->second.bytes = bytes;
                        uint64_t done = 0;
                        for (const auto& [pid, stored] : stored_)
                            done += stored.bytes;
                        call.progress(&call, done, total);
                    }};
        CKPT_TRY(in_time(*process, process->copied(found->second.deadline, watch)));
        CKPT_TRY(end_file(found->second));
        CKPT_TRY(in_time(*process, process->finish(host_, found->second.deadline)));
    }
    return {};
}

// What goes on beside the memory of the processes: the way of the files to or from the disk.
Result<void> Session::transfer(const ckptd_call& call) {
    for (const auto& [pid, stored] : stored_)
        if (purpose_ == CKPTD_CHECKPOINT && fdatasync(stored.file.get()) != 0)
            return fail_errno(stored.name, "cannot be written");
    for (const ScopedFd& file : to_read_)
        read_ahead(file.get(), call.cancel_fd);
    return {};
}

// What the processes had is what they will need.
Result<void> Session::complete(Deadline deadline) {
    if (purpose_ == CKPTD_RESTORE)
        return {};
    DevicesImage image{processes_.size(), before_, {}, {}, {}};
    for (const auto& [pid, had] : had_)
        if (had)
            image.known.insert(image.known.end(), had->begin(), had->end());
    if (std::any_of(had_.begin(), had_.end(), [](const auto& one) { return !one.second; })) {
        CKPT_ASSIGN(image.after, devices(true, deadline));
    }
    for (const auto& [pid, stored] : stored_)
        image.storages.push_back(stored.name);
    ScopedFd file(host_.open_image(host_.context, kDevicesImage));
    if (!file)
        return fail_errno(kDevicesImage, "cannot be made");
    const std::string text = to_json(image);
    return write_all(file.get(), text.data(), text.size(), kDevicesImage);
}

Result<void> Session::check_storages(const WantedDevices& wanted, const Answer& here) {
    if (!wanted.storages.empty() && here.offers_storage == 0)
        return fail(ErrorKind::kUnsupported, "CUDA driver",
                    fmt::format("is of CUDA {}, and takes device memory from nobody, as this image needs",
                                version_text(here.value)),
                    "install a driver of version 615 or newer, and set backend: driver-api");
    for (const std::string& name : wanted.storages) {
        ScopedFd file(host_.open_image(host_.context, name.c_str()));
        if (!file)
            return fail_errno(name, "cannot be read");
        CKPT_TRY(read_storage_header(file.get(), name));
        to_read_.push_back(std::move(file));
    }
    return {};
}

Result<void> Session::check_image(Deadline deadline) {
    ScopedFd file(host_.open_image(host_.context, kDevicesImage));
    if (!file && errno == ENOENT)
        return {};  // of CRIU, which keeps no such list
    if (!file)
        return fail_errno(kDevicesImage, "cannot be read");
    CKPT_ASSIGN(const std::string text, read_fd(file.get(), kDevicesImage, 1 << 20));
    CKPT_ASSIGN(const auto wanted, parse_devices(text));
    wanted_processes_ = wanted.processes;
    CKPT_ASSIGN(const Answer here, devices(true, deadline));
    CKPT_TRY(check_storages(wanted, here));
    if (settings_.by_command)
        return {};  // the command does not tell which devices there are
    return check_devices(wanted.devices, here, settings_.device_map, settings_.checks_memory);
}

void Session::leave_or_end(const Process& process) {
    if (settings_.on_timeout == OnTimeout::kKill)
        (void)kill(process.pid(), SIGKILL);  // what there is in the journal of it is undone by that
    else
        (void)forget(process.pid());
}

// The driver's time has passed in that, too.
Result<void> Session::give_up_on(Process& process, Error why, Deadline deadline) {
    if (settings_.on_timeout == OnTimeout::kResume && purpose_ == CKPTD_CHECKPOINT)
        return bring_back(process, deadline);
    if (purpose_ == CKPTD_CHECKPOINT)
        leave_or_end(process);
    return tl::unexpected(std::move(why));
}

// Of a checkpoint that goes on or failed: what was copied, even where the helper that did it is gone. Of a restore: the file
// of the image, if there is one, for the devices that take the place of those it names.
Result<Image> Session::image_of(pid_t pid) {
    auto found = stored_.find(pid);
    if (found != stored_.end() && (found->second.is_whole || purpose_ == CKPTD_RESTORE))
        return Image{found->second.file.get(), found->second.regions};
    if (purpose_ == CKPTD_CHECKPOINT)
        return Image();
    Stored stored;
    CKPT_ASSIGN(stored.name, storage_name_of(pid));
    stored.file.reset(host_.open_image(host_.context, stored.name.c_str()));
    if (!stored.file)
        return errno == ENOENT ? Result<Image>(Image()) : fail_errno(stored.name, "cannot be read");
    CKPT_ASSIGN(stored.regions, read_storage_header(stored.file.get(), stored.name));
    for (Region& region : stored.regions)
        for (const GpuPair& pair : settings_.device_map)
            if (region.uuid == pair.from) {
                region.uuid = pair.to;
                break;
            }
    Image image{stored.file.get(), stored.regions};
    stored_[pid] = std::move(stored);
    return image;
}

Result<void> Session::bring_back(Process& process, Deadline deadline) {
    CKPT_ASSIGN(const Image image, image_of(process.pid()));
    return process.bring_back(&host_, purpose_ == CKPTD_RESTORE ? settings_.device_map : std::vector<GpuPair>(), image,
                              deadline);
}

// So that the second is copied while the first is.
Result<void> Session::begin_restores(Deadline deadline) {
    for (Process& process : processes_) {
        CKPT_ASSIGN(const Image image, image_of(process.pid()));
        if (image.fd >= 0)
            CKPT_TRY(process.begin_restore(&host_, settings_.device_map, image, deadline));
    }
    return {};
}

Result<void> Session::resume(const std::vector<pid_t>& pids, Deadline deadline) {
    if (purpose_ == CKPTD_RESTORE) {
        CKPT_TRY(find_processes(pids, deadline));
        if (processes_.size() < wanted_processes_)
            return fail(ErrorKind::kSystem, "CUDA", fmt::format("the driver knows {} of the {} processes that used it",
                                                                processes_.size(), wanted_processes_));
        CKPT_TRY(begin_restores(std::min(deadline, Clock::now() + settings_.checkpoint_timeout)));
    }
    std::vector<Error> failures;
    for (auto process = processes_.rbegin(); process != processes_.rend(); ++process) {
        if (purpose_ == CKPTD_CHECKPOINT && !process->is_touched())
            continue;
        if (late_.contains(process->pid())) {
            leave_or_end(*process);
            continue;
        }
        auto back = bring_back(*process, std::min(deadline, Clock::now() + settings_.checkpoint_timeout));
        if (!back && back.error().kind == ErrorKind::kTimeout)
            back = give_up_on(*process, std::move(back).error(), deadline);
        if (!back) {
            failures.push_back(std::move(back).error());
            continue;
        }
        (void)forget(process->pid());
        if (auto stored = stored_.find(process->pid()); stored != stored_.end())
            drop_kept(stored->second.kept);
    }
    if (failures.size() == 1)
        return tl::unexpected(std::move(failures.front()));
    return all_blockers("CUDA", "could not be brought back", std::move(failures));
}

static Result<void> undo_one(const UndoRecord& record, Backend::Deadline deadline) {
    CKPT_ASSIGN(const bool lives, process_lives(record.pid, record.start));
    if (!lives)
        return {};
    const bool is_stored = record.way == UndoRecord::kByStorage;
    Settings settings;
    settings.by_command = record.way == UndoRecord::kByCommand;
    settings.command = record.rest;
    CKPT_ASSIGN(auto own, open_backend(settings));
    // A call of the dead job that is still under way comes first.
    CKPT_ASSIGN(auto process, Process::find(*own, record.pid, deadline));
    if (!process)
        return may_use_cuda(record.pid) ? fail(ErrorKind::kSystem, fmt::format("pid {} (CUDA)", record.pid),
                                               "the driver knows nothing of it any more", "restart the unit")
                                        : Result<void>();  // it runs another program by now
    if (is_stored)
        process->expect_contents();
    // The helper has all that it copied; should it be gone, the file is yet there, and has a header if it is whole.
    ScopedFd file(is_stored ? ::open(record.rest.c_str(), O_RDONLY | O_CLOEXEC) : -1);
    auto regions = file ? read_storage_header(file.get(), record.rest) : std::vector<Region>();
    const Image image = file && regions ? Image{file.get(), *regions} : Image();
    return process->bring_back(nullptr, {}, image, deadline);
}

Result<void> Session::undo(const std::string& text, Deadline deadline) {
    const auto record = UndoRecord::parse(text);
    if (!record)
        return fail(ErrorKind::kInternal, "plugins.undo", "a record of the CUDA plugin cannot be read");
    CKPT_TRY(undo_one(*record, deadline));
    if (record->way == UndoRecord::kByStorage)
        drop_kept(record->rest);
    return {};
}

}  // namespace checkpointd::cuda
