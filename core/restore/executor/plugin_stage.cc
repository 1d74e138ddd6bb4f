// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/restore/executor/plugin_stage.h"

#include <cerrno>
#include <climits>
#include <span>
#include <unistd.h>

#include "core/restore/barriers.h"
#include "core/restore/program/plugin_records.h"
#include "plugins/host/plugins.h"
#include "restorer/interpreter.h"

namespace checkpointd {

namespace {

const char* text_at(uint64_t address) {
    return reinterpret_cast<const char*>(address);
}

// The operations that follow look at each file in its turn. The first one that they find has failed is to be the
// culprit, not one that did not get its turn.
void blame(std::span<PluginFileRecord> files) {
    for (PluginFileRecord& file : files)
        if (file.fd == -EAGAIN)
            file.fd = INT_MAX;
}

// Until none is left to wait for others. Between two rounds all tasks come to a stop, so that each sees what the
// others have made; the tracer notices when nobody gets on.
void restore_files(const Plugins& plugins, std::span<PluginFileRecord> files) {
    const pid_t pid = getpid();
    for (PluginFileRecord& file : files)
        file.fd = -EAGAIN;
    while (true) {
        uint64_t waiting = 0;
        uint32_t first = 0;
        for (PluginFileRecord& file : files) {
            if (file.fd == -EAGAIN)
                file.fd = plugins.restore_file(pid, file.id, text_at(file.plugin));
            if (file.fd < 0 && file.fd != -EAGAIN)
                return blame(files);
            if (file.fd == -EAGAIN && waiting++ == 0)
                first = file.id;
        }
        if (waiting == 0)
            return;
        restorer::stop_for_tracer(restorer::kAtBarrier, kPluginFilesAgain, waiting, first);
    }
}

void update_mappings(const Plugins& plugins, std::span<PluginMappingRecord> mappings) {
    const pid_t pid = getpid();
    for (PluginMappingRecord& mapping : mappings) {
        ckptd_vma vma{};
        vma.size = sizeof(vma);
        vma.fd = -1;
        vma.start = mapping.start;
        vma.end = mapping.end;
        vma.offset = mapping.offset;
        vma.prot = mapping.prot;
        vma.flags = mapping.flags;
        vma.path = text_at(mapping.path);
        const int answer = plugins.update_vma(pid, vma, text_at(mapping.plugin));
        mapping.fd = answer < 0 ? answer : vma.fd < 0 ? -EBADF : vma.fd;
        mapping.offset = vma.offset;
    }
}

}  // namespace

int run_plugin_step(void* context, uint64_t step, uint64_t a, uint64_t b) {
    const auto& plugins = *static_cast<const Plugins*>(context);
    switch (static_cast<PluginStep>(step)) {
    case PluginStep::kUseChannel:
        plugins.use_channel(a, static_cast<int>(b));
        return 0;
    case PluginStep::kInTask:
        return plugins.in_task(getpid());
    case PluginStep::kRestoreFiles:
        restore_files(plugins, {reinterpret_cast<PluginFileRecord*>(a), b});
        return 0;
    case PluginStep::kUpdateMappings:
        update_mappings(plugins, {reinterpret_cast<PluginMappingRecord*>(a), b});
        return 0;
    }
    return EINVAL;
}

}  // namespace checkpointd
