// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/arch/x86_64/thread_image.h"

#include <asm/ldt.h>
#include <cerrno>
#include <cpuid.h>
#include <cstdint>
#include <cstring>
#include <linux/futex.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>

namespace checkpointd {
namespace {

// include/linux/errno.h: answers that no program ever sees.
constexpr int64_t kRestartSys = 512;
constexpr int64_t kRestartNoIntr = 513;
constexpr int64_t kRestartNoHand = 514;
constexpr int64_t kRestartBlock = 516;
constexpr uint64_t kSyscallInstruction = 2;  // bytes of `syscall`

// The legacy region of an XSAVE area, Intel SDM volume 1, table 10-2 and section 13.4.
constexpr size_t kXcr0Offset = 464;  // the kernel puts the mask of components here (ptrace only)
constexpr size_t kHeaderOffset = 512;
constexpr size_t kMinimum = 576;

enum Component : unsigned { kYmm = 2, kOpmask = 5, kZmmHigh = 6, kHigh16Zmm = 7, kPkru = 9 };

struct LegacyArea {
    uint16_t cwd;
    uint16_t swd;
    uint16_t twd;
    uint16_t fop;
    uint64_t rip;
    uint64_t rdp;
    uint32_t mxcsr;
    uint32_t mxcsr_mask;
    uint32_t st_space[32];
    uint32_t xmm_space[64];
};
static_assert(sizeof(LegacyArea) == 416);

template <typename T>
T load(std::span<const std::byte> area, size_t offset) {
    T value;
    std::memcpy(&value, area.data() + offset, sizeof(value));
    return value;
}

bool absolute_futex_wait(const user_regs_struct& regs) {
    constexpr uint64_t kCommand = ~uint64_t{FUTEX_PRIVATE_FLAG | FUTEX_CLOCK_REALTIME};
    return regs.orig_rax == SYS_futex && (regs.rsi & kCommand & 0xffffffff) == FUTEX_WAIT_BITSET;
}

void dump_general(const user_regs_struct& regs, images::user_x86_regs_entry& out) {
    out.set_r15(regs.r15);
    out.set_r14(regs.r14);
    out.set_r13(regs.r13);
    out.set_r12(regs.r12);
    out.set_bp(regs.rbp);
    out.set_bx(regs.rbx);
    out.set_r11(regs.r11);
    out.set_r10(regs.r10);
    out.set_r9(regs.r9);
    out.set_r8(regs.r8);
    out.set_ax(regs.rax);
    out.set_cx(regs.rcx);
    out.set_dx(regs.rdx);
    out.set_si(regs.rsi);
    out.set_di(regs.rdi);
    out.set_orig_ax(regs.orig_rax);
    out.set_ip(regs.rip);
    out.set_cs(regs.cs);
    out.set_flags(regs.eflags);
    out.set_sp(regs.rsp);
    out.set_ss(regs.ss);
    out.set_fs_base(regs.fs_base);
    out.set_gs_base(regs.gs_base);
    out.set_ds(regs.ds);
    out.set_es(regs.es);
    out.set_fs(regs.fs);
    out.set_gs(regs.gs);
    out.set_mode(images::NATIVE);
}

void dump_legacy(const LegacyArea& area, images::user_x86_fpregs_entry& out) {
    out.set_cwd(area.cwd);
    out.set_swd(area.swd);
    out.set_twd(area.twd);
    out.set_fop(area.fop);
    out.set_rip(area.rip);
    out.set_rdp(area.rdp);
    out.set_mxcsr(area.mxcsr);
    out.set_mxcsr_mask(area.mxcsr_mask);
    for (uint32_t word : area.st_space)
        out.add_st_space(word);
    for (uint32_t word : area.xmm_space)
        out.add_xmm_space(word);
}

// Appends a component word by word, where this CPU has it; SDM volume 1, section 13.5.
template <typename Word, typename Field>
void dump_component(std::span<const std::byte> area, Component component, size_t size, Field& out) {
    unsigned length, offset, c, d;
    uint64_t present = load<uint64_t>(area, kXcr0Offset);
    if (!(present & (uint64_t{1} << component)) ||
        !__get_cpuid_count(0xd, component, &length, &offset, &c, &d) || offset + size > area.size())
        return;
    for (size_t at = 0; at < size; at += sizeof(Word))
        out.Add(load<Word>(area, offset + at));
}

void add_segment(const user_desc& desc, images::thread_info_x86& out) {
    images::user_desc_t& entry = *out.add_tls();
    bool empty = desc.base_addr == 0 && desc.limit == 0 && desc.seg_not_present;
    entry.set_entry_number(desc.entry_number);
    entry.set_base_addr(desc.base_addr);
    entry.set_limit(desc.limit);
    entry.set_seg_32bit(!empty && desc.seg_32bit);
    entry.set_contents_h(!empty && (desc.contents & 2));
    entry.set_contents_l(!empty && (desc.contents & 1));
    entry.set_read_exec_only(desc.read_exec_only);
    entry.set_limit_in_pages(!empty && desc.limit_in_pages);
    entry.set_seg_not_present(desc.seg_not_present);
    entry.set_usable(!empty && desc.useable);
}

}  // namespace

user_regs_struct resumable_registers(user_regs_struct regs) {
    if (static_cast<int64_t>(regs.orig_rax) < 0)
        return regs;
    switch (-static_cast<int64_t>(regs.rax)) {
        case kRestartSys:
        case kRestartNoIntr:
        case kRestartNoHand:
            break;
        case kRestartBlock:
            // The kernel keeps what is left of the wait where nobody can read it. Only a deadline that
            // is absolute may be given once more; every other caller sees an interrupted wait.
            if (absolute_futex_wait(regs))
                break;
            regs.rax = static_cast<uint64_t>(-EINTR);
            return regs;
        default:
            return regs;
    }
    regs.rax = regs.orig_rax;
    regs.rip -= kSyscallInstruction;
    return regs;
}

Result<void> dump_registers(const user_regs_struct& regs, std::span<const std::byte> xstate,
                            images::thread_info_x86& out) {
    if (xstate.size() < kMinimum)
        return fail(ErrorKind::kUnsupported, "extended registers",
                    fmt::format("an area of {} bytes: this CPU has no XSAVE", xstate.size()));
    dump_general(resumable_registers(regs), *out.mutable_gpregs());
    images::user_x86_fpregs_entry& fpregs = *out.mutable_fpregs();
    dump_legacy(load<LegacyArea>(xstate, 0), fpregs);
    images::user_x86_xsave_entry& xsave = *fpregs.mutable_xsave();
    xsave.set_xstate_bv(load<uint64_t>(xstate, kHeaderOffset));
    dump_component<uint32_t>(xstate, kYmm, 256, *xsave.mutable_ymmh_space());
    dump_component<uint64_t>(xstate, kOpmask, 64, *xsave.mutable_opmask_reg());
    dump_component<uint64_t>(xstate, kZmmHigh, 512, *xsave.mutable_zmm_upper());
    dump_component<uint64_t>(xstate, kHigh16Zmm, 1024, *xsave.mutable_hi16_zmm());
    dump_component<uint32_t>(xstate, kPkru, 8, *xsave.mutable_pkru());
    return {};
}

Result<void> dump_segments(pid_t tid, images::thread_info_x86& out) {
    constexpr unsigned kFirst = 12;  // GDT_ENTRY_TLS_MIN of 64-bit kernels, three entries
    // sys/ptrace.h has no name for it that glibc and the kernel agree on.
    constexpr auto kGetThreadArea = static_cast<__ptrace_request>(25);
    for (unsigned entry = kFirst; entry < kFirst + 3; ++entry) {
        user_desc desc{};
        if (ptrace(kGetThreadArea, tid, entry, &desc) < 0)
            return fail_errno(fmt::format("tid {}", tid), "cannot read a thread-local segment");
        add_segment(desc, out);
    }
    return {};
}

}  // namespace checkpointd
