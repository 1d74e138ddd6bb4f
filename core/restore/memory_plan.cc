// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/restore/memory_plan.h"

#include <algorithm>
#include <cstring>
#include <fcntl.h>
#include <linux/prctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <fmt/core.h>

#include "images/constants.h"
#include "images/image_type.h"
#include "restorer/region.h"

namespace checkpointd {

using images::vma_entry;

namespace {

constexpr uint64_t kPage = 4096;
// Distance from every mapping: a stack grows down until 256 pages (stack_guard_gap) above its neighbour.
constexpr uint64_t kMargin = 4u << 20;
constexpr uint64_t kLowest = 1u << 24;
constexpr uint32_t kMapDroppable = 0x08;  // MAP_DROPPABLE (Linux 6.11): a type of its own, private

bool is(const vma_entry& vma, uint32_t status) {
    return (vma.status() & status) != 0;
}

bool is_kernels(const vma_entry& vma) {
    return is(vma, images::kVmaVsyscall | images::kVmaVdso | images::kVmaVvar);
}

// With pages of its own that come out of the image.
bool is_private(const vma_entry& vma) {
    uint32_t type = vma.flags() & MAP_TYPE;
    return !is_kernels(vma) && !is(vma, images::kVmaPlugin) && (type == MAP_PRIVATE || type == kMapDroppable);
}

bool is_shared_segment(const vma_entry& vma) {
    return is(vma, images::kVmaAnonShared) && !is(vma, images::kVmaSysvIpc | images::kVmaPlugin);
}

std::string mapping_label(const TaskRecord& task, const vma_entry& vma) {
    return fmt::format("pid {} {:#x}-{:#x}", task.pid(), vma.start(), vma.end());
}

struct Span {
    uint64_t start;
    uint64_t end;
};

std::vector<Span> all_spans(const ForestImages& forest, const std::vector<ProcMapping>& own) {
    std::vector<Span> spans;
    for (const ProcMapping& mapping : own)
        if (mapping.end <= kUserMemoryEnd)  // not [vsyscall]
            spans.push_back({mapping.start, mapping.end});
    for (const TaskRecord& task : forest.tasks) {
        for (const vma_entry& vma : task.mm.vmas())
            if (!is(vma, images::kVmaVsyscall))
                spans.push_back({vma.start(), vma.end()});
        spans.push_back({task.mm.mm_start_brk(), task.mm.mm_brk()});
    }
    std::sort(spans.begin(), spans.end(),
              [](const Span& a, const Span& b) { return a.start < b.start; });
    return spans;
}

// Bits of vma_entry.madv that are really advice of the program; others are states of the kernel.
constexpr int kAdvice[] = {MADV_DONTFORK, MADV_MERGEABLE, MADV_HUGEPAGE, MADV_NOHUGEPAGE,
                           MADV_DONTDUMP, MADV_WIPEONFORK, MADV_SEQUENTIAL, MADV_RANDOM};
constexpr int kGuardInstall = 102;  // MADV_GUARD_INSTALL, Linux 6.13

}  // namespace

Result<uint64_t> free_place(const ForestImages& forest, const std::vector<ProcMapping>& own,
                            uint64_t size) {
    uint64_t end = kLowest;
    uint64_t best = 0;
    uint64_t best_size = 0;
    std::vector<Span> spans = all_spans(forest, own);
    spans.push_back({kUserMemoryEnd, kUserMemoryEnd});
    // The middle of the largest hole: stacks and heaps have the most room to grow meanwhile.
    for (const Span& span : spans) {
        if (span.start > end && span.start - end > best_size) {
            best_size = span.start - end;
            best = end;
        }
        end = std::max(end, span.end);
    }
    if (best_size < size + 2 * kMargin)
        return fail(ErrorKind::kUnsupported, "restore",
                    "the tasks leave no room in their address spaces");
    uint64_t place = best + (best_size - size) / 2;
    return place / kPage * kPage;
}

void MemoryPlanner::check(std::vector<Error>& blockers) {
    for (const TaskRecord& task : forest_.tasks) {
        if (task.zombie())
            continue;
        check_task(task, blockers);
        check_vdso(task, blockers);
    }
}

void MemoryPlanner::check_task(const TaskRecord& task, std::vector<Error>& blockers) {
    auto refuse = [&](const vma_entry& vma, const char* what) {
        blockers.push_back(Error{ErrorKind::kUnsupported, mapping_label(task, vma), what, {}, 0, {}});
    };
    for (const vma_entry& vma : task.mm.vmas()) {
        if (is(vma, images::kVmaSysvIpc))
            refuse(vma, "is System V shared memory");
        if (is(vma, images::kVmaAioRing))
            refuse(vma, "is a ring of asynchronous I/O (io_setup)");
        if (is(vma, images::kVmaSocket))
            refuse(vma, "is a mapping of a socket");
        if (is(vma, images::kVmaShadowStack))
            refuse(vma, "is a shadow stack");
        if (is(vma, images::kVmaUprobes))
            refuse(vma, "belongs to a tracing probe");
        if (is_shared_segment(vma))
            segments_[vma.shmid()].size =
                std::max(segments_[vma.shmid()].size, vma.pgoff() + (vma.end() - vma.start()));
    }
    for (const images::pagemap_entry& run : task.pages.runs)
        if ((run.flags() & images::kPagesInParent) != 0) {
            blockers.push_back(Error{ErrorKind::kUnsupported, task.object(),
                                     "has pages in a parent image", {}, 0, {}});
            break;
        }
}

// The program's memory holds addresses inside the vdso, so its code must be the same.
void MemoryPlanner::check_vdso(const TaskRecord& task, std::vector<Error>& blockers) {
    uint64_t start = 0;
    for (const vma_entry& vma : task.mm.vmas()) {
        if (is(vma, images::kVmaVvar) && start == 0)
            start = vma.start();
        if (!is(vma, images::kVmaVdso))
            continue;
        if (auto same = compare_vdso(task, vma); !same)
            blockers.push_back(std::move(same).error());
        uint64_t before = 0;
        for (const ProcMapping& own : facts_.mappings)
            if (own.name.starts_with("[vvar"))
                before += own.end - own.start;
        if (start != 0 && vma.start() - start != before)
            blockers.push_back(Error{ErrorKind::kUnsupported, mapping_label(task, vma),
                                     "this kernel's vdso data has another size", {}, 0, {}});
    }
}

Result<void> MemoryPlanner::compare_vdso(const TaskRecord& task, const vma_entry& vdso) {
    auto own = std::find_if(facts_.mappings.begin(), facts_.mappings.end(),
                            [](const ProcMapping& mapping) { return mapping.name == "[vdso]"; });
    auto differs = [&](const char* what) {
        return fail(ErrorKind::kUnsupported, mapping_label(task, vdso), what,
                    "restore under the kernel that the checkpoint was made under");
    };
    if (own == facts_.mappings.end() || own->end - own->start != vdso.end() - vdso.start())
        return differs("this kernel's vdso has another size");
    uint64_t offset = 0;
    for (const images::pagemap_entry& run : task.pages.runs) {
        if ((run.flags() & images::kPagesPresent) == 0)
            continue;
        uint64_t size = run.nr_pages() * kPage;
        if (run.vaddr() < vdso.end() && run.vaddr() + size > vdso.start()) {
            CKPT_ASSIGN(ScopedFd pages,
                        dir_.open_raw(images::ImageType::kPages, task.pages.pages_id));
            uint64_t from = std::max(run.vaddr(), vdso.start());
            uint64_t until = std::min(run.vaddr() + size, vdso.end());
            std::vector<char> bytes(until - from);
            ssize_t got = pread(pages.get(), bytes.data(), bytes.size(),
                                static_cast<off_t>(offset + from - run.vaddr()));
            if (got != static_cast<ssize_t>(bytes.size()))
                return fail(ErrorKind::kBadImage, task.object(), "its vdso is not in the pages file");
            const void* ours = reinterpret_cast<void*>(own->start + (from - vdso.start()));
            if (std::memcmp(bytes.data(), ours, bytes.size()) != 0)
                return differs("this kernel's vdso is another one");
        }
        offset += size;
    }
    return {};
}

uint64_t MemoryPlanner::window_size() const {
    uint64_t size = 0;
    for (const auto& [shmid, segment] : segments_)
        size += segment.size + kPage;
    return size;
}

Result<Slot> MemoryPlanner::pages_file(uint32_t pages_id) {
    auto [entry, is_new] = pages_files_.try_emplace(pages_id);
    if (is_new) {
        std::string name = images::image_name(images::ImageType::kPages, pages_id);
        entry->second = agent_.descriptor(
            name, SYS_openat,
            {image_dir_, agent_.plan().string(name), O_RDONLY | O_CLOEXEC | O_NOFOLLOW});
    }
    return entry->second;
}

// A shared anonymous mapping has no name but in map_files; opened there, any task can map the very
// same memory, and it shows as "/dev/zero (deleted)" as before.
Result<void> MemoryPlanner::plan_segment(uint64_t shmid, Segment& segment, uint64_t address) {
    std::string label = fmt::format("shared segment {}", shmid);
    agent_.call_expect(label, static_cast<int64_t>(address), SYS_mmap,
                       {address, segment.size, PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0});
    CKPT_ASSIGN(PageRuns pages, read_shared_pages(dir_, shmid));
    uint64_t size = segment.size;
    auto sort = [size](uint64_t offset) {
        return offset < size ? Stretch{size, true} : Stretch{UINT64_MAX, false};
    };
    CKPT_TRY(read_runs(label, agent_, pages, address, sort));
    std::string path = fmt::format("self/map_files/{:x}-{:x}", address, address + segment.size);
    segment.file = agent_.descriptor(label, SYS_openat,
                                     {proc_, agent_.plan().string(path), O_RDWR | O_CLOEXEC});
    return {};
}

Result<void> MemoryPlanner::plan_agent(uint64_t window) {
    for (auto& [shmid, segment] : segments_) {
        CKPT_TRY(plan_segment(shmid, segment, window));
        window += segment.size + kPage;
    }
    for (const TaskRecord& task : forest_.tasks)
        if (!task.zombie() && !task.pages.runs.empty())
            CKPT_TRY(pages_file(task.pages.pages_id));
    return {};
}

Result<void> MemoryPlanner::check_size(const PageRuns& pages) const {
    uint64_t bytes = 0;
    for (const images::pagemap_entry& run : pages.runs)
        if (run.flags() & images::kPagesPresent)
            bytes += run.nr_pages() * kPage;
    if (bytes == 0)
        return {};
    CKPT_ASSIGN(ScopedFd file, dir_.open_raw(images::ImageType::kPages, pages.pages_id));
    struct stat st {};
    if (fstat(file.get(), &st) < 0)
        return fail_errno(dir_.name(), "fstat of a pages file");
    if (static_cast<uint64_t>(st.st_size) < bytes)
        return fail(ErrorKind::kBadImage,
                    images::image_name(images::ImageType::kPages, pages.pages_id),
                    fmt::format("has {} bytes, {} are needed", st.st_size, bytes));
    return {};
}

// The runs of a pages file lie in it one after the other; what nobody wants is passed over.
Result<void> MemoryPlanner::read_runs(const std::string& label, Program& program,
                                      const PageRuns& pages, uint64_t base, const Sorter& sort) {
    CKPT_TRY(check_size(pages));
    std::vector<iovec> vectors;
    uint64_t offset = 0;
    uint64_t start = 0;
    auto flush = [&]() -> Result<void> {
        if (vectors.empty())
            return {};
        CKPT_ASSIGN(Slot file, pages_file(pages.pages_id));
        ArenaRef arena = program.plan().bytes(vectors.data(), vectors.size() * sizeof(iovec));
        program.read_pages(label, file, arena, vectors.size(), start);
        bytes_ += offset - start;
        vectors.clear();
        return {};
    };
    for (const images::pagemap_entry& run : pages.runs) {
        if ((run.flags() & images::kPagesPresent) == 0)
            continue;
        uint64_t end = run.vaddr() + run.nr_pages() * kPage;
        for (uint64_t at = run.vaddr(), next; at < end; at = next) {
            Stretch stretch = sort(at);
            next = std::min(stretch.until, end);
            if (!stretch.wanted)
                CKPT_TRY(flush());
            else if (vectors.empty())
                start = offset;
            auto* place = reinterpret_cast<char*>(base + at);
            bool joins = !vectors.empty() && static_cast<char*>(vectors.back().iov_base) +
                                                     vectors.back().iov_len == place;
            if (joins)
                vectors.back().iov_len += next - at;
            else if (stretch.wanted)
                vectors.push_back({place, next - at});
            offset += next - at;
        }
    }
    return flush();
}

Result<void> MemoryPlanner::fill_memfd(uint32_t shmid, uint64_t size, Slot fd, Program& agent) {
    CKPT_ASSIGN(PageRuns pages, read_shared_pages(dir_, shmid));
    CKPT_TRY(check_size(pages));
    std::string label = fmt::format("memfd {}", shmid);
    CKPT_ASSIGN(Slot file, pages_file(pages.pages_id));
    uint64_t offset = 0;
    for (const images::pagemap_entry& run : pages.runs) {
        if ((run.flags() & images::kPagesPresent) == 0)
            continue;
        uint64_t length = run.nr_pages() * kPage;
        if (run.vaddr() >= size)
            return fail(ErrorKind::kBadImage, label, "has pages behind its end");
        copy_to_memfd(label, file, offset, fd, run.vaddr(), std::min(length, size - run.vaddr()), agent);
        offset += length;
    }
    agent.call_expect(label, 0, SYS_lseek, {fd, 0, SEEK_SET});
    return {};
}

// copy_file_range(2) refuses to cross file systems (since Linux 5.19), sendfile(2) does not; it writes at
// the file's position, at most 2 GiB at once.
void MemoryPlanner::copy_to_memfd(const std::string& label, Slot file, uint64_t from, Slot fd,
                                  uint64_t to, uint64_t length, Program& agent) {
    constexpr uint64_t kMost = 1u << 30;
    agent.call_expect(label, static_cast<int64_t>(to), SYS_lseek, {fd, to, SEEK_SET});
    for (uint64_t done = 0; done < length; done += kMost) {
        uint64_t piece = std::min(kMost, length - done);
        agent.call_expect(label, static_cast<int64_t>(piece), SYS_sendfile,
                          {fd, file, agent.plan().object(from + done), piece});
    }
    bytes_ += length;
}

Result<void> MemoryPlanner::map(const TaskRecord& task, const vma_entry& vma, Program& blob,
                                const FileSlots& files, const PluginMappings& of_plugins) {
    std::string label = mapping_label(task, vma);
    uint64_t size = vma.end() - vma.start();
    // Pages are read into private mappings, so these are writable at first.
    int prot = static_cast<int>(vma.prot()) | (is_private(vma) ? PROT_READ | PROT_WRITE : 0);
    constexpr uint32_t kCarried = MAP_PRIVATE | MAP_SHARED | MAP_ANONYMOUS | MAP_GROWSDOWN |
                                  MAP_NORESERVE | MAP_HUGETLB | MAP_SYNC | kMapDroppable |
                                  0xfc000000u;
    uint32_t flags = (vma.flags() & kCarried) | MAP_FIXED_NOREPLACE;
    Arg file = -1;
    Arg offset = vma.pgoff();
    if (is(vma, images::kVmaPlugin)) {
        const PluginMapping& mapping = of_plugins.at(vma.start());
        flags &= ~static_cast<uint32_t>(MAP_ANONYMOUS);
        file = mapping.fd;
        offset = mapping.offset;
    } else if (is_shared_segment(vma)) {
        flags &= ~static_cast<uint32_t>(MAP_ANONYMOUS);
        file = segments_.at(vma.shmid()).file;
    } else if (is(vma, images::kVmaFilePrivate | images::kVmaFileShared | images::kVmaMemfd)) {
        flags &= ~static_cast<uint32_t>(MAP_ANONYMOUS);
        CKPT_ASSIGN(file, files(static_cast<uint32_t>(vma.shmid())));
    } else {
        flags |= MAP_ANONYMOUS;
        offset = 0;
    }
    blob.call_expect(label, static_cast<int64_t>(vma.start()), SYS_mmap,
                     {vma.start(), size, prot, flags, file, offset});
    return {};
}

Result<void> MemoryPlanner::read_private_pages(const TaskRecord& task, Program& blob) {
    const auto& vmas = task.mm.vmas();
    auto sort = [&](uint64_t address) -> Stretch {
        auto vma = std::upper_bound(
            vmas.begin(), vmas.end(), address,
            [](uint64_t at, const vma_entry& entry) { return at < entry.end(); });
        if (vma == vmas.end())
            return {UINT64_MAX, false};
        if (vma->start() > address)
            return {vma->start(), false};
        return {vma->end(), is_private(*vma)};
    };
    return read_runs(fmt::format("pid {} memory", task.pid()), blob, task.pages, 0, sort);
}

void MemoryPlanner::settle(const TaskRecord& task, const vma_entry& vma, Program& blob) {
    std::string label = mapping_label(task, vma);
    uint64_t size = vma.end() - vma.start();
    for (int advice : kAdvice)
        if (vma.madv() >> advice & 1)
            blob.call(label, SYS_madvise, {vma.start(), size, advice});
    if (is_private(vma) && (vma.prot() & (PROT_READ | PROT_WRITE)) != (PROT_READ | PROT_WRITE))
        blob.call(label, SYS_mprotect, {vma.start(), size, vma.prot()});
}

// What /proc/PID shows, and brk: PR_SET_MM_MAP in prctl(2).
Result<void> MemoryPlanner::describe_layout(const TaskRecord& task, Program& blob,
                                            const FileSlots& files) {
    const images::mm_entry& mm = task.mm;
    std::string label = fmt::format("pid {} memory layout", task.pid());
    constexpr int kMostAuxv = 64;
    std::vector<uint64_t> auxv(mm.mm_saved_auxv().begin(), mm.mm_saved_auxv().end());
    if (task.extra.auxv_size() > 0)
        auxv.assign(task.extra.auxv().begin(), task.extra.auxv().end());
    if (auxv.size() > kMostAuxv)
        return fail(ErrorKind::kBadImage, task.object(), "its auxiliary vector is too long");
    prctl_mm_map map{};
    map.start_code = mm.mm_start_code(), map.end_code = mm.mm_end_code();
    map.start_data = mm.mm_start_data(), map.end_data = mm.mm_end_data();
    map.start_brk = mm.mm_start_brk(), map.brk = mm.mm_brk();
    map.start_stack = mm.mm_start_stack();
    map.arg_start = mm.mm_arg_start(), map.arg_end = mm.mm_arg_end();
    map.env_start = mm.mm_env_start(), map.env_end = mm.mm_env_end();
    map.auxv_size = static_cast<uint32_t>(auxv.size() * sizeof(uint64_t));
    map.exe_fd = static_cast<uint32_t>(-1);
    Plan& plan = blob.plan();
    ArenaRef vector = plan.bytes(auxv.data(), auxv.size() * sizeof(uint64_t));
    ArenaRef where = plan.object(map);
    if (!auxv.empty())
        plan.point(ArenaRef{where.offset + offsetof(prctl_mm_map, auxv)}, vector);
    CKPT_ASSIGN(Slot exe, files(mm.exe_file_id()));
    blob.store(exe, ArenaRef{where.offset + offsetof(prctl_mm_map, exe_fd)}, 4);
    blob.call(label, SYS_prctl, {PR_SET_MM, PR_SET_MM_MAP, where, sizeof(map), 0});
    if (mm.thp_disabled())
        blob.call(label, SYS_prctl, {PR_SET_THP_DISABLE, 1, 0, 0, 0});
    return {};
}

Result<void> MemoryPlanner::plan_task(const TaskRecord& task, Program& blob,
                                      const FileSlots& files, const PluginMappings& of_plugins) {
    uint64_t vdso = 0;
    for (const vma_entry& vma : task.mm.vmas())
        if (is(vma, images::kVmaVdso))
            vdso = vma.start();
    blob.append(restorer::OpCode::kReplaceMemory, fmt::format("pid {} vdso", task.pid()), {vdso});
    for (const vma_entry& vma : task.mm.vmas())
        if (!is_kernels(vma))
            CKPT_TRY(map(task, vma, blob, files, of_plugins));
    CKPT_TRY(read_private_pages(task, blob));
    for (const vma_entry& vma : task.mm.vmas())
        if (!is_kernels(vma))
            settle(task, vma, blob);
    // A mapping with a guard in it stays marked ("gu" in smaps), so neighbours must be told apart by
    // now; and Linux 6.13 and 6.14 refuse locked memory.
    for (const vma_entry& guard : task.guards)
        blob.call(mapping_label(task, guard) + " guard", SYS_madvise,
                  {guard.start(), guard.end() - guard.start(), kGuardInstall});
    for (const vma_entry& vma : task.mm.vmas())
        if (!is_kernels(vma) && vma.flags() & MAP_LOCKED)
            blob.call(mapping_label(task, vma), SYS_mlock, {vma.start(), vma.end() - vma.start()});
    return describe_layout(task, blob, files);
}

}  // namespace checkpointd
