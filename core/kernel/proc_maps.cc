// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/kernel/proc_maps.h"

#include <fcntl.h>
#include <sys/mman.h>

#include "core/base/io.h"
#include "core/kernel/proc_text.h"

namespace checkpointd {
namespace {

constexpr size_t kMapsLimit = 1u << 30;  // 20,000 mappings make 13 MB of smaps

Error bad_line(std::string_view line) {
    return Error{ErrorKind::kInternal, "/proc/PID/maps", fmt::format("cannot parse '{}'", line), {}, 0, {}};
}

// show_vma_header_prefix and file paths escape only newlines, as octal (seq_file_path(m, file, "\n")).
std::string unescape_path(std::string_view text) {
    std::string out;
    while (!text.empty()) {
        if (text.starts_with("\\012")) {
            out += '\n';
            text.remove_prefix(4);
        } else {
            out += text.front();
            text.remove_prefix(1);
        }
    }
    return out;
}

bool parse_range(std::string_view word, ProcMapping& out) {
    size_t dash = word.find('-');
    if (dash == word.npos)
        return false;
    auto start = to_number<uint64_t>(word.substr(0, dash), 16);
    auto end = to_number<uint64_t>(word.substr(dash + 1), 16);
    if (!start || !end || *start >= *end)
        return false;
    out.start = *start;
    out.end = *end;
    return true;
}

bool parse_protection(std::string_view word, ProcMapping& out) {
    if (word.size() != 4)
        return false;
    out.prot = (word[0] == 'r' ? PROT_READ : 0) | (word[1] == 'w' ? PROT_WRITE : 0) |
               (word[2] == 'x' ? PROT_EXEC : 0);
    out.shared = word[3] == 's';
    return out.shared || word[3] == 'p';
}

bool parse_device(std::string_view word, ProcMapping& out) {
    size_t colon = word.find(':');
    if (colon == word.npos)
        return false;
    auto major = to_number<uint32_t>(word.substr(0, colon), 16);
    auto minor = to_number<uint32_t>(word.substr(colon + 1), 16);
    if (!major || !minor)
        return false;
    out.dev_major = *major;
    out.dev_minor = *minor;
    return true;
}

struct FlagName {
    char name[3];
    uint32_t bit;
};
constexpr FlagName kFlagNames[] = {
    {"gd", kVmGrowsDown},   {"lo", kVmLocked},      {"nr", kVmNoReserve},  {"ht", kVmHugeTlb},
    {"dp", kVmDroppable},   {"sr", kVmSequential},  {"rr", kVmRandom},     {"dc", kVmDontFork},
    {"dd", kVmDontDump},    {"mg", kVmMergeable},   {"hg", kVmHugePage},   {"nh", kVmNoHugePage},
    {"wf", kVmWipeOnFork},  {"io", kVmIo},          {"pf", kVmPfnMap},     {"ss", kVmShadowStack},
    {"um", kVmUffdMissing}, {"uw", kVmUffdWp},      {"ui", kVmUffdMinor},  {"mm", kVmMixedMap},
    {"sl", kVmSealed},      {"ms", kVmMayShare},    {"sd", kVmSoftDirty},
};

uint32_t parse_flags(std::string_view text) {
    uint32_t bits = 0;
    while (auto word = next_word(text))
        for (const FlagName& flag : kFlagNames)
            if (*word == flag.name)
                bits |= flag.bit;
    return bits;
}

// Headers of smaps start with a hexadecimal digit in lower case; all other lines with a capital.
bool is_header(std::string_view line) {
    return !line.empty() && ((line[0] >= '0' && line[0] <= '9') || (line[0] >= 'a' && line[0] <= 'f'));
}

}  // namespace

Result<ProcMapping> parse_mapping(std::string_view line) {
    ProcMapping mapping;
    std::string_view rest = line;
    auto range = next_word(rest);
    auto protection = next_word(rest);
    auto offset = next_number<uint64_t>(rest, 16);
    auto device = next_word(rest);
    auto inode = next_number<uint64_t>(rest);
    if (!range || !protection || !offset || !device || !inode || !parse_range(*range, mapping) ||
        !parse_protection(*protection, mapping) || !parse_device(*device, mapping))
        return tl::unexpected(bad_line(line));
    mapping.offset = *offset;
    mapping.inode = *inode;
    size_t name = rest.find_first_not_of(' ');
    if (name != rest.npos)
        mapping.name = unescape_path(rest.substr(name));
    return mapping;
}

Result<std::vector<ProcMapping>> parse_maps(std::string_view text) {
    std::vector<ProcMapping> mappings;
    while (auto line = next_line(text)) {
        CKPT_ASSIGN(ProcMapping mapping, parse_mapping(*line));
        mappings.push_back(std::move(mapping));
    }
    return mappings;
}

Result<std::vector<ProcMapping>> parse_smaps(std::string_view text) {
    constexpr std::string_view kFlags = "VmFlags:";
    std::vector<ProcMapping> mappings;
    while (auto line = next_line(text)) {
        if (is_header(*line)) {
            CKPT_ASSIGN(ProcMapping mapping, parse_mapping(*line));
            mappings.push_back(std::move(mapping));
        } else if (mappings.empty()) {
            return tl::unexpected(bad_line(*line));
        } else if (line->starts_with(kFlags)) {
            mappings.back().vm_flags = parse_flags(line->substr(kFlags.size()));
        }
    }
    return mappings;
}

Result<std::vector<ProcMapping>> read_maps(pid_t pid) {
    CKPT_ASSIGN(std::string text,
                read_file(AT_FDCWD, fmt::format("/proc/{}/maps", pid), kMapsLimit));
    return parse_maps(text);
}

Result<std::vector<ProcMapping>> read_smaps(pid_t pid) {
    CKPT_ASSIGN(std::string text,
                read_file(AT_FDCWD, fmt::format("/proc/{}/smaps", pid), kMapsLimit));
    return parse_smaps(text);
}

}  // namespace checkpointd
