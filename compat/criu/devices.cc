// SPDX-License-Identifier: LGPL-2.1-or-later
#include "compat/criu/devices.h"

#include <fcntl.h>
#include <strings.h>
#include <cstdlib>

#include "core/base/io.h"
#include "core/restore/image_plugins.h"
#include "core/restore/restore.h"

namespace checkpointd::criu {
namespace {

// CRIU refuses to start with a plugin that it cannot use. Its own are ordinary, though, in the
// directory that a caller of it names, and are needed only where an image names them.
void tell_of_others(const PluginFiles& files, const Log& log) {
    for (const std::string& path : files.for_criu)
        log.info(fmt::format("{} is a plugin for CRIU, and is left out", path));
}

// What callers tell CRIU's plugin for AMD GPUs, and the settings of ours that mean it. Nobody's
// policy is asked here.
struct Variable {
    const char* name;
    const char* setting;
};
constexpr Variable kAmdgpuVariables[] = {
    {"KFD_FW_VER_CHECK", "firmware-check"},       {"KFD_SDMA_FW_VER_CHECK", "sdma-firmware-check"},
    {"KFD_CACHES_COUNT_CHECK", "caches-check"},   {"KFD_NUM_GWS_CHECK", "gws-check"},
    {"KFD_VRAM_SIZE_CHECK", "vram-size-check"},   {"KFD_NUMA_CHECK", "numa-check"},
    {"KFD_CAPABILITY_CHECK", "capability-check"},
};

Result<std::string> to_switch(const Variable& variable, const char* value) {
    for (const char* no : {"0", "NO"})
        if (strcasecmp(value, no) == 0)
            return "no";
    for (const char* yes : {"1", "YES"})
        if (strcasecmp(value, yes) == 0)
            return "yes";
    return fail(ErrorKind::kBadInput, fmt::format("${}", variable.name),
                fmt::format("'{}' is neither YES nor NO", value));
}

Result<std::map<std::string, PluginPolicy>> policy_of_environment() {
    std::map<std::string, PluginPolicy> policy;
    for (const Variable& variable : kAmdgpuVariables)
        if (const char* value = getenv(variable.name)) {
            CKPT_ASSIGN(policy["amdgpu"].settings[variable.setting], to_switch(variable, value));
        }
    return policy;
}

}  // namespace

Result<std::string> plugin_directory(const Options& options) {
    const char* variable = getenv("CRIU_LIBS_DIR");
    std::string named = !options.libdir.empty() || variable == nullptr ? options.libdir : variable;
    if (named.empty())
        return std::string(kPluginDirectory);
    CKPT_TRY(open_at(AT_FDCWD, named, O_DIRECTORY | O_RDONLY));
    return named;
}

Result<PluginOptions> Devices::prepare(const std::string& directory, PluginFiles files,
                                       const Log& log, int image_dir_fd) {
    CKPT_ASSIGN(guardian_, Guardian::start(directory, log));
    PluginOptions options;
    options.directory = directory;
    options.installed = std::move(files.ours);
    CKPT_ASSIGN(options.policy, policy_of_environment());
    options.image_dir_fd = image_dir_fd;
    options.journal = &guardian_->journal();
    return options;
}

Result<Devices> Devices::of_dump(const Options& options, const Log& log, int image_dir_fd) {
    Devices devices;
    CKPT_ASSIGN(const std::string directory, plugin_directory(options));
    PluginFiles files = PluginFiles::list(directory);
    tell_of_others(files, log);
    if (files.ours.empty())
        return devices;
    CKPT_ASSIGN(auto prepared, devices.prepare(directory, std::move(files), log, image_dir_fd));
    CKPT_ASSIGN(devices.plugins_, Plugins::for_checkpoint(std::move(prepared)));
    return devices;
}

// The guardian takes a PID, which the image may need as well as any: so there is none where nothing
// asks for it.
Result<Devices> Devices::of_restore(const Options& options, const Log& log, int image_dir_fd) {
    Devices devices;
    CKPT_ASSIGN(const std::string directory, plugin_directory(options));
    CKPT_ASSIGN(const auto listed, plugins_of_image(image_dir_fd));
    if (listed && listed->empty())
        return devices;
    PluginFiles files = PluginFiles::list(directory);
    if (!listed && files.ours.empty())
        return devices;
    tell_of_others(files, log);
    CKPT_ASSIGN(auto prepared, devices.prepare(directory, std::move(files), log, image_dir_fd));
    CKPT_ASSIGN(devices.plugins_, plugins_for_image(std::move(prepared), Plugins::Deadline::max()));
    return devices;
}

Result<void> Devices::end(Result<void> outcome) {
    plugins_.reset();
    auto undone = guardian_ ? guardian_->end() : Result<void>();
    if (outcome)
        return undone;
    if (!undone)
        outcome.error().causes.push_back(std::move(undone).error());
    return outcome;
}

}  // namespace checkpointd::criu
