// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/restore/program/plan.h"

#include <cassert>
#include <cstring>
#include <fcntl.h>
#include <sys/syscall.h>

namespace checkpointd {

using restorer::Op;
using restorer::OpCode;

Plan::Plan() {
    reserve(8);  // offset 0 means "no label", so nothing else may lie there
}

Program& Plan::new_program(std::string name) {
    return programs_.emplace_back(*this, std::move(name), static_cast<uint32_t>(programs_.size()));
}

ArenaRef Plan::reserve(size_t size, size_t align) {
    size_t offset = (arena_.size() + align - 1) / align * align;
    arena_.resize(offset + size);
    return ArenaRef{offset};
}

ArenaRef Plan::bytes(const void* data, size_t size, size_t align) {
    ArenaRef ref = reserve(size, align);
    if (size > 0)
        std::memcpy(arena_.data() + ref.offset, data, size);
    return ref;
}

ArenaRef Plan::string(std::string_view text) {
    auto [it, is_new] = strings_.try_emplace(std::string(text));
    if (is_new) {
        it->second = bytes(it->first.c_str(), text.size() + 1, 1);
        texts_.insert(it->second.offset);
    }
    return it->second;
}

Op& Program::append(OpCode code, std::string_view label, std::initializer_list<Arg> args) {
    assert(args.size() <= 6);
    Op op{};
    op.code = code;
    op.result = restorer::kNoSlot;
    op.label = label.empty() ? restorer::kNoLabel
                             : static_cast<uint32_t>(plan_.string(label).offset);
    size_t i = 0;
    for (const Arg& arg : args) {
        op.args[i] = arg.value;
        op.kinds[i++] = arg.kind;
    }
    return ops_.emplace_back(op);
}

Op& Program::syscall(std::string_view label, long nr, std::initializer_list<Arg> args) {
    Op& op = append(OpCode::kSyscall, label, args);
    op.nr = static_cast<uint32_t>(nr);
    return op;
}

void Program::call(std::string_view label, long nr, std::initializer_list<Arg> args) {
    syscall(label, nr, args);
}

void Program::try_call(std::string_view label, long nr, std::initializer_list<Arg> args) {
    syscall(label, nr, args).flags = restorer::kIgnoreError;
}

void Program::call_expect(std::string_view label, int64_t expect, long nr,
                          std::initializer_list<Arg> args) {
    Op& op = syscall(label, nr, args);
    op.flags = restorer::kExpectExact;
    op.expect = expect;
}

Slot Program::value(std::string_view label, long nr, std::initializer_list<Arg> args) {
    Slot slot = plan_.new_slot();
    syscall(label, nr, args).result = slot.index;
    return slot;
}

Slot Program::descriptor(std::string_view label, long nr, std::initializer_list<Arg> args) {
    Slot slot = value(label, nr, args);
    ops_.back().flags = restorer::kMoveHigh;
    return slot;
}

Slot Program::descriptor_from(std::string_view label, ArenaRef where) {
    Slot slot = plan_.new_slot();
    Op& op = append(OpCode::kLoadDescriptor, label, {where});
    op.result = slot.index;
    op.flags = restorer::kMoveHigh;
    return slot;
}

Slot Program::descriptor_at(std::string_view label, ArenaRef where) {
    Slot slot = plan_.new_slot();
    append(OpCode::kLoadDescriptor, label, {where}).result = slot.index;
    return slot;
}

Slot Program::load(std::string_view label, ArenaRef where) {
    Slot slot = plan_.new_slot();
    append(OpCode::kLoad, label, {where}).result = slot.index;
    return slot;
}

void Program::store(Slot slot, ArenaRef where, unsigned width) {
    append(OpCode::kStore, {}, {slot, where, width});
}

void Program::read_pages(std::string_view label, Slot file, ArenaRef iovecs, size_t count,
                         uint64_t offset) {
    append(OpCode::kReadPages, label, {file, iovecs, count, offset});
}

Slot Program::fork_task(std::string_view label, int pid, const Program& program, uint64_t flags) {
    Slot slot = plan_.new_slot();
    append(OpCode::kForkTask, label, {pid, program.index(), flags}).result = slot.index;
    return slot;
}

void Program::barrier(std::string_view label, uint64_t number) {
    append(OpCode::kStop, label, {number});
}

void Program::enter_blob(std::string_view label, const Program& program, uint64_t stack) {
    append(OpCode::kEnterBlob, label, {program.index(), stack});
}

void Program::thread(std::string_view label, int tid, const Program& program, uint64_t stack,
                     bool steered) {
    append(OpCode::kThread, label, {tid, program.index(), stack}).flags =
        steered ? restorer::kSteered : 0;
}

void Program::exit(std::string_view label, int status) {
    append(OpCode::kExit, label, {status});
}

std::string_view Plan::text_at(uint64_t offset) const {
    if (!texts_.contains(offset))
        return {};
    const char* text = reinterpret_cast<const char*>(arena_.data()) + offset;
    return {text, strnlen(text, arena_.size() - offset)};
}

}  // namespace checkpointd
