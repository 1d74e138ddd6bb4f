// SPDX-License-Identifier: LGPL-2.1-or-later
#include "images/image_type.h"

#include <array>
#include <charconv>

#include <fmt/core.h>

namespace checkpointd::images {

namespace {

using enum ImageType;
using enum ImageHeader;
using enum ImageShape;

constexpr ImageTypeInfo record_file(ImageType type, std::string_view prefix, int base,
                                    uint32_t magic, ImageShape shape) {
    return {type, prefix, ".img", base, magic, kCommon, shape};
}

constexpr ImageTypeInfo raw_file(ImageType type, std::string_view prefix,
                                 std::string_view suffix = ".img") {
    return {type, prefix, suffix, 10, 0, kNone, kRaw};
}

constexpr std::array kTypes{
    ImageTypeInfo{kInventory, "inventory", ".img", 0, 0x58313116, kBare, kOne},
    record_file(kPstree, "pstree", 0, 0x50273030, kMany),
    record_file(kCore, "core-", 10, 0x55053847, kOne),
    record_file(kIds, "ids-", 10, 0x54432030, kOne),
    record_file(kMm, "mm-", 10, 0x57492820, kOne),
    record_file(kFs, "fs-", 10, 0x51403912, kOne),
    record_file(kFdinfo, "fdinfo-", 10, 0x56213732, kMany),
    record_file(kFiles, "files", 0, 0x56303138, kMany),
    record_file(kPagemap, "pagemap-", 10, 0x56084025, kHeadMany),
    record_file(kPagemapShmem, "pagemap-shmem-", 10, 0x56084025, kHeadMany),
    raw_file(kPages, "pages-"),
    record_file(kPipesData, "pipes-data", 0, 0x56453709, kPayload),
    record_file(kFifoData, "fifo-data", 0, 0x59333054, kPayload),
    record_file(kSkQueues, "sk-queues", 0, 0x56264026, kPayload),
    record_file(kRemapFpath, "remap-fpath", 0, 0x59133954, kMany),
    record_file(kGhostFile, "ghost-file-", 16, 0x52583605, kPayload),
    record_file(kMemfd, "memfd", 0, 0x48453499, kMany),
    record_file(kTtyInfo, "tty-info", 0, 0x59453036, kMany),
    record_file(kTtyData, "tty-data", 0, 0x59413026, kMany),
    record_file(kFileLocks, "filelocks", 0, 0x54323616, kMany),
    record_file(kTcpStream, "tcp-stream-", 16, 0x51465506, kPayload),
    record_file(kSeccomp, "seccomp", 0, 0x64413049, kOne),
    record_file(kCgroup, "cgroup", 0, 0x59383330, kOne),
    record_file(kTimens, "timens-", 10, 0x43114433, kOne),
    record_file(kUserns, "userns-", 10, 0x55474906, kOne),
    record_file(kUtsns, "utsns-", 10, 0x54473203, kOne),
    record_file(kPidns, "pidns-", 10, 0x61157326, kOne),
    record_file(kIpcVar, "ipcns-var-", 10, 0x53115007, kOne),
    record_file(kIpcShm, "ipcns-shm-", 10, 0x46283044, kPayload),
    record_file(kIpcMsg, "ipcns-msg-", 10, 0x55453737, kPayload),
    record_file(kIpcSem, "ipcns-sem-", 10, 0x59573019, kPayload),
    record_file(kMountpoints, "mountpoints-", 10, 0x55563928, kMany),
    record_file(kAutofs, "autofs-", 10, 0x49353943, kOne),
    record_file(kBinfmtMisc, "binfmt-misc", 0, 0x67343323, kMany),
    raw_file(kTmpfsDev, "tmpfs-dev-", ".tar.gz.img"),
    record_file(kNetdev, "netdev-", 10, 0x57373951, kMany),
    record_file(kNetns, "netns-", 10, 0x55933752, kOne),
    raw_file(kIfaddr, "ifaddr-"),
    raw_file(kRoute, "route-"),
    raw_file(kRoute6, "route6-"),
    raw_file(kRule, "rule-"),
    raw_file(kIptables, "iptables-"),
    raw_file(kIp6tables, "ip6tables-"),
    raw_file(kNftables, "nftables-"),
    raw_file(kConntrack, "netns-ct-"),
    raw_file(kExpectations, "netns-exp-"),
    record_file(kApparmor, "apparmor", 0, 0x59423047, kOne),
    record_file(kBpfmapData, "bpfmap-data", 0, 0x64324033, kPayload),
    record_file(kCpuinfo, "cpuinfo", 0, 0x61404013, kOne),
    ImageTypeInfo{kStatsDump, "stats-dump", "", 0, 0x57093306, kService, kOne},
    ImageTypeInfo{kStatsRestore, "stats-restore", "", 0, 0x57093306, kService, kOne},
    ImageTypeInfo{kIrmapCache, "irmap-cache", "", 0, 0x57004059, kService, kMany},
    record_file(kTasks, "checkpointd-tasks", 0, 0x43506b54, kMany),
};

constexpr bool in_enumeration_order() {
    for (size_t i = 0; i < kTypes.size(); ++i) {
        if (static_cast<size_t>(kTypes[i].type) != i)
            return false;
    }
    return kTypes.size() == static_cast<size_t>(kTasks) + 1;
}
static_assert(in_enumeration_order());

std::optional<uint64_t> parse_id(std::string_view text, int base) {
    uint64_t id = 0;
    auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), id, base);
    if (failure != std::errc{} || end != text.data() + text.size() || text.empty())
        return std::nullopt;
    return id;
}

}  // namespace

std::span<const ImageTypeInfo> image_types() { return kTypes; }

const ImageTypeInfo& image_type(ImageType type) { return kTypes[static_cast<size_t>(type)]; }

std::string image_name(ImageType type, uint64_t id) {
    const ImageTypeInfo& info = image_type(type);
    if (info.id_base == 0)
        return fmt::format("{}{}", info.prefix, info.suffix);
    if (info.id_base == 16)
        return fmt::format("{}{:x}{}", info.prefix, id, info.suffix);
    return fmt::format("{}{}{}", info.prefix, id, info.suffix);
}

std::optional<ImageName> parse_image_name(std::string_view file_name) {
    for (const ImageTypeInfo& info : kTypes) {
        if (!file_name.starts_with(info.prefix) || !file_name.ends_with(info.suffix) ||
            file_name.size() < info.prefix.size() + info.suffix.size())
            continue;
        std::string_view middle = file_name.substr(
            info.prefix.size(), file_name.size() - info.prefix.size() - info.suffix.size());
        if (info.id_base == 0) {
            if (middle.empty())
                return ImageName{info.type, 0};
        } else if (auto id = parse_id(middle, info.id_base); id) {
            // Only the spelling that image_name() makes, so that no two names mean one image.
            if (file_name == image_name(info.type, *id))
                return ImageName{info.type, *id};
        }
    }
    return std::nullopt;
}

}  // namespace checkpointd::images
