// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/cuda/session.h"

#include <algorithm>
#include <csignal>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/io.h"
#include "core/kernel/room.h"
#include "core/transaction/undo_kinds.h"
#include "plugins/cuda/devices.h"
#include "plugins/cuda/devices_image.h"
#include "plugins/cuda/kept_file.h"
#include "plugins/cuda/preflight.h"
#include "plugins/cuda/undo_record.h"
#include "plugins/host/cancelled.h"

namespace checkpointd::cuda {
namespace {

using Clock = std::chrono::steady_clock;

constexpr const char* kMoreTime = "raise timeouts.devices, or timeouts.total, in the policy";

constexpr const char* kControlDevice = "/dev/nvidiactl";

// Before a call that the driver must come to the end of: whether it is still wanted, and has time.
Result<void> check_wanted(const ckptd_call& call, const Process& process, Session::Deadline deadline) {
    const std::string object = fmt::format("pid {} (CUDA)", process.pid());
    if (is_cancelled(call.cancel_fd))
        return fail(ErrorKind::kCancelled, object, "nothing more was done with it: nobody wants that any more");
    if (Clock::now() >= deadline)
        return fail(ErrorKind::kTimeout, object, "its turn did not come in time", kMoreTime);
    return {};
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
        if (is_cancelled(cancel_fd) || readahead(fd, static_cast<off64_t>(at), kPiece) != 0)
            return;
    }
}

}  // namespace

Result<std::unique_ptr<Session>> Session::open(const ckptd_host& host, ckptd_purpose purpose) {
    CKPT_ASSIGN(Settings settings,
                Settings::read([&](const char* name) { return host.setting(host.context, name); }));
    if (access(kControlDevice, F_OK) != 0)
        return std::unique_ptr<Session>();
    return std::unique_ptr<Session>(new Session(host, purpose, std::move(settings)));
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

Result<bool> Session::probe(const std::vector<pid_t>& pids, Deadline deadline) {
    if (purpose_ == CKPTD_RESTORE) {
        CKPT_ASSIGN(backend_, open_backend(settings_));
        CKPT_ASSIGN(image_, check_restore(*backend_, settings_, host_, deadline));
        return true;
    }
    CKPT_ASSIGN(const bool found, find_processes(pids, deadline));
    if (found) {
        CKPT_ASSIGN(facts_, check_checkpoint(*backend_, settings_, pids, processes_, deadline));
    } else {
        CKPT_TRY(check_others(backend_.get(), pids, deadline));
    }
    return found;
}

// In the place of what was written down of it before: what does not know that a file has its device memory must not bring
// it back.
Result<void> Session::write_down(const Process& process, const char* way, const std::string& rest) {
    CKPT_ASSIGN(const uint64_t start, process_start_time(process.pid()));
    const UndoRecord record{process.pid(), start, way, facts_.usage.bytes_of(process.pid()), settings_.checkpoint_timeout, rest};
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
Result<void> Session::quiesce(const ckptd_call& call, Deadline deadline) {
    for (Process& process : processes_) {
        CKPT_TRY(check_wanted(call, process, deadline));
        CKPT_TRY(write_down(process, settings_.by_command ? UndoRecord::kByCommand : UndoRecord::kByDriver, settings_.command));
        CKPT_TRY(process.lock(settings_.lock_timeout, deadline));
    }
    return {};
}

// The file is in the journal, under a name of its own (keep_file()), because from the end of the copy on it alone has these
// numbers, should the helper die as well.
Result<void> Session::start_copy(Process& process, std::vector<Region> regions, Deadline deadline) {
    CKPT_ASSIGN(auto made, DeviceFile::create(host_, process.pid(), std::move(regions)));
    const DeviceFile& file = stored_.insert_or_assign(process.pid(), Stored{std::move(made), deadline}).first->second.file;
    facts_.usage.set(process.pid(), file.image().regions);
    CKPT_TRY(write_down(process, UndoRecord::kByStorage, file.kept()));
    return process.copy(file.image(), deadline);
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
    CKPT_TRY(facts_.usage.measure(process, deadline));
    if (settings_.checks_memory)
        CKPT_TRY(all_blockers("CUDA", "has no room in memory", facts_.usage.check_host_memory()));
    CKPT_TRY(write_down(process, UndoRecord::kByDriver, ""));
    return process.checkpoint(host_, deadline);
}

Result<void> Session::take_off(Process& process, Deadline deadline) {
    if (facts_.stores)
        return map(process, deadline);
    CKPT_TRY(facts_.usage.measure(process, deadline));  // from here on that stays
    return process.checkpoint(host_, deadline);
}

// `deadline` is that of all.
Session::Deadline Session::of_one(Deadline deadline) const {
    return std::min(deadline, Clock::now() + settings_.checkpoint_timeout);
}

// Where the driver's time passes, the policy may want that the process is not brought back: resume() does what is said here.
Result<void> Session::in_time(const Process& process, Result<void> done, Deadline deadline) {
    if (done || done.error().kind != ErrorKind::kTimeout)
        return done;
    done.error().remedy = Clock::now() >= deadline ? kMoreTime : "raise plugins.cuda.checkpoint-timeout in the policy";
    if (settings_.on_timeout == OnTimeout::kResume)
        return done;
    late_.insert(process.pid());
    const bool leaves = settings_.on_timeout == OnTimeout::kLeave;
    done.error().message += leaves ? "; it is left as it is, as plugins.cuda.on-timeout says"
                                   : "; it is ended, as plugins.cuda.on-timeout says";
    if (leaves)
        done.error().remedy += facts_.stores ? "; restart the unit"
                                             : fmt::format("; cuda-checkpoint --toggle --pid {}, or restart the unit", process.pid());
    return done;
}

// Of all that the processes have on devices.
void Session::tell_progress(const ckptd_call& call, pid_t pid, uint64_t bytes) {
    moved_[pid] = bytes;
    uint64_t done = 0, total = 0;
    for (const Process& process : processes_)
        total += facts_.usage.bytes_of(process.pid());
    for (const auto& [one, moved] : moved_)
        done += moved;
    call.progress(&call, done, total);
}

// One after the other they are mapped, while those that are copy. Children are completed before their parents. Only what
// is completed has let go of the device, so none of this can be left for later, when their memory is written.
Result<void> Session::prepare(const std::vector<pid_t>& pids, const ckptd_call& call, Deadline deadline) {
    if (purpose_ == CKPTD_RESTORE)
        return {};
    CKPT_TRY(check_newcomers(pids, processes_));
    for (Process& process : processes_) {
        CKPT_TRY(check_wanted(call, process, deadline));
        tell_progress(call, process.pid(), 0);
        CKPT_TRY(in_time(process, take_off(process, of_one(deadline)), deadline));
        tell_progress(call, process.pid(), stored_.contains(process.pid()) ? 0 : facts_.usage.bytes_of(process.pid()));
    }
    return finish_copies(call, deadline);
}

Result<void> Session::finish_copies(const ckptd_call& call, Deadline deadline) {
    for (auto process = processes_.rbegin(); process != processes_.rend(); ++process) {
        auto found = stored_.find(process->pid());
        if (found == stored_.end())
            continue;
        Stored& stored = found->second;
        const Watch watch{call.cancel_fd, [&](uint64_t bytes) { tell_progress(call, process->pid(), bytes); }};
        CKPT_TRY(in_time(*process, process->copied(stored.deadline, watch), deadline));
        CKPT_TRY(stored.file.end());
        CKPT_TRY(in_time(*process, process->finish(stored.deadline), deadline));
    }
    return {};
}

// What goes on beside the memory of the processes: the way of the files to or from the disk.
Result<void> Session::transfer(const ckptd_call& call) {
    for (const auto& [pid, stored] : stored_)
        if (purpose_ == CKPTD_CHECKPOINT)
            CKPT_TRY(stored.file.sync());
    for (const ScopedFd& file : image_.storages)
        read_ahead(file.get(), call.cancel_fd);
    return {};
}

// What the processes had is what they will need.
Result<void> Session::complete(Deadline deadline) {
    if (purpose_ == CKPTD_RESTORE)
        return {};
    DevicesImage image{processes_.size(), facts_.usage.devices(), {}, facts_.usage.known(), {}};
    if (!facts_.usage.is_all_known()) {
        CKPT_ASSIGN(image.after, ask_devices(*backend_, deadline));
    }
    for (const auto& [pid, stored] : stored_)
        image.storages.push_back(stored.file.name());
    ScopedFd file(host_.open_image(host_.context, kDevicesImage));
    if (!file)
        return fail_errno(kDevicesImage, "cannot be made");
    const std::string text = to_json(image);
    return write_all(file.get(), text.data(), text.size(), kDevicesImage);
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
    if (found != stored_.end() && found->second.file.is_whole())
        return found->second.file.image();
    if (purpose_ == CKPTD_CHECKPOINT)
        return Image();
    CKPT_ASSIGN(auto file, DeviceFile::open(host_, pid, image_.pairs));
    return file ? stored_.insert_or_assign(pid, Stored{std::move(*file), {}}).first->second.file.image() : Image();
}

Result<void> Session::bring_back(Process& process, Deadline deadline) {
    CKPT_ASSIGN(const Image image, image_of(process.pid()));
    return process.bring_back(&host_, image_.pairs, image, deadline);
}

// So that the second is copied while the first is.
Result<void> Session::begin_restores(Deadline deadline) {
    for (Process& process : processes_) {
        CKPT_ASSIGN(const Image image, image_of(process.pid()));
        if (image.fd >= 0)
            CKPT_TRY(process.begin_restore(&host_, image_.pairs, image, deadline));
    }
    return {};
}

Result<void> Session::find_restored(const std::vector<pid_t>& pids, Deadline deadline) {
    CKPT_TRY(find_processes(pids, deadline));
    if (processes_.size() < image_.processes)
        return fail(ErrorKind::kSystem, "CUDA", fmt::format("the driver knows {} of the {} processes that used it",
                                                            processes_.size(), image_.processes));
    return {};
}

Result<void> Session::resume(Process& process, Deadline deadline) {
    if (purpose_ == CKPTD_CHECKPOINT && !process.is_touched())
        return {};
    if (late_.contains(process.pid())) {
        leave_or_end(process);
        return {};
    }
    auto back = bring_back(process, of_one(deadline));
    if (!back && back.error().kind == ErrorKind::kTimeout)
        back = give_up_on(process, std::move(back).error(), deadline);
    CKPT_TRY(std::move(back));
    (void)forget(process.pid());
    if (auto stored = stored_.find(process.pid()); stored != stored_.end())
        drop_kept(stored->second.file.kept());
    return {};
}

// A restore ends with the first that does not come back, or with the wish of whoever began it; of a checkpoint all come
// back that can.
Result<void> Session::resume(const ckptd_call& call, const std::vector<pid_t>& pids, Deadline deadline) {
    if (purpose_ == CKPTD_RESTORE) {
        CKPT_TRY(find_restored(pids, deadline));
        CKPT_TRY(begin_restores(of_one(deadline)));
    }
    std::vector<Error> failures;
    for (auto process = processes_.rbegin(); process != processes_.rend(); ++process) {
        if (purpose_ == CKPTD_RESTORE)
            CKPT_TRY(check_wanted(call, *process, deadline));
        if (auto back = resume(*process, deadline); !back)
            failures.push_back(std::move(back).error());
        if (purpose_ == CKPTD_RESTORE && !failures.empty())
            break;
    }
    if (failures.size() == 1)
        return tl::unexpected(std::move(failures.front()));
    return all_blockers("CUDA", "could not be brought back", std::move(failures));
}

}  // namespace checkpointd::cuda
