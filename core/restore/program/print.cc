// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/restore/program/print.h"

#include <algorithm>

#include <fmt/core.h>

namespace checkpointd {

using restorer::ArgKind;
using restorer::Op;
using restorer::OpCode;

namespace {

struct NamedCall {
    uint32_t nr;
    const char* name;
};
constexpr NamedCall kCalls[] = {
#include "syscall_names.inc"
};

bool printable(std::string_view text) {
    return !text.empty() &&
           std::all_of(text.begin(), text.end(), [](char c) { return c >= 0x20 && c < 0x7f; });
}

// Arena bytes are shown as text where they are text.
std::string print_arena(const Plan& plan, uint64_t offset) {
    std::string_view text = plan.text_at(offset);
    if (printable(text))
        return fmt::format("\"{}\"", text.substr(0, 200));
    return fmt::format("&arena[{:#x}]", offset);
}

std::string print_number(uint64_t number) {
    if (number < 4096 || static_cast<int64_t>(number) > -4096)
        if (static_cast<int64_t>(number) < 4096)
            return fmt::format("{}", static_cast<int64_t>(number));
    return fmt::format("{:#x}", number);
}

std::string print_arg(const Plan& plan, const Op& op, unsigned i) {
    switch (op.kinds[i]) {
    case ArgKind::kArena:
        return print_arena(plan, op.args[i]);
    case ArgKind::kSlot:
        return fmt::format("slot{}", op.args[i]);
    case ArgKind::kImmediate:
        break;
    }
    return print_number(op.args[i]);
}

// How many arguments are worth showing: all up to the last that is not an immediate zero.
unsigned shown_args(const Op& op) {
    unsigned n = 6;
    while (n > 0 && op.kinds[n - 1] == ArgKind::kImmediate && op.args[n - 1] == 0)
        n--;
    return n;
}

std::string operation_name(const Op& op) {
    switch (op.code) {
    case OpCode::kSyscall:
        return syscall_name(op.nr);
    case OpCode::kStore:
        return "STORE";
    case OpCode::kLoadDescriptor:
        return "LOAD_DESCRIPTOR";
    case OpCode::kReadPages:
        return "READ_PAGES";
    case OpCode::kForkTask:
        return "FORK_TASK";
    case OpCode::kLoad:
        return "LOAD";
    case OpCode::kPlugins:
        return "PLUGINS";
    case OpCode::kHook:
        return "HOOK";
    case OpCode::kEnterBlob:
        return "ENTER_BLOB";
    case OpCode::kThread:
        return "THREAD";
    case OpCode::kReplaceMemory:
        return "REPLACE_MEMORY";
    case OpCode::kStop:
        return "BARRIER";
    case OpCode::kExit:
        return "EXIT";
    case OpCode::kInvalid:
        break;
    }
    return "INVALID";
}

std::string print_result(const Op& op) {
    std::string text;
    if (op.flags & restorer::kMoveHigh)
        text += ", moved high";
    if (op.flags & restorer::kExpectExact)
        text += fmt::format(" must be {}", print_number(static_cast<uint64_t>(op.expect)));
    if (op.flags & restorer::kSteered)
        text += ", by its number";
    if (op.flags & restorer::kIgnoreError)
        text += " (may fail)";
    return text;
}

}  // namespace

std::string syscall_name(uint32_t nr) {
    for (const NamedCall& call : kCalls)
        if (call.nr == nr)
            return call.name;
    return fmt::format("syscall_{}", nr);
}

std::string print_op(const Plan& plan, const Op& op) {
    std::string text;
    if (op.result != restorer::kNoSlot)
        text = fmt::format("slot{} = ", op.result);
    text += operation_name(op) + "(";
    for (unsigned i = 0, n = shown_args(op); i < n; i++)
        text += (i > 0 ? ", " : "") + print_arg(plan, op, i);
    text += ")" + print_result(op);
    if (op.label != restorer::kNoLabel)
        text += fmt::format("  # {}", plan.text_at(op.label));
    return text;
}

std::string print_program(const Plan& plan, const Program& program) {
    std::string text = fmt::format("program {} ({}):\n", program.index(), program.name());
    size_t number = 0;
    for (const Op& op : program.ops())
        text += fmt::format("  {:4} {}\n", number++, print_op(plan, op));
    return text;
}

}  // namespace checkpointd
