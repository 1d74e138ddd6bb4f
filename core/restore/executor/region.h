// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <cstdint>
#include <vector>

#include "core/base/error.h"
#include "core/restore/restore.h"
#include "restorer/region.h"

namespace checkpointd {

// Offsets of the region's parts from its base.
struct RegionLayout {
    uint64_t programs, text, operations, arena, slots, stacks, parking, size;
    uint64_t parking_size;
};

RegionLayout region_layout(const Plan& plan, uint32_t stacks, uint64_t parking_size);

// Mappings of [vvar], [vvar_vclock] and [vdso] of this process, ascending.
Result<std::vector<restorer::Area>> own_vdso();

// The region, mapped at its final address in this process for as long as the object lives. A process
// forked meanwhile keeps its copy.
class Region {
  public:
    // `plugins` may be null.
    static Result<Region> map(const RestorePlan& plan, const std::vector<StageHook>& hooks,
                              Plugins* plugins = nullptr);
    Region(Region&& other) noexcept;
    Region& operator=(Region&&) = delete;
    ~Region();

    restorer::RegionHeader& header() const {
        return *reinterpret_cast<restorer::RegionHeader*>(base_);
    }
    // Address of a `syscall` instruction in the blob, for remote calls.
    uint64_t syscall_instruction() const { return syscall_; }
    uint64_t arena() const { return header().arena; }

  private:
    Region(uint64_t base, uint64_t size) : base_(base), size_(size) {}
    Result<void> fill(const RestorePlan& plan, const RegionLayout& layout);
    void copy_operations(const Plan& plan, const RegionLayout& layout);
    void copy_arena(const Plan& plan, const RegionLayout& layout);
    Result<void> place_blob(const RegionLayout& layout);

    uint64_t base_ = 0;
    uint64_t size_ = 0;
    uint64_t syscall_ = 0;
};

}  // namespace checkpointd
