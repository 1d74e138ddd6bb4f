// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Numbers of the image format that the protobuf schema does not name.
#pragma once

#include <cstdint>

namespace checkpointd::images {

// inventory_entry.img_version: every file but the inventory starts with the common magic.
inline constexpr uint32_t kImageVersion = 2;

// task_core_entry.task_state
enum TaskState : uint32_t {
    kTaskAlive = 1,
    kTaskDead = 2,  // a zombie; exit_code has its wait status
    kTaskStopped = 3,
    kTaskZombie = 6,  // only while dumping; stored as kTaskDead
};

// vma_entry.status
enum VmaStatus : uint32_t {
    kVmaRegular = 1u << 0,   // the program's own, its content is carried
    kVmaStack = 1u << 1,     // grows down
    kVmaVsyscall = 1u << 2,
    kVmaVdso = 1u << 3,
    kVmaHeap = 1u << 5,
    kVmaFilePrivate = 1u << 6,
    kVmaFileShared = 1u << 7,
    kVmaAnonShared = 1u << 8,
    kVmaAnonPrivate = 1u << 9,
    kVmaSysvIpc = 1u << 10,
    kVmaSocket = 1u << 11,
    kVmaVvar = 1u << 12,
    kVmaAioRing = 1u << 13,
    kVmaMemfd = 1u << 14,
    kVmaShadowStack = 1u << 15,
    kVmaGuard = 1u << 16,
    kVmaUprobes = 1u << 17,
    kVmaPlugin = 1u << 27,  // a plugin brings it back; `shmid` is a file whose path it is told, and which nobody opens
};

// pagemap_entry.flags
enum PagemapFlags : uint32_t {
    kPagesInParent = 1u << 0,  // in the image that the `parent` link names
    kPagesLazy = 1u << 1,      // may be brought in after the task runs
    kPagesPresent = 1u << 2,   // in this image's pages file
};

// unix_sk_entry.uflags
enum UnixSocketFlags : uint32_t {
    kUnixExternal = 1u << 0,  // the far end lives outside; reconnect by its path
    kUnixService = 1u << 1,
    kUnixCallback = 1u << 2,  // a stream whose far end is outside and is reached again by a caller's hook
    kUnixInherit = 1u << 3,   // given by the caller at restore
};

}  // namespace checkpointd::images
