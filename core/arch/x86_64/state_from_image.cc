// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/arch/x86_64/state_from_image.h"

#include <algorithm>
#include <cerrno>
#include <cpuid.h>
#include <cstring>
#include <sys/user.h>

#include <fmt/core.h>

namespace checkpointd {

namespace {

constexpr uint64_t kUserCs = 0x33;
constexpr int kSyscallLength = 2;
constexpr size_t kXcr0Offset = 464;    // where the kernel tells XCR0: struct user_xstateregs
constexpr size_t kHeaderOffset = 512;  // XSTATE_BV: Intel SDM volume 1, 13.4.2

// Values that a system call leaves in rax for the kernel alone: include/linux/errno.h.
constexpr int64_t kRestartSys = -512, kRestartNoIntr = -513, kRestartNoHand = -514,
                  kRestartBlock = -516;

// An image should hold a thread as user mode would see it; one that was taken in the middle of a
// system call is completed as the kernel would have for a signal without handler. The restart block is
// lost: that call ends with EINTR.
void settle_system_call(user_regs_struct& regs) {
    auto result = static_cast<int64_t>(regs.rax);
    if (static_cast<int64_t>(regs.orig_rax) >= 0) {
        if (result == kRestartSys || result == kRestartNoIntr || result == kRestartNoHand) {
            regs.rax = regs.orig_rax;
            regs.rip -= kSyscallLength;
        } else if (result == kRestartBlock) {
            regs.rax = static_cast<uint64_t>(-EINTR);
        }
    }
    regs.orig_rax = static_cast<uint64_t>(-1);
}

uint64_t enabled_components() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c & bit_OSXSAVE) == 0)
        return 3;  // x87 and SSE
    uint32_t low = 0, high = 0;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t{high} << 32) | low;
}

size_t area_size() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    constexpr size_t kLegacyAndHeader = 576;
    if (__get_cpuid_count(0xd, 0, &a, &b, &c, &d) == 0)
        return kLegacyAndHeader;
    return std::max<size_t>(b, kLegacyAndHeader);
}

struct Component {
    size_t offset = 0;
    size_t size = 0;
};

// Intel SDM volume 1, chapter 13: CPUID leaf 0xd, subleaf n.
Component component(unsigned number) {
    unsigned a = 0, b = 0, c = 0, d = 0;
    __get_cpuid_count(0xd, number, &a, &b, &c, &d);
    return {b, a};
}

class Area {
  public:
    Area() : bytes_(area_size()) {}

    template <typename T>
    void put(size_t offset, T value) {
        std::memcpy(bytes_.data() + offset, &value, sizeof(value));
    }

    template <typename Words>
    void put_all(size_t offset, size_t limit, const Words& words) {
        using Word = typename Words::value_type;
        size_t count = std::min<size_t>(static_cast<size_t>(words.size()), limit / sizeof(Word));
        if (count > 0 && offset + count * sizeof(Word) <= bytes_.size())
            std::memcpy(bytes_.data() + offset, words.data(), count * sizeof(Word));
    }

    template <typename Words>
    void put_component(unsigned number, uint64_t present, const Words& words) {
        if ((present >> number & 1) == 0)
            return;
        Component where = component(number);
        put_all(where.offset, where.size, words);
    }

    std::vector<std::byte> take() && { return std::move(bytes_); }

  private:
    std::vector<std::byte> bytes_;
};

// The FXSAVE layout: Intel SDM volume 1, table 10-2.
void put_legacy(Area& area, const images::user_x86_fpregs_entry& image) {
    area.put<uint16_t>(0, static_cast<uint16_t>(image.cwd()));
    area.put<uint16_t>(2, static_cast<uint16_t>(image.swd()));
    area.put<uint16_t>(4, static_cast<uint16_t>(image.twd()));
    area.put<uint16_t>(6, static_cast<uint16_t>(image.fop()));
    area.put<uint64_t>(8, image.rip());
    area.put<uint64_t>(16, image.rdp());
    area.put<uint32_t>(24, image.mxcsr());
    area.put<uint32_t>(28, image.mxcsr_mask());
    area.put_all(32, 128, image.st_space());
    area.put_all(160, 256, image.xmm_space());
}

enum XsaveComponent : unsigned {
    kYmm = 2,
    kBndregs = 3,
    kBndcsr = 4,
    kOpmask = 5,
    kZmmUpper = 6,
    kHi16Zmm = 7,
    kPkru = 9,
};

void put_extended(Area& area, const images::user_x86_xsave_entry& image, uint64_t present) {
    area.put_component(kYmm, present, image.ymmh_space());
    area.put_component(kBndregs, present, image.bndreg_state());
    area.put_component(kBndcsr, present, image.bndcsr_state());
    area.put_component(kOpmask, present, image.opmask_reg());
    area.put_component(kZmmUpper, present, image.zmm_upper());
    area.put_component(kHi16Zmm, present, image.hi16_zmm());
    area.put_component(kPkru, present, image.pkru());
}

}  // namespace

Result<std::vector<std::byte>> registers_from_image(const images::user_x86_regs_entry& image,
                                                    const std::string& object) {
    if (image.mode() != images::NATIVE || image.cs() != kUserCs)
        return fail(ErrorKind::kUnsupported, object, "is a 32-bit program");
    user_regs_struct regs{};
    regs.r15 = image.r15(), regs.r14 = image.r14(), regs.r13 = image.r13(), regs.r12 = image.r12();
    regs.rbp = image.bp(), regs.rbx = image.bx(), regs.r11 = image.r11(), regs.r10 = image.r10();
    regs.r9 = image.r9(), regs.r8 = image.r8(), regs.rax = image.ax(), regs.rcx = image.cx();
    regs.rdx = image.dx(), regs.rsi = image.si(), regs.rdi = image.di();
    regs.orig_rax = image.orig_ax(), regs.rip = image.ip(), regs.cs = image.cs();
    regs.eflags = image.flags(), regs.rsp = image.sp(), regs.ss = image.ss();
    regs.fs_base = image.fs_base(), regs.gs_base = image.gs_base();
    regs.ds = image.ds(), regs.es = image.es(), regs.fs = image.fs(), regs.gs = image.gs();
    settle_system_call(regs);
    std::vector<std::byte> bytes(sizeof(regs));
    std::memcpy(bytes.data(), &regs, sizeof(regs));
    return bytes;
}

Result<std::vector<std::byte>> xstate_from_image(const images::user_x86_fpregs_entry& image,
                                                 const std::string& object) {
    constexpr uint64_t kLegacy = 3;
    uint64_t present = image.has_xsave() ? image.xsave().xstate_bv() : kLegacy;
    if (image.has_xsave() && (image.xsave().cet().cet() != 0 || image.xsave().cet().ssp() != 0))
        return fail(ErrorKind::kUnsupported, object, "uses a shadow stack");
    if (uint64_t missing = present & ~enabled_components())
        return fail(ErrorKind::kUnsupported, object,
                    fmt::format("uses CPU state that this machine lacks (components {:#x})", missing),
                    "restore on a CPU with at least the features of the one that was dumped on");
    Area area;
    put_legacy(area, image);
    area.put<uint64_t>(kHeaderOffset, present);
    if (image.has_xsave())
        put_extended(area, image.xsave(), present);
    return std::move(area).take();
}

// The places of components follow from the CPU's model; two models that agree on the enabled components
// and on the whole size agree on the places as well.
std::vector<std::byte> xstate_from_raw(const std::string& raw) {
    if (raw.size() != area_size())
        return {};
    uint64_t enabled = 0, present = 0;
    std::memcpy(&enabled, raw.data() + kXcr0Offset, sizeof(enabled));
    std::memcpy(&present, raw.data() + kHeaderOffset, sizeof(present));
    if (enabled != enabled_components() || (present & ~enabled) != 0)
        return {};
    std::vector<std::byte> area(raw.size());
    std::memcpy(area.data(), raw.data(), raw.size());
    return area;
}

uint64_t components_by_permission(const std::vector<std::byte>& xstate) {
    constexpr uint64_t kTileData = uint64_t{1} << 18;  // XFEATURE_MASK_USER_DYNAMIC of the kernel
    uint64_t present = 0;
    if (xstate.size() >= kHeaderOffset + sizeof(present))
        std::memcpy(&present, xstate.data() + kHeaderOffset, sizeof(present));
    return present & kTileData;
}

}  // namespace checkpointd
