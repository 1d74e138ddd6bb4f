// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/resources/address_space.h"

#include <algorithm>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "core/base/io.h"
#include "core/kernel/proc_task.h"
#include "images/constants.h"

namespace checkpointd {
namespace {

constexpr uint32_t kMapDroppable = 0x08;  // MAP_DROPPABLE of Linux 6.11
constexpr std::string_view kDevZero = "/dev/zero (deleted)";  // what maps calls shared anonymous memory

bool is(const images::vma_entry& vma, uint32_t status) { return vma.status() & status; }

bool is_shared_anonymous(const ProcMapping& mapping) {
    return mapping.shared && mapping.dev_major == 0 &&
           (mapping.name == kDevZero || mapping.name.starts_with("[anon_shmem:"));
}

uint32_t mapping_flags(const ProcMapping& mapping) {
    struct Pair {
        uint32_t vm;
        uint32_t map;
    };
    constexpr Pair kPairs[] = {{kVmGrowsDown, MAP_GROWSDOWN},
                               {kVmLocked, MAP_LOCKED},
                               {kVmNoReserve, MAP_NORESERVE},
                               {kVmHugeTlb, MAP_HUGETLB},
                               {kVmDroppable, kMapDroppable}};
    uint32_t flags = mapping.shared ? MAP_SHARED : MAP_PRIVATE;
    for (const Pair& pair : kPairs)
        if (mapping.vm_flags & pair.vm)
            flags |= pair.map;
    return flags & kMapDroppable ? flags & ~uint32_t{MAP_PRIVATE} : flags;
}

uint64_t advice(const ProcMapping& mapping) {
    struct Pair {
        uint32_t vm;
        int advice;
    };
    constexpr Pair kPairs[] = {{kVmSequential, MADV_SEQUENTIAL}, {kVmRandom, MADV_RANDOM},
                               {kVmDontFork, MADV_DONTFORK},     {kVmDontDump, MADV_DONTDUMP},
                               {kVmMergeable, MADV_MERGEABLE},   {kVmHugePage, MADV_HUGEPAGE},
                               {kVmNoHugePage, MADV_NOHUGEPAGE}, {kVmWipeOnFork, MADV_WIPEONFORK}};
    uint64_t bits = 0;
    for (const Pair& pair : kPairs)
        if (mapping.vm_flags & pair.vm)
            bits |= uint64_t{1} << pair.advice;
    return bits;
}

uint32_t special_status(const std::string& name) {
    if (name == "[vsyscall]")
        return images::kVmaVsyscall;
    if (name == "[vdso]")
        return images::kVmaRegular | images::kVmaVdso;
    if (name == "[vvar]" || name == "[vvar_vclock]")
        return images::kVmaRegular | images::kVmaVvar;
    if (name == "[heap]")
        return images::kVmaRegular | images::kVmaHeap;
    return images::kVmaRegular;
}

std::string why_not(const ProcMapping& mapping, uint32_t status) {
    if (mapping.name == "[uprobes]")
        return "is probed (uprobes)";
    if (mapping.vm_flags & kVmHugeTlb)
        return "is of huge pages (hugetlb)";
    if (mapping.vm_flags & kVmShadowStack)
        return "is a shadow stack";
    if (mapping.vm_flags & (kVmUffdMissing | kVmUffdWp | kVmUffdMinor))
        return "is watched by userfaultfd";
    if (mapping.name.starts_with("/[aio]"))
        return "is a ring of Linux AIO";
    if (mapping.name.starts_with("/SYSV"))
        return "is SysV shared memory";
    if (mapping.name.starts_with("anon_inode:") || mapping.name.starts_with("socket:"))
        return "belongs to a " + mapping.name;
    constexpr uint32_t kKernelOwn = images::kVmaVvar | images::kVmaVdso | images::kVmaVsyscall;
    if ((mapping.vm_flags & (kVmIo | kVmPfnMap)) && !(status & kKernelOwn))
        return "is memory of a device";
    return {};
}

// [vvar] and [vvar_vclock] (Linux 6.13) are one object to everyone who restores it.
std::vector<ProcMapping> with_vvar_joined(std::vector<ProcMapping> mappings) {
    std::vector<ProcMapping> out;
    for (ProcMapping& mapping : mappings) {
        if (mapping.name == "[vvar_vclock]" && !out.empty() && out.back().end == mapping.start &&
            out.back().name == "[vvar]")
            out.back().end = mapping.end;
        else
            out.push_back(std::move(mapping));
    }
    return out;
}

// Walks over the mappings of one process.
class Walker {
  public:
    Walker(const SeizedProcess& process, AddressSpaceContext& context, PageScanner scanner)
        : process_(process), context_(context), scanner_(std::move(scanner)) {}

    Result<void> walk(const std::vector<ProcMapping>& mappings, AddressSpace& out) {
        for (const ProcMapping& mapping : mappings)
            CKPT_TRY(add(mapping, out));
        for (const PageRun& guard : guards_) {  // after all real mappings
            images::vma_entry& vma = *out.mm.add_vmas();
            vma.set_start(guard.start);
            vma.set_end(guard.end);
            vma.set_pgoff(0);
            vma.set_shmid(0);
            vma.set_prot(0);
            vma.set_flags(0);
            vma.set_status(images::kVmaGuard);
            vma.set_fd(-1);
        }
        return {};
    }

  private:
    std::string name(const ProcMapping& mapping) const {
        return fmt::format("pid {} mapping {:x}-{:x} ({})", process_.pid, mapping.start, mapping.end,
                           mapping.name.empty() ? "anonymous" : mapping.name);
    }

    void block(const ProcMapping& mapping, std::string why, std::string remedy = {}) {
        context_.blockers.push_back(Error{ErrorKind::kUnsupported, name(mapping), std::move(why),
                                          std::move(remedy), 0, {}});
    }

    Result<void> add(const ProcMapping& mapping, AddressSpace& out) {
        std::string blocker;
        images::vma_entry vma = classify_mapping(mapping, blocker);
        CKPT_ASSIGN(const bool is_plugins, give_to_plugin(mapping, vma));
        if (is_plugins) {
            *out.mm.add_vmas() = std::move(vma);
            return {};
        }
        if (!blocker.empty()) {
            block(mapping, std::move(blocker), "end its use before the checkpoint");
            return {};
        }
        if (is(vma, images::kVmaAnonShared))
            CKPT_TRY(add_shared(mapping, vma));
        else if (is(vma, images::kVmaFilePrivate | images::kVmaFileShared))
            CKPT_TRY(add_file(mapping, vma));
        CKPT_TRY(add_pages(mapping, vma, out));
        *out.mm.add_vmas() = std::move(vma);
        return {};
    }

    std::string map_files_path(const ProcMapping& mapping) const {
        return fmt::format("/proc/{}/map_files/{:x}-{:x}", process_.pid, mapping.start, mapping.end);
    }

    // Whether one of them has it, or has said why it cannot.
    Result<bool> give_to_plugin(const ProcMapping& mapping, images::vma_entry& vma) {
        if (!context_.ask_plugins || !mapping.has_file() || is_shared_anonymous(mapping))
            return false;
        CKPT_ASSIGN(ScopedFd fd, open_at(AT_FDCWD, map_files_path(mapping), O_PATH));
        auto plugin = context_.ask_plugins(process_.pid, vma, mapping.name, fd.get());
        if (!plugin && plugin.error().kind == ErrorKind::kUnsupported) {
            context_.blockers.push_back(std::move(plugin).error());
            return true;
        }
        CKPT_TRY(plugin);
        if (!*plugin)
            return false;
        vma.set_status(images::kVmaRegular | images::kVmaPlugin |
                       (mapping.shared ? images::kVmaFileShared : images::kVmaFilePrivate));
        vma.set_flags(vma.flags() & ~static_cast<uint32_t>(MAP_ANONYMOUS));
        vma.set_plugin(**plugin);
        vma.set_fdflags(O_RDWR);
        CKPT_ASSIGN(const uint32_t id,
                    context_.id_of_mapping({.pid = process_.pid, .path = mapping.name, .by_plugin = true}));
        vma.set_shmid(id);
        return true;
    }

    Result<void> add_shared(const ProcMapping& mapping, images::vma_entry& vma) {
        vma.set_shmid(mapping.inode);
        if (context_.shared.contains(mapping.inode))
            return {};
        CKPT_ASSIGN(ScopedFd fd, open_at(AT_FDCWD, map_files_path(mapping), O_RDONLY));
        struct stat st {};
        if (fstat(fd.get(), &st) < 0)
            return fail_errno(name(mapping), "cannot stat the shared memory");
        context_.shared[mapping.inode] = {std::move(fd), static_cast<uint64_t>(st.st_size)};
        return {};
    }

    Result<void> add_file(const ProcMapping& mapping, images::vma_entry& vma) {
        std::string path = map_files_path(mapping);
        struct stat link {};
        struct stat file {};
        // The link's own mode tells how the file was opened (proc_map_files_instantiate).
        if (lstat(path.c_str(), &link) < 0 || stat(path.c_str(), &file) < 0)
            return fail_errno(name(mapping), "cannot stat the mapped file");
        if (!S_ISREG(file.st_mode)) {
            block(mapping, "maps something that is not a regular file",
                  "end its use before the checkpoint");
            return {};
        }
        bool writable = link.st_mode & S_IWUSR;
        bool readable = link.st_mode & S_IRUSR;
        vma.set_fdflags(writable ? (readable ? O_RDWR : O_WRONLY) : O_RDONLY);
        MappedFile mapped{process_.pid,
                          mapping.start,
                          mapping.end,
                          makedev(mapping.dev_major, mapping.dev_minor),
                          mapping.inode,
                          mapping.name,
                          mapping.shared && writable};
        CKPT_ASSIGN(uint32_t id, context_.id_of_mapping(mapped));
        vma.set_shmid(id);
        return {};
    }

    bool can_be_lazy(const images::vma_entry& vma) const {
        return is(vma, images::kVmaAnonPrivate) && !(vma.flags() & MAP_LOCKED) &&
               !is(vma, images::kVmaVdso);
    }

    bool holds_stack_pointer(const PageRun& run) const {
        return std::any_of(process_.threads.begin(), process_.threads.end(), [&](const auto& thread) {
            return thread.regs().rsp >= run.start && thread.regs().rsp < run.end;
        });
    }

    // mm/mmap.c dup_mmap(): private memory is copied but for these.
    static bool forks(const ProcMapping& mapping) {
        return !(mapping.vm_flags & (kVmDontFork | kVmWipeOnFork | kVmHugeTlb));
    }

    // A page that a thread stands on is needed at once: it gets a segment of its own.
    void add_run(const PageSegment& segment, AddressSpace& out) const {
        PageRun run = segment.run;
        if (!segment.lazy || !holds_stack_pointer(run)) {
            out.pages.push_back(segment);
            return;
        }
        for (; run.start < run.end; run.start += kPageSize) {
            PageRun page{run.start, run.start + kPageSize};
            out.pages.push_back({page, !holds_stack_pointer(page), segment.forks});
        }
    }

    Result<void> add_pages(const ProcMapping& mapping, const images::vma_entry& vma,
                           AddressSpace& out) {
        if (is(vma, images::kVmaVdso)) {
            // Always whole: where the kernel of the restore has another vdso, calls into this one are
            // led on from these pages.
            out.pages.push_back({{mapping.start, mapping.end}, false, true});
            out.pages_scanned += mapping.size() / kPageSize;
            return {};
        }
        if (!is(vma, images::kVmaAnonPrivate | images::kVmaFilePrivate) ||
            is(vma, images::kVmaVvar | images::kVmaVsyscall))
            return {};
        // The kernel may take such memory at any time, and a second copy of it must not be (vgetrandom).
        if (mapping.vm_flags & kVmDroppable)
            return {};
        CKPT_ASSIGN(auto runs, scanner_.own_pages(mapping.start, mapping.end));
        for (const PageRun& run : runs)
            add_run({run, can_be_lazy(vma), forks(mapping)}, out);
        CKPT_ASSIGN(auto guards, scanner_.guard_pages(mapping.start, mapping.end));
        guards_.insert(guards_.end(), guards.begin(), guards.end());
        for (const PageRun& run : runs)
            out.pages_scanned += run.pages();
        return {};
    }

    const SeizedProcess& process_;
    AddressSpaceContext& context_;
    PageScanner scanner_;
    std::vector<PageRun> guards_;
};

void dump_layout(const ProcStat& stat, images::mm_entry& out) {
    out.set_mm_start_code(stat.start_code);
    out.set_mm_end_code(stat.end_code);
    out.set_mm_start_data(stat.start_data);
    out.set_mm_end_data(stat.end_data);
    out.set_mm_start_stack(stat.start_stack);
    out.set_mm_start_brk(stat.start_brk);
    out.set_mm_arg_start(stat.arg_start);
    out.set_mm_arg_end(stat.arg_end);
    out.set_mm_env_start(stat.env_start);
    out.set_mm_env_end(stat.env_end);
}

}  // namespace

images::vma_entry classify_mapping(const ProcMapping& mapping, std::string& blocker) {
    uint32_t status = special_status(mapping.name);
    uint32_t flags = mapping_flags(mapping);
    bool file = mapping.has_file() && !is_shared_anonymous(mapping);
    if (file)
        status |= mapping.shared ? images::kVmaFileShared : images::kVmaFilePrivate;
    else
        status |= mapping.shared ? images::kVmaAnonShared : images::kVmaAnonPrivate;
    if (file && mapping.name.starts_with("/memfd:"))
        status |= images::kVmaMemfd;
    if (!file)
        flags |= MAP_ANONYMOUS;
    blocker = why_not(mapping, status);
    images::vma_entry vma;
    vma.set_start(mapping.start);
    vma.set_end(mapping.end);
    // /proc tells offsets of anonymous memory where something was mapped over it; nobody sees them.
    vma.set_pgoff(file || mapping.shared ? mapping.offset : 0);
    vma.set_shmid(0);
    vma.set_prot(mapping.prot);
    vma.set_flags(flags);
    vma.set_status(status);
    vma.set_fd(-1);
    if (uint64_t bits = advice(mapping); bits && !(status & images::kVmaVdso))
        vma.set_madv(bits);
    return vma;
}

Result<AddressSpace> dump_address_space(const SeizedProcess& process, const ProcStat& stat,
                                        AddressSpaceContext& context) {
    AddressSpace out;
    dump_layout(stat, out.mm);
    CKPT_ASSIGN(auto auxv, read_auxv(process.pid));
    out.auxv = auxv;
    // Readers of the format refuse more words than their AT_VECTOR_SIZE.
    constexpr size_t kMost = 44;
    for (size_t i = 0; i < std::min(auxv.size(), kMost); ++i)
        out.mm.add_mm_saved_auxv(auxv[i]);
    CKPT_ASSIGN(uint32_t exe, context.id_of_exe(process.pid));
    out.mm.set_exe_file_id(exe);
    CKPT_ASSIGN(auto mappings, read_smaps(process.pid));
    CKPT_ASSIGN(PageScanner scanner, PageScanner::open(process.pid, context.scan));
    Walker walker(process, context, std::move(scanner));
    CKPT_TRY(walker.walk(with_vvar_joined(std::move(mappings)), out));
    return out;
}

Result<void> ask_address_space(RemoteSyscalls& remote, images::mm_entry& out) {
    CKPT_ASSIGN(uint64_t brk, remote.call(SYS_brk, {0}));
    out.set_mm_brk(brk);
    CKPT_ASSIGN(uint64_t dumpable, remote.call(SYS_prctl, {PR_GET_DUMPABLE}));
    out.set_dumpable(static_cast<int32_t>(dumpable));
    CKPT_ASSIGN(uint64_t disabled, remote.call(SYS_prctl, {PR_GET_THP_DISABLE, 0, 0, 0, 0}));
    out.set_thp_disabled(disabled != 0);
    return {};
}

}  // namespace checkpointd
