// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace checkpointd::images {

// Every kind of file that an image directory may hold. Files that only old versions of the format had
// are not listed: they are not read.
enum class ImageType {
    kInventory,
    kPstree,
    kCore,   // by TID
    kIds,    // by PID
    kMm,     // by PID
    kFs,     // by PID
    kFdinfo,  // by files_id
    kFiles,
    kPagemap,       // by PID
    kPagemapShmem,  // by shmid
    kPages,         // by pagemap_head.pages_id
    kPipesData,
    kFifoData,
    kSkQueues,
    kRemapFpath,
    kGhostFile,
    kMemfd,
    kTtyInfo,
    kTtyData,
    kFileLocks,
    kTcpStream,
    kSeccomp,
    kCgroup,
    kTimens,
    kUserns,
    kUtsns,
    kPidns,
    kIpcVar,
    kIpcShm,
    kIpcMsg,
    kIpcSem,
    kMountpoints,
    kAutofs,
    kBinfmtMisc,
    kTmpfsDev,
    kNetdev,
    kNetns,
    kIfaddr,
    kRoute,
    kRoute6,
    kRule,
    kIptables,
    kIp6tables,
    kNftables,
    kConntrack,
    kExpectations,
    kApparmor,
    kBpfmapData,
    kCpuinfo,
    kStatsDump,
    kStatsRestore,
    kIrmapCache,
    kTasks,  // checkpointd's own: what the format has no place for
};

// What stands before the first record.
enum class ImageHeader {
    kNone,     // raw bytes, nothing of ours
    kBare,     // the file's own magic only
    kCommon,   // the common magic, then the file's own
    kService,  // the service magic, then the file's own
};

// What follows the header.
enum class ImageShape {
    kOne,       // exactly one record
    kMany,      // any number of records of one message
    kHeadMany,  // one record of a head message, then many of another
    kPayload,   // records, some of which are followed by raw bytes whose number they tell
    kRaw,       // no records at all
};

struct ImageTypeInfo {
    ImageType type;
    std::string_view prefix;  // the name before the id: "core-"
    std::string_view suffix;  // and after it: ".img"
    int id_base;              // 0: the name has no id; else 10 or 16
    uint32_t magic;           // the file's own; 0 for raw files
    ImageHeader header;
    ImageShape shape;
};

inline constexpr uint32_t kCommonMagic = 0x54564319;
inline constexpr uint32_t kServiceMagic = 0x55105940;

// The table of all types, in the order of the enumeration.
std::span<const ImageTypeInfo> image_types();
const ImageTypeInfo& image_type(ImageType type);

// "core-12.img"; the id is ignored by types that have none.
std::string image_name(ImageType type, uint64_t id = 0);

struct ImageName {
    ImageType type;
    uint64_t id;  // 0 where the type has none
    bool operator==(const ImageName&) const = default;
};
// Which image a file name stands for; nothing for a name that is no image's, such as a log.
std::optional<ImageName> parse_image_name(std::string_view file_name);

}  // namespace checkpointd::images
