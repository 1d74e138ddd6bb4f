// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/arch/x86_64/stub.h"

#include <cassert>
#include <cerrno>
#include <cstring>
#include <initializer_list>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "core/arch/x86_64/restart.h"

namespace checkpointd {
namespace {

// The slots that every stub has, in the order in which assemble() asks for them.
enum Slot : size_t {
    kMask, kRdi, kRsi, kRdx, kR10, kR8, kR9, kR11, kRcx, kHandlerRax, kHandlerRip, kPlainRax, kPlainRip, kSlots
};

// Emits code whose rip-relative references to slots are patched when the place of the slots is known.
class Assembler {
  public:
    void raw(std::initializer_list<unsigned> bytes) {
        for (unsigned byte : bytes)
            code_.push_back(static_cast<std::byte>(byte));
    }
    // An instruction with a 32-bit immediate at its end.
    void immediate(std::initializer_list<unsigned> opcode, uint32_t value) {
        raw(opcode);
        for (int shift = 0; shift < 32; shift += 8)
            raw({(value >> shift) & 0xff});
    }
    // An instruction that ends with the rip-relative address of slot `slot`.
    void reference(std::initializer_list<unsigned> opcode, size_t slot) {
        raw(opcode);
        fixups_.push_back({code_.size(), slot});
        raw({0, 0, 0, 0});
    }
    size_t size() const { return code_.size(); }
    size_t slot(uint64_t value) {
        slots_.push_back(value);
        return slots_.size() - 1;
    }
    // Returns where the slots begin.
    size_t finish(std::vector<std::byte>& stub) {
        while (code_.size() % sizeof(uint64_t) != 0)
            raw({0xcc});
        for (const Fixup& fixup : fixups_) {
            size_t target = code_.size() + fixup.slot * sizeof(uint64_t);
            auto distance = static_cast<int32_t>(target - (fixup.at + sizeof(int32_t)));
            std::memcpy(&code_[fixup.at], &distance, sizeof(distance));
        }
        size_t code_size = code_.size();
        code_.resize(code_size + slots_.size() * sizeof(uint64_t));
        std::memcpy(&code_[code_size], slots_.data(), slots_.size() * sizeof(uint64_t));
        stub = std::move(code_);
        return code_size;
    }

  private:
    struct Fixup {
        size_t at;
        size_t slot;
    };
    std::vector<std::byte> code_;
    std::vector<Fixup> fixups_;
    std::vector<uint64_t> slots_;
};

void emit_syscall(Assembler& out, uint32_t number) {
    out.immediate({0xb8}, number);  // mov eax, number
    out.raw({0x0f, 0x05});
}

// From kCloneEntry up to the part that all calls have in common. P_PID never takes an errno for a group of
// processes, as wait4(2) would where the call failed.
constexpr uint64_t kCloneDone = kCloneEntry + kSyscallSize;
constexpr unsigned kParentSize = 3 + 5 + 5 + 6 + 6 + 7 + 2;
constexpr unsigned kChildSize = 5 + 7 + 2;
constexpr uint64_t kCloneEnd = kCloneDone + 3 + 2 + kParentSize + kChildSize;

void emit_clone(Assembler& out) {
    out.raw({0xeb, kCloneEnd - kCloneEntry});  // jmp over all of it
    out.raw({0x0f, 0x05});                     // syscall: clone
    out.raw({0x48, 0x89, 0xc1});               // mov rcx, rax
    out.raw({0xe3, kParentSize});              // jrcxz to the child's part
    out.raw({0x48, 0x89, 0xc6});               // mov rsi, rax
    out.immediate({0xbf}, P_PID);              // mov edi, P_PID
    out.immediate({0xba}, 0);                  // mov edx, 0
    out.immediate({0x41, 0xba}, WEXITED | uint32_t{__WALL});  // mov r10d
    out.immediate({0x41, 0xb8}, 0);            // mov r8d, 0
    emit_syscall(out, SYS_waitid);
    out.raw({0xeb, kChildSize});
    out.immediate({0xbf}, 0);                  // mov edi, 0
    emit_syscall(out, SYS_exit);
    out.raw({0x0f, 0x0b});                     // ud2: a filter forbids even that
}

// ppoll(NULL, 0, &zero, &mask, 8) lets pending signals in and answers EINTR exactly when a handler ran,
// which r9d then tells (fs/select.c do_poll(): -ERESTARTNOHAND if a signal is pending).
// Returns where the call's answer is in eax.
uint32_t emit_poll(Assembler& out, size_t mask) {
    size_t zero = out.slot(0);
    out.slot(0);  // tv_nsec
    out.immediate({0xbf}, 0);                // mov edi, 0
    out.immediate({0xbe}, 0);                // mov esi, 0
    out.reference({0x48, 0x8d, 0x15}, zero);  // lea rdx, [zero]
    out.reference({0x4c, 0x8d, 0x15}, mask);  // lea r10, [mask]
    out.immediate({0x41, 0xb8}, 8);          // mov r8d, 8
    emit_syscall(out, SYS_ppoll);
    auto returned = static_cast<uint32_t>(out.size());
    out.raw({0x41, 0x89, 0xc1});             // mov r9d, eax
    return returned;
}

void emit_set_mask(Assembler& out, size_t mask) {
    out.immediate({0xbf}, 2);                // mov edi, SIG_SETMASK
    out.reference({0x48, 0x8d, 0x35}, mask);  // lea rsi, [mask]
    out.immediate({0xba}, 0);                // mov edx, 0
    out.immediate({0x41, 0xba}, 8);          // mov r10d, 8
    emit_syscall(out, SYS_rt_sigprocmask);
    out.raw({0x44, 0x89, 0xc9});             // mov ecx, r9d
}

// Their slots are consecutive, in this order.
void emit_argument_registers(Assembler& out, size_t slot) {
    out.reference({0x48, 0x8b, 0x3d}, slot++);  // mov rdi, [slot], and so on
    out.reference({0x48, 0x8b, 0x35}, slot++);  // rsi
    out.reference({0x48, 0x8b, 0x15}, slot++);  // rdx
    out.reference({0x4c, 0x8b, 0x15}, slot++);  // r10
    out.reference({0x4c, 0x8b, 0x05}, slot++);  // r8
    out.reference({0x4c, 0x8b, 0x0d}, slot++);  // r9
    out.reference({0x4c, 0x8b, 0x1d}, slot);    // r11
}

constexpr unsigned kLeaveSize = 7 + 7 + 6;

void emit_leave(Assembler& out, size_t rax_slot, size_t rip_slot) {
    out.reference({0x48, 0x8b, 0x05}, rax_slot);
    out.reference({0x48, 0x8b, 0x0d}, kRcx);
    out.reference({0xff, 0x25}, rip_slot);  // jmp [rip]
}

// Where in the code what happens, and where its slots lie behind it.
struct Layout {
    uint32_t poll_return = 0;  // ppoll is done, its answer in eax; 0 without ppoll
    uint32_t answer_in_r9 = 0;
    uint32_t answer_in_rcx = 0;
    uint32_t after_handler = 0;  // the two ways out
    uint32_t plain = 0;
    uint32_t end = 0;
    uint32_t slots = 0;
};

Layout assemble(const StubReturn& back, std::vector<std::byte>& stub) {
    Assembler out;
    Layout layout;
    out.raw({0x0f, 0x05});  // syscall: the injected one
    emit_clone(out);
    assert(out.size() == kCloneEnd);
    size_t mask = out.slot(back.signal_mask);
    size_t first = out.slot(back.plain.rdi);
    for (uint64_t value : {back.plain.rsi, back.plain.rdx, back.plain.r10, back.plain.r8, back.plain.r9,
                           back.plain.r11, back.plain.rcx, back.after_handler.rax,
                           back.after_handler.rip, back.plain.rax, back.plain.rip})
        out.slot(value);
    if (back.may_poll)
        layout.poll_return = emit_poll(out, mask);
    else
        out.immediate({0x41, 0xb9}, 0);  // mov r9d, 0
    layout.answer_in_r9 = static_cast<uint32_t>(out.size());
    emit_set_mask(out, mask);
    layout.answer_in_rcx = static_cast<uint32_t>(out.size());
    emit_argument_registers(out, first);
    out.raw({0xe3, kLeaveSize});  // jrcxz over the next three: a branch that reads no flags
    layout.after_handler = static_cast<uint32_t>(out.size());
    emit_leave(out, kHandlerRax, kHandlerRip);
    layout.plain = static_cast<uint32_t>(out.size());
    emit_leave(out, kPlainRax, kPlainRip);
    layout.end = static_cast<uint32_t>(out.size());
    layout.slots = static_cast<uint32_t>(out.finish(stub));
    return layout;
}

// The magic number stands last, and before it whether the stub asks ppoll: all that its layout depends on.
constexpr size_t kPollNote = kStubSize - 2 * sizeof(uint64_t);

// Whether a handler ran, as far as the thread at offset `at` knows yet.
bool handler_ran(const Layout& layout, uint64_t at, const user_regs_struct& regs) {
    if (layout.poll_return == 0 || at < layout.poll_return)
        return false;
    if (at < layout.answer_in_r9)
        return static_cast<int32_t>(regs.rax) == -EINTR;
    if (at < layout.answer_in_rcx)
        return static_cast<uint32_t>(regs.r9) != 0;
    if (at < layout.after_handler)
        return static_cast<uint32_t>(regs.rcx) != 0;
    return at < layout.plain;
}

// Two different ways out tell which call was interrupted and how, so the kernel can be told again.
void interrupt_again(const uint64_t* slots, user_regs_struct& regs) {
    if (slots[kHandlerRip] == slots[kPlainRip])
        return;
    bool by_block = slots[kPlainRax] == SYS_restart_syscall;
    regs.rip = slots[kHandlerRip];
    regs.orig_rax = slots[kPlainRax];
    regs.rax = static_cast<uint64_t>(-int64_t{by_block ? kRestartBlock : kRestartNoHand});
}

}  // namespace

std::vector<std::byte> assemble_stub(const StubReturn& back) {
    std::vector<std::byte> stub;
    assemble(back, stub);
    assert(stub.size() <= kPollNote);
    stub.resize(kStubSize);
    stub[kPollNote] = static_cast<std::byte>(back.may_poll);
    std::memcpy(stub.data() + kStubSize - sizeof(kStubMagic), &kStubMagic, sizeof(kStubMagic));
    return stub;
}

bool looks_like_stub(const std::byte* bytes) {
    uint64_t magic = 0;
    std::memcpy(&magic, bytes + kStubSize - sizeof(magic), sizeof(magic));
    return magic == kStubMagic && bytes[0] == std::byte{0x0f} && bytes[1] == std::byte{0x05};
}

std::optional<uint64_t> stub_place_of(uint64_t rip) {
    constexpr uint64_t kPage = 4096;
    uint64_t page_end = (rip | (kPage - 1)) + 1;
    uint64_t number = (page_end - 1 - rip) / kStubSize;
    if ((number + 1) * kStubSize > kPage)
        return std::nullopt;
    return page_end - (number + 1) * kStubSize;
}

std::optional<WayHome> way_home(const std::byte* bytes, uint64_t place, const user_regs_struct& regs) {
    StubReturn shape{};
    shape.may_poll = bytes[kPollNote] != std::byte{0};
    std::vector<std::byte> same_shape;
    Layout layout = assemble(shape, same_shape);
    uint64_t at = regs.rip - place;
    if (at >= layout.end)
        return std::nullopt;
    uint64_t slots[kSlots];
    std::memcpy(slots, bytes + layout.slots, sizeof(slots));
    WayHome home{regs, slots[kMask]};
    user_regs_struct& out = home.regs;
    out.rdi = slots[kRdi];
    out.rsi = slots[kRsi];
    out.rdx = slots[kRdx];
    out.r10 = slots[kR10];
    out.r8 = slots[kR8];
    out.r9 = slots[kR9];
    out.r11 = slots[kR11];
    out.rcx = slots[kRcx];
    out.orig_rax = ~uint64_t{0};
    bool handled = handler_ran(layout, at, regs);
    out.rax = slots[handled ? kHandlerRax : kPlainRax];
    out.rip = slots[handled ? kHandlerRip : kPlainRip];
    if (!handled)
        interrupt_again(slots, out);
    return home;
}

bool is_with_child(uint64_t place, const user_regs_struct& regs) {
    uint64_t at = regs.rip - place;
    if (at == kCloneDone && restart_kind(regs) != 0)
        return false;  // interrupted, it has made nothing
    return at >= kCloneDone && at < kCloneEnd;
}

}  // namespace checkpointd
