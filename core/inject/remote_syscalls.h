// SPDX-License-Identifier: LGPL-2.1-or-later
//
// System calls made by a thread of a stopped process. Nothing is mapped into the process, and it survives
// our death at any instant: see "Remote system calls that survive our death" in docs/ARCHITECTURE.md.
#pragma once

#include <sys/types.h>
#include <sys/user.h>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <type_traits>

#include "core/base/error.h"
#include "core/inject/seize.h"

namespace checkpointd {

// Where the stub is put. kAuto tries both.
enum class StubPlace { kAuto, kVdsoTail, kTextTail };

struct RemoteOptions {
    StubPlace place = StubPlace::kAuto;
    // Called before each single step that changes the target: tests die in it.
    std::function<void(const char* step)> on_step;
};

// An argument: a number or an address in the target.
struct RemoteArg {
    uint64_t value = 0;
    RemoteArg() = default;
    template <typename T>
        requires(std::is_integral_v<T> || std::is_enum_v<T>)
    RemoteArg(T number) : value(static_cast<uint64_t>(number)) {}
};

// A child of a stopped process that shares its memory. It stands still at `syscall_at`, where it
// may make any call, with `regs` in its registers, and dies with us.
struct RemoteHelper {
    pid_t pid = 0;
    uint64_t syscall_at = 0;
    user_regs_struct regs{};
};
using HelperUse = std::function<Result<void>(const RemoteHelper&)>;

// Runs system calls in one thread while it lives; the thread's registers, mask and memory are as before
// afterwards. One at a time per thread. Borrows process and thread: they must outlive it and not move.
// Calls must not block, and must not touch the restart block (no sleeping calls with a timeout).
class RemoteSyscalls {
  public:
    static Result<RemoteSyscalls> open(SeizedProcess& process, SeizedThread& thread,
                                       const RemoteOptions& options = {});
    static Result<RemoteSyscalls> open(SeizedProcess& process) {
        return open(process, process.main_thread());
    }
    RemoteSyscalls(RemoteSyscalls&&) noexcept;
    RemoteSyscalls& operator=(RemoteSyscalls&&) noexcept;
    ~RemoteSyscalls();  // close()

    // The call's value. Errors: kSystem with the errno that the call gave; kGone when the process died;
    // kUnsupported where its own seccomp filter forbids the call and cannot be suspended.
    Result<uint64_t> call(long nr, std::array<RemoteArg, 6> args = {});

    // Makes a helper and hands it over; when this returns it is dead and reaped, and nobody has
    // seen it: it sends no signal, and the thread itself waits for it, also if we die. What it has
    // made becomes a child of init, or of a subreaper. kUnsupported where a filter forbids that
    // wait or the children's PID namespace is not ours; kSystem where no process can be had; errors
    // of `use`.
    Result<void> with_helper(const HelperUse& use);

    // Memory of the target for out-parameters and strings, zeroed when opened, wiped by close(): at least
    // 3 KiB, 16-byte aligned, the same address for the lifetime of this object.
    Result<uint64_t> scratch();
    static constexpr size_t kScratchSize = 3072;
    // Copies between here and the scratch memory (or any other memory of the target).
    Result<void> read(uint64_t address, void* into, size_t size) const;
    Result<void> write(uint64_t address, const void* from, size_t size) const;
    // A call with one out-parameter: `out` is filled from scratch memory, whose address is put where
    // `args` holds kOut.
    template <typename T>
    Result<uint64_t> call_out(long nr, std::array<RemoteArg, 6> args, T& out) {
        static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= kScratchSize);
        CKPT_ASSIGN(uint64_t where, scratch());
        CKPT_TRY(write(where, &out, sizeof(T)));
        for (RemoteArg& arg : args)
            if (arg.value == kOut.value)
                arg.value = where;
        CKPT_ASSIGN(uint64_t value, call(nr, args));
        CKPT_TRY(read(where, &out, sizeof(T)));
        return value;
    }
    static inline const RemoteArg kOut{0xfeedfacecafef00dull};

    // Puts everything back. kGone when the process died, which leaves nothing to put back.
    Result<void> close();

  private:
    class Impl;
    explicit RemoteSyscalls(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
};

}  // namespace checkpointd
