// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/inject/seccomp_filter.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace checkpointd {
namespace {

// One run of a classic BPF program over a seccomp_data; see bpf(4) of the BSDs and
// Documentation/networking/filter.rst.
class Machine {
  public:
    Machine(const SeccompFilter& filter, const seccomp_data& data) : filter_(filter), data_(data) {}

    Result<uint32_t> run() {
        while (pc_ < filter_.size() && !broken_) {
            const sock_filter& insn = filter_[pc_++];
            if (BPF_CLASS(insn.code) == BPF_RET)
                return BPF_RVAL(insn.code) == BPF_A ? a_ : insn.k;
            step(insn);
        }
        return fail(ErrorKind::kBadInput, "seccomp filter", "is no valid program");
    }

  private:
    void step(const sock_filter& insn) {
        switch (BPF_CLASS(insn.code)) {
            case BPF_LD: a_ = load(insn); break;
            case BPF_LDX: x_ = load(insn); break;
            case BPF_ST: memory(insn.k) = a_; break;
            case BPF_STX: memory(insn.k) = x_; break;
            case BPF_ALU: a_ = compute(insn); break;
            case BPF_JMP: jump(insn); break;
            case BPF_MISC: move(insn); break;
            default: broken_ = true;
        }
    }

    uint32_t load(const sock_filter& insn) {
        switch (BPF_MODE(insn.code)) {
            case BPF_IMM: return insn.k;
            case BPF_MEM: return memory(insn.k);
            case BPF_LEN: return sizeof(seccomp_data);
            case BPF_ABS: return word(insn.k);
            default: broken_ = true; return 0;
        }
    }

    uint32_t word(uint32_t offset) {
        uint32_t value = 0;
        if (offset % sizeof(value) != 0 || offset >= sizeof(seccomp_data)) {
            broken_ = true;
            return 0;
        }
        std::memcpy(&value, reinterpret_cast<const char*>(&data_) + offset, sizeof(value));
        return value;
    }

    uint32_t& memory(uint32_t index) {
        broken_ |= index >= memory_.size();
        return memory_[index % memory_.size()];
    }

    uint32_t compute(const sock_filter& insn) {
        uint32_t operand = BPF_SRC(insn.code) == BPF_X ? x_ : insn.k;
        switch (BPF_OP(insn.code)) {
            case BPF_ADD: return a_ + operand;
            case BPF_SUB: return a_ - operand;
            case BPF_MUL: return a_ * operand;
            case BPF_DIV: return divide(operand);
            case BPF_OR: return a_ | operand;
            case BPF_AND: return a_ & operand;
            case BPF_XOR: return a_ ^ operand;
            case BPF_LSH: return operand < 32 ? a_ << operand : 0;
            case BPF_RSH: return operand < 32 ? a_ >> operand : 0;
            case BPF_NEG: return 0 - a_;
            default: broken_ = true; return 0;
        }
    }

    // Division by a zero X ends the program with 0, that is SECCOMP_RET_KILL_THREAD.
    uint32_t divide(uint32_t operand) {
        broken_ |= operand == 0;
        return operand == 0 ? 0 : a_ / operand;
    }

    void jump(const sock_filter& insn) {
        uint32_t operand = BPF_SRC(insn.code) == BPF_X ? x_ : insn.k;
        bool taken = false;
        switch (BPF_OP(insn.code)) {
            case BPF_JA: pc_ += insn.k; return;
            case BPF_JEQ: taken = a_ == operand; break;
            case BPF_JGT: taken = a_ > operand; break;
            case BPF_JGE: taken = a_ >= operand; break;
            case BPF_JSET: taken = (a_ & operand) != 0; break;
            default: broken_ = true; return;
        }
        pc_ += taken ? insn.jt : insn.jf;
    }

    void move(const sock_filter& insn) {
        switch (BPF_MISCOP(insn.code)) {
            case BPF_TAX: x_ = a_; break;
            case BPF_TXA: a_ = x_; break;
            default: broken_ = true;
        }
    }

    const SeccompFilter& filter_;
    const seccomp_data& data_;
    size_t pc_ = 0;
    uint32_t a_ = 0;
    uint32_t x_ = 0;
    std::array<uint32_t, BPF_MEMWORDS> memory_{};
    bool broken_ = false;
};

// Actions order by their value as a signed number: KILL_PROCESS is negative (kernel/seccomp.c, ACTION_ONLY).
int32_t strictness(uint32_t verdict) {
    return static_cast<int32_t>(verdict & SECCOMP_RET_ACTION_FULL);
}

}  // namespace

Result<uint32_t> run_seccomp_filter(const SeccompFilter& filter, const seccomp_data& data) {
    return Machine(filter, data).run();
}

uint32_t seccomp_verdict(const std::vector<SeccompFilter>& filters, const seccomp_data& data) {
    uint32_t strictest = SECCOMP_RET_ALLOW;
    for (const SeccompFilter& filter : filters) {
        uint32_t verdict = run_seccomp_filter(filter, data).value_or(SECCOMP_RET_KILL_PROCESS);
        if (strictness(verdict) < strictness(strictest))
            strictest = verdict;
    }
    return strictest;
}

bool seccomp_allows(const std::vector<SeccompFilter>& filters, const seccomp_data& data) {
    uint32_t action = seccomp_verdict(filters, data) & SECCOMP_RET_ACTION_FULL;
    return action == SECCOMP_RET_ALLOW || action == SECCOMP_RET_LOG;
}

}  // namespace checkpointd
