// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/host/plugins.h"

#include <algorithm>
#include <cerrno>

#include "plugins/host/deadline.h"
#include "plugins/host/plugin_call.h"
#include "plugins/host/plugin_library.h"
#include "plugins/host/plugin_session.h"

namespace checkpointd {
namespace {

// CRIU's names of the same plugins have it.
constexpr const char* kImageSuffix = "_plugin";

std::string without_suffix(const std::string& name) {
    return name.ends_with(kImageSuffix) ? name.substr(0, name.size() - std::string_view(kImageSuffix).size()) : name;
}

// args: the plugin's name, its record.
Result<PluginLibrary> library_of(const std::string& directory, const UndoArgs& args) {
    if (args.size() != 2)
        return fail(ErrorKind::kInternal, kPluginUndo, "has wrong arguments");
    CKPT_ASSIGN(const PluginFile file, PluginFile::find(directory, args[0]));
    return PluginLibrary::load(file);
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

Plugins::Plugins(PluginOptions options, Cancellation cancellation)
    : options_(std::move(options)), cancellation_(std::move(cancellation)) {}

Plugins::~Plugins() {
    cancel_messages();
}

Result<std::unique_ptr<Plugins>> Plugins::begin(PluginOptions options) {
    CKPT_ASSIGN(Cancellation cancellation, Cancellation::watch(options.cancel_fd));
    return std::unique_ptr<Plugins>(new Plugins(std::move(options), std::move(cancellation)));
}

std::vector<PluginFile> Plugins::installed() const {
    return options_.installed ? *options_.installed : PluginFiles::list(options_.directory).ours;
}

Result<PluginFile> Plugins::find(const std::string& name) const {
    if (options_.installed)
        for (const PluginFile& file : *options_.installed)
            if (file.name() == name)
                return file;
    return PluginFile::find(options_.directory, name);
}

Result<void> Plugins::open(const PluginFile& file, ckptd_purpose purpose, bool is_needed) {
    CKPT_ASSIGN(PluginLibrary library, PluginLibrary::load(file));
    auto session = std::make_unique<Session>(library, options_, cancellation_, purpose);
    CKPT_ASSIGN(const bool has_device, session->open(options_.open_by));
    if (has_device)
        sessions_.push_back(std::move(session));
    else if (is_needed)
        return fail(ErrorKind::kUnsupported, fmt::format("plugin '{}'", file.name()),
                    "the image needs it, and its device is not here",
                    "restore on a machine with such a device and its driver");
    return {};
}

static bool is_enabled(const PluginOptions& options, const std::string& name) {
    auto found = options.policy.find(name);
    return found == options.policy.end() || found->second.is_enabled();
}

Result<std::unique_ptr<Plugins>> Plugins::for_checkpoint(PluginOptions options) {
    CKPT_ASSIGN(auto plugins, begin(std::move(options)));
    for (const PluginFile& file : plugins->installed())
        if (is_enabled(plugins->options_, file.name()))
            CKPT_TRY(plugins->open(file, CKPTD_CHECKPOINT, false));
    return plugins;
}

Result<void> Plugins::open_listed(const std::string& name) {
    if (!is_enabled(options_, name))
        return fail(ErrorKind::kUnsupported, fmt::format("plugin '{}'", name),
                    "the image needs it, and the policy switches it off", "allow it in plugins: of the policy");
    CKPT_ASSIGN(const PluginFile file, find(name));
    return open(file, CKPTD_RESTORE, true);
}

Result<std::unique_ptr<Plugins>> Plugins::for_restore(PluginOptions options,
                                                      const std::optional<std::vector<std::string>>& listed) {
    CKPT_ASSIGN(auto plugins, begin(std::move(options)));
    std::vector<Error> missing;
    const auto note = [&](Result<void> opened) {
        if (!opened)
            missing.push_back(std::move(opened).error());
    };
    if (!listed)
        for (const PluginFile& file : plugins->installed())
            if (is_enabled(plugins->options_, file.name()))
                note(plugins->open(file, CKPTD_RESTORE, false));
    for (const std::string& name : listed.value_or(std::vector<std::string>()))
        note(plugins->open_listed(without_suffix(name)));
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
        auto own = session->join_transfer(deadline);
        if (!joined || own)
            continue;
        cancellation_.stop();
        joined = std::move(own);
    }
    CKPT_TRY(joined);
    return each("complete", deadline, [](const ckptd_plugin& plugin, void* self, ckptd_call* raw) {
        return plugin.complete == nullptr ? 0 : plugin.complete(self, raw);
    });
}

Result<void> Plugins::resume(const std::vector<pid_t>& pids, ThreadControl* control, Deadline deadline) {
    std::vector<Error> failures;
    stop_transfers();
    for (auto session = sessions_.rbegin(); session != sessions_.rend(); ++session) {
        auto resumed = (*session)->resume(pids, control, deadline);
        if (!resumed)
            failures.push_back(std::move(resumed).error());
    }
    if (failures.size() == 1)
        return tl::unexpected(std::move(failures.front()));
    return all_blockers("plugins", "devices could not be resumed", std::move(failures));
}

// What is through already, as all is after complete(), is not disturbed.
void Plugins::stop_transfers() {
    if (any_session([](const Session& session) { return session.is_transferring(); }))
        cancellation_.stop();
    for (const auto& session : sessions_)
        (void)session->join_transfer();
}

std::chrono::microseconds Plugins::undo_time() const {
    std::chrono::microseconds all(0);
    for (const auto& session : sessions_)
        all = add_times(all, session->undo_time());
    return all;
}

void Plugins::abandon() {
    for (const auto& session : sessions_)
        session->is_quiesced = false;
}

template <typename Ask>
Result<std::optional<std::string>> Plugins::who_takes(const char* step, Deadline deadline, const Ask& ask) {
    for (const auto& session : sessions_) {
        CKPT_ASSIGN(const int answer, session->call(step, deadline, ask));
        if (answer == 0)
            return std::optional(session->name());
    }
    return std::nullopt;
}

Result<std::optional<std::string>> Plugins::dump_file(pid_t pid, int fd, uint32_t id, Deadline deadline) {
    return who_takes("dump a file", deadline, [&](const ckptd_plugin& plugin, void* self, ckptd_call* raw) {
        return plugin.dump_file == nullptr ? 1 : plugin.dump_file(self, pid, fd, id, raw);
    });
}

Result<std::optional<std::string>> Plugins::handle_vma(pid_t pid, const ckptd_vma& vma, Deadline deadline) {
    return who_takes("handle a mapping", deadline, [&](const ckptd_plugin& plugin, void* self, ckptd_call* raw) {
        return plugin.handle_vma == nullptr ? 1 : plugin.handle_vma(self, pid, &vma, raw);
    });
}

bool Plugins::any_session(const std::function<bool(const Session&)>& does) const {
    return std::any_of(sessions_.begin(), sessions_.end(), [&](const auto& session) { return does(*session); });
}

bool Plugins::reads_contents(const std::string& file) const {
    return any_session([&](const Session& session) { return session.reads_contents(file); });
}

void Plugins::check_contents(images::ContentCheck* check) const {
    for (const auto& session : sessions_)
        session->check = check;
}

bool Plugins::takes_files() const {
    return any_session([](const Session& session) { return session.table().dump_file != nullptr; });
}

bool Plugins::takes_mappings() const {
    return any_session([](const Session& session) { return session.table().handle_vma != nullptr; });
}

bool Plugins::restores_files(const char* plugin) const {
    return any_session([=](const Session& own) { return own.is(plugin) && own.table().restore_file != nullptr; });
}

bool Plugins::restores_mappings(const char* plugin) const {
    return any_session([=](const Session& own) { return own.is(plugin) && own.table().update_vma != nullptr; });
}

bool Plugins::has_in_task() const {
    return any_session([](const Session& session) { return session.table().in_task != nullptr; });
}

int Plugins::in_task(pid_t pid) const {
    for (const auto& session : sessions_)
        if (session->table().in_task != nullptr)
            if (int code = session->table().in_task(session->self(), pid))
                return code;
    return 0;
}

int Plugins::restore_file(pid_t pid, uint32_t id, const char* plugin) const {
    for (const auto& session : sessions_) {
        if (!session->is(plugin) || session->table().restore_file == nullptr)
            continue;
        const int fd = session->table().restore_file(session->self(), pid, id);
        if (fd != -ENOTSUP)
            return fd;
    }
    return -ENOTSUP;
}

int Plugins::update_vma(pid_t pid, ckptd_vma& vma, const char* plugin) const {
    for (const auto& session : sessions_) {
        if (!session->is(plugin) || session->table().update_vma == nullptr)
            continue;
        const int answer = session->table().update_vma(session->self(), pid, &vma);
        if (answer <= 0)
            return answer;
    }
    return -ENOTSUP;
}

std::vector<int> Plugins::channels() const {
    std::vector<int> ends;
    for (const auto& session : sessions_)
        if (session->channel() != nullptr)
            ends.push_back(session->channel()->task_end());
    return ends;
}

void Plugins::use_channel(size_t index, int fd) const {
    for (const auto& session : sessions_)
        if (session->channel() != nullptr && index-- == 0)
            session->task_end = fd;
}

void Plugins::tasks_are_past() const {
    for (const auto& session : sessions_)
        if (session->channel() != nullptr)
            session->channel()->no_more_senders();
}

void Plugins::cancel_messages() const {
    cancellation_.stop();
    for (const auto& session : sessions_)
        if (session->channel() != nullptr)
            session->channel()->cancel();
}

void add_plugin_undo_kinds(UndoTable& table, const std::string& directory, std::chrono::microseconds least) {
    auto time_of = [directory, least](const UndoArgs& args) {
        auto library = library_of(directory, args);
        return library ? std::max(least, library->undo_time(args[1])) : least;
    };
    auto undo = [directory, time_of](const UndoArgs& args) -> Result<void> {
        CKPT_ASSIGN(PluginLibrary library, library_of(directory, args));
        if (library.table().undo == nullptr)
            return {};
        PluginCall call(deadline_in(time_of(args)), -1, {});
        if (library.table().undo(args[1].c_str(), &call.raw) == 0 && call.errors.empty())
            return {};
        return tl::unexpected(call.failure(args[0], "undo what a dead job did"));
    };
    table.add(kPluginUndo, undo, time_of);
}

}  // namespace checkpointd
