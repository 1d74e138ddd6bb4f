// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The layout of an address space: which mappings there are, of what kind, and which pages are its own.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <sys/types.h>
#include <vector>

#include "core/base/error.h"
#include "core/base/scoped_fd.h"
#include "core/inject/remote_syscalls.h"
#include "core/inject/seize.h"
#include "core/kernel/proc_maps.h"
#include "core/kernel/proc_stat.h"
#include "core/memory/page_images.h"
#include "core/resources/files.h"
#include "images/proto/memory.pb.h"

namespace checkpointd {

// Anonymous memory shared by fork, kept as a file of the kernel's own tmpfs; one per inode.
struct SharedSegment {
    ScopedFd fd;
    uint64_t size = 0;  // bytes, as large as the file
};

struct AddressSpace {
    images::mm_entry mm;
    std::vector<uint64_t> auxv;  // whole; mm has its beginning
    std::vector<PageSegment> pages;
    uint64_t pages_scanned = 0;
};

// What the dump of one address space needs from its surroundings.
struct AddressSpaceContext {
    // The file id of a mapping or, with an empty one, of the executable.
    std::function<Result<uint32_t>(const MappedFile&)> id_of_mapping;
    std::function<Result<uint32_t>(pid_t)> id_of_exe;
    std::map<uint64_t, SharedSegment>& shared;  // by inode
    std::vector<Error>& blockers;
    // Asked about every mapping of a file, which `fd` (O_PATH) leads to: the name of the plugin whose it is. Unset: there
    // is none.
    std::function<Result<std::optional<std::string>>(pid_t, const images::vma_entry&, const std::string& path, int fd)>
        ask_plugins = {};
    ScanMethod scan = ScanMethod::kProbe;
};

// Everything of mm-PID but what only the task knows, and the list of pages to write. Mappings that
// cannot be carried are added to the blockers. Reads only.
Result<AddressSpace> dump_address_space(const SeizedProcess& process, const ProcStat& stat,
                                        AddressSpaceContext& context);
// What only the task knows: brk, dumpable, huge pages switched off.
Result<void> ask_address_space(RemoteSyscalls& remote, images::mm_entry& out);

// The record of a mapping as far as /proc tells; a file's id and open flags are not set. `blocker` says
// why it cannot be carried, where that is so.
images::vma_entry classify_mapping(const ProcMapping& mapping, std::string& blocker);

}  // namespace checkpointd
