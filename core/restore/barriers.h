// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <cstdint>
#include <string_view>

namespace checkpointd {

// Points at which every living thread of a restore waits for all others. A program may leave out
// barriers, never reverse their order: the tracer lets those go on that stand at the lowest number.
enum Barrier : uint64_t {
    kAllForked = 10,      // every task exists, in its session
    kGroupsLed = 20,      // group leaders made their groups
    kGroupsJoined = 30,   // members are in them; temporary leaders leave
    kTablesFilled = 31,      // whoever shares the table of another task may open files
    kPluginFiles = 32,       // descriptors are in place; what plugins have to make is not
    kPluginFilesAgain = 33,  // again and again: plugins' files that wait for others
    kPluginFilesMade = 34,   // other tasks may take them over
    kStagePlaced = 40,    // descriptors are in place; zombies leave
    kMemoryReplaced = 50, // tasks have their own memory, and all their threads
    kThreadsSettled = 54, // where threads share filters: nothing is left that these could forbid
    kFiltersShared = 55,  // those that all threads have
    kThreadsReady = 60,   // credentials are set: what they would have reset comes now
    kFinished = 100,      // the tracer sets registers and holds
};

// The step that follows a barrier, as announced to Steps.
constexpr std::string_view step_after(uint64_t barrier) {
    switch (barrier) {
    case kAllForked:
        return "restore.groups";
    case kGroupsLed:
        return "restore.groups.join";
    case kGroupsJoined:
    case kTablesFilled:
        return "restore.files";
    case kPluginFiles:
        return "restore.device-files";
    case kPluginFilesAgain:
        return "restore.device-files.again";
    case kPluginFilesMade:
        return "restore.device-files.share";
    case kStagePlaced:
        return "restore.memory";
    case kMemoryReplaced:
        return "restore.threads";
    case kThreadsSettled:
        return "restore.filters";
    case kFiltersShared:
        return "restore.credentials";
    case kThreadsReady:
        return "restore.finish";
    default:
        return "restore.barrier";
    }
}

}  // namespace checkpointd
