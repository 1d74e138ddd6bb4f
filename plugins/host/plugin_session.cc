// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/host/plugin_session.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <dirent.h>
#include <fcntl.h>

#include "plugins/host/deadline.h"
#include "plugins/host/plugin_call.h"

namespace checkpointd {
namespace {

// Of some files of CRIU's plugins.
constexpr std::string_view kCriuPrefix = "gpu-";
// Who notices himself that his time is over knows more of it.
constexpr std::chrono::seconds kOwnWord{1};

tl::unexpected<Error> too_late(const std::string& plugin, const char* step) {
    return fail(ErrorKind::kTimeout, fmt::format("plugin '{}'", plugin), fmt::format("took too long to {}", step),
                "allow more time in timeouts: of the policy");
}

}  // namespace

int with_errno(int code) {
    if (code == 0)
        return 0;
    errno = code;
    return -1;
}

Plugins::Session::Session(PluginLibrary library, const PluginOptions& options,
                          const Cancellation& cancellation, ckptd_purpose purpose)
    : library_(library), options_(options), cancellation_(cancellation), purpose_(purpose) {
    host_.size = sizeof(host_);
    host_.abi = CKPTD_PLUGIN_ABI;
    host_.context = this;
    host_.setting = [](void* self, const char* name) { return of(self).setting(name); };
    host_.journal = [](void* self, const char* record) { return of(self).write_down(record); };
    host_.forget = [](void* self, uint64_t id) { return of(self).forget(id); };
    offer_images();
    offer_threads();
    offer_messages();
}

Plugins::Session::~Session() {
    if (channel_)
        channel_->cancel();
    transfer_.reset();
    if (self_ != nullptr)
        table().close(self_);
}

void Plugins::Session::offer_images() {
    host_.open_image = [](void* self, const char* name) { return of(self).open_image(name); };
    host_.list_images = [](void* self, void (*take)(void*, const char*), void* out) {
        return of(self).list_images(take, out);
    };
    host_.read_contents = [](void* self, const char* name, uint64_t offset, uint64_t size, void* room, void** contents) {
        return of(self).read_contents(name, offset, size, room, contents);
    };
}

void Plugins::Session::offer_threads() {
    host_.run_thread = [](void* self, pid_t pid, pid_t tid) {
        ThreadControl* control = of(self).control;
        return with_errno(control == nullptr ? EBUSY : control->run(pid, tid));
    };
    host_.hold_thread = [](void* self, pid_t pid, pid_t tid, uint64_t deadline) {
        ThreadControl* control = of(self).control;
        return with_errno(control == nullptr ? EBUSY : control->hold(pid, tid, to_deadline(deadline)));
    };
}

void Plugins::Session::offer_messages() {
    host_.send = [](void* self, const void* data, size_t size, const int* fds, size_t count) {
        const int end = of(self).task_end;
        return end < 0 ? with_errno(ENOTCONN) : Channel::send(end, data, size, fds, count);
    };
    host_.receive = [](void* self, void* data, size_t size, int* fds, size_t* count, uint64_t deadline) {
        return of(self).receive(data, size, fds, count, deadline);
    };
}

bool Plugins::Session::is(const char* name) const { return name == nullptr || std::strcmp(name, table().name) == 0; }

const PluginPolicy* Plugins::Session::policy() const {
    auto found = options_.policy.find(name());
    return found == options_.policy.end() ? nullptr : &found->second;
}

const char* Plugins::Session::setting(const char* key) const {
    if (const PluginPolicy* own = policy()) {
        auto value = own->settings.find(key);
        if (value != own->settings.end())
            return value->second.c_str();
    }
    return nullptr;
}

bool Plugins::Session::is_own_image(std::string_view file) const {
    return (file.starts_with(name()) || file.starts_with(kCriuPrefix)) && file.find('/') == std::string_view::npos;
}

int Plugins::Session::open_image(const char* file) const {
    if (!is_own_image(file))
        return with_errno(EINVAL);
    const int flags = purpose_ == CKPTD_CHECKPOINT ? O_RDWR | O_CREAT | O_EXCL : O_RDONLY;
    return openat(options_.image_dir_fd, file, flags | O_CLOEXEC | O_NOFOLLOW, 0600);
}

bool Plugins::Session::reads_contents(const std::string& file) const {
    return (table().needs & CKPTD_NEEDS_CONTENTS) != 0 && file.starts_with(name() + "-pages-");
}

Result<UncachedFile*> Plugins::Session::contents_of(const std::string& file) {
    const std::lock_guard lock(contents_mutex_);
    auto found = contents_.find(file);
    if (found == contents_.end()) {
        CKPT_ASSIGN(UncachedFile opened, UncachedFile::open(options_.image_dir_fd, file));
        found = contents_.emplace(file, std::move(opened)).first;
    }
    return &found->second;
}

int Plugins::Session::read_contents(const char* file, uint64_t offset, uint64_t size, void* room, void** contents) {
    if (!is_own_image(file))
        return with_errno(EINVAL);
    auto opened = contents_of(file);
    if (!opened)
        return with_errno(opened.error().errno_code);
    auto read = (*opened)->read(offset, size, static_cast<std::byte*>(room));
    if (!read)
        return with_errno(read.error().kind == ErrorKind::kBadImage ? ENODATA : read.error().errno_code);
    if (check != nullptr && !check->add(file, offset, *read, size))
        return with_errno(EBADMSG);
    *contents = *read;
    return 0;
}

int Plugins::Session::list_images(void (*take)(void* out, const char* name), void* out) const {
    const int fd = openat(options_.image_dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR* folder = fd < 0 ? nullptr : fdopendir(fd);
    if (folder == nullptr)
        return -1;
    while (const dirent* entry = readdir(folder))
        if (std::string_view(entry->d_name).starts_with(name()))
            take(out, entry->d_name);
    closedir(folder);
    return 0;
}

uint64_t Plugins::Session::write_down(const char* record) {
    if (options_.journal == nullptr)
        return UINT64_MAX;
    auto id = options_.journal->add(kPluginUndo, {name(), record});
    if (!id)
        return 0;
    records_[*id] = record;
    return *id;
}

int Plugins::Session::forget(uint64_t id) {
    if (options_.journal == nullptr)
        return 0;
    if (!options_.journal->drop(id))
        return with_errno(EIO);
    records_.erase(id);
    return 0;
}

std::chrono::microseconds Plugins::Session::undo_time() const {
    std::chrono::microseconds all(0);
    for (const auto& [id, record] : records_)
        all = add_times(all, library_.undo_time(record));
    return all;
}

ssize_t Plugins::Session::receive(void* data, size_t size, int* fds, size_t* count, uint64_t deadline) const {
    return channel_ ? channel_->receive(data, size, fds, count, deadline, cancellation_.fd())
                    : with_errno(ENOTCONN);
}

Result<bool> Plugins::Session::open(Deadline deadline) {
    if (const PluginPolicy* own = policy())
        for (const auto& [key, value] : own->settings)
            if (!library_.knows_setting(key))
                return fail(ErrorKind::kBadInput, fmt::format("plugin '{}'", name()),
                            fmt::format("knows no setting '{}'", key), "correct plugins: in the policy");
    CKPT_ASSIGN(int found, call("open", deadline, [this](const ckptd_plugin& plugin, void*, ckptd_call* raw) {
                    return plugin.open(&host_, purpose_, raw, &self_);
                }));
    is_quiesced = purpose_ == CKPTD_RESTORE;
    if (found == 0 && is_quiesced && table().transfer != nullptr) {
        CKPT_ASSIGN(channel_, Channel::open());
    }
    return found == 0;
}

Result<int> Plugins::Session::call(const char* step, Deadline deadline, int cancel_fd,
                                   const Method& method) {
    PluginCall call(deadline, cancel_fd, options_.progress);
    const int answer = method(table(), self_, &call.raw);
    const bool can_be_late = cancel_fd >= 0;  // else what is given back is welcome at any time
    if (answer >= 0 && call.errors.empty() && can_be_late && std::chrono::steady_clock::now() > deadline)
        return too_late(name(), step);
    if (answer >= 0 && call.errors.empty())
        return answer;
    Error error = call.failure(name(), step);
    if (cancel_fd >= 0 && cancellation_.was_cancelled())
        error.kind = ErrorKind::kCancelled;  // of that plugins say what they like
    return tl::unexpected(std::move(error));
}

// The tasks of a checkpoint get their devices back because it was cancelled, or failed: that ends
// nothing here.
Result<void> Plugins::Session::resume(const std::vector<pid_t>& pids, ThreadControl* tracer,
                                      Deadline deadline) {
    if (!std::exchange(is_quiesced, false) || table().resume == nullptr)
        return {};
    control = tracer;
    const int cancel_fd = purpose_ == CKPTD_CHECKPOINT ? -1 : cancellation_.fd();
    auto resumed = call("resume", deadline, cancel_fd,
                        [&](const ckptd_plugin& plugin, void* self, ckptd_call* raw) {
                            return plugin.resume(self, pids.data(), pids.size(), raw);
                        });
    control = nullptr;
    CKPT_TRY(resumed);
    return {};
}

void Plugins::Session::start_transfer(Deadline deadline) {
    if (table().transfer == nullptr)
        return;
    transfer_.emplace(std::packaged_task<Result<int>()>([this, deadline] {
        auto done = call("transfer", deadline, [](const ckptd_plugin& plugin, void* self, ckptd_call* raw) {
            return plugin.transfer(self, raw);
        });
        if (channel_)
            channel_->no_more_receivers();
        return done;
    }));
}

Result<void> Plugins::Session::join_transfer(Deadline deadline) {
    if (!transfer_)
        return {};
    const Deadline end = deadline_after(deadline, kOwnWord);
    const bool is_late = end != Deadline::max() && transfer_->result.wait_until(end) != std::future_status::ready;
    if (is_late)
        cancellation_.stop();
    Result<int> result = transfer_->result.get();
    transfer_.reset();
    if (is_late)
        return too_late(name(), "transfer");
    CKPT_TRY(result);
    return {};
}

}  // namespace checkpointd
