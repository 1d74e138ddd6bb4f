// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <cstddef>
#include <deque>
#include <initializer_list>
#include <string>
#include <string_view>
#include <type_traits>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "restorer/op.h"

namespace checkpointd {

// A value that exists only when the plan runs, such as a descriptor. Slots are shared by all programs of
// a plan: what the agent stored before it forked, every task sees.
struct Slot {
    uint32_t index = restorer::kNoSlot;
};

// Bytes in the plan's arena.
struct ArenaRef {
    uint64_t offset = 0;
};

// One argument of an operation: a number, the address of arena bytes, or a slot's value.
struct Arg {
    restorer::ArgKind kind = restorer::ArgKind::kImmediate;
    uint64_t value = 0;

    Arg() = default;
    template <typename T>
        requires(std::is_integral_v<T> || std::is_enum_v<T>)
    Arg(T number) : value(static_cast<uint64_t>(number)) {}
    Arg(Slot slot) : kind(restorer::ArgKind::kSlot), value(slot.index) {}
    Arg(ArenaRef ref) : kind(restorer::ArgKind::kArena), value(ref.offset) {}
};

class Plan;

// A straight line of operations, run by one executor in one place: the agent, a task's stage or a
// thread in the blob.
class Program {
  public:
    Program(Plan& plan, std::string name, uint32_t index)
        : plan_(plan), name_(std::move(name)), index_(index) {}

    // A system call that must not fail. `label` names the object ("pid 7 fd 5 (/var/log/x)") in the
    // error and in `crctl explain`.
    void call(std::string_view label, long nr, std::initializer_list<Arg> args);
    // The same, but an error is not fatal.
    void try_call(std::string_view label, long nr, std::initializer_list<Arg> args);
    // The result must be exactly `expect`, or the restore fails.
    void call_expect(std::string_view label, int64_t expect, long nr, std::initializer_list<Arg> args);
    // A system call whose result is kept.
    Slot value(std::string_view label, long nr, std::initializer_list<Arg> args);
    // A system call whose result is a descriptor; it is moved above the numbers that tasks use and is
    // close-on-exec. It may be used by every program that runs later, in this or in a forked process.
    Slot descriptor(std::string_view label, long nr, std::initializer_list<Arg> args);
    // Moves a descriptor that a call left in the arena (socketpair, pipe2) above the tasks' numbers.
    Slot descriptor_from(std::string_view label, ArenaRef where);
    // A descriptor that something left in the arena, under the number that it has; or -errno, which fails.
    Slot descriptor_at(std::string_view label, ArenaRef where);
    // 8 bytes of the arena, as they are by then.
    Slot load(std::string_view label, ArenaRef where);
    // Writes a slot's value into the arena (SCM_RIGHTS, prctl_mm_map.exe_fd ...), 4 or 8 bytes wide.
    void store(Slot slot, ArenaRef where, unsigned width);
    // Fills memory from a file: `count` struct iovec in the arena, from byte `offset` on.
    void read_pages(std::string_view label, Slot file, ArenaRef iovecs, size_t count,
                    uint64_t offset);
    // Stage only: a process with this PID (0: any) that runs `program`; `flags` as for clone3.
    Slot fork_task(std::string_view label, int pid, const Program& program, uint64_t flags);
    // Waits until every thread of the restore has come to barrier `number` or a later one.
    void barrier(std::string_view label, uint64_t number);
    // Stage only, last operation: goes on with `program` in the blob, on the region's stack `stack`.
    void enter_blob(std::string_view label, const Program& program, uint64_t stack);
    // Blob only: a thread that runs `program` on the region's stack `stack`. `steered`: the task
    // may not choose its number, the tracer makes it come out.
    void thread(std::string_view label, int tid, const Program& program, uint64_t stack,
                bool steered);
    void exit(std::string_view label, int status);
    // Any other operation.
    restorer::Op& append(restorer::OpCode code, std::string_view label,
                         std::initializer_list<Arg> args);

    const std::string& name() const { return name_; }
    uint32_t index() const { return index_; }
    const std::vector<restorer::Op>& ops() const { return ops_; }
    std::vector<restorer::Op>& ops() { return ops_; }
    Plan& plan() { return plan_; }

  private:
    restorer::Op& syscall(std::string_view label, long nr, std::initializer_list<Arg> args);

    Plan& plan_;
    std::string name_;
    uint32_t index_;
    std::vector<restorer::Op> ops_;
};

// Everything that a restore will do, computed before anything is done: programs over one arena and one
// table of slots. Building a plan makes no system call and changes nothing.
class Plan {
  public:
    Plan();
    Plan(const Plan&) = delete;
    Plan& operator=(const Plan&) = delete;

    Program& new_program(std::string name);
    Slot new_slot() { return Slot{slots_++}; }

    // Copies bytes into the arena, 8-byte aligned unless told.
    ArenaRef bytes(const void* data, size_t size, size_t align = 8);
    // Reserves zeroed bytes, for results.
    ArenaRef reserve(size_t size, size_t align = 8);
    // A NUL-terminated string; equal strings share their place.
    ArenaRef string(std::string_view text);
    // Makes the 8 bytes at `where` the address of `target` when the arena gets its place: pointers in
    // structures, such as msghdr.msg_iov or sock_fprog.filter.
    void point(ArenaRef where, ArenaRef target) { pointers_.push_back({where, target}); }
    template <typename T>
        requires std::is_trivially_copyable_v<T>
    ArenaRef object(const T& value) {
        return bytes(&value, sizeof(value), alignof(T));
    }

    struct Pointer {
        ArenaRef where;
        ArenaRef target;
    };
    const std::vector<std::byte>& arena() const { return arena_; }
    const std::vector<Pointer>& pointers() const { return pointers_; }
    uint32_t slots() const { return slots_; }
    const std::deque<Program>& programs() const { return programs_; }
    Program& program(uint32_t index) { return programs_[index]; }
    // The text that string() put at `offset`; empty for anything else.
    std::string_view text_at(uint64_t offset) const;

  private:
    std::vector<std::byte> arena_;
    std::vector<Pointer> pointers_;
    std::deque<Program> programs_;  // stable addresses
    std::unordered_map<std::string, ArenaRef> strings_;
    std::unordered_set<uint64_t> texts_;  // where they lie
    uint32_t slots_ = 0;
};

}  // namespace checkpointd
