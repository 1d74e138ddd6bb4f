// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/inject/dead_bytes.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <fmt/core.h>
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

bool all_zero(const std::byte* place) {
    return std::all_of(place, place + kStubSize, [](std::byte b) { return b == std::byte{0}; });
}

// Places lie one below the other from the end of the page; what is neither zero nor a stub ends the dead part.
struct Places {
    std::vector<uint64_t> free;
    std::vector<uint64_t> stubs;  // left by dead injectors
};

void search_page(const SeizedProcess& process, uint64_t page_end, Places& places) {
    Page page;
    if (!process.read_memory(page_end - kPageSize, page.data(), page.size()))
        return;  // the mapping reaches beyond the end of its file
    for (size_t end = kPageSize; end >= kStubSize; end -= kStubSize) {
        const std::byte* place = page.data() + end - kStubSize;
        uint64_t address = page_end - kPageSize + end - kStubSize;
        if (all_zero(place))
            places.free.push_back(address);
        else if (looks_like_stub(place))
            places.stubs.push_back(address);
        else
            return;
    }
}

bool inside_any(const std::vector<uint64_t>& stubs, uint64_t value) {
    return std::any_of(stubs.begin(), stubs.end(),
                       [&](uint64_t stub) { return value - stub < kStubSize; });
}

// A handler that interrupted a stub returns to it through the signal frame on its stack. No thread stands in a
// stub itself: seizing has led it home.
bool returns_into(const SeizedProcess& process, const SeizedThread& thread,
                  const std::vector<ProcMapping>& maps, const std::vector<uint64_t>& stubs) {
    if (inside_any(stubs, thread.regs().rip))
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
    return std::any_of(words.begin(), words.end(), [&](uint64_t w) { return inside_any(stubs, w); });
}

// One that is in use may lead to another one, so they are all in use or none.
bool in_use(const SeizedProcess& process, const std::vector<ProcMapping>& maps,
            const std::vector<uint64_t>& stubs) {
    return std::any_of(process.threads.begin(), process.threads.end(), [&](const SeizedThread& t) {
        return returns_into(process, t, maps, stubs);
    });
}

Result<uint64_t> search(const SeizedProcess& process, StubPlace place) {
    CKPT_ASSIGN(std::vector<ProcMapping> maps, read_maps(process.main_thread().tid()));
    Places places;
    for (bool vdso : {true, false})
        for (const ProcMapping& mapping : maps)
            if (vdso ? place != StubPlace::kTextTail && is_vdso(mapping)
                     : place != StubPlace::kVdsoTail && is_text(mapping)) {
                search_page(process, mapping.end, places);
                if (!places.free.empty())
                    return places.free.front();
            }
    if (!places.stubs.empty() && !in_use(process, maps, places.stubs))
        return places.stubs.front();
    return fail(ErrorKind::kUnsupported, fmt::format("pid {}", process.pid),
                "has no unused bytes in its executable memory to make system calls from");
}

Result<void> wipe(SeizedProcess& process, const std::vector<uint64_t>& stubs) {
    const std::byte zeros[kStubSize] = {};
    for (uint64_t stub : stubs)
        CKPT_TRY(process.write_memory(stub, zeros, sizeof(zeros)));
    return {};
}

bool still_free(const SeizedProcess& process, uint64_t place) {
    std::byte bytes[kStubSize];
    return place != 0 && process.read_memory(place, bytes, sizeof(bytes)) && all_zero(bytes);
}

}  // namespace

Result<uint64_t> find_dead_bytes(SeizedProcess& process, StubPlace place) {
    uint64_t& known = process.room.stub[static_cast<size_t>(place)];
    if (!still_free(process, known)) {
        CKPT_ASSIGN(known, search(process, place));
    }
    return known;
}

Result<void> wipe_dead_stubs(SeizedProcess& process) {
    CKPT_ASSIGN(std::vector<ProcMapping> maps, read_maps(process.main_thread().tid()));
    Places places;
    for (const ProcMapping& mapping : maps)
        if (is_vdso(mapping))
            search_page(process, mapping.end, places);
    if (places.stubs.empty())
        return {};
    if (in_use(process, maps, places.stubs))
        return fail(ErrorKind::kConflict, fmt::format("pid {}", process.pid),
                    "is in a signal handler that interrupted an earlier checkpoint's code",
                    "try again when the handler has returned");
    return wipe(process, places.stubs);
}

}  // namespace checkpointd
