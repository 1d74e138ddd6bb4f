// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/inject/dead_bytes.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <fmt/format.h>
#include <optional>
#include <sys/mman.h>

#include "core/arch/x86_64/stub.h"
#include "core/kernel/page_scan.h"
#include "core/kernel/proc_maps.h"

namespace checkpointd {
namespace {

using Page = std::array<std::byte, kPageSize>;

bool is_vdso(const ProcMapping& mapping) { return mapping.name == "[vdso]"; }

bool is_text(const ProcMapping& mapping) {
    return mapping.inode != 0 && !mapping.shared && (mapping.prot & PROT_EXEC) != 0 &&
           (mapping.prot & PROT_WRITE) == 0;
}

bool holds(const ProcMapping& mapping, uint64_t address) {
    return mapping.start <= address && address < mapping.end;
}

// A handler that interrupted a stub returns to it through the signal frame on its stack.
bool returns_into(const SeizedProcess& process, const SeizedThread& thread,
                  const std::vector<ProcMapping>& maps, uint64_t stub) {
    auto inside = [&](uint64_t value) { return value - stub < kStubSize; };
    if (inside(thread.regs().rip))
        return true;
    uint64_t rsp = thread.regs().rsp & ~uint64_t{7};
    auto stack = std::find_if(maps.begin(), maps.end(),
                              [&](const ProcMapping& m) { return holds(m, rsp); });
    if (stack == maps.end())
        return true;  // cannot tell
    constexpr uint64_t kLimit = 1 << 20;
    std::vector<uint64_t> words(std::min(stack->end - rsp, kLimit) / sizeof(uint64_t));
    if (!process.read_memory(rsp, words.data(), words.size() * sizeof(uint64_t)))
        return true;
    return std::any_of(words.begin(), words.end(), inside);
}

bool in_use(const SeizedProcess& process, const std::vector<ProcMapping>& maps, uint64_t stub) {
    return std::any_of(process.threads.begin(), process.threads.end(), [&](const SeizedThread& t) {
        return returns_into(process, t, maps, stub);
    });
}

// Places lie one below the other from the end of the page; what is neither zero nor a stub ends the dead part.
std::optional<uint64_t> search_page(const SeizedProcess& process,
                                    const std::vector<ProcMapping>& maps, uint64_t page_end) {
    Page page;
    if (!process.read_memory(page_end - kPageSize, page.data(), page.size()))
        return std::nullopt;  // the mapping reaches beyond the end of its file
    for (size_t end = kPageSize; end >= kStubSize; end -= kStubSize) {
        const std::byte* place = page.data() + end - kStubSize;
        uint64_t address = page_end - kPageSize + end - kStubSize;
        bool zero = std::all_of(place, place + kStubSize, [](std::byte b) { return b == std::byte{0}; });
        if (zero)
            return address;
        if (!looks_like_stub(place))
            return std::nullopt;
        if (!in_use(process, maps, address))
            return address;
    }
    return std::nullopt;
}

}  // namespace

Result<uint64_t> find_dead_bytes(const SeizedProcess& process, StubPlace place) {
    CKPT_ASSIGN(std::vector<ProcMapping> maps, read_maps(process.main_thread().tid()));
    for (bool vdso : {true, false})
        for (const ProcMapping& mapping : maps) {
            bool wanted = vdso ? place != StubPlace::kTextTail && is_vdso(mapping)
                               : place != StubPlace::kVdsoTail && is_text(mapping);
            if (!wanted)
                continue;
            if (std::optional<uint64_t> found = search_page(process, maps, mapping.end))
                return *found;
        }
    return fail(ErrorKind::kUnsupported, fmt::format("pid {}", process.pid),
                "has no unused bytes in its executable memory to make system calls from");
}

}  // namespace checkpointd
