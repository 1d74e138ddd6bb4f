// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The interpreter of operations. Compiled twice from this one text: into the library, where it runs the
// agent and the stages, and into the freestanding blob. It uses no library, no global and no heap, so
// that it may run after fork() of a threaded process and after everything but the region is unmapped.
#pragma once

#include <stddef.h>

#include "restorer/region.h"

namespace checkpointd::restorer {

// Where the interpreter runs: some operations make sense in one place only.
enum class Place { kStage, kBlob };

struct Outcome {
    int error = 0;     // 0: the program ran to its end
    uint32_t op = 0;   // index of the operation that failed
};

[[gnu::always_inline]] inline int64_t raw_syscall(uint64_t nr, uint64_t a = 0, uint64_t b = 0,
                                                  uint64_t c = 0, uint64_t d = 0, uint64_t e = 0,
                                                  uint64_t f = 0) {
    int64_t result;
    register uint64_t r10 asm("r10") = d;
    register uint64_t r8 asm("r8") = e;
    register uint64_t r9 asm("r9") = f;
    asm volatile("syscall"
                 : "=a"(result)
                 : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                 : "rcx", "r11", "memory");
    return result;
}

// Tells the tracer something and waits until it lets us go on. SIGTRAP must not be blocked: the kernel
// would reset its handler (force_sig_info_to_task in kernel/signal.c).
inline void stop_for_tracer(StopKind kind, uint64_t a, uint64_t b, uint64_t c) {
    uint64_t mark = kStopMark | kind;
    asm volatile("int3" : "+a"(mark) : "D"(a), "S"(b), "d"(c) : "memory");
}

namespace sys {  // numbers and structures of the kernel's interface; no libc header may enter here
inline constexpr uint64_t kMmap = 9, kMunmap = 11, kMremap = 25, kExitGroup = 231, kFcntl = 72,
                          kClose = 3, kPreadv = 295, kMadvise = 28, kClone3 = 435, kGettid = 186,
                          kExit = 60;
inline constexpr uint64_t kMadvPopulateWrite = 23;
inline constexpr uint64_t kDupfdCloexec = 1030;
inline constexpr uint64_t kMremapMaymoveFixed = 1 | 2;
inline constexpr uint64_t kThreadFlags =  // VM | FS | FILES | SIGHAND | THREAD | SYSVSEM
    0x100 | 0x200 | 0x400 | 0x800 | 0x10000 | 0x40000;
inline constexpr uint64_t kCloneParent = 0x8000;
inline constexpr uint64_t kSigchld = 17;
inline constexpr int kEnodata = 61, kEinval = 22, kErange = 34, kEfault = 14;
}  // namespace sys

struct CloneArgs {  // struct clone_args, CLONE_ARGS_SIZE_VER1: clone3(2)
    uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls;
    uint64_t set_tid, set_tid_size;
};

struct Iovec {
    uint64_t base;
    uint64_t length;
};

inline constexpr uint64_t kPortion = 4u << 20;       // bytes of memory that are filled by one call
inline constexpr uint64_t kWorthPages = 64u << 10;  // bytes from which on pages are made before

class Interpreter {
  public:
    Interpreter(RegionHeader& header, Place place) : header_(header), place_(place) {}

    Outcome run(uint32_t program) {
        if (program >= header_.program_count)
            return {sys::kEinval, 0};
        const ProgramRange range = reinterpret_cast<ProgramRange*>(header_.programs)[program];
        const Op* ops = reinterpret_cast<Op*>(header_.operations) + range.first;
        for (uint64_t i = 0; i < range.count; i++) {
            int error = step(ops[i]);
            if (error != 0)
                return {error, static_cast<uint32_t>(i)};
        }
        return {};
    }

    // Runs a program that never returns here: it exits, enters the blob, or stays at its last barrier.
    [[noreturn]] void run_to_end(uint32_t program) {
        Outcome outcome = run(program);
        stop_for_tracer(kFailed, program, outcome.op, static_cast<uint64_t>(outcome.error));
        for (;;)
            raw_syscall(sys::kExitGroup, 127);
    }

  private:
    uint64_t value(const Op& op, unsigned i) const {
        switch (op.kinds[i]) {
        case ArgKind::kArena:
            return header_.arena + op.args[i];
        case ArgKind::kSlot:
            return reinterpret_cast<uint64_t*>(header_.slots)[op.args[i]];
        case ArgKind::kImmediate:
            break;
        }
        return op.args[i];
    }

    int step(const Op& op) {
        switch (op.code) {
        case OpCode::kSyscall:
            return finish(op, raw_syscall(op.nr, value(op, 0), value(op, 1), value(op, 2),
                                          value(op, 3), value(op, 4), value(op, 5)));
        case OpCode::kStore:
            return store(value(op, 0), value(op, 1), value(op, 2));
        case OpCode::kLoadDescriptor:
            return finish(op, *reinterpret_cast<int32_t*>(value(op, 0)));
        case OpCode::kLoad:
            return finish(op, *reinterpret_cast<int64_t*>(value(op, 0)));
        case OpCode::kReadPages:
            return finish(op, read_pages(value(op, 0), reinterpret_cast<Iovec*>(value(op, 1)),
                                         value(op, 2), value(op, 3)));
        case OpCode::kForkTask:
            return place_ == Place::kStage ? finish(op, fork_task(op)) : sys::kEinval;
        case OpCode::kHook:
            return place_ == Place::kStage ? run_hook(value(op, 0)) : sys::kEinval;
        case OpCode::kPlugins:
            return place_ == Place::kStage ? run_plugins(op) : sys::kEinval;
        case OpCode::kEnterBlob:
            return place_ == Place::kStage ? enter_blob(value(op, 0), value(op, 1)) : sys::kEinval;
        case OpCode::kThread:
            return place_ == Place::kBlob ? finish(op, make_thread(op)) : sys::kEinval;
        case OpCode::kReplaceMemory:
            return place_ == Place::kBlob ? replace_memory(value(op, 0)) : sys::kEinval;
        case OpCode::kStop:
            stop_for_tracer(kAtBarrier, value(op, 0), 0, 0);
            return 0;
        case OpCode::kExit:
            raw_syscall(sys::kExitGroup, value(op, 0));
            return sys::kEfault;
        case OpCode::kInvalid:
            break;
        }
        return sys::kEinval;
    }

    // Judges the result of an operation and keeps it.
    int finish(const Op& op, int64_t result) {
        bool failed = result < 0 && result > -4096;
        if (!failed && (op.flags & kMoveHigh)) {
            result = move_high(result);
            failed = result < 0;
        }
        if (op.result != kNoSlot)
            reinterpret_cast<int64_t*>(header_.slots)[op.result] = result;
        if (op.flags & kIgnoreError)
            return 0;
        if (failed)
            return static_cast<int>(-result);
        if ((op.flags & kExpectExact) && result != op.expect)
            return sys::kErange;
        return 0;
    }

    int64_t move_high(int64_t fd) {
        if (fd >= static_cast<int64_t>(header_.descriptor_floor))
            return fd;
        int64_t high = raw_syscall(sys::kFcntl, static_cast<uint64_t>(fd), sys::kDupfdCloexec,
                                   header_.descriptor_floor);
        raw_syscall(sys::kClose, static_cast<uint64_t>(fd));
        return high;
    }

    static int store(uint64_t number, uint64_t where, uint64_t width) {
        if (width == 4)
            *reinterpret_cast<uint32_t*>(where) = static_cast<uint32_t>(number);
        else if (width == 8)
            *reinterpret_cast<uint64_t*>(where) = number;
        else
            return sys::kEinval;
        return 0;
    }

    // In portions, of which the file's read-ahead runs ahead while pages are made.
    static int64_t read_pages(uint64_t fd, Iovec* vector, uint64_t count, uint64_t offset) {
        while (count > 0) {
            uint64_t batch = 0, bytes = 0;
            while (batch < count && batch < 1024 && bytes < kPortion)  // IOV_MAX
                bytes += vector[batch++].length;
            uint64_t excess = bytes > kPortion ? bytes - kPortion : 0;
            vector[batch - 1].length -= excess;
            make_pages(vector, batch);
            int64_t got = raw_syscall(sys::kPreadv, fd, reinterpret_cast<uint64_t>(vector), batch,
                                      offset, 0);
            vector[batch - 1].length += excess;
            if (got < 0)
                return got;
            if (got == 0)
                return -sys::kEnodata;
            offset += static_cast<uint64_t>(got);
            consume(vector, count, static_cast<uint64_t>(got));
        }
        return 0;
    }

    // All at once: a page fault each, while the file is read, costs a quarter more (bench/README.md). A
    // kernel that cannot, or memory that must not, is left to those.
    static void make_pages(const Iovec* vector, uint64_t count) {
        for (uint64_t i = 0; i < count; i++)
            if (vector[i].length >= kWorthPages)
                raw_syscall(sys::kMadvise, vector[i].base, vector[i].length,
                            sys::kMadvPopulateWrite);
    }

    static void consume(Iovec*& vector, uint64_t& count, uint64_t bytes) {
        while (count > 0 && bytes >= vector->length) {
            bytes -= vector->length;
            vector++;
            count--;
        }
        if (count > 0) {
            vector->base += bytes;
            vector->length -= bytes;
        }
    }

    int64_t fork_task(const Op& op) {
        int32_t tid = static_cast<int32_t>(value(op, 0));
        CloneArgs args{};
        args.flags = value(op, 2);
        // With CLONE_PARENT the exit signal is inherited and must not be given: clone3(2).
        args.exit_signal = args.flags & sys::kCloneParent ? 0 : sys::kSigchld;
        args.set_tid = tid > 0 ? reinterpret_cast<uint64_t>(&tid) : 0;
        args.set_tid_size = tid > 0 ? 1 : 0;
        int64_t pid = raw_syscall(sys::kClone3, reinterpret_cast<uint64_t>(&args), sizeof(args));
        if (pid == 0)
            run_to_end(static_cast<uint32_t>(value(op, 1)));
        return pid;
    }

    int run_hook(uint64_t index) {
        if (header_.hook == 0)
            return sys::kEinval;
        auto* hook = reinterpret_cast<int (*)(void*, uint64_t)>(header_.hook);
        return hook(reinterpret_cast<void*>(header_.hook_context), index);
    }

    int run_plugins(const Op& op) {
        if (header_.plugins == 0)
            return sys::kEinval;
        auto* run = reinterpret_cast<int (*)(void*, uint64_t, uint64_t, uint64_t)>(header_.plugins);
        return run(reinterpret_cast<void*>(header_.plugins_context), value(op, 0), value(op, 1), value(op, 2));
    }

    uint64_t stack_top(uint64_t index) const {
        return header_.stacks + (index + 1) * kBlobStackSize;
    }

    // Jumps to the blob's first instruction with (header, program) on a stack of the region.
    int enter_blob(uint64_t program, uint64_t stack) {
        asm volatile(
            "mov %[stack], %%rsp\n\t"
            "xor %%ebp, %%ebp\n\t"
            "push %%rbp\n\t"  // a return address of 0, which also aligns the stack as a call would
            "jmp *%[entry]"
            :
            : [stack] "r"(stack_top(stack)), [entry] "r"(header_.blob_entry), "D"(&header_),
              "S"(program)
            : "memory");
        __builtin_unreachable();
    }

    int64_t make_thread(const Op& op) {
        if (!(op.flags & kSteered))
            return clone_thread(op, true);
        uint64_t tid = value(op, 0);
        while (true) {  // as long as the tracer finds it worth trying
            stop_for_tracer(kWantsNumber, tid, 0, 0);
            int64_t made = clone_thread(op, false);
            if (made < 0 || static_cast<uint64_t>(made) == tid)
                return made;
        }
    }

    // A thread that did not get the number which it must have ends before it touches its stack: the
    // next one is made on the same.
    int64_t clone_thread(const Op& op, bool chosen) {
        int32_t tid = static_cast<int32_t>(value(op, 0));
        CloneArgs args{};
        args.flags = sys::kThreadFlags;
        args.set_tid = chosen ? reinterpret_cast<uint64_t>(&tid) : 0;
        args.set_tid_size = chosen ? 1 : 0;
        args.stack_size = kBlobStackSize - 16;
        args.stack = stack_top(value(op, 2)) - kBlobStackSize;
        int64_t result;
        register uint64_t program asm("r12") = value(op, 1);
        register uint64_t header asm("r13") = reinterpret_cast<uint64_t>(&header_);
        register uint64_t entry asm("r14") = header_.blob_entry;
        register uint64_t wanted asm("r15") = static_cast<uint64_t>(tid);
        asm volatile(
            "syscall\n\t"
            "test %%rax, %%rax\n\t"
            "jnz 1f\n\t"
            "mov %[gettid], %%eax\n\t"
            "syscall\n\t"
            "cmp %%eax, %%r15d\n\t"
            "je 2f\n\t"
            "mov %[exit], %%eax\n\t"
            "xor %%edi, %%edi\n\t"
            "syscall\n"
            "2:\n\t"
            "xor %%ebp, %%ebp\n\t"
            "push %%rbp\n\t"
            "mov %%r13, %%rdi\n\t"
            "mov %%r12, %%rsi\n\t"
            "jmp *%%r14\n"
            "1:"
            : "=a"(result)
            : "a"(sys::kClone3), "D"(&args), "S"(sizeof(args)), "r"(program), "r"(header),
              "r"(entry), "r"(wanted), [gettid] "i"(sys::kGettid), [exit] "i"(sys::kExit)
            : "rcx", "r11", "memory");
        return result;
    }

    // The kernel finds the vdso by itself and follows its mremap (vdso_mremap in
    // arch/x86/entry/vdso/vma.c), so it is moved, never copied.
    int replace_memory(uint64_t vdso_target) {
        if (int error = move_vdso(header_.parking.start + header_.parking.size, true))
            return error;
        uint64_t region_end = header_.region.start + header_.region.size;
        if (int64_t error = raw_syscall(sys::kMunmap, 0, header_.region.start))
            return static_cast<int>(-error);
        if (int64_t error = raw_syscall(sys::kMunmap, region_end, header_.user_end - region_end))
            return static_cast<int>(-error);
        if (vdso_target == 0 || header_.vdso_count == 0)
            return 0;
        uint64_t end = vdso_target + header_.vdso[header_.vdso_count - 1].size;
        return move_vdso(end, false);
    }

    // Moves the vdso's mappings so that they end at `end`; remembers where they are now.
    int move_vdso(uint64_t end, bool replacing) {
        for (uint32_t i = header_.vdso_count; i-- > 0;) {
            Area& area = header_.vdso[i];
            uint64_t to = end - area.size;
            if (replacing)
                raw_syscall(sys::kMunmap, to, area.size);
            int64_t at = raw_syscall(sys::kMremap, area.start, area.size, area.size,
                                     sys::kMremapMaymoveFixed, to);
            if (at != static_cast<int64_t>(to))
                return at < 0 ? static_cast<int>(-at) : sys::kErange;
            area.start = to;
            end = to;
        }
        return 0;
    }

    RegionHeader& header_;
    Place place_;
};

}  // namespace checkpointd::restorer
