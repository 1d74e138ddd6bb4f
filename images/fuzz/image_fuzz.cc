// SPDX-License-Identifier: LGPL-2.1-or-later
//
// libFuzzer target: any bytes as any image file, as a manifest and as image info. The first byte says
// what it is. Built with clang only.
#include <cstdint>
#include <string>
#include <sys/mman.h>

#include "core/base/io.h"
#include "images/image_store.h"
#include "images/manifest.h"
#include "images/records.h"

using namespace checkpointd;
using namespace checkpointd::images;

namespace {

void walk(ImageType type, const std::string& bytes) {
    ScopedFd file(memfd_create("fuzz", MFD_CLOEXEC));
    if (!file || !write_all(file.get(), bytes.data(), bytes.size(), "fuzz"))
        return;
    auto reader = ImageReader::start(std::move(file), "fuzz", type);
    if (reader)
        (void)visit_records(*reader, type, [](const auto&, auto) -> Result<void> { return {}; });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size == 0)
        return 0;
    std::string rest(reinterpret_cast<const char*>(data) + 1, size - 1);
    if (data[0] < image_types().size())
        walk(static_cast<ImageType>(data[0]), rest);
    else if (data[0] == 254)
        (void)parse_manifest(rest, "fuzz");
    else if (data[0] == 255)
        (void)parse_image_info(rest, "fuzz");
    return 0;
}
