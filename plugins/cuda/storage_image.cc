// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/cuda/storage_image.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <endian.h>
#include <sys/stat.h>
#include <unistd.h>

#include "images/proto/cuda.pb.h"

namespace checkpointd::cuda {
namespace {

constexpr std::string_view kMagic = "CUCS";
constexpr size_t kPrefix = 8;
constexpr uint32_t kVersion = 1;

tl::unexpected<Error> damaged(const std::string& object, const char* what) {
    return fail(ErrorKind::kBadImage, object, fmt::format("cannot be read: {}", what), "take a new checkpoint");
}

// Regions lie behind the header, within the file, and each device has one.
const char* wrong_with(const images::cuda_cs_region& region, uint64_t file_size) {
    if (region.uuid().size() != sizeof(Uuid))
        return "a device has no UUID";
    if (region.offset() < kStorageHeader || region.offset() % kStorageHeader != 0)
        return "a region has no place that it could have";
    if (region.offset() > file_size || region.size() > file_size - region.offset())
        return "it is shorter than it says";
    return nullptr;
}

}  // namespace

std::string storage_image_name(pid_t own_pid) { return fmt::format("gpu-cs-{}.img", own_pid); }

void place_regions(std::vector<Region>& regions) {
    uint64_t offset = kStorageHeader;
    for (Region& region : regions) {
        region.offset = offset;
        offset += (region.size + kStorageHeader - 1) / kStorageHeader * kStorageHeader;
    }
}

std::string storage_header(const std::vector<Region>& regions) {
    images::cuda_cs_image image;
    image.set_version(kVersion);
    for (const Region& region : regions) {
        images::cuda_cs_region* out = image.add_regions();
        out->set_size(region.size);
        out->set_offset(region.offset);
        out->set_uuid(region.uuid.bytes, sizeof(region.uuid.bytes));
    }
    const std::string message = image.SerializeAsString();
    const uint32_t size = htole32(static_cast<uint32_t>(message.size()));
    std::string header(kMagic);
    header.append(reinterpret_cast<const char*>(&size), sizeof(size));
    header += message;
    header.resize(kStorageHeader);  // kMaxDevices regions take less than a half
    return header;
}

Result<std::vector<Region>> parse_storage_header(std::string_view header, uint64_t file_size, const std::string& object) {
    if (header.size() != kStorageHeader || !header.starts_with(kMagic))
        return damaged(object, "it is no image of device memory");
    uint32_t size = 0;
    std::memcpy(&size, header.data() + kMagic.size(), sizeof(size));
    size = le32toh(size);
    images::cuda_cs_image image;
    if (size > kStorageHeader - kPrefix || !image.ParseFromArray(header.data() + kPrefix, static_cast<int>(size)))
        return damaged(object, "its header is damaged");
    if ((image.has_version() && image.version() != kVersion) || image.regions_size() > static_cast<int>(kMaxDevices))
        return damaged(object, "it is of another version");
    std::vector<Region> regions;
    for (const images::cuda_cs_region& region : image.regions()) {
        if (const char* what = wrong_with(region, file_size))
            return damaged(object, what);
        Region out{{}, region.size(), region.offset()};
        std::memcpy(out.uuid.bytes, region.uuid().data(), sizeof(out.uuid.bytes));
        if (std::any_of(regions.begin(), regions.end(), [&](const Region& other) { return other.uuid == out.uuid; }))
            return damaged(object, "it has a device twice");
        regions.push_back(out);
    }
    return regions;
}

Result<std::vector<Region>> read_storage_header(int fd, const std::string& object) {
    struct stat about {};
    std::string header(kStorageHeader, 0);
    if (fstat(fd, &about) != 0)
        return fail_errno(object, "cannot be looked at");
    const ssize_t got = pread(fd, header.data(), header.size(), 0);
    if (got < 0)
        return fail_errno(object, "cannot be read");
    header.resize(static_cast<size_t>(got));
    return parse_storage_header(header, static_cast<uint64_t>(about.st_size), object);
}

}  // namespace checkpointd::cuda
