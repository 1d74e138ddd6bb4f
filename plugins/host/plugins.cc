// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/host/plugins.h"

#include <algorithm>
#include <cerrno>
#include <fcntl.h>

#include "core/base/io.h"
#include "plugins/host/deadline.h"
#include "plugins/host/plugin_library.h"

namespace checkpointd {
namespace {

constexpr const char* kUndo = "plugins.undo";
// CRIU's names of the same plugins have it.
constexpr const char* kImageSuffix = "_plugin";
// For undo(), of which nobody waits.
constexpr std::chrono::seconds kUndoTime{60};

ErrorKind kind_of(ckptd_trouble trouble) {
    switch (trouble) {
        case CKPTD_UNSUPPORTED: return ErrorKind::kUnsupported;
        case CKPTD_BAD_INPUT: return ErrorKind::kBadInput;
        case CKPTD_BAD_IMAGE: return ErrorKind::kBadImage;
        case CKPTD_CONFLICT: return ErrorKind::kConflict;
        case CKPTD_TIMEOUT: return ErrorKind::kTimeout;
        case CKPTD_GONE: return ErrorKind::kGone;
        case CKPTD_SYSTEM: break;
    }
    return ErrorKind::kSystem;
}

// One call into a plugin, and what it says while it fails.
struct Call {
    Call(std::chrono::steady_clock::time_point deadline, int cancel_fd,
         std::function<void(uint64_t, uint64_t)> moved)
        : progress(std::move(moved)) {
        raw.size = sizeof(raw);
        raw.deadline_usec = deadline_usec(deadline);
        raw.cancel_fd = cancel_fd;
        raw.context = this;
        raw.fail = [](const ckptd_call* call, ckptd_trouble trouble, int code, const char* object,
                      const char* message, const char* remedy) {
            static_cast<Call*>(call->context)
                ->errors.push_back({kind_of(trouble), object, message, remedy == nullptr ? "" : remedy, code, {}});
        };
        raw.progress = [](const ckptd_call* call, uint64_t done, uint64_t total) {
            auto& own = *static_cast<Call*>(call->context);
            if (own.progress)
                own.progress(done, total);
        };
    }
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;

    // The first thing that was said decides of which kind the failure is.
    Error failure(const std::string& plugin, const char* step) {
        if (errors.size() == 1)
            return std::move(errors.front());
        if (errors.empty())
            return Error{ErrorKind::kInternal, fmt::format("plugin '{}'", plugin),
                         fmt::format("failed to {} and did not say why", step), {}, 0, {}};
        Error all{errors.front().kind, fmt::format("plugin '{}'", plugin), fmt::format("cannot {}", step), {}, 0, {}};
        all.causes = std::move(errors);
        return all;
    }

    ckptd_call raw{};
    std::function<void(uint64_t, uint64_t)> progress;
    std::vector<Error> errors;
};

int with_errno(int code) {
    if (code == 0)
        return 0;
    errno = code;
    return -1;
}

}  // namespace

int errno_of(const Result<void>& result) {
    if (result)
        return 0;
    const Error& error = result.error();
    if (error.errno_code != 0)
        return error.errno_code;
    return error.kind == ErrorKind::kTimeout ? ETIMEDOUT : error.kind == ErrorKind::kGone ? ESRCH : EIO;
}

// One plugin in this job, and its host.
class Plugins::Session {
  public:
    Session(PluginLibrary library, const PluginOptions& options, ckptd_purpose purpose)
        : library_(library), options_(options), purpose_(purpose) {
        host_.size = sizeof(host_);
        host_.abi = CKPTD_PLUGIN_ABI;
        host_.context = this;
        host_.setting = [](void* self, const char* name) { return of(self).setting(name); };
        host_.open_image = [](void* self, const char* name) { return of(self).open_image(name); };
        host_.journal = [](void* self, const char* record) { return of(self).write_down(record); };
        host_.forget = [](void* self, uint64_t id) { return of(self).forget(id); };
        host_.run_thread = [](void* self, pid_t pid, pid_t tid) {
            ThreadControl* control = of(self).control;
            return with_errno(control == nullptr ? EBUSY : control->run(pid, tid));
        };
        host_.hold_thread = [](void* self, pid_t pid, pid_t tid, uint64_t deadline) {
            ThreadControl* control = of(self).control;
            return with_errno(control == nullptr ? EBUSY : control->hold(pid, tid, to_deadline(deadline)));
        };
    }
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;
    ~Session() {
        transfer_.reset();
        if (self_ != nullptr)
            table().close(self_);
    }

    const ckptd_plugin& table() const { return library_.table(); }
    std::string name() const { return library_.name(); }
    void* self() const { return self_; }

    // False where there is nothing for it here.
    Result<bool> open(Deadline deadline);
    Result<int> call(const char* step, Deadline deadline, const Method& method);
    void start_transfer(Deadline deadline);
    Result<void> join_transfer();

    ThreadControl* control = nullptr;  // while the tasks stand
    bool is_quiesced = false;  // or on the way up: resume() is due

  private:
    struct Transfer {
        explicit Transfer(std::function<Result<int>()> work) : thread([this, work = std::move(work)] { result = work(); }) {}
        Result<int> result = 0;
        std::jthread thread;
    };

    static Session& of(void* self) { return *static_cast<Session*>(self); }
    const PluginPolicy* policy() const {
        auto found = options_.policy.find(name());
        return found == options_.policy.end() ? nullptr : &found->second;
    }
    const char* setting(const char* key) const;
    int open_image(const char* file) const;
    uint64_t write_down(const char* record) const;
    int forget(uint64_t id) const;

    PluginLibrary library_;
    const PluginOptions& options_;
    ckptd_purpose purpose_;
    ckptd_host host_{};
    void* self_ = nullptr;
    std::optional<Transfer> transfer_;
};

const char* Plugins::Session::setting(const char* key) const {
    if (const PluginPolicy* own = policy()) {
        auto value = own->settings.find(key);
        if (value != own->settings.end())
            return value->second.c_str();
    }
    return nullptr;
}

int Plugins::Session::open_image(const char* file) const {
    const std::string_view text = file;
    if (!text.starts_with(name()) || text.find('/') != std::string_view::npos)
        return with_errno(EINVAL);
    const int flags = purpose_ == CKPTD_CHECKPOINT ? O_RDWR | O_CREAT | O_EXCL : O_RDONLY;
    return openat(options_.image_dir_fd, file, flags | O_CLOEXEC | O_NOFOLLOW, 0600);
}

uint64_t Plugins::Session::write_down(const char* record) const {
    if (options_.journal == nullptr)
        return UINT64_MAX;
    auto id = options_.journal->add(kUndo, {name(), record});
    return id ? *id : 0;
}

int Plugins::Session::forget(uint64_t id) const {
    if (options_.journal == nullptr)
        return 0;
    return options_.journal->drop(id) ? 0 : with_errno(EIO);
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
    return found == 0;
}

Result<int> Plugins::Session::call(const char* step, Deadline deadline, const Method& method) {
    Call call(deadline, options_.cancel_fd, options_.progress);
    const int answer = method(table(), self_, &call.raw);
    if (answer < 0 || !call.errors.empty())
        return tl::unexpected(call.failure(name(), step));
    return answer;
}

void Plugins::Session::start_transfer(Deadline deadline) {
    if (table().transfer == nullptr)
        return;
    transfer_.emplace([this, deadline] {
        return call("transfer", deadline, [](const ckptd_plugin& plugin, void* self, ckptd_call* raw) {
            return plugin.transfer(self, raw);
        });
    });
}

Result<void> Plugins::Session::join_transfer() {
    if (!transfer_)
        return {};
    transfer_->thread.join();
    Result<int> result = std::move(transfer_->result);
    transfer_.reset();
    CKPT_TRY(result);
    return {};
}

Plugins::Plugins(PluginOptions options) : options_(std::move(options)) {}
Plugins::~Plugins() = default;

Result<void> Plugins::open(const std::string& name, ckptd_purpose purpose, bool is_needed) {
    CKPT_ASSIGN(PluginLibrary library, PluginLibrary::load(options_.directory, name));
    auto session = std::make_unique<Session>(library, options_, purpose);
    CKPT_ASSIGN(const bool has_device, session->open(Deadline::max()));
    if (has_device)
        sessions_.push_back(std::move(session));
    else if (is_needed)
        return fail(ErrorKind::kUnsupported, fmt::format("plugin '{}'", name),
                    "the image needs it, and its device is not here",
                    "restore on a machine with such a device and its driver");
    return {};
}

static bool is_enabled(const PluginOptions& options, const std::string& name) {
    auto found = options.policy.find(name);
    return found == options.policy.end() || found->second.is_enabled();
}

Result<std::unique_ptr<Plugins>> Plugins::for_checkpoint(PluginOptions options) {
    std::unique_ptr<Plugins> plugins(new Plugins(std::move(options)));
    for (const std::string& name : installed_plugins(plugins->options_.directory))
        if (is_enabled(plugins->options_, name))
            CKPT_TRY(plugins->open(name, CKPTD_CHECKPOINT, false));
    return plugins;
}

Result<std::unique_ptr<Plugins>> Plugins::for_restore(PluginOptions options,
                                                      const std::optional<std::vector<std::string>>& listed) {
    std::unique_ptr<Plugins> plugins(new Plugins(std::move(options)));
    const auto& own = plugins->options_;
    std::vector<Error> missing;
    for (std::string name : listed ? *listed : installed_plugins(own.directory)) {
        if (name.ends_with(kImageSuffix))
            name.resize(name.size() - std::string_view(kImageSuffix).size());
        auto opened = is_enabled(own, name) ? plugins->open(name, CKPTD_RESTORE, listed.has_value()) : Result<void>();
        if (listed && !is_enabled(own, name))
            opened = fail(ErrorKind::kUnsupported, fmt::format("plugin '{}'", name),
                          "the image needs it, and the policy switches it off", "allow it in plugins: of the policy");
        if (!opened)
            missing.push_back(std::move(opened).error());
    }
    if (missing.size() == 1)
        return tl::unexpected(std::move(missing.front()));
    CKPT_TRY(all_blockers("plugins", "what the image needs is not here", std::move(missing)));
    return plugins;
}

bool Plugins::empty() const { return sessions_.empty(); }

std::vector<std::string> Plugins::names() const {
    std::vector<std::string> names;
    for (const auto& session : sessions_)
        names.push_back(session->name() + kImageSuffix);
    return names;
}

Result<void> Plugins::each(const char* step, Deadline deadline, const Method& method) {
    for (const auto& session : sessions_)
        CKPT_TRY(session->call(step, deadline, method));
    return {};
}

Result<void> Plugins::probe(const std::vector<pid_t>& pids, Deadline deadline) {
    std::vector<Error> blockers;
    for (auto& session : sessions_) {
        if (session->table().probe == nullptr)
            continue;
        auto used = session->call("carry this", deadline, [&](const ckptd_plugin& plugin, void* self, ckptd_call* raw) {
            return plugin.probe(self, pids.data(), pids.size(), raw);
        });
        if (!used)
            blockers.push_back(std::move(used).error());
        else if (*used == 0 && !pids.empty())
            session.reset();
    }
    std::erase(sessions_, nullptr);
    if (blockers.size() == 1)
        return tl::unexpected(std::move(blockers.front()));
    return all_blockers("plugins", "devices are in the way", std::move(blockers));
}

Result<void> Plugins::quiesce(const std::vector<pid_t>& pids, Deadline deadline) {
    for (const auto& session : sessions_)
        session->is_quiesced = false;
    for (const auto& session : sessions_) {
        session->is_quiesced = true;  // also where it fails half way
        if (session->table().quiesce != nullptr)
            CKPT_TRY(session->call("quiesce", deadline, [&](const ckptd_plugin& plugin, void* self, ckptd_call* raw) {
                return plugin.quiesce(self, pids.data(), pids.size(), raw);
            }));
    }
    return {};
}

Result<void> Plugins::prepare(const std::vector<pid_t>& pids, ThreadControl* control, Deadline deadline) {
    for (const auto& session : sessions_)
        session->control = control;
    auto prepared = each("prepare", deadline, [&](const ckptd_plugin& plugin, void* self, ckptd_call* raw) {
        return plugin.prepare == nullptr ? 0 : plugin.prepare(self, pids.data(), pids.size(), raw);
    });
    for (const auto& session : sessions_)
        session->control = nullptr;
    return prepared;
}

void Plugins::start_transfer(Deadline deadline) {
    for (const auto& session : sessions_)
        session->start_transfer(deadline);
}

Result<void> Plugins::complete(Deadline deadline) {
    Result<void> joined;
    for (const auto& session : sessions_) {
        auto own = session->join_transfer();
        if (joined && !own)
            joined = std::move(own);
    }
    CKPT_TRY(joined);
    return each("complete", deadline, [](const ckptd_plugin& plugin, void* self, ckptd_call* raw) {
        return plugin.complete == nullptr ? 0 : plugin.complete(self, raw);
    });
}

Result<void> Plugins::resume(const std::vector<pid_t>& pids, ThreadControl* control, Deadline deadline) {
    std::vector<Error> failures;
    for (auto session = sessions_.rbegin(); session != sessions_.rend(); ++session) {
        (void)(*session)->join_transfer();
        if (!std::exchange((*session)->is_quiesced, false) || (*session)->table().resume == nullptr)
            continue;
        (*session)->control = control;
        auto resumed = (*session)->call("resume", deadline, [&](const ckptd_plugin& plugin, void* self, ckptd_call* raw) {
            return plugin.resume(self, pids.data(), pids.size(), raw);
        });
        (*session)->control = nullptr;
        if (!resumed)
            failures.push_back(std::move(resumed).error());
    }
    if (failures.size() == 1)
        return tl::unexpected(std::move(failures.front()));
    return all_blockers("plugins", "devices could not be resumed", std::move(failures));
}

void Plugins::abandon() {
    for (const auto& session : sessions_)
        session->is_quiesced = false;
}

bool Plugins::has_in_task() const {
    return std::any_of(sessions_.begin(), sessions_.end(),
                       [](const auto& session) { return session->table().in_task != nullptr; });
}

int Plugins::in_task(pid_t pid) const {
    for (const auto& session : sessions_)
        if (session->table().in_task != nullptr)
            if (int code = session->table().in_task(session->self(), pid))
                return code;
    return 0;
}

void add_plugin_undo_kinds(UndoTable& table, const std::string& directory) {
    table.add(kUndo, [directory](const UndoArgs& args) -> Result<void> {
        if (args.size() != 2)
            return fail(ErrorKind::kInternal, kUndo, "has wrong arguments");
        CKPT_ASSIGN(PluginLibrary library, PluginLibrary::load(directory, args[0]));
        if (library.table().undo == nullptr)
            return {};
        Call call(std::chrono::steady_clock::now() + kUndoTime, -1, {});
        if (library.table().undo(args[1].c_str(), &call.raw) == 0 && call.errors.empty())
            return {};
        return tl::unexpected(call.failure(args[0], "undo what a dead job did"));
    });
}

}  // namespace checkpointd
