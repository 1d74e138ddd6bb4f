// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <map>
#include <memory>

#include "core/base/error.h"
#include "core/restore/forest_images.h"
#include "core/restore/program/plan.h"

namespace checkpointd {

// Opens in the agent the regular files that mappings and /proc/PID/exe refer to.
class MappedFiles {
  public:
    static Result<MappedFiles> read(const images::ImageDir& dir);
    Result<Slot> slot_of(uint32_t file_id, Program& agent);

  private:
    std::map<uint32_t, std::pair<std::string, uint32_t>> paths_;  // by id: name and open flags
    std::map<uint32_t, Slot> slots_;
};

}  // namespace checkpointd
