// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/arch/x86_64/stub.h"

#include <cassert>
#include <cstring>
#include <initializer_list>
#include <sys/syscall.h>

namespace checkpointd {
namespace {

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
    size_t slot(uint64_t value) {
        slots_.push_back(value);
        return slots_.size() - 1;
    }
    std::vector<std::byte> finish() {
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
        return std::move(code_);
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

// ppoll(NULL, 0, &zero, &mask, 8) lets pending signals in and answers EINTR exactly when a handler ran,
// which r9d then tells (fs/select.c do_poll(): -ERESTARTNOHAND if a signal is pending).
void emit_poll(Assembler& out, size_t mask) {
    size_t zero = out.slot(0);
    out.slot(0);  // tv_nsec
    out.immediate({0xbf}, 0);                // mov edi, 0
    out.immediate({0xbe}, 0);                // mov esi, 0
    out.reference({0x48, 0x8d, 0x15}, zero);  // lea rdx, [zero]
    out.reference({0x4c, 0x8d, 0x15}, mask);  // lea r10, [mask]
    out.immediate({0x41, 0xb8}, 8);          // mov r8d, 8
    emit_syscall(out, SYS_ppoll);
    out.raw({0x41, 0x89, 0xc1});             // mov r9d, eax
}

void emit_set_mask(Assembler& out, size_t mask) {
    out.immediate({0xbf}, 2);                // mov edi, SIG_SETMASK
    out.reference({0x48, 0x8d, 0x35}, mask);  // lea rsi, [mask]
    out.immediate({0xba}, 0);                // mov edx, 0
    out.immediate({0x41, 0xba}, 8);          // mov r10d, 8
    emit_syscall(out, SYS_rt_sigprocmask);
    out.raw({0x44, 0x89, 0xc9});             // mov ecx, r9d
}

void emit_argument_registers(Assembler& out, const user_regs_struct& regs) {
    out.reference({0x48, 0x8b, 0x3d}, out.slot(regs.rdi));
    out.reference({0x48, 0x8b, 0x35}, out.slot(regs.rsi));
    out.reference({0x48, 0x8b, 0x15}, out.slot(regs.rdx));
    out.reference({0x4c, 0x8b, 0x15}, out.slot(regs.r10));
    out.reference({0x4c, 0x8b, 0x05}, out.slot(regs.r8));
    out.reference({0x4c, 0x8b, 0x0d}, out.slot(regs.r9));
    out.reference({0x4c, 0x8b, 0x1d}, out.slot(regs.r11));
}

constexpr unsigned kLeaveSize = 7 + 7 + 6;

void emit_leave(Assembler& out, const user_regs_struct& regs, size_t rcx_slot) {
    out.reference({0x48, 0x8b, 0x05}, out.slot(regs.rax));
    out.reference({0x48, 0x8b, 0x0d}, rcx_slot);
    out.reference({0xff, 0x25}, out.slot(regs.rip));  // jmp [rip]
}

}  // namespace

std::vector<std::byte> assemble_stub(const StubReturn& back) {
    Assembler out;
    out.raw({0x0f, 0x05});  // syscall: the injected one
    size_t mask = out.slot(back.signal_mask);
    if (back.may_poll)
        emit_poll(out, mask);
    else
        out.immediate({0x41, 0xb9}, 0);  // mov r9d, 0
    emit_set_mask(out, mask);
    emit_argument_registers(out, back.plain);
    size_t rcx_slot = out.slot(back.plain.rcx);
    out.raw({0xe3, kLeaveSize});  // jrcxz over the next three: a branch that reads no flags
    emit_leave(out, back.after_handler, rcx_slot);
    emit_leave(out, back.plain, rcx_slot);
    std::vector<std::byte> stub = out.finish();
    assert(stub.size() + sizeof(kStubMagic) <= kStubSize);
    stub.resize(kStubSize);
    std::memcpy(stub.data() + kStubSize - sizeof(kStubMagic), &kStubMagic, sizeof(kStubMagic));
    return stub;
}

bool looks_like_stub(const std::byte* bytes) {
    uint64_t magic = 0;
    std::memcpy(&magic, bytes + kStubSize - sizeof(magic), sizeof(magic));
    return magic == kStubMagic && bytes[0] == std::byte{0x0f} && bytes[1] == std::byte{0x05};
}

}  // namespace checkpointd
