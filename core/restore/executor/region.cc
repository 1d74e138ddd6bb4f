// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/restore/executor/region.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <sys/mman.h>
#include <unistd.h>
#include <utility>

#include "core/kernel/proc_maps.h"
#include "core/restore/executor/plugin_stage.h"
#include "restorer/blob_bytes.h"

namespace checkpointd {

using restorer::Area;
using restorer::Op;
using restorer::ProgramRange;
using restorer::RegionHeader;

namespace {

constexpr uint64_t page_up(uint64_t size) {
    return (size + restorer::kPageSize - 1) / restorer::kPageSize * restorer::kPageSize;
}

// 47 bits minus the guard page: TASK_SIZE_MAX in arch/x86/include/asm/page_64.h. With 57-bit addresses
// the kernel still gives nothing above unless asked, so nothing of ours is there.
constexpr uint64_t kUserEnd = (uint64_t{1} << 47) - restorer::kPageSize;

template <typename T>
T* at(uint64_t base, uint64_t offset) {
    return reinterpret_cast<T*>(base + offset);
}

int dispatch_hook(void* context, uint64_t index) {
    const auto& hooks = *static_cast<const std::vector<StageHook>*>(context);
    return index < hooks.size() ? hooks[index].run(hooks[index].context) : ENOENT;
}

}  // namespace

RegionLayout region_layout(const Plan& plan, uint32_t stacks, uint64_t parking_size) {
    size_t operations = 0;
    for (const Program& program : plan.programs())
        operations += program.ops().size();
    RegionLayout at{};
    at.programs = page_up(sizeof(RegionHeader));
    at.text = at.programs + page_up(plan.programs().size() * sizeof(ProgramRange));
    at.operations = at.text + page_up(restorer::blob_bytes().size());
    at.arena = at.operations + page_up(operations * sizeof(Op));
    at.slots = at.arena + page_up(plan.arena().size());
    at.stacks = at.slots + page_up(plan.slots() * sizeof(uint64_t));
    at.parking = at.stacks + stacks * restorer::kBlobStackSize;
    at.parking_size = page_up(parking_size);
    at.size = at.parking + at.parking_size;
    return at;
}

Result<std::vector<Area>> own_vdso() {
    std::vector<Area> areas;
    CKPT_ASSIGN(std::vector<ProcMapping> mappings, read_maps(getpid()));
    for (const ProcMapping& mapping : mappings)
        if (mapping.name == "[vvar]" || mapping.name == "[vvar_vclock]" || mapping.name == "[vdso]")
            areas.push_back({mapping.start, mapping.end - mapping.start});
    if (areas.size() > restorer::kMaxVdsoAreas)
        return fail(ErrorKind::kUnsupported, "vdso", "the kernel maps it in too many pieces");
    return areas;
}

Result<Region> Region::map(const RestorePlan& plan, const std::vector<StageHook>& hooks, Plugins* plugins) {
    CKPT_ASSIGN(std::vector<Area> vdso, own_vdso());
    uint64_t parking = 0;
    for (const Area& area : vdso)
        parking += area.size;
    RegionLayout layout = region_layout(plan.programs, plan.stacks, parking);
    if (layout.size > plan.region_size)
        return fail(ErrorKind::kInternal, "restore region", "planned too small");
    void* want = reinterpret_cast<void*>(plan.region_base);
    void* got = mmap(want, plan.region_size, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
    if (got == MAP_FAILED)
        return fail_errno("restore region", "mmap");
    Region region(plan.region_base, plan.region_size);
    RegionHeader& header = region.header();
    std::copy(vdso.begin(), vdso.end(), header.vdso);
    header.vdso_count = static_cast<uint32_t>(vdso.size());
    header.hook = reinterpret_cast<uint64_t>(&dispatch_hook);
    header.hook_context = reinterpret_cast<uint64_t>(&hooks);
    header.plugins = plugins == nullptr ? 0 : reinterpret_cast<uint64_t>(&run_plugin_step);
    header.plugins_context = reinterpret_cast<uint64_t>(plugins);
    CKPT_TRY(region.fill(plan, layout));
    return region;
}

Result<void> Region::fill(const RestorePlan& plan, const RegionLayout& layout) {
    RegionHeader& header = this->header();
    header.region = {base_, size_};
    header.parking = {base_ + layout.parking, layout.parking_size};
    header.programs = base_ + layout.programs;
    header.program_count = plan.programs.programs().size();
    header.operations = base_ + layout.operations;
    header.arena = base_ + layout.arena;
    header.slots = base_ + layout.slots;
    header.stacks = base_ + layout.stacks;
    header.blob_entry = base_ + layout.text;
    header.user_end = kUserEnd;
    header.descriptor_floor = plan.descriptor_floor;
    copy_operations(plan.programs, layout);
    copy_arena(plan.programs, layout);
    return place_blob(layout);
}

void Region::copy_operations(const Plan& plan, const RegionLayout& layout) {
    auto* range = at<ProgramRange>(base_, layout.programs);
    auto* out = at<Op>(base_, layout.operations);
    uint64_t first = 0;
    for (const Program& program : plan.programs()) {
        *range++ = {first, program.ops().size()};
        out = std::copy(program.ops().begin(), program.ops().end(), out);
        first += program.ops().size();
    }
}

void Region::copy_arena(const Plan& plan, const RegionLayout& layout) {
    uint64_t arena = base_ + layout.arena;
    std::memcpy(reinterpret_cast<void*>(arena), plan.arena().data(), plan.arena().size());
    for (const Plan::Pointer& pointer : plan.pointers())
        *at<uint64_t>(arena, pointer.where.offset) = arena + pointer.target.offset;
}

Result<void> Region::place_blob(const RegionLayout& layout) {
    auto blob = restorer::blob_bytes();
    void* text = at<void>(base_, layout.text);
    std::memcpy(text, blob.data(), blob.size());
    constexpr unsigned char kSyscall[] = {0x0f, 0x05};
    void* found = memmem(text, blob.size(), kSyscall, sizeof(kSyscall));
    if (found == nullptr)
        return fail(ErrorKind::kInternal, "restore blob", "has no system call");
    syscall_ = reinterpret_cast<uint64_t>(found);
    if (mprotect(text, page_up(blob.size()), PROT_READ | PROT_EXEC) < 0)
        return fail_errno("restore blob", "mprotect");
    return {};
}

Region::Region(Region&& other) noexcept
    : base_(std::exchange(other.base_, 0)), size_(other.size_), syscall_(other.syscall_) {}

Region::~Region() {
    if (base_ != 0)
        munmap(reinterpret_cast<void*>(base_), size_);
}

}  // namespace checkpointd
